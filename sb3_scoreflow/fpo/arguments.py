"""Valid values of the arguments of :class:`FPO`."""

from typing import get_args

from sb3_scoreflow.common.checks import Choice, Count, Flag, Number, Rule
from sb3_scoreflow.fpo.surrogate import Ratio, TrustRegion
from sb3_scoreflow.ppo.arguments import PPO_RULES

#: Argument -> its valid values
RULES: dict[str, Rule] = {
    **PPO_RULES,
    "n_mc_samples": Count(),
    "zero_noise_fraction": Number(high=1),
    "ratio": Choice(get_args(Ratio)),
    "trust_region": Choice(get_args(TrustRegion)),
    "loss_clip": Number(open_low=True, bound=True),
    "rollback": Flag(),
}
