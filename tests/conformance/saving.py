"""Helpers of the tests of saving and loading: values that are not defaults, and comparison to the last bit."""

import inspect
import io
from typing import Any, get_args

import torch as th
from torch import nn

from sb3_scoreflow import CosineSchedule
from sb3_scoreflow.rldt import Transport

#: Values that differ from the defaults, where halving a number or adding one to it does not do.
OTHER_VALUES: dict[str, Any] = dict(
    single_step_fraction=0.25,
    learning_rate=CosineSchedule(1e-3, 1e-4, 0.1),
    noise_learning_rate=2e-4,
    critic_learning_rate=3e-4,
    n_steps=12,
    batch_size=6,
    clip_range=0.03,
    clip_range_vf=0.2,
    rollout_buffer_class=None,
    rollout_buffer_kwargs=None,
    target_kl=2.0,
    tensorboard_log=None,
    ent_coef=0.01,
    score_drift="constant",
    noise="constant",
    max_std=0.3,
    noise_scale=0.7,
    critic_warmup_iterations=1,
    bc_coef=0.1,
    deterministic_coef=0.2,
    averaging_horizon=500.0,
    validation_fraction=0.2,
    zero_noise_fraction=0.3,
    max_shift=0.7,
    log_prob_clip=1.5,
    policy_kwargs=dict(net_arch=[8], prior_std=0.7),
    seed=3,
    encoder_learning_rate=4e-4,
    tau=0.01,
    critic_steps=6,
    actor_steps=3,
    actor_batch_size=24,
    n_particles=5,
    td_lambda=0.5,
    target_clip=(-1.0, 2.0),
    reward_scale=0.5,
    critic_warmup_transitions=10,
    transport=Transport("delta", 0.5, 0.1, "none"),
    # of the policies
    net_arch=dict(pi=[8], vf=[9]),
    activation_fn=nn.Tanh,
    critic_activation_fn=nn.ELU,
    inference_steps=7,
    time_embedding_dim=6,
    observation_normalization="running",
    features_extractor_kwargs={},
    optimizer_class=th.optim.SGD,
    optimizer_kwargs=dict(momentum=0.5),
)


def other_value(parameter: inspect.Parameter) -> Any:
    """A valid value that is not the default."""
    if parameter.name in OTHER_VALUES:
        return OTHER_VALUES[parameter.name]
    default = parameter.default
    for choice in get_args(parameter.annotation):
        if isinstance(default, str) and choice != default:
            return choice
    assert isinstance(default, (bool, int, float)), f"give OTHER_VALUES a value for '{parameter.name}'"
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, int) else default / 2


def assert_same(a: Any, b: Any, name: str = "") -> None:
    """Equality down to the last bit, through nested dictionaries, lists and tensors."""
    assert type(a) is type(b), name
    if isinstance(a, th.Tensor):
        assert a.dtype == b.dtype and th.equal(a, b), name
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_same(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), name
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{name}[{i}]")
    elif type(a).__module__.startswith(("sb3_scoreflow", "stable_baselines3")) and hasattr(a, "__dict__"):
        assert_same(vars(a), vars(b), name)
    else:
        assert a == b, name


def saved(model: Any, **kwargs: Any) -> io.BytesIO:
    file = io.BytesIO()
    model.save(file, **kwargs)
    file.seek(0)
    return file


def saved_names(model: Any) -> set[str]:
    """Attributes with a state dict: modules, and the optimizers that they own."""
    modules = {name: value for name, value in vars(model).items() if isinstance(value, nn.Module)}
    owners = {"": model, **{f"{name}.": module for name, module in modules.items()}}
    optimizers = {
        f"{prefix}{name}"
        for prefix, owner in owners.items()
        for name, value in vars(owner).items()
        if isinstance(value, th.optim.Optimizer)
    }
    return set(modules) | optimizers
