"""Arguments of PPO's policy that do not apply to flow policies: they raise an error that names an alternative."""

import inspect
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.policies import BasePolicy

_NO_GAUSSIAN = "it belongs to PPO's Gaussian policy. Leave it out"
_SPREAD = ("min_std", "max_std", "exploration_scale", "prior_std")

#: Argument of PPO's policy -> reason and alternative
INSTEAD = {
    "log_std_init": f"{_NO_GAUSSIAN}; how far the policy explores is set by {{spread}}",
    "full_std": f"{_NO_GAUSSIAN}; a flow policy has no gSDE",
    "use_expln": f"{_NO_GAUSSIAN}; a flow policy has no gSDE",
    "ortho_init": "initial weights are those of the flow. Leave it out",
    "squash_output": "a flow policy's actions are always within the bounds. Leave it out",
    "share_features_extractor": "the critics have a separate extractor, which starts from the clone's. Leave it out; "
    "encoder_learning_rate=0 freezes it",
}


def spread_arguments(policy_class: type[BasePolicy]) -> str:
    """
    :param policy_class: policy class of a flow policy
    :return: the arguments of the policy that determine how far it explores, for a message
    """
    taken = {name for base in policy_class.__mro__[:-1] for name in inspect.signature(base).parameters}
    return " and ".join(name for name in _SPREAD if name in taken)


def check_policy_kwargs(policy_class: type[BasePolicy], policy_kwargs: Mapping[str, Any]) -> None:
    """
    :param policy_class: policy class of the policy to be built
    :param policy_kwargs: keyword arguments passed by the user
    :raises TypeError: if the policy does not have an argument, as in PPO; the message names the alternative
    """
    parameters = inspect.signature(policy_class).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in [name for name in policy_kwargs if name not in parameters]:
        given = {"observation_space", "action_space", "lr_schedule", "use_sde"}
        taken = f"{policy_class.__name__} takes {', '.join(sorted(parameters.keys() - given))}"
        instead = INSTEAD.get(name, taken).format(spread=spread_arguments(policy_class))
        raise TypeError(f"policy_kwargs has an unexpected keyword argument {name!r}: {instead}.")
