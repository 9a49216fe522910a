"""Stable-Baselines3's PPO, built as small as the algorithms of this package: what is to be compared with."""

from typing import Any

from stable_baselines3 import PPO

#: The same numbers of steps and minibatches as the cheap arguments of ScoReFlowPPO
CHEAP: dict[str, Any] = dict(n_steps=16, batch_size=16, n_epochs=2, device="cpu", seed=0)


def make_ppo(env: Any, policy: str = "MlpPolicy", **kwargs: Any) -> Any:
    """
    :param env: environment
    :param policy: alias
    :param kwargs: replace the cheap arguments
    :return: the model; of no type, as those that the algorithms of this package make
    """
    return PPO(policy, env, **{**CHEAP, **kwargs})
