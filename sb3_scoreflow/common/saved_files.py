"""Facts about a saved model that are available without loading it."""

import json
import zipfile
from typing import Any

from stable_baselines3.common.save_util import open_path

from sb3_scoreflow.common.files import as_path, is_path
from sb3_scoreflow.common.utils import ArgumentError

#: Package of the policy -> algorithm, for files of 0.1.0, which do not contain the algorithm's name
_OF_0_1_0 = {"rldt": "RLDT", "scoreflow_ppo": "ScoReFlowPPO"}


def saved_data(path: Any) -> dict[str, Any]:
    """
    The readable part of a saved model: numbers, strings and descriptions of other values. Nothing is unpickled.

    :param path: path of the file (".zip" is added as in Stable-Baselines3), or a file object
    :return: attribute -> value; empty if the file is not a saved model
    """
    try:
        path = as_path(path) if is_path(path) else path
        file = open_path(path, "r", suffix="zip")
        with zipfile.ZipFile(file) as archive:
            data = json.loads(archive.read("data"))
        if file is not path:
            file.close()
    except (OSError, ValueError, KeyError, RecursionError, zipfile.BadZipFile):
        return {}
    return data if isinstance(data, dict) else {}


def written_by(path: Any) -> str | None:
    """
    :param path: path of a saved model, or a file object
    :return: name of the algorithm that wrote it; None if it cannot be determined
    """
    data = saved_data(path)
    if isinstance(data.get("algorithm"), str):
        return str(data["algorithm"])
    policy = data.get("policy_class")
    package, *rooms = str(policy.get("__module__") if isinstance(policy, dict) else None).split(".")
    if package == "sb3_scoreflow":
        return _OF_0_1_0.get(rooms[0])
    if package not in ("stable_baselines3", "sb3_contrib") or not rooms:
        return None
    if rooms[0] != "common":
        return "TD3 or DDPG" if rooms[0] == "td3" else rooms[0].upper()
    if package == "sb3_contrib":
        return {"recurrent": "RecurrentPPO", "maskable": "MaskablePPO"}.get(rooms[1])
    return "PPO" if "clip_range" in data else "TRPO" if "cg_max_steps" in data else "A2C"  # their policy is the same


def cloning_of(source: Any) -> dict[str, Any] | None:
    """
    :param source: a model, a policy, or the path of a saved model or policy
    :return: facts about the cloning in a model or its file; None without such facts, as in policies
    """
    facts = saved_data(source).get("cloning") if is_path(source) else getattr(source, "cloning", None)
    return facts if isinstance(facts, dict) else None


class WrongPolicyError(ArgumentError):
    """A policy that the algorithm cannot train."""


def foreign_file_error(path: Any, writer: str | None, algorithm: str) -> ValueError:
    """
    :param path: path of a saved model
    :param writer: name of the algorithm that wrote the file; None if it is unknown
    :param algorithm: name of the algorithm that cannot read the file
    :return: an error with a remedy
    """
    file = as_path(path) if is_path(path) else "The file"
    if writer is None:
        return ValueError(f"{file} was not written by {algorithm}: load it with the algorithm that wrote it.")
    if "algorithm" in saved_data(path) or writer in _OF_0_1_0.values():  # only this package writes such files
        remedy = f"to continue with its policy, call load_clone(path) on a new {algorithm} model"
    else:
        remedy = "to continue with its policy, collect_demonstrations() with the loaded model, and pretrain_bc() on them"
    return ValueError(f"{file} was written by {writer}, not by {algorithm}: load it with {writer}.load(path); {remedy}.")
