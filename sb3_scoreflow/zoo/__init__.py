"""
rl_zoo3 with the algorithms of this package: ``python -m sb3_scoreflow.zoo train --algo scoreflow_ppo --env Hopper-v5``.

The verbs are the zoo's own programs; see docs/zoo.md.
"""

from sb3_scoreflow.zoo.registration import register
from sb3_scoreflow.zoo.verbs import VERBS, main

__all__ = ["VERBS", "main", "register"]
