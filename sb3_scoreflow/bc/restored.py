"""Restores the policy and the normalizer if cloning fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

from stable_baselines3.common.vec_env import VecNormalize

from sb3_scoreflow.common.policies import FlowMatchingPolicy


@contextmanager
def restored_on_error(policy: FlowMatchingPolicy, normalizer: VecNormalize | None) -> Iterator[None]:
    """
    :param policy: policy that the block changes
    :param normalizer: ``VecNormalize`` of its environment; None if there is none
    :return: context manager that restores both if the block raises an exception
    """
    before, was_training = {name: tensor.clone() for name, tensor in policy.state_dict().items()}, policy.training
    # With norm_obs=False, VecNormalize has no statistics of observations
    statistics = (
        {} if normalizer is None else {n: deepcopy(v) for n, v in vars(normalizer).items() if n in ("obs_rms", "ret_rms")}
    )
    try:
        yield
    except BaseException:
        policy.load_state_dict(before)
        for name, value in statistics.items():
            setattr(normalizer, name, value)
        raise
    finally:
        policy.set_training_mode(was_training)
