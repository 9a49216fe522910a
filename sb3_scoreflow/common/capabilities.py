"""What an algorithm can do, declared by its class: tests, examples and tables choose by it, not by names."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Capabilities:
    """
    :param ratio: it updates by PPO's ratio, which is 1 before the first gradient step, and stores values and advantages
    :param likelihoods: its records of actions have a log-density, which ``policy.evaluate_actions`` gives
    :param value_function: it has a critic of states, which can be fitted to demonstrations
    :param q_function: it has critics of states and actions
    :param replay: it learns from the rollouts of earlier iterations, too
    :param from_scratch: its defaults train a policy that was not cloned
    """

    ratio: bool = False
    likelihoods: bool = False
    value_function: bool = False
    q_function: bool = False
    replay: bool = False
    from_scratch: bool = True
