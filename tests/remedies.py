"""Does what error messages say: their remedies have to work as they are written."""

import ast
from typing import Any

import gymnasium
import numpy
import pytest

#: What a reader of a message has.
NAMES = {"gymnasium": gymnasium, "numpy": numpy}


def follow(error: pytest.ExceptionInfo, env: gymnasium.Env, **names: Any) -> gymnasium.Env:
    """
    :param error: whose message ends with ``env = ...``
    :param env: the environment that it was about
    :param names: what else its reader has, such as ``demonstrations``
    :return: the environment after that line
    """
    scope = {**NAMES, "env": env, **names}
    exec("env = " + str(error.value).split("env = ", 1)[1], scope)
    return scope["env"]


def proposed_net_arch(error: pytest.ExceptionInfo) -> Any:
    """
    :param error: error whose message contains ``net_arch={...}``; the last occurrence is the proposal
    :return: the proposed ``net_arch``
    """
    code = str(error.value).rsplit("net_arch=", 1)[1]
    return ast.literal_eval(code[: code.rindex("}") + 1])
