"""
Scripted policies for robosuite's Lift, PickPlaceCan and NutAssemblySquare, as skilled as one likes: where demonstrations with
a known success rate come from.

They act on what ``make_robomimic`` observes. Less skill is a systematic error, as of a badly calibrated camera, and trembling.
(Errors drawn at random would not do: cloning averages them out, and the clone's deterministic actions succeed nearly always.)

``python -m benchmarks.scripts`` measures success rates by skill.
"""

from benchmarks.scripts.can import CanScript
from benchmarks.scripts.lift import LiftScript
from benchmarks.scripts.script import Script
from benchmarks.scripts.square import SquareScript

MEDIOCRE = 0.5
"""The skill of demonstrations that leave something to learn; ``benchmarks/results/scripts`` has their success rates."""

SCRIPTS: dict[str, type[Script]] = {script.task: script for script in (LiftScript, CanScript, SquareScript)}
"""By task."""

__all__ = ["MEDIOCRE", "SCRIPTS", "CanScript", "LiftScript", "Script", "SquareScript"]
