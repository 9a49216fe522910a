"""docs/coming_from_ppo.md: what our classes lack or do otherwise, found by looking at both, stands in its table."""

import inspect
import re
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from torch import nn

from sb3_scoreflow import ALGORITHMS
from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import make_toy
from tests.conformance.ppo import make_ppo
from tests.conformance.test_logging import logged

DOCS = Path(__file__).parents[2] / "docs"


def table() -> list[list[str]]:
    """Rows of the table, its head first."""
    lines = [line for line in (DOCS / "coming_from_ppo.md").read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in rows} == {3 + len(ALGORITHMS)}
    return [rows[0], *rows[2:]]


def named(algorithm: Algorithm) -> set[str]:
    """Names in code style in the rows that say what an algorithm does otherwise."""
    column = table()[0].index(str(algorithm))
    return {name for row in table()[1:] for cell in (row[0], row[column]) for name in re.findall(r"`([^`]*)`", cell)}


#: What is done otherwise follows from another row.
WITHOUT_REASON = {"`policy.extract_features(obs)`", "`_n_updates`, `train/n_updates`"}


def test_rows_differ_and_give_reasons() -> None:
    rows = table()[1:]
    assert len(rows) == len({row[0] for row in rows}) and len(rows) > 25
    assert [row[0] for row in rows if not row[-1]] == [row[0] for row in rows if row[0] in WITHOUT_REASON]
    assert "coming_from_ppo\n" in (DOCS / "index.md").read_text()


def test_missing_arguments_are_in_the_table(algorithm: Algorithm) -> None:
    ours, theirs = (inspect.signature(cls).parameters for cls in (algorithm.cls, PPO))
    other_default = {name for name in theirs if name in ours and ours[name].default != theirs[name].default}
    assert (theirs.keys() - ours.keys()) | other_default <= named(algorithm)


def test_missing_policy_arguments_are_in_the_table(algorithm: Algorithm) -> None:
    ours, theirs = (inspect.signature(cls.policy_aliases["MlpPolicy"]).parameters for cls in (algorithm.cls, PPO))
    other_default = {name for name in ("activation_fn", "share_features_extractor") if name in ours}
    assert all(ours[name].default != theirs[name].default for name in other_default)
    assert (theirs.keys() - ours.keys()) | other_default <= named(algorithm)


def public(policy: nn.Module) -> set[str]:
    """Attributes and methods of a policy that users may know."""
    inherited = {*dir(nn.Module()), *vars(policy)}
    return {name for name in {*dir(policy)} if not name.startswith("_") and name not in inherited} | {*policy._modules}


def test_missing_parts_of_the_policy_are_in_the_table(algorithm: Algorithm) -> None:
    ours, theirs = (model.policy for model in (algorithm.make("MlpPolicy", make_toy()), make_ppo(make_toy())))
    missing = {name for name in public(theirs) if not hasattr(ours, name)} | ({"log_std", "action_dist"} - {*dir(ours)})
    assert missing >= {"mlp_extractor", "action_net", "pi_features_extractor", "reset_noise"}
    assert missing <= named(algorithm)


def test_missing_parts_of_the_buffer_are_in_the_table(algorithm: Algorithm) -> None:
    ours, theirs = (m.learn(32).rollout_buffer for m in (algorithm.make("MlpPolicy", make_toy()), make_ppo(make_toy())))
    missing = {name for name in vars(theirs) if not hasattr(ours, name)}
    assert missing == (
        set() if algorithm.capabilities.ratio else {"values", "returns", "advantages", "log_probs", "episode_starts"}
    )
    assert missing <= named(algorithm)


def test_missing_keys_of_the_log_are_in_the_table(algorithm: Algorithm, tmp_path: Any) -> None:
    models: dict[str, Any] = dict(ours=algorithm.make("MlpPolicy", make_toy()), theirs=make_ppo(make_toy()))
    ours, theirs = (logged(models[name], tmp_path / name, 64)[-1].keys() for name in ("ours", "theirs"))
    missing = theirs - ours
    assert missing <= named(algorithm)
    # ... and nothing is said to be missing that is there.
    row = next(row for row in table() if row[0] == "Logged keys")[table()[0].index(str(algorithm))]
    assert set(re.findall(r"`(train/[a-z_]*)`", row)) == missing


def test_arguments_to_be_used_instead_exist() -> None:
    there = {name for cls in ALGORITHMS.values() for name in inspect.signature(cls).parameters}
    instead = {"min_std", "max_std", "critic_steps", "actor_steps", "td_lambda", "noise_learning_rate"}
    text = (DOCS / "coming_from_ppo.md").read_text()
    assert instead <= there and all(f"`{name}`" in text for name in instead)
