"""HDF5 files of other programs: the message says what they seem to be, and its advice works when it is followed."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, write_minari
from tests.demonstrations.following import ACTS, ENDS, OBS, PARTS, REWS, RNG, N, check, episodes, follow, hdf5, message_of
from tests.demonstrations.robomimic_files import numbered_demo, write_file

# HDF5 of other layouts


@pytest.mark.parametrize("nested", [False, True])
def test_maniskill(tmp_path: Path, nested: bool) -> None:
    arrays: dict[str, Any] = {}
    for i, e in enumerate(episodes()):
        obs = (
            {"obs__agent__qpos": e["observations"], "obs__extra__tcp": e["observations"] * 2}
            if nested
            else {"obs": e["observations"]}
        )
        entries = {"actions": e["actions"], "rewards": e["rewards"], "terminated": e["terminals"], "env_states__x": OBS[:21]}
        arrays |= {f"traj_{i}__{key}": value for key, value in {**obs, **entries}.items()}
    message = message_of(hdf5(tmp_path / "x.h5", **arrays))
    assert "It seems to be a file with a group per episode, as ManiSkill writes them:" in message
    d = follow(message)
    check(d)
    assert d.observation_shape == ({"agent_qpos": (3,), "extra_tcp": (3,)} if nested else (3,))


def test_groups_without_rewards_and_flags(tmp_path: Path) -> None:
    arrays = {
        f"traj_{i}__{key}": value
        for i, part in enumerate(PARTS)
        for key, value in {"obs__q": OBS[part], "actions": ACTS[part]}.items()
    }
    check(follow(message_of(hdf5(tmp_path / "x.h5", **arrays))), rewards=False, terminated=False)


@pytest.mark.parametrize("names", [("obs", "reward", "dones"), ("states", "rews", "done"), ("qpos", "rewards", "terminals")])
def test_groups_with_other_names(names: tuple[str, str, str], tmp_path: Path) -> None:
    obs, rews, ends = names
    arrays = {
        f"episode_{i}__{key}": value
        for i, e in enumerate(episodes())
        for key, value in {obs: e["observations"], "actions": e["actions"], rews: e["rewards"], ends: e["terminals"]}.items()
    }
    message = message_of(hdf5(tmp_path / "x.h5", **arrays))
    check(follow(message))
    assert ("'terminal': False instead, if episodes end by a time limit" in message) == ends.startswith("done")


def test_maniskill_without_observations(tmp_path: Path) -> None:
    message = message_of(hdf5(tmp_path / "x.h5", traj_0__actions=ACTS, traj_0__env_states__x=OBS))
    assert (
        "They have ['actions', 'env_states'], but no observations: record them again (ManiSkill: replay_trajectory" in message
    )


def test_aloha(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (N, 8, 8, 3), np.uint8)
    names = {"action": ACTS, "observations__qpos": OBS, "observations__images__top": images}
    message = message_of(hdf5(tmp_path / "episode_0.hdf5", **names))
    assert "It seems to be one episode in ALOHA's layout; make a list of those of all files:" in message
    d = follow(message)
    assert isinstance(d.observations, dict) and d.episode_lengths.tolist() == [N] and d.truncations[-1]
    np.testing.assert_array_equal(d.observations["qpos"], OBS)
    np.testing.assert_array_equal(d.observations["images_top"], images)


def test_d3rlpy(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"version": "5.0", "total_size": 2}
    for i, e in enumerate(episodes(last=False)):
        arrays |= {f"{key}_{i}": e[key] for key in ("observations", "actions")}
        arrays |= {f"rewards_{i}": e["rewards"][:, None], f"terminated_{i}": True}
    message = message_of(hdf5(tmp_path / "x.h5", **arrays))
    assert "It seems to be a data set of d3rlpy:" in message
    check(follow(message))


def test_robomimic_by_path(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.hdf5", {f"demo_{n}": numbered_demo(n, 5) for n in range(3)})
    message = message_of(path)
    assert f"It seems to be a file with robomimic's layout: load_demonstrations('robomimic:{path}')." in message
    assert follow(message).n_episodes == 3


@pytest.mark.parametrize("name", ["dones", "done", "is_last"])
def test_ambiguous_flags(tmp_path: Path, name: str) -> None:
    message = message_of(hdf5(tmp_path / "x.h5", observations=OBS, actions=ACTS, rewards=REWS, **{name: ENDS}))
    assert f"lacks ['terminals']; it has ['actions', '{name}', 'observations', 'rewards']" in message
    check(follow(message))
    assert message.endswith("# truncations= instead, if episodes end by a time limit")
    check(follow(message.replace("terminations=", "truncations=")), terminated=False)


def test_other_names(tmp_path: Path) -> None:
    message = message_of(hdf5(tmp_path / "x.h5", obs=OBS, acts=ACTS, rews=REWS, terminations=ENDS, truncations=ENDS * 0))
    check(follow(message))
    message = message_of(hdf5(tmp_path / "y.h5", a=OBS, b=ACTS))
    assert (
        "arrays under other names. It has ['a', 'b']. Pass arrays with one entry per transition: Demonstrations(obs" in message
    )
    d = follow(message_of(hdf5(tmp_path / "z.h5", state=OBS, action=ACTS)))
    assert d.episode_lengths.tolist() == [N] and d.truncations[-1]


# Minari


def minari_folder(root: Path, dataset_id: str) -> Path:
    write_minari(Demonstrations(OBS, ACTS, REWS, ENDS), dataset_id)
    return root / dataset_id


@pytest.mark.parametrize("dataset_id", ["plain-v0", "lab/pick/place-v2"])
def test_minari_folder(root: Path, dataset_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = minari_folder(root, dataset_id)
    messages = [message_of(folder), message_of(folder / "data" / "main_data.hdf5")]
    for message in messages:
        assert (
            f"load_demonstrations('minari:{dataset_id}'), with the environment variable MINARI_DATASETS_PATH set to" in message
        )
    monkeypatch.setenv("MINARI_DATASETS_PATH", re.findall("set to '(.*?)'", messages[0])[0])
    check(follow(messages[0]))
    check(follow(messages[1]))  # by its file


def test_minari_folder_whose_name_is_no_id(root: Path) -> None:
    folder = minari_folder(root, "plain-v0").rename(root / "copy")
    message = message_of(folder)
    path = folder / "data" / "main_data.hdf5"
    assert message.endswith(f"It seems to be a Minari dataset: load_demonstrations({str(path)!r}) says how to read it.")
    check(follow(message_of(path)))


def test_minari_file_with_dicts(root: Path) -> None:
    write_minari(Demonstrations({"q": OBS, "v": OBS * 2}, ACTS, REWS, ENDS), "dicts-v0")
    check(follow(message_of(root / "dicts-v0/data/main_data.hdf5")))
