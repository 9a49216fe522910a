"""``Demonstrations`` against lists of episodes, which are cut and joined in plain Python."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_scoreflow.demonstrations import Demonstrations
from tests.properties.strategies import SEEDS, Parts, parts
from tests.properties.test_readers import check_equal

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Plain(NamedTuple):
    """An episode: its transitions by field, observations by key ("" if there are none)."""

    observations: dict[str, list[Any]]
    actions: list[Any]
    rewards: list[float]
    terminations: list[bool]
    truncations: list[bool]


def plain(demonstrations: Demonstrations, lengths: list[int]) -> list[Plain]:
    d, result, start = demonstrations, [], 0
    observations: Any = d.observations if isinstance(d.observations, dict) else {"": d.observations}
    for length in lengths:
        rows = slice(start, start + length)
        fields = (d.actions, d.rewards, d.terminations, d.truncations)
        result.append(Plain({key: list(part[rows]) for key, part in observations.items()}, *(list(f[rows]) for f in fields)))
        start += length
    return result


def check(demonstrations: Demonstrations, episodes: list[Plain]) -> None:
    lengths = [len(episode.actions) for episode in episodes]
    assert demonstrations.n_episodes == len(episodes) and len(demonstrations) == sum(lengths)
    assert demonstrations.episode_lengths.tolist() == lengths
    stops = np.cumsum(lengths).tolist()
    slices = [slice(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]
    assert demonstrations.episode_slices == slices
    with np.errstate(over="ignore", invalid="ignore"):
        returns = [np.sum(np.asarray(episode.rewards, np.float64)) for episode in episodes]
    np.testing.assert_allclose(demonstrations.episode_returns, returns, rtol=1e-9)
    for own, expected in zip(plain(demonstrations, lengths), episodes, strict=True):
        assert own.observations.keys() == expected.observations.keys()
        for key, rows in own.observations.items():
            np.testing.assert_array_equal(rows, expected.observations[key])
        for field in Plain._fields[1:]:
            np.testing.assert_array_equal(getattr(own, field), getattr(expected, field))


@given(parts=parts(), data=st.data())
def test_cutting(parts: Parts, data: st.DataObject) -> None:
    whole = parts.make(a=1)
    episodes = plain(whole, parts.lengths)
    check(whole, episodes)
    n_episodes = data.draw(st.none() | st.integers(1, 6))
    n_transitions = data.draw(st.none() | st.integers(1, 40))
    taken: list[Plain] = []
    for episode in episodes[:n_episodes]:
        if n_transitions is not None and sum(len(e.actions) for e in [*taken, episode]) > n_transitions:
            break
        taken.append(episode)
    if taken:
        check(whole.take(n_episodes, n_transitions), taken)
    else:
        with pytest.raises(ValueError, match="only complete episodes are taken"):
            whole.take(n_episodes, n_transitions)
    if isinstance(whole.observations, dict):
        keys = data.draw(st.lists(st.sampled_from(list(whole.observations)), min_size=1, unique=True))
        chosen = [e._replace(observations={key: e.observations[key] for key in keys}) for e in episodes]
        check(whole.select_keys(keys), chosen)


@given(parts=parts(), fraction=st.floats(0.01, 0.99), seed=SEEDS)
def test_splitting(parts: Parts, fraction: float, seed: int) -> None:
    numbers = np.arange(len(parts.rewards), dtype=np.float32)
    whole = parts._replace(rewards=numbers).make()
    episodes = plain(whole, parts.lengths)
    if len(episodes) == 1:
        with pytest.raises(ValueError, match="A split needs at least 2 episodes"):
            whole.split(fraction, seed)
        return
    sides = whole.split(fraction, seed)
    starts = [episode.rewards[0] for episode in episodes]
    chosen = [[starts.index(side.rewards[rows.start]) for rows in side.episode_slices] for side in sides]
    assert sorted(chosen[0] + chosen[1]) == list(range(len(episodes))), "each episode is on one side"
    for side, indices in zip(sides, chosen, strict=True):
        assert indices == sorted(indices)
        check(side, [episodes[index] for index in indices])
    assert abs(len(chosen[1]) - fraction * len(episodes)) <= 0.5 or 1 in map(len, chosen)
    for side, again in zip(sides, whole.split(fraction, seed), strict=True):
        check_equal(again, side)


@given(parts=parts(), cuts=st.lists(st.integers(1, 6), max_size=3), data=st.data())
def test_joining(parts: Parts, cuts: list[int], data: st.DataObject) -> None:
    """Parts joined are the whole, in any grouping."""
    whole = parts.make(env="x", seed=1)
    pieces: list[list[int]] = []
    rest = list(range(len(parts.lengths)))
    for cut in cuts:
        pieces, rest = [*pieces, rest[:cut]], rest[cut:]
    made = [whole._select(np.array(piece)) for piece in [*pieces, rest] if piece]
    joined = Demonstrations.concatenate(made)
    check_equal(joined, whole)
    assert joined.metadata == whole.metadata
    made[0].metadata["seed"] = 2
    left = Demonstrations.concatenate(made[:2])
    nested = Demonstrations.concatenate([left, *made[2:]]) if len(made) > 2 else left
    check_equal(nested, whole)
    assert nested.metadata == ({"env": "x", "seed": 2} if len(made) == 1 else {"env": "x"})


@given(parts=parts(), horizon=st.integers(1, 9), data=st.data())
def test_chunk_views(parts: Parts, horizon: int, data: st.DataObject) -> None:
    whole = parts.make()
    chunks = whole.chunks(horizon)
    assert len(chunks) == len(whole)
    expected = []
    for episode in plain(whole, parts.lengths):
        n = len(episode.actions)
        for t in range(n):
            actions = [episode.actions[min(t + k, n - 1)] for k in range(horizon)]
            row = {key: rows[t] for key, rows in episode.observations.items()}
            expected.append((row, np.stack(actions), [t + k < n for k in range(horizon)]))
    indices = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=6))
    batch = chunks[np.array(indices, np.int64)]
    observations: Any = batch.observations if isinstance(batch.observations, dict) else {"": batch.observations}
    assert len(batch.actions) == len(batch.mask) == len(indices)
    for position, index in enumerate(indices):
        row, chunk, mask = expected[index]
        for key, part in row.items():
            np.testing.assert_array_equal(observations[key][position], part)
        np.testing.assert_array_equal(batch.actions[position], chunk)
        assert batch.mask[position].tolist() == mask


@given(parts=parts(), data=st.data())
def test_ends_at_success(parts: Parts, data: st.DataObject) -> None:
    successes = data.draw(st.lists(st.booleans(), min_size=len(parts.rewards), max_size=len(parts.rewards)))
    reward = data.draw(st.sampled_from([1.0, 0.5, 10.0]))
    whole = parts._replace(rewards=np.where(successes, reward, 0.0)).make()
    expected, n_cut = [], 0
    for episode in plain(whole, parts.lengths):
        first = next((t for t, r in enumerate(episode.rewards) if r > 0), None)
        if first is not None:
            n_cut += len(episode.actions) - first - 1
            lists = [list(field[: first + 1]) for field in episode[1:]]
            lists[2][-1], lists[3][-1] = True, False
            episode = Plain({key: rows[: first + 1] for key, rows in episode.observations.items()}, *lists)
        expected.append(episode)
    at_once = [len(e.actions) > 1 and e.rewards[0] > 0 for e in plain(whole, parts.lengths)]
    if 2 * sum(at_once) > len(at_once):
        with pytest.raises(ValueError, match="the first transition already has a positive reward"):
            whole.end_at_success()
        return
    ended = whole.end_at_success()
    check(ended, expected)
    assert ended.metadata == {"terminate_on_success": True, "n_transitions_cut": n_cut}
