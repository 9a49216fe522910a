import hashlib
import io
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, d4rl, load_demonstrations, normalized_score
from sb3_scoreflow.demonstrations.d4rl_checksums import CHECKSUMS, MAX_BYTES, Checksum
from tests.demonstrations.file_server import FileServer

HOPPER = "/gym_mujoco_v2/hopper_medium-v2.hdf5"


def arrays_like(n: int = 2500, n_observations: int = 11, n_actions: int = 3, **changes: Any) -> dict[str, Any]:
    """What a v2 file of locomotion holds: episodes of 400, 1000 (cut off) and 1000 transitions, then a partial one."""
    rng = np.random.default_rng(0)
    terminals, timeouts = np.zeros(n, bool), np.zeros(n, bool)
    terminals[399] = timeouts[1399] = timeouts[2399] = True
    arrays: dict[str, Any] = {
        "observations": rng.normal(size=(n, n_observations)).astype(np.float32),
        "next_observations": rng.normal(size=(n, n_observations)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, n_actions)).astype(np.float32),
        "rewards": np.ones(n, np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
        "infos/qpos": np.zeros((n, 6)),
        "infos/qvel": np.zeros((n, 6)),
        "infos/action_log_probs": np.zeros(n),
        "metadata/algorithm": np.bytes_(b"SAC"),
        "metadata/iteration": np.int64(600),
        "metadata/policy/fc0/weight": np.zeros((256, 11), np.float32),
        "metadata/policy/nonlinearity": np.bytes_(b"relu"),
    }
    arrays.update(changes)
    return {key: value for key, value in arrays.items() if value is not None}


def as_bytes(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, value in arrays.items():
            file.create_dataset(name, data=value, compression="gzip" if np.ndim(value) else None)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("sb3_scoreflow.demonstrations.download._PAUSE", 0.0)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("D4RL_DATASET_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(d4rl, "CHECKSUMS", {})  # the server of the tests has other files
    return tmp_path / "data"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with FileServer({HOPPER: as_bytes(arrays_like())}) as running:
        monkeypatch.setenv("D4RL_DATASET_URL", running.url)
        yield running


def store(directory: Path, name: str, **changes: Any) -> Path:
    """Put a file where the source expects it."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_bytes(as_bytes(arrays_like(**changes)))
    return path


@pytest.mark.filterwarnings("ignore:Dropped")
def test_download_and_cache(server: FileServer, directory: Path) -> None:
    d = load_demonstrations("d4rl:hopper-medium-v2", progress_bar=False)
    np.testing.assert_array_equal(d.episode_lengths, [400, 1000, 1000])
    np.testing.assert_array_equal(np.flatnonzero(d.terminations), [399])
    np.testing.assert_array_equal(np.flatnonzero(d.truncations), [1399, 2399])
    np.testing.assert_array_equal(d.observations, arrays_like()["observations"][:2400])
    np.testing.assert_array_equal(d.actions, arrays_like()["actions"][:2400])
    np.testing.assert_array_equal(d.episode_returns, [400, 1000, 1000])
    assert d.metadata == {"source": "d4rl:hopper-medium-v2", "env": "Hopper-v4"}
    # The name that D4RL's own package gives it
    assert [path.name for path in directory.iterdir()] == ["hopper_medium-v2.hdf5"]
    assert [r.path for r in server.requests] == [HOPPER]
    again = load_demonstrations("d4rl:hopper-medium-v2", n_episodes=1)
    assert again.n_episodes == 1 and len(server.requests) == 1
    text = d.describe()
    for line in ("source", "d4rl:hopper-medium-v2", "episodes", "2,400", "800.0 +/- 282.8", "(11,) float32; values"):
        assert line in text


def test_the_partial_episode_is_reported_once(server: FileServer) -> None:
    with pytest.warns(UserWarning, match="Dropped 100 transitions") as caught:
        load_demonstrations("d4rl:hopper-medium-v2", progress_bar=False)
    assert len(caught) == 1


@pytest.mark.filterwarnings("ignore:Dropped")
def test_where_files_are(server: FileServer, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_demonstrations("d4rl:hopper-medium-v2", directory=tmp_path / "given", progress_bar=False)
    assert (tmp_path / "given" / "hopper_medium-v2.hdf5").exists() and not directory.exists()
    monkeypatch.delenv("D4RL_DATASET_DIR")
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    load_demonstrations("d4rl:hopper-medium-v2", progress_bar=False)
    assert (tmp_path / "home/.d4rl/datasets/hopper_medium-v2.hdf5").exists()
    # A keyword goes before the environment, slashes at the end do not matter
    monkeypatch.setenv("D4RL_DATASET_URL", "http://127.0.0.1:9")
    load_demonstrations("d4rl:hopper-medium-v2", directory=tmp_path / "b", base_url=server.url + "//", progress_bar=False)
    assert [r.path for r in server.requests] == [HOPPER] * 3


def test_default_server(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = []

    def download(url: str, path: Path, **kwargs: Any) -> None:
        urls.append(url)
        store(directory, path.name, n=2400)

    monkeypatch.delenv("D4RL_DATASET_URL")
    monkeypatch.setattr(d4rl, "download", download)
    load_demonstrations("d4rl:kitchen-partial-v0")
    assert urls == ["http://rail.eecs.berkeley.edu/datasets/offline_rl/kitchen/kitchen_microwave_kettle_light_slider-v0.hdf5"]


def test_names() -> None:
    names = d4rl.DATASETS
    assert len(names) == 4 * (5 + 6 + 6) + 3 + 4 * (3 + 3) + 6 + 6
    # Files are stored without their folder, so no two may have the same name
    assert len({file.rpartition("/")[2] for file in names.values()}) == len(names)
    expected = {
        "hopper-medium-v2": "gym_mujoco_v2/hopper_medium-v2.hdf5",
        "walker2d-medium-expert-v2": "gym_mujoco_v2/walker2d_medium_expert-v2.hdf5",
        "ant-full-replay-v1": "gym_mujoco_v1/ant_full_replay-v1.hdf5",
        "halfcheetah-random-v0": "gym_mujoco/halfcheetah_random.hdf5",
        "hopper-medium-expert-v0": "gym_mujoco/hopper_medium_expert.hdf5",
        "hopper-medium-replay-v0": "gym_mujoco/hopper_mixed.hdf5",
        "walker2d-medium-replay-v0": "gym_mujoco/walker_mixed.hdf5",
        "kitchen-complete-v0": "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5",
        "kitchen-mixed-v0": "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5",
        "pen-human-v1": "hand_dapg_v1/pen-human-v1.hdf5",
        "door-human-v0": "hand_dapg/door-v0_demos_clipped.hdf5",
        "hammer-cloned-v0": "hand_dapg/hammer-demos-v0-bc-combined.hdf5",
        "relocate-expert-v0": "hand_dapg/relocate-v0_expert_clipped.hdf5",
        "antmaze-umaze-v2": "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5",
        "antmaze-umaze-diverse-v2": "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
        "antmaze-medium-play-v2": "ant_maze_v2/Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5",
        "antmaze-large-diverse-v2": "ant_maze_v2/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
        "maze2d-umaze-v1": "maze2d/maze2d-umaze-sparse-v1.hdf5",
        "maze2d-large-dense-v1": "maze2d/maze2d-large-dense-v1.hdf5",
    }
    assert expected.items() <= names.items()
    assert "hopper-full-replay-v0" not in names


@pytest.mark.parametrize("name", sorted(d4rl.DATASETS))
def test_every_name_loads(directory: Path, name: str) -> None:
    store(directory, d4rl.DATASETS[name].rpartition("/")[2], n=2400)
    d = load_demonstrations(f"d4rl:{name}")
    assert d.n_episodes == (2 if name.startswith("antmaze") else 3) and d.metadata["source"] == f"d4rl:{name}"
    assert np.isfinite(normalized_score(name, d.episode_returns)).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "hoper-medium-v2",
            r"no D4RL data set named 'hoper-medium-v2'\. Did you mean 'hopper-medium-v2' or .*\? Known names: {hopper",
        ),
        ("Hopper-Medium-v2", "Did you mean 'hopper-medium-v2'"),
        ("kitchen-complete-v1", "Did you mean 'kitchen-complete-v0'"),
        ("antmaze-umaze-v0", "Did you mean 'antmaze-umaze-v2'"),
        ("zebra", r"no D4RL data set named 'zebra'\. Known names: {hopper, walker2d, .*kitchen-{complete, .*{pen, hammer"),
        ("", r"named ''\. Known names"),
        ("../../etc/passwd", "no D4RL data set named"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_demonstrations(f"d4rl:{spec}")


@pytest.mark.filterwarnings("ignore:Dropped")
def test_broken_download_is_resumed(server: FileServer, directory: Path) -> None:
    size = len(server.files[HOPPER])
    server.cut = [size // 4, size // 4, size // 4]
    with pytest.raises(ConnectionError, match=r"bytes are kept in .*hopper_medium-v2\.hdf5\.part: the next call"):
        load_demonstrations("d4rl:hopper-medium-v2", progress_bar=False)
    assert not (directory / "hopper_medium-v2.hdf5").exists()
    server.requests.clear()
    assert load_demonstrations("d4rl:hopper-medium-v2", progress_bar=False).n_episodes == 3
    assert [r.range for r in server.requests] == [f"bytes={3 * (size // 4)}-"]
    assert (directory / "hopper_medium-v2.hdf5").read_bytes() == server.files[HOPPER]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>Please log in</html>", r"cannot be read: .* not HDF5"),
        (b"", r"is empty \(0 bytes\)"),
        (as_bytes(arrays_like())[:5000], "cannot be read: .*truncated"),
        (as_bytes(arrays_like(actions=None)), r"lacks \['actions'\]"),
        (as_bytes(arrays_like(rewards=np.full(2500, np.nan))), "`rewards` has 2500 value"),
    ],
)
def test_bad_downloads_are_not_stored(server: FileServer, directory: Path, content: bytes, reason: str) -> None:
    server.files[HOPPER] = content
    message = rf"(?s){server.url}{HOPPER} did not send a valid D4RL file, .*{reason}.*D4RL_DATASET_DIR"
    with pytest.raises(OSError, match=message):
        load_demonstrations("d4rl:hopper-medium-v2", progress_bar=False)
    assert list(directory.iterdir()) == []


def test_no_network(directory: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionError) as error:
            load_demonstrations("d4rl:hopper-medium-v2", base_url=url)
    path = directory / "hopper_medium-v2.hdf5"
    for part in (url + HOPPER, f"put it at {path}", "`directory` or $D4RL_DATASET_DIR", "`base_url` or $D4RL_DATASET_URL"):
        assert part in str(error.value)
    assert list(directory.iterdir()) == []


def test_not_on_the_server(server: FileServer) -> None:
    with pytest.raises(
        ConnectionError, match=r"gym_mujoco_v2/ant_expert-v2\.hdf5 could not be .*the server answered 404 Not Found"
    ):
        load_demonstrations("d4rl:ant-expert-v2", progress_bar=False)


def test_directory_that_cannot_be_written(server: FileServer, directory: Path) -> None:
    directory.touch()
    with pytest.raises(OSError, match=rf"folder {directory}, for .* cannot be written: .* `directory` or \$D4RL_DATASET_DIR"):
        load_demonstrations("d4rl:hopper-medium-v2")


@pytest.mark.parametrize("content", [b"", b"Not Found", as_bytes(arrays_like())[:-1000]])
def test_a_bad_file_in_the_directory(directory: Path, content: bytes) -> None:
    path = store(directory, "hopper_medium-v2.hdf5")
    path.write_bytes(content)
    with pytest.raises(
        OSError, match=rf"{path}.* It is the file of 'd4rl:hopper-medium-v2': delete it, and the next call downloads"
    ):
        load_demonstrations("d4rl:hopper-medium-v2")
    assert path.read_bytes() == content


@pytest.mark.parametrize("url", ["ftp://example.org", "/data/d4rl", "file:///data"])
def test_bad_url(url: str) -> None:
    with pytest.raises(
        ValueError, match=rf"`base_url` \(or \$D4RL_DATASET_URL\) must begin with http.*, got '{url}'.*`directory`"
    ):
        load_demonstrations("d4rl:hopper-medium-v2", base_url=url)


def test_without_h5py_nothing_is_downloaded(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'pip install "sb3-scoreflow\[demonstrations\]"'):
        load_demonstrations("d4rl:hopper-medium-v2")
    assert server.requests == []


def test_step_limit_of_the_task_stands_in_for_timeouts(directory: Path) -> None:
    store(directory, "hopper_medium-v2.hdf5", n=2400, timeouts=None)
    d = load_demonstrations("d4rl:hopper-medium-v2")
    np.testing.assert_array_equal(d.episode_lengths, [400, 1000, 1000])
    np.testing.assert_array_equal(np.flatnonzero(d.truncations), [1399, 2399])
    d = load_demonstrations("d4rl:hopper-medium-v2", max_episode_steps=500)
    np.testing.assert_array_equal(d.episode_lengths, [400] + 4 * [500])
    store(directory, "pen-human-v1.hdf5", n=2400, timeouts=None)
    assert load_demonstrations("d4rl:pen-human-v1").episode_lengths.max() == 100


def test_kitchen(directory: Path) -> None:
    # Flags as float32, `infos` as a vector, demonstrations that end by termination
    n = 300
    terminals = np.zeros(n, np.float32)
    terminals[[183, 299]] = 1
    arrays = {key: None for key in arrays_like() if key.startswith(("infos", "metadata", "next"))}
    store(
        directory,
        "kitchen_microwave_kettle_bottomburner_light-v0.hdf5",
        n=2400,
        **arrays,
        observations=np.arange(n * 60, dtype=np.float32).reshape(n, 60),
        actions=np.zeros((n, 9), np.float32),
        rewards=np.ones(n, np.float32),
        terminals=terminals,
        timeouts=np.zeros(n, np.float32),
        infos=np.zeros(n, int),
    )
    d = load_demonstrations("d4rl:kitchen-mixed-v0")
    assert d.observation_shape == (60,) and d.action_shape == (9,)
    np.testing.assert_array_equal(d.episode_lengths, [184, 116])
    assert d.metadata["env"] == "FrankaKitchen-v1"
    assert d.metadata["remove_task_when_completed"] is False  # unlike the env's default


def test_antmaze(directory: Path, tmp_path: Path) -> None:
    """`terminals` are 1 in every step near the goal, and the episodes go on until `timeouts`."""
    n_episodes, length, rng = 20, 701, np.random.default_rng(0)
    goals = rng.integers(300, 500, n_episodes)
    step = np.tile(np.arange(length), n_episodes)
    at_goal = ((step >= np.repeat(goals, length)) & (step % 50 > 5)).astype(np.float32)  # it leaves, and comes back
    n = n_episodes * length
    path = store(
        directory,
        "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5",
        n=n + 374,
        observations=np.arange((n + 374) * 29, dtype=np.float32).reshape(-1, 29),
        actions=rng.uniform(-1, 1, (n + 374, 8)),
        rewards=np.append(at_goal, np.zeros(374)),
        terminals=np.append(at_goal, np.zeros(374)),
        timeouts=np.append(step == length - 1, np.zeros(374)),
    )
    with pytest.warns(UserWarning) as caught:
        d = load_demonstrations("d4rl:antmaze-umaze-v2")
    assert [str(w.message) for w in caught] == ["Dropped 374 transitions after the last episode end."]
    np.testing.assert_array_equal(d.episode_lengths, np.full(n_episodes, length))
    np.testing.assert_array_equal(d.episode_returns, at_goal.reshape(n_episodes, length).sum(1))
    assert not d.terminations.any() and d.truncations.sum() == n_episodes
    assert d.metadata == {"source": "d4rl:antmaze-umaze-v2", "terminate_on_success": False}

    # D4RL's env ends at the goal
    first = at_goal.reshape(n_episodes, length).argmax(1)
    ended = d.end_at_success()
    np.testing.assert_array_equal(ended.episode_lengths, first + 1)
    np.testing.assert_array_equal(ended.episode_returns, np.ones(n_episodes))
    np.testing.assert_array_equal(normalized_score("antmaze-umaze-v2", ended.episode_returns), np.full(n_episodes, 100.0))
    assert ended.terminations.sum() == n_episodes and not ended.truncations.any()
    assert ended.metadata["terminate_on_success"] is True and ended.metadata["n_transitions_cut"] == n - (first + 1).sum()

    # By its path: a warning, with a remedy
    with pytest.warns(UserWarning, match=r"`terminations` \(set on .*ends=\"timeouts\"") as caught:
        load_demonstrations(path)
    assert len(caught) == 2
    with pytest.warns(UserWarning) as caught:
        by_path = load_demonstrations(path, ends="timeouts")
    assert len(caught) == 1
    np.testing.assert_array_equal(by_path.episode_lengths, d.episode_lengths)
    with pytest.raises(ValueError, match="`ends` must be 'timeouts', or None for `terminals` and `timeouts`, got 'timeout'"):
        load_demonstrations(path, ends="timeout")


def test_columns_and_float64(directory: Path) -> None:
    # Replay and cloned data are float64; some files give rewards and flags a second dimension
    plain = arrays_like(2400)
    columns = {key: plain[key].astype(np.float64)[:, None] for key in ("rewards", "terminals", "timeouts")}
    wide = {key: plain[key].astype(np.float64) for key in ("observations", "actions")}
    wide["actions"][0] = [1 + 1e-12, -1 - 1e-7, 1 + 2e-6]
    store(directory, "hopper_full_replay-v2.hdf5", n=2400, **columns, **wide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d = load_demonstrations("d4rl:hopper-full-replay-v2")
    np.testing.assert_array_equal(d.episode_lengths, [400, 1000, 1000])
    np.testing.assert_array_equal(d.observations, plain["observations"])
    np.testing.assert_array_equal(d.actions[0], [1, -1, 1])
    np.testing.assert_array_equal(d.actions[1:], plain["actions"][1:])
    assert d.actions.dtype == np.float32


def test_actions_far_outside_are_reported(directory: Path) -> None:
    actions = arrays_like(2400)["actions"]
    actions[5, 0], actions[6] = 1.5, -3.0
    store(directory, "hopper_medium-v2.hdf5", n=2400, actions=actions)
    with pytest.warns(
        UserWarning, match=r"2 of 2400 actions of 'd4rl:hopper-medium-v2' are outside \[-1, 1\], by up to 2: clip"
    ) as w:
        d = load_demonstrations("d4rl:hopper-medium-v2")
    assert w[0].filename == __file__
    assert d.actions[5, 0] == 1 and (d.actions[6] == -1).all()
    assert np.abs(d.actions).max() == 1


def test_the_source_outlives_a_copy(directory: Path, tmp_path: Path) -> None:
    store(directory, "hopper_medium-v2.hdf5", n=2400)
    load_demonstrations("d4rl:hopper-medium-v2").save(tmp_path / "copy.hdf5")
    copy = load_demonstrations(tmp_path / "copy.hdf5")
    assert copy.metadata == {"source": "d4rl:hopper-medium-v2", "env": "Hopper-v4"}
    assert isinstance(copy, Demonstrations)


@pytest.mark.parametrize(
    ("name", "kwargs", "n_observations", "n_actions"),
    [
        ("hopper", {}, 11, 3),
        ("walker2d", {}, 17, 6),
        ("halfcheetah", {}, 17, 6),
        ("ant", {"use_contact_forces": True}, 111, 8),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_envs(name: str, kwargs: dict[str, Any], n_observations: int, n_actions: int) -> None:
    task = d4rl._TASKS[name]
    assert task.environment is not None
    env = gym.make(task.environment, **kwargs)
    assert env.observation_space.shape == (n_observations,) and env.action_space.shape == (n_actions,)
    # The bounds that actions are clipped to
    assert isinstance(env.action_space, gym.spaces.Box)
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    assert env.spec is not None and env.spec.max_episode_steps == task.max_episode_steps
    env.close()


@pytest.mark.filterwarnings("ignore:Dropped")
def test_checksums(server: FileServer, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = server.files[HOPPER]
    right = Checksum(len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(d4rl, "CHECKSUMS", {HOPPER[1:]: right})
    server.files[HOPPER] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(OSError, match=rf"not send a valid D4RL file, .*The known file has .* and {right.sha256}: the file"):
        load_demonstrations("d4rl:hopper-medium-v2", progress_bar=False)
    server.files[HOPPER] = content[:-1]
    with pytest.raises(OSError, match=rf"It has {len(content) - 1:,} bytes .* has {len(content):,} bytes"):
        load_demonstrations("d4rl:hopper-medium-v2", progress_bar=False)
    server.files[HOPPER] = content + b"x"
    with pytest.raises(ConnectionError, match=rf"has {len(content) + 1:,} bytes, but at most {len(content):,} are allowed"):
        load_demonstrations("d4rl:hopper-medium-v2", progress_bar=False)
    assert list(directory.iterdir()) == []
    server.files[HOPPER] = content
    assert load_demonstrations("d4rl:hopper-medium-v2", progress_bar=False).episode_lengths.tolist() == [400, 1000, 1000]
    # What the user has put there
    store(directory, "hopper_medium-v2.hdf5", n=2401)
    load_demonstrations("d4rl:hopper-medium-v2")


def test_checksums_are_those_of_known_files() -> None:
    assert len(CHECKSUMS) == 91 and set(CHECKSUMS) <= set(d4rl.DATASETS.values())
    assert all(re.fullmatch("[0-9a-f]{64}", each.sha256) for each in CHECKSUMS.values())
    assert len({each.sha256 for each in CHECKSUMS.values()}) == len(CHECKSUMS)
    # As TensorFlow Datasets has it
    assert CHECKSUMS["gym_mujoco_v2/hopper_medium-v2.hdf5"] == (
        152_756_557,
        "5bdf1bc4a713c82941de44633df669b36c89850b652a25985166796d25cf71a0",
    )
    assert max(each.n_bytes for each in CHECKSUMS.values()) < MAX_BYTES
