"""Figures in TensorBoard during training."""

from collections.abc import Callable, Mapping
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure

from sb3_scoreflow.common.utils import ArgumentError


class FigureCallback(BaseCallback):
    """
    Sends figures to TensorBoard at regular intervals::

        obs = eval_env.reset()[0]
        FigureCallback({"trajectories": lambda model: plot_trajectories(model, obs)}, every=10)

    Figures are recorded at the end of a rollout, and written with the next log.

    :param figures: name -> function of the model that draws, and returns axes, an array of axes, or a figure
    :param every: number of rollouts between figures, at least 1; the first rollout has figures
    :param verbose: verbosity of Stable-Baselines3's callback
    :raises ArgumentError: if ``every`` is invalid
    """

    def __init__(self, figures: Mapping[str, Callable[[BaseAlgorithm], Any]], every: int = 10, verbose: int = 0) -> None:
        super().__init__(verbose)
        if every < 1:
            raise ArgumentError(f"every must be at least 1 rollout, got {every!r}: pass 10.")
        self.figures, self.every = dict(figures), every
        self.n_rollouts = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.n_rollouts % self.every == 0:
            for name, draw in self.figures.items():
                drawn = draw(self.model)
                axes = getattr(drawn, "flat", [drawn])[0]
                figure = Figure(getattr(axes, "figure", axes), close=True)
                self.logger.record(f"figures/{name}", figure, exclude=("stdout", "log", "json", "csv"))
        self.n_rollouts += 1
