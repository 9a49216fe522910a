"""Valid values of the arguments that PPO-like algorithms share."""

from sb3_scoreflow.common.checks import SB3_RULES, Count, Flag, Number, OrNone, Rule, Schedule

#: Argument -> its valid values
PPO_RULES: dict[str, Rule] = {
    **{name: rule for name, rule in SB3_RULES.items() if name != "stats_window_size"},
    "learning_rate": Schedule(),
    "n_steps": Count(),
    "batch_size": Count(),
    "n_epochs": Count(),
    "gamma": Number(high=1),
    "gae_lambda": Number(high=1),
    "clip_range": Schedule(open_low=True),
    "clip_range_vf": OrNone(Schedule(open_low=True)),
    "normalize_advantage": Flag(),
    "vf_coef": Number(),
    "max_grad_norm": Number(open_low=True, bound=True),
    "target_kl": OrNone(Number(open_low=True, bound=True)),
    "critic_learning_rate": Schedule(),
    "denoising_steps": Count(),
    "critic_warmup_iterations": Count(0),
    "normalize_reward": Flag(),
    "bc_coef": Number(),
    "averaging_horizon": Schedule(),
}
