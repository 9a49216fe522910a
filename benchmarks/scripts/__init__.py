"""
Scripted policies with adjustable skill for robosuite's Lift, PickPlaceCan and NutAssemblySquare. They give demonstrations with
a known success rate.

The scripts act on the observations of ``make_robomimic``. Lower skill adds a systematic error, like that of a badly calibrated
camera, and trembling. (Random errors would not suffice: cloning averages them out, and the clone's deterministic actions
succeed nearly always.)

``python -m benchmarks.scripts`` measures success rates by skill.
"""

from benchmarks.scripts.can import CanScript
from benchmarks.scripts.lift import LiftScript
from benchmarks.scripts.script import Script
from benchmarks.scripts.square import SquareScript

MEDIOCRE = 0.5
"""Skill of demonstrations that leave something to learn; ``benchmarks/results/scripts`` contains their success rates."""

SCRIPTS: dict[str, type[Script]] = {script.task: script for script in (LiftScript, CanScript, SquareScript)}
"""Task -> script."""

__all__ = ["MEDIOCRE", "SCRIPTS", "CanScript", "LiftScript", "Script", "SquareScript"]
