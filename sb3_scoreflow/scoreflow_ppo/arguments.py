"""Valid values of the arguments of :class:`ScoReFlowPPO`."""

from typing import get_args

from sb3_scoreflow.common.checks import Choice, Number, OrNone, Rule, Schedule
from sb3_scoreflow.ppo.arguments import PPO_RULES
from sb3_scoreflow.scoreflow_ppo.policies import Noise, ScoreDrift

#: Argument -> its valid values
RULES: dict[str, Rule] = {
    **PPO_RULES,
    "ent_coef": Number(),
    "noise_learning_rate": Schedule(),
    "score_drift": Choice(get_args(ScoreDrift)),
    "noise": Choice(get_args(Noise)),
    "single_step_fraction": Number(high=1),
    "min_std": Number(open_low=True),
    "max_std": Schedule(open_low=True),
    "noise_scale": Number(open_low=True),
    "deterministic_coef": Number(),
    "validation_fraction": Number(high=0.5),
    "log_prob_clip": OrNone(Number(open_low=True, bound=True)),
}
