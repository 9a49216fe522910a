"""Valid values of the arguments of :class:`RLDT`."""

from sb3_scoreflow.common.checks import SB3_RULES, Choice, Count, Either, Flag, Interval, Number, OrNone, Rule, Schedule
from sb3_scoreflow.rldt.transport import TransportRule

#: Argument -> its valid values
RULES: dict[str, Rule] = {
    **{name: rule for name, rule in SB3_RULES.items() if name != "stats_window_size"},
    "learning_rate": Schedule(),
    "n_steps": Count(),
    "batch_size": Count(),
    "gamma": Number(high=1),
    "critic_learning_rate": Schedule(),
    "encoder_learning_rate": OrNone(Schedule()),
    "critic_steps": Count(),
    "n_refreshes": Count(),
    "refresh_size": Count(),
    "tau": Number(high=1, open_low=True),
    "td_lambda": Number(high=1),
    "target_clip": OrNone(Interval()),
    "reward_scale": Either(Choice(("ema",)), Number(open_low=True)),
    "random_shift": Count(0),
    "critic_warmup_transitions": Count(0),
    "actor_steps": Count(0),
    "actor_batch_size": Count(),
    "n_particles": Count(),
    "transport": TransportRule(),
    "consistency_coef": Number(),
    "fisher_coef": Number(),
    "max_shift": Number(open_low=True, bound=True),
    "averaging_horizon": Schedule(),
    "rollback": Flag(),
    "learning_rate_warmup_steps": Count(0),
    "denoising_steps": Count(),
    "max_grad_norm": Number(open_low=True, bound=True),
}
