"""
Pictures of runs and policies (extra ``plotting``).

Every function draws into the given ``ax``, or into a new figure, and returns the axes. The functions do not import pyplot or
switch matplotlib's backend: users decide how to show or save figures (``ax.figure.savefig("curve.png")``).
"""

from sb3_scoreflow.plotting.callback import FigureCallback
from sb3_scoreflow.plotting.chains import plot_action_density, plot_trajectories, sample_chains
from sb3_scoreflow.plotting.curves import Curve, plot_curves, read_evaluations, read_monitor, read_progress
from sb3_scoreflow.plotting.landscape import plot_q_landscape
from sb3_scoreflow.plotting.steps import plot_by_depth, plot_logged, plot_noise, plot_score_coefficient, read_logged

__all__ = [
    "Curve",
    "FigureCallback",
    "plot_action_density",
    "plot_by_depth",
    "plot_curves",
    "plot_logged",
    "plot_noise",
    "plot_q_landscape",
    "plot_score_coefficient",
    "plot_trajectories",
    "read_evaluations",
    "read_logged",
    "read_monitor",
    "read_progress",
    "sample_chains",
]
