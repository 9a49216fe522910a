"""Capabilities that an algorithm's class declares; tests, examples and tables select algorithms by them, not by names."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Capabilities:
    """
    :param ratio: whether it has a ratio like PPO's, which is 1 before the first gradient step, and stores values and
        advantages
    :param likelihoods: whether its records of actions have a log-density, which ``policy.evaluate_actions`` returns
    :param value_function: whether it has a critic of states, which can be fitted to demonstrations
    :param q_function: whether it has critics of states and actions
    :param replay: whether it also learns from rollouts of earlier iterations
    :param from_scratch: whether its defaults can train a policy that was not cloned
    """

    ratio: bool = False
    likelihoods: bool = False
    value_function: bool = False
    q_function: bool = False
    replay: bool = False
    from_scratch: bool = True
