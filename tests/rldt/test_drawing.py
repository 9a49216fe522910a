"""Which trajectories of a history are drawn: shares of the last rollout and of successes, without repetition."""

import numpy as np
import pytest
import torch as th

from tests.rldt.histories import N_ENVS, N_STEPS, add_rollout, everything_in, make_history, sources_of


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


@pytest.mark.parametrize("balance", [False, True])
def test_every_drawn_trajectory_is_another_one(balance: bool) -> None:
    history = make_history(n_envs=5, history_size=4)
    for number in range(6):
        add_rollout(history, number, success={env: {1} for env in range(number % 4)}, starts=np.ones(5, bool))
    for n in (1, 2, 7, 19, 20, 100):
        for new_fraction in (0.0, 0.3, 1.0):
            history.new_fraction, history.balance_success = new_fraction, balance
            sources = sources_of(history.sample(n))
            assert len(sources) == len(set(sources)) == min(n, 20)


@pytest.mark.parametrize(
    ("n", "new_fraction", "n_new"),
    [
        (9, 1 / 3, 3),  # at least a third
        (10, 1 / 3, 4),  # rounded up
        (8, 0.5, 4),
        (8, 1.0, 5),  # all that the last rollout has
        (8, 0.0, 0),
        (13, 0.0, 3),  # the old ones are ten
        (14, 0.1, 4),
        (15, 0.5, 5),
        (99, 0.0, 5),
    ],
)
def test_share_of_the_last_rollout(n: int, new_fraction: float, n_new: int) -> None:
    """Five new trajectories and ten old ones."""
    history = make_history(n_envs=5, history_size=3, new_fraction=new_fraction)
    for number in range(5):
        add_rollout(history, number)
    for _ in range(10):
        sources = sources_of(history.sample(n))
        assert sum(rollout == 4 for rollout, _ in sources) == n_new
        assert len(sources) == min(n, 15)


def test_first_rollout_is_all_new() -> None:
    history = make_history(n_envs=5, new_fraction=0.25)
    add_rollout(history, 0)
    assert len(sources_of(history.sample(4))) == 4


def test_all_old_trajectories_are_equally_likely() -> None:
    history = make_history(n_envs=2, history_size=4, new_fraction=0.0)
    for number in range(4):
        add_rollout(history, number)
    counts = {(rollout, env): 0 for rollout in range(3) for env in range(2)}
    n = 1200
    for _ in range(n):
        (source,) = sources_of(history.sample(1))
        counts[source] += 1
    # Six equal chances; 5 standard deviations of a binomial
    deviation = np.sqrt(n / 6 * 5 / 6)
    assert all(abs(count - n / 6) < 5 * deviation for count in counts.values()), counts


def test_draws_follow_torchs_generator() -> None:
    history = make_history(n_envs=5)
    for number in range(3):
        add_rollout(history, number)
    draws = []
    for seed in (1, 1, 2):
        th.manual_seed(seed)
        draws.append([history.sample(4).rewards for _ in range(3)])
    assert all(th.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not all(th.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))


@pytest.mark.parametrize(
    ("n", "n_success", "expected"),
    [
        (6, 4, 3),  # half and half
        (5, 4, 2),  # odd: the spare one has none
        (6, 1, 1),  # as many as there are
        (6, 0, 0),
        (6, 8, 6),  # nothing else there
        (6, 7, 5),  # one without
    ],
)
def test_trajectories_with_and_without_success_are_drawn_half_and_half(n: int, n_success: int, expected: int) -> None:
    """Eight trajectories in the only rollout, some of them with a success."""
    history = make_history(n_envs=8, balance_success=True)
    add_rollout(history, 0, success={env: {2} for env in range(n_success)})
    for _ in range(5):
        sources = sources_of(history.sample(n))
        assert sum(env < n_success for _, env in sources) == expected and len(sources) == n
    history.balance_success = False  # all are drawn alike
    counts = [sum(env < n_success for _, env in sources_of(history.sample(4))) for _ in range(50)]
    assert abs(np.mean(counts) - 4 * n_success / 8) < 0.6


def test_new_and_old_trajectories_are_balanced_each() -> None:
    """The newest rollout has successes in environments 0-1, the old ones in 0-3."""
    history = make_history(n_envs=6, history_size=3, new_fraction=1 / 3, balance_success=True)
    for number in range(3):
        add_rollout(history, number, success={env: {0} for env in range(2 if number == 2 else 4)}, starts=np.ones(6, bool))
    for _ in range(5):
        sources = sources_of(history.sample(12))
        new, old = [env for r, env in sources if r == 2], [env for r, env in sources if r < 2]
        assert len(new) == 4 and sum(env < 2 for env in new) == 2
        assert len(old) == 8 and sum(env < 4 for env in old) == 4


def test_trajectories_after_the_success_are_not_successes() -> None:
    """An environment that goes on after the success of step 1 and still reports it: only one of three rollouts has it."""
    history = make_history()
    starts = add_rollout(history, 0, success={0: {1, 2, 3}}, starts=np.ones(N_ENVS, bool))
    for number in (1, 2):
        starts = add_rollout(history, number, success={0: set(range(N_STEPS))}, starts=starts)
    history.balance_success, history.new_fraction = True, 0.0
    drawn = [history.sample(2) for _ in range(50)]
    sources = [sources_of(batch) for batch in drawn]
    assert all((0, 0) in pair and (1, 0) not in pair and (2, 0) not in pair for pair in sources), "half of two"
    assert len({source for pair in sources for source in pair}) == 1 + 4, "without the last rollout's"
    assert all(batch.valid.any(1).all() for batch in drawn)


def test_a_success_that_ends_an_episode_ends_with_it() -> None:
    """Also if a callback stops training in that step, and the next rollout is not told that an episode begins"""
    history = make_history()
    add_rollout(history, 0, terminated={0: {3}}, success={0: {3}}, starts=np.ones(N_ENVS, bool))
    add_rollout(history, 1, starts=np.zeros(N_ENVS, bool))
    assert everything_in(history, balance_success=True).valid.all()
