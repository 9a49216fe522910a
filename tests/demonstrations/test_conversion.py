"""Arrays as people have them end up as the same numbers, or are refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import ScoReFlowPPO, pretrain_bc
from sb3_scoreflow.demonstrations import Demonstrations

N = 60
RNG = np.random.default_rng(0)
# What float16 and bfloat16 hold exactly too
OBS, ACTS = RNG.integers(-8, 8, (N, 3)) / 4, RNG.integers(-4, 5, (N, 2)) / 4
REWS = RNG.integers(0, 4, N) / 2
ENDS = np.arange(N) % 20 == 19

Arrays = tuple[Any, Any, Any, Any]


def frame() -> pd.DataFrame:
    columns = {"x": OBS[:, 0], "y": OBS[:, 1], "z": OBS[:, 2], "observation.state": list(OBS), "action": list(ACTS)}
    return pd.DataFrame({**columns, "done": ENDS, "reward": REWS})


def in_file(folder: Path, array: np.ndarray) -> np.ndarray:
    np.save(folder / "x.npy", array)
    return np.load(folder / "x.npy", mmap_mode="r")


REPRESENTATIONS: dict[str, Callable[[Path], Arrays]] = {
    "lists": lambda _: (OBS.tolist(), ACTS.tolist(), REWS.tolist(), ENDS.tolist()),
    "tuples": lambda _: (tuple(map(tuple, OBS)), tuple(ACTS), tuple(REWS), tuple(ENDS)),
    "lists of arrays": lambda _: (list(OBS), list(ACTS), list(REWS), list(ENDS)),
    "arrays of objects": lambda _: (OBS.astype(object), ACTS.astype(object), REWS.astype(object), ENDS.astype(object)),
    "nested objects": lambda _: (pd.Series([row.astype(object) for row in OBS]).to_numpy(), ACTS, REWS, ENDS),
    "tensors": lambda _: (th.tensor(OBS), th.tensor(ACTS), th.tensor(REWS), th.tensor(ENDS)),
    "tensors with gradient": lambda _: (
        th.tensor(OBS, requires_grad=True),
        th.tensor(ACTS, requires_grad=True) * 1,
        REWS,
        ENDS,
    ),
    "bfloat16": lambda _: (th.tensor(OBS).bfloat16(), th.tensor(ACTS).half(), REWS, ENDS),
    "lists of tensors": lambda _: ([th.tensor(o, requires_grad=True) for o in OBS], list(th.tensor(ACTS)), REWS, ENDS),
    "nested lists of tensors": lambda _: ([[th.tensor(x) for x in o] for o in OBS], ACTS, REWS, ENDS),
    "columns": lambda _: (frame()[["x", "y", "z"]], ACTS, frame()["reward"], frame()["done"]),
    "columns of arrays": lambda _: (frame()["observation.state"], frame()["action"], frame()["reward"], frame()["done"]),
    "columns of tensors": lambda _: (pd.Series([th.tensor(o) for o in OBS]), ACTS, REWS, ENDS),
    "columns of lists": lambda _: (pd.Series(OBS.tolist()), pd.Series(ACTS.tolist()), REWS, ENDS),
    "nullable columns": lambda _: (OBS, ACTS, pd.Series(REWS).convert_dtypes(), pd.Series(ENDS).astype("boolean")),
    "shuffled index": lambda _: (
        pd.DataFrame(OBS, index=np.arange(N)[::-1]),
        ACTS,
        pd.Series(REWS, index=np.arange(N)[::-1]),
        ENDS,
    ),
    "memory map": lambda folder: (in_file(folder, OBS), ACTS, REWS, ENDS),
    "big-endian": lambda _: (OBS.astype(">f4"), ACTS.astype(">f8"), REWS.astype(">f4"), ENDS.astype(">i4")),
    "Fortran order": lambda _: (np.asfortranarray(OBS), np.asfortranarray(ACTS), REWS, ENDS),
    "a view": lambda _: (np.repeat(OBS, 2, axis=0)[::2], ACTS[::-1][::-1], REWS, ENDS),
    "float16": lambda _: (OBS.astype(np.float16), ACTS.astype(np.float16), REWS.astype(np.float16), ENDS.astype(np.float16)),
    "long double": lambda _: (OBS.astype(np.longdouble), ACTS, REWS, ENDS),
    "matrix": lambda _: (np.asmatrix(OBS), np.asmatrix(ACTS), np.asmatrix(REWS).T, np.asmatrix(ENDS).T),
    "columns of one": lambda _: (OBS, ACTS, REWS[:, None], ENDS[:, None]),
    "masked arrays without a mask": lambda _: (np.ma.masked_array(OBS), ACTS, REWS, ENDS),
    "read-only": lambda _: (np.broadcast_to(OBS, OBS.shape), ACTS, REWS, ENDS),
}


@pytest.fixture(scope="module")
def reference_loss() -> float:
    return clone_loss(Demonstrations(OBS.astype(np.float32), ACTS.astype(np.float32), REWS, ENDS))


class Space(gym.Env):
    """An env of these spaces, never stepped."""

    def __init__(self, observation_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, spaces.Box(-1, 1, (2,))


def clone_loss(demonstrations: Demonstrations, observation_space: spaces.Space = spaces.Box(-9, 9, (3,))) -> float:  # noqa: B008
    env = DummyVecEnv([lambda: Space(observation_space)])
    policy_kwargs = dict(net_arch=[8])
    model = ScoReFlowPPO("FlowPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu", policy_kwargs=policy_kwargs)
    return pretrain_bc(model, demonstrations, n_batches=3, critic_batches=0, seed=0)["bc/loss"][-1]


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_representations(name: str, tmp_path: Path, reference_loss: float) -> None:
    d = Demonstrations(*REPRESENTATIONS[name](tmp_path))
    for given, expected in ((d.observations, OBS), (d.actions, ACTS), (d.rewards, REWS)):
        assert isinstance(given, np.ndarray) and given.dtype == np.float32 and given.dtype.isnative
        np.testing.assert_array_equal(given, expected)
    np.testing.assert_array_equal(d.terminations, ENDS)
    np.testing.assert_array_equal(d.episode_lengths, [20, 20, 20])
    assert clone_loss(d) == reference_loss


@pytest.mark.parametrize("dtype", ["<i4", ">i4", ">i8", ">u2", "u2", "u4", "u8", "i1", "i8", "?"])
def test_integers(dtype: str) -> None:
    """They keep their type, in the machine's byte order, and are cloned from as the same numbers in float32 are."""
    states, actions = RNG.integers(0, 2, (N, 3)), RNG.integers(0, 2, (N, 2))
    d = Demonstrations(states.astype(dtype), actions.astype(dtype), None, ENDS)
    for given, expected in ((d.observations, states), (d.actions, actions)):
        assert isinstance(given, np.ndarray) and given.dtype.isnative
        assert given.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(given, expected)
    assert clone_loss(d) == clone_loss(Demonstrations(states * 1.0, actions * 1.0, None, ENDS))
    discrete = spaces.Discrete(2)
    expected_loss = clone_loss(Demonstrations(states[:, 0], actions * 1.0, None, ENDS), discrete)
    assert clone_loss(Demonstrations(states[:, 0].astype(dtype), actions * 1.0, None, ENDS), discrete) == expected_loss


def test_dicts_by_transition() -> None:
    images = RNG.integers(0, 256, (N, 4, 4, 3), np.uint8)
    rows: list[dict[str, Any]] = [dict(q=o, image=image) for o, image in zip(OBS, images, strict=True)]
    for given in (rows, tuple(rows), np.array(rows), pd.Series(rows)):
        d = Demonstrations(given, ACTS, REWS, ENDS)
        assert isinstance(d.observations, dict) and d.observation_shape == {"q": (3,), "image": (4, 4, 3)}
        np.testing.assert_array_equal(d.observations["q"], OBS)
        np.testing.assert_array_equal(d.observations["image"], images)
        assert d.observations["image"].dtype == np.uint8
    del rows[7]["q"]
    with pytest.raises(ValueError, match=r"number 7 has \['image'\], and number 0 has \['q', 'image'\]"):
        Demonstrations(rows, ACTS, REWS, ENDS)


RAGGED = [OBS[:20], OBS[20:]]


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (OBS.astype(complex), r"`observations` .*complex128.*x\.real, x\.imag"),
        (th.tensor(OBS).to(th.complex64), "`observations` .*complex64"),
        (OBS.astype(str), r"`observations` .*<U\d+"),
        (pd.Series(["a"] * N), r"`observations` .*<U1"),
        (OBS.astype("S8"), r"`observations` .*\|S8"),
        (np.arange(N).astype("datetime64[s]"), r"`observations` .*datetime64\[s\]"),
        (np.zeros(N, [("q", "f4", 3), ("v", "f4")]), r"\{name: x\[name\] for name in \('q', 'v'\)\}"),
        (pd.Series([1.0, None] * 30, dtype=object), r"`observations` .*object.*NoneType"),
        (pd.Series([1, pd.NA] * 30), r"`observations` .*object.*NAType"),
        ([{}] * N, r"`observations` .*object.*\bdict\b"),
        ([2**70] * N, r"`observations` .*object.*\bint\b"),
        (({"q": 1.0}, 2.0), r"`observations` .*object.*\bdict\b"),
        ((o for o in OBS), r"`observations` .*object.*generator\)"),
        ({1, 2}, r"`observations` .*object.*set\)"),
        ({"a": {"b": OBS}}, r"`observations\['a'\]` .*object.*dict\)"),
        (scipy.sparse.csr_matrix(OBS), r"`observations` .*csr_matrix.*\.toarray\(\)"),
        (th.tensor(OBS).to_sparse(), r"`observations` .*Tensor.*\.to_dense\(\)"),
        (np.ma.masked_less(OBS, 0), r"`observations` has \d+ masked value\(s\)"),
        (RAGGED, r"`observations` .*\[\(20, 3\), \(40, 3\)\]\)"),
        ([th.tensor(o) for o in RAGGED], r"\[\(20, 3\), \(40, 3\)\].*Demonstrations\.from_trajectories"),
        (pd.Series(RAGGED), r"\[\(20, 3\), \(40, 3\)\].*Demonstrations\.from_trajectories"),
        ({"q": RAGGED}, r"`observations\['q'\]` .*\(20, 3\), \(40, 3\)"),
    ],
)
def test_refused(observations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Demonstrations(observations, ACTS, REWS, ENDS)


def test_remedies() -> None:
    whole = Demonstrations(OBS, ACTS, REWS, ENDS)
    episodes = [slice(0, 20), slice(20, 60)]
    given = [{"obs": OBS[s], "acts": ACTS[s], "rews": REWS[s], "terminal": True} for s in episodes]
    d = Demonstrations.from_trajectories(given)
    assert d.episode_lengths.tolist() == [20, 40]
    np.testing.assert_array_equal(d.actions, whole.actions)
    z = (OBS + 1j)[:, :1]
    np.testing.assert_array_equal(np.concatenate([z.real, z.imag], axis=-1), np.stack([OBS[:, 0], np.ones(N)], axis=1))
    x = np.zeros(N, [("q", "f4", 3), ("v", "f4")])
    fields = Demonstrations({name: x[name] for name in ("q", "v")}, ACTS, REWS, ENDS)
    assert fields.observation_shape == {"q": (3,), "v": ()}
    for dense in (scipy.sparse.csr_matrix(OBS).toarray(), th.tensor(OBS).to_sparse().to_dense()):
        np.testing.assert_array_equal(np.asarray(Demonstrations(dense, ACTS, REWS, ENDS).observations), OBS)


def test_arrays_of_the_right_type_are_not_copied() -> None:
    observations, actions = OBS.astype(np.float32), th.tensor(ACTS, dtype=th.float32)
    d = Demonstrations(observations, actions, REWS, ENDS)
    assert isinstance(d.observations, np.ndarray)
    assert np.shares_memory(d.observations, observations) and np.shares_memory(d.actions, actions.numpy())
