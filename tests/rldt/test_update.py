"""RLDT's iteration: what moves when, rates and scales, logs, refusal of NaN, and critics on chains whose Q is known."""

import math
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_scoreflow import RLDT
from sb3_scoreflow.rldt import rldt as module
from sb3_scoreflow.rldt.actor import ActorEvaluation
from tests.conformance.envs import ToyEnv

N_ENVS, N_STEPS, ACTION = 2, 8, 2
SIZE = N_ENVS * N_STEPS


class TinyEnv(gym.Env):
    """
    Random observations. Episodes end in turn by termination and by truncation.

    :param rewards: of all steps of one rollout after another, for ever the last; of the actions if None
    """

    observation_space = spaces.Box(-1, 1, (3,))
    action_space = spaces.Box(-1, 1, (ACTION,))

    def __init__(self, rewards: list[float] | None = None) -> None:
        self.rewards, self.n_steps, self.episode = rewards, 0, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = 2.0 - float(np.square(action - 0.5).sum())
        if self.rewards is not None:
            reward = self.rewards[min(self.n_steps // N_STEPS, len(self.rewards) - 1)]
        self.n_steps, self.steps = self.n_steps + 1, self.steps + 1
        end, odd = self.steps == 3, self.episode % 2 == 1
        return self._observation(), reward, end and odd, end and not odd, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


def _model(env: Any = TinyEnv, n_envs: int = N_ENVS, **kwargs: Any) -> RLDT:
    policy_kwargs = dict(net_arch=[16, 16]) | kwargs.pop("policy_kwargs", {})
    arguments: dict[str, Any] = dict(
        n_steps=N_STEPS,
        batch_size=8,
        critic_steps=6,
        n_refreshes=2,
        refresh_size=2 * SIZE,
        actor_steps=4,
        actor_batch_size=8,
        n_particles=4,
        critic_warmup_transitions=0,
        learning_rate=1e-3,
        learning_rate_warmup_steps=0,
        denoising_steps=3,
        seed=0,
        device="cpu",
        policy_kwargs=policy_kwargs,
    )
    return RLDT("FlowPolicy", DummyVecEnv([env] * n_envs), **(arguments | kwargs))


def _iterate(model: RLDT, n: int = 1) -> None:
    """Iterations as in ``learn``, without its final logging, so that the recorded values can be read."""
    _, callback = model._setup_learn(10**6, reset_num_timesteps=model.num_timesteps == 0)
    callback.on_training_start({}, {})
    for _ in range(n):
        model.logger.name_to_value.clear()
        assert model.env is not None
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        model.train()


def _logs(model: RLDT) -> dict[str, float]:
    return {key.removeprefix("train/"): value for key, value in model.logger.name_to_value.items() if key.startswith("train/")}


def _state(net: nn.Module) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in net.named_parameters()}


def _rooms_moved(model: RLDT, before: dict[str, th.Tensor]) -> set[str]:
    """Networks with a parameter that is not bit-identical to ``before``."""
    return {name.split(".")[0] for name, value in model.policy.named_parameters() if not th.equal(value, before[name])}


def _spy_steps(model: RLDT) -> list[tuple[str, float, float]]:
    """Of every optimizer step from now on: its kind, and the learning rates of velocity and critic."""
    steps: list[tuple[str, float, float]] = []

    def record(*_: Any) -> None:
        groups = {group["name"]: group for group in model.policy.optimizer.param_groups}
        kinds = [name for name, group in groups.items() if any(p.grad is not None for p in group["params"])]
        assert len(kinds) == 1  # no step mixes the two
        steps.append((kinds[0], groups["velocity"]["lr"], groups["critic"]["lr"]))

    model.policy.optimizer.register_step_pre_hook(record)
    return steps


# ---------------------------------------------------------------------- what moves, and how often


@pytest.mark.parametrize(("warmup", "frozen"), [(0, 0), (1, 0), (SIZE - 1, 0), (SIZE, 1), (2 * SIZE, 2), (2 * SIZE + 1, 2)])
def test_warmup_counts_transitions_and_leaves_the_actor_bit_identical(warmup: int, frozen: int) -> None:
    """An iteration trains the actor once its transitions have made the number exceed the warm-up."""
    model = _model(critic_warmup_transitions=warmup)
    for iteration in range(frozen + 2):
        before = _state(model.policy)
        _iterate(model)
        moved = _rooms_moved(model, before)
        critics = {"critic", "target_critic"}
        assert moved == (critics if iteration < frozen else critics | {"velocity_field"})
        assert model.n_transitions == (iteration + 1) * SIZE
        assert model.n_actor_updates == 4 * max(iteration + 1 - frozen, 0)
        assert ("alignment_loss" in _logs(model)) == (iteration >= frozen)


def test_warmup_goes_on_over_calls_of_learn_and_begins_anew_after_pretraining() -> None:
    model = _model(critic_warmup_transitions=2 * SIZE)
    for _ in range(2):
        model.learn(SIZE)
    assert model.n_actor_updates == 0
    model.learn(SIZE)
    assert model.n_actor_updates == 4
    model.on_pretrained()
    assert model.n_actor_updates == 0
    model.learn(2 * SIZE)
    assert model.n_actor_updates == 0
    model.learn(SIZE)
    assert model.n_actor_updates == 4


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        (dict(learning_rate=0.0), {"critic", "target_critic"}),
        (dict(critic_learning_rate=0.0), {"velocity_field"}),
        (dict(actor_steps=0), {"critic", "target_critic"}),
    ],
)
def test_each_half_can_be_frozen(changes: dict[str, Any], moved: set[str]) -> None:
    model = _model(**changes)
    before = _state(model.policy)
    _iterate(model, 2)
    assert _rooms_moved(model, before) == moved


@pytest.mark.parametrize(("critic_steps", "actor_steps", "n_refreshes"), [(10, 7, 3), (6, 4, 2), (5, 1, 5), (2, 3, 8)])
def test_steps_are_shared_out_among_the_refreshes(critic_steps: int, actor_steps: int, n_refreshes: int) -> None:
    """All of them are made, critic steps before actor steps in every refresh, and no refresh has two more than another."""
    model = _model(critic_steps=critic_steps, actor_steps=actor_steps, n_refreshes=n_refreshes)
    steps, draws = _spy_steps(model), []
    sample = model.rollout_buffer.sample

    def count(*args: Any) -> Any:
        draws.append(len(steps))
        return sample(*args)

    model.rollout_buffer.sample = count  # type: ignore[method-assign,assignment]
    _iterate(model)
    kinds = [kind for kind, _, _ in steps]
    assert kinds.count("critic") == critic_steps and kinds.count("velocity") == actor_steps
    assert len(draws) == n_refreshes
    shares = [kinds[a:b] for a, b in zip(draws, [*draws[1:], len(kinds)], strict=True)]
    for kind in ("critic", "velocity"):
        counts = [share.count(kind) for share in shares]
        assert max(counts) - min(counts) <= 1
    assert all(share == sorted(share) for share in shares)  # "critic" < "velocity"
    assert model._n_updates == critic_steps and model.n_actor_updates == actor_steps


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_targets_follow_every_critic_step(tau: float) -> None:
    model = _model(tau=tau, critic_steps=3, n_refreshes=1, actor_steps=0, critic_learning_rate=1e-2)
    expected = {name: value.double() for name, value in _state(model.policy.target_critic).items()}

    def follow(*_: Any) -> None:
        for name, value in model.policy.critic.named_parameters():
            expected[name] = (1 - tau) * expected[name] + tau * value.detach().double()

    model.policy.optimizer.register_step_post_hook(follow)
    before = _state(model.policy.critic)
    _iterate(model)
    for name, value in model.policy.target_critic.named_parameters():
        assert (expected[name] - before[name]).abs().max() > 1e-4
        th.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)


def test_reference_is_the_actor_before_the_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Fisher term is zero at the first actor step of every iteration, and only there."""
    fisher: list[float] = []
    evaluate_actor = module.evaluate_actor

    def spy(*args: Any) -> ActorEvaluation:
        evaluation = evaluate_actor(*args)
        fisher.append(evaluation.fisher.item())
        return evaluation

    monkeypatch.setattr(module, "evaluate_actor", spy)
    model = _model(learning_rate=1e-2)
    _iterate(model, 3)
    table = np.array(fisher).reshape(3, 4)
    assert table[:, 0].max() < 1e-10
    assert table[:, 1:].min() > 1e-5


def test_losses_are_weighted_by_their_coefficients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of each parameter is that of alignment + 0.7 consistency + 3 Fisher."""
    expected: list[list[th.Tensor]] = []
    evaluate_actor = module.evaluate_actor
    model = _model(consistency_coef=0.7, fisher_coef=3.0, max_grad_norm=1e9)
    parameters = list(model.policy.velocity_field.parameters())

    def spy(*args: Any) -> ActorEvaluation:
        evaluation = evaluate_actor(*args)
        loss = evaluation.alignment + 0.7 * evaluation.consistency + 3.0 * evaluation.fisher
        expected.append(list(th.autograd.grad(loss, parameters, retain_graph=True)))
        return evaluation

    def compare(*_: Any) -> None:
        if parameters[0].grad is not None:
            for parameter, gradient in zip(parameters, expected[-1], strict=True):
                assert parameter.grad is not None
                th.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)

    monkeypatch.setattr(module, "evaluate_actor", spy)
    model.policy.optimizer.register_step_pre_hook(compare)
    _iterate(model)
    assert len(expected) == 4


def test_each_group_is_clipped_by_itself() -> None:
    norms: dict[str, list[float]] = {}
    for max_grad_norm in (1e9, 1e-2):
        model = _model(max_grad_norm=max_grad_norm, critic_steps=1, n_refreshes=1, actor_steps=1)

        def record(*_: Any, model: RLDT = model) -> None:
            for group in model.policy.optimizer.param_groups:
                grads = [p.grad for p in group["params"] if p.grad is not None]
                if grads:
                    norm = math.sqrt(sum(float(grad.double().pow(2).sum()) for grad in grads))
                    norms.setdefault(group["name"], []).append(norm)

        model.policy.optimizer.register_step_pre_hook(record)
        _iterate(model)
        # As it was before clipping
        assert _logs(model)["grad_norm_critic"] == pytest.approx(norms["critic"][0], rel=1e-4)
        if max_grad_norm == 1e9:
            assert _logs(model)["grad_norm_velocity"] == pytest.approx(norms["velocity"][0], rel=1e-4)
    for name in ("critic", "velocity"):
        assert norms[name][0] > 2e-2
        assert norms[name][1] == pytest.approx(1e-2, rel=1e-3)


# ---------------------------------------------------------------------- learning rates


@pytest.mark.parametrize(("total", "warns"), [(2 * SIZE, True), (2 * SIZE + 1, False)])
def test_training_that_ends_within_the_warmup_warns(total: int, warns: bool) -> None:
    model = _model(critic_warmup_transitions=2 * SIZE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(total)
    caught = [warning for warning in caught if "critic_warmup_transitions" in str(warning.message)]
    messages = [str(warning.message) for warning in caught]
    assert all(warning.filename == __file__ for warning in caught)  # it points at the call of learn
    assert len(messages) == warns
    assert (model.n_actor_updates == 0) == warns  # it says what is the case
    if warns:
        assert f"total_timesteps={total}" in messages[0] and f"critic_warmup_transitions={2 * SIZE}" in messages[0]


def test_learning_rate_of_the_actor_rises_linearly() -> None:
    """Over 6 actor steps, which span two iterations; the critics' is full from the start, also during the warm-up."""
    model = _model(learning_rate=3e-4, critic_learning_rate=2e-3, learning_rate_warmup_steps=6, critic_warmup_transitions=SIZE)
    steps = _spy_steps(model)
    _iterate(model, 4)
    actor = [rate for kind, rate, _ in steps if kind == "velocity"]
    assert len(actor) == 12
    np.testing.assert_allclose(actor, 3e-4 * np.minimum(np.arange(1, 13) / 6, 1), rtol=1e-12)
    assert {rate for kind, _, rate in steps if kind == "critic"} == {2e-3}
    assert _logs(model)["learning_rate"] == pytest.approx(3e-4)
    assert _logs(model)["critic_learning_rate"] == pytest.approx(2e-3)


def test_schedules_and_warmup_multiply() -> None:
    model = _model(
        learning_rate=lambda progress: 1e-3 * progress,
        critic_learning_rate=lambda progress: 1e-2 * progress,
        learning_rate_warmup_steps=8,
    )
    steps = _spy_steps(model)
    model.learn(4 * SIZE)
    # Progress remaining in the updates of the four iterations: 3/4, 2/4, 1/4, 0
    progress = np.repeat([0.75, 0.5, 0.25, 0.0], 4)
    actor = [rate for kind, rate, _ in steps if kind == "velocity"]
    np.testing.assert_allclose(actor, 1e-3 * progress * np.minimum(np.arange(1, 17) / 8, 1), rtol=1e-6)
    critic = [rate for kind, _, rate in steps if kind == "critic"]
    np.testing.assert_allclose(critic, 1e-2 * np.repeat([0.75, 0.5, 0.25, 0.0], 6), rtol=1e-6)


# ---------------------------------------------------------------------- reward scale, target clip


def test_reward_scale_is_a_running_mean_of_the_size_of_rewards() -> None:
    """Rollouts with |r| = 2, 12, 7: 2, then 2 + .01 * 10, then a hundredth of the way to 7."""
    model = _model(lambda: TinyEnv([-2.0, 12.0, 7.0]))
    expected = [2.0, 2.1, 2.1 + 0.01 * (7 - 2.1)]
    for scale in expected:
        _iterate(model)
        assert model.policy.reward_scale.item() == pytest.approx(scale, rel=1e-6)
        assert _logs(model)["reward_scale"] == pytest.approx(scale, rel=1e-6)
    assert model.reward_magnitude == pytest.approx(expected[-1], rel=1e-6)


def test_reward_scale_waits_for_the_first_reward() -> None:
    """Sparse rewards: the unit stays 1 until there are any, and is then that of the first."""
    model = _model(lambda: TinyEnv([0.0, 0.0, 5.0]))
    for scale in (1.0, 1.0, 5.0):
        _iterate(model)
        assert model.policy.reward_scale.item() == pytest.approx(scale)


def test_reward_scale_can_be_a_number() -> None:
    model = _model(lambda: TinyEnv([-2.0, 12.0]), reward_scale=4.0)
    for _ in range(2):
        _iterate(model)
        assert model.policy.reward_scale.item() == 4.0


def test_targets_are_in_units_of_the_reward_scale() -> None:
    """With gamma = 0 the targets are the rewards, divided by the scale."""
    model = _model(lambda: TinyEnv([-6.0]), gamma=0.0, reward_scale=4.0)
    _iterate(model)
    assert _logs(model)["td_target_min"] == _logs(model)["td_target_max"] == -1.5


@pytest.mark.parametrize("td_lambda", [0.0, 0.5])
def test_target_clip_is_respected(td_lambda: float) -> None:
    """Rewards of -3 in one rollout and of 5 in the next, and clipping at what the history mixes."""
    model = _model(lambda: TinyEnv([-3.0, 5.0]), target_clip=(-0.5, 2.0), reward_scale=1.0, td_lambda=td_lambda)
    _iterate(model)
    assert _logs(model)["td_target_min"] == -0.5
    _iterate(model)
    assert _logs(model)["td_target_min"] == -0.5 and _logs(model)["td_target_max"] == 2.0
    free = _model(lambda: TinyEnv([-3.0, 5.0]), reward_scale=1.0, td_lambda=td_lambda)
    _iterate(free, 2)
    assert _logs(free)["td_target_min"] < -2.5 and _logs(free)["td_target_max"] > 4.5


def test_rewards_in_the_history_have_no_bootstrap() -> None:
    """Stable-Baselines3 adds gamma V to rewards at timeouts; every third step ends an episode here, half of them so."""
    model = _model(lambda: TinyEnv([1.5]))
    model.policy.critic.biases[-1].data.fill_(100.0)
    _iterate(model, 2)
    batch = model.rollout_buffer.sample(100)
    assert (batch.ended & ~batch.terminated).any()
    assert (batch.rewards == 1.5).all()


# ---------------------------------------------------------------------- logs


def test_logged_keys_are_complete() -> None:
    model = _model()
    _iterate(model)
    assert set(_logs(model)) == {
        *("q_loss", "q_mean", "td_target_min", "td_target_max", "grad_norm_critic", "grad_norm_velocity"),
        *("alignment_loss", "consistency_loss", "fisher_loss", "q_gradient_norm", "attraction_norm", "repulsion_norm"),
        *("particle_spread", "clamped_particle_fraction", "velocity_grad_norm_step0", "velocity_grad_norm_step1"),
        *("velocity_grad_norm_step2", "reward_scale", "buffer_fill", "learning_rate", "critic_learning_rate"),
        *("n_updates", "n_actor_updates"),
    }
    logs = _logs(model)
    assert all(math.isfinite(value) for value in logs.values())
    positive = {"q_loss", "grad_norm_critic", "attraction_norm", "repulsion_norm", "particle_spread", "consistency_loss"}
    assert all(logs[name] > 0 for name in positive)
    assert logs["td_target_min"] < logs["td_target_max"]
    assert logs["n_updates"] == 6 and logs["n_actor_updates"] == 4


def test_logged_numbers_are_means_over_the_iteration_and_extremes_of_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    targets: list[th.Tensor] = []
    critic_loss, critic_targets = module.critic_loss, module.critic_targets

    def spy_loss(*args: Any) -> Any:
        loss, q = critic_loss(*args)
        losses.append(loss.item())
        return loss, q

    def spy_targets(*args: Any) -> th.Tensor:
        targets.append(critic_targets(*args))
        return targets[-1]

    monkeypatch.setattr(module, "critic_loss", spy_loss)
    monkeypatch.setattr(module, "critic_targets", spy_targets)
    model = _model()
    _iterate(model)
    assert len(losses) == 6 and len(targets) == 2
    assert _logs(model)["q_loss"] == pytest.approx(np.mean(losses))
    assert _logs(model)["td_target_min"] == pytest.approx(min(float(part.min()) for part in targets))
    assert _logs(model)["td_target_max"] == pytest.approx(max(float(part.max()) for part in targets))


def test_buffer_fill_grows_to_one() -> None:
    model = _model(history_size=3)
    fills = []
    for _ in range(4):
        _iterate(model)
        fills.append(_logs(model)["buffer_fill"])
    assert fills == pytest.approx([1 / 3, 2 / 3, 1, 1])


# ---------------------------------------------------------------------- NaN, and nothing to learn from


def test_a_nan_critic_loss_raises_before_parameters_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    _iterate(model)
    before = _state(model.policy)
    monkeypatch.setattr(
        module, "critic_loss", lambda _, batch, *args: (th.tensor(math.nan, requires_grad=True), batch.targets)
    )
    with pytest.raises(FloatingPointError, match="q_loss is nan in iteration 2, before the parameters changed"):
        _iterate(model)
    assert not _rooms_moved(model, before)


@pytest.mark.parametrize("rate", [0.0, 1e-4])
def test_a_frozen_encoder_is_asked_once_per_refresh(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(env=lambda: ToyEnv("image"), encoder_learning_rate=rate, actor_steps=0)
    encoder = model.policy.critic_features_extractor
    rows: list[int] = []
    encoder.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    _iterate(model, 2)
    drawn = [min(n, 2) * SIZE for n in (1, 1, 2, 2)]  # two refreshes in each of two iterations
    rows = [n for n in rows if n > N_ENVS]  # without the values that end a rollout, which are for Stable-Baselines3 only
    assert rows == (drawn if rate == 0 else [2 * 8] * 12)
    before = _state(encoder)
    _iterate(model)
    assert all(th.equal(value, before[name]) for name, value in encoder.state_dict().items()) == (rate == 0)


@pytest.mark.parametrize("loss", ["alignment", "consistency", "fisher"])
def test_a_nan_actor_loss_raises_before_the_actor_changes(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    _iterate(model)
    before, evaluate_actor = _state(model.policy), module.evaluate_actor

    def spoil(*args: Any) -> ActorEvaluation:
        evaluation = evaluate_actor(*args)
        return evaluation._replace(**{loss: getattr(evaluation, loss) * math.inf * 0})

    monkeypatch.setattr(module, "evaluate_actor", spoil)
    with pytest.raises(FloatingPointError, match=f"{loss}_loss is nan in iteration 2"):
        _iterate(model)
    assert _rooms_moved(model, before) == {"critic", "target_critic"}


def test_a_nan_reward_raises_before_anything_changes_and_is_not_kept() -> None:
    model = _model(lambda: TinyEnv([1.0, math.nan, 2.0]))
    _iterate(model)
    before = _state(model.policy)
    with pytest.raises(FloatingPointError, match="NaN or infinite rewards"):
        _iterate(model)
    assert not _rooms_moved(model, before)
    assert model.policy.reward_scale.item() == 1.0 and model.n_transitions == SIZE
    _iterate(model)  # one may go on, and the spoilt rollout is not drawn
    assert sorted(set(model.rollout_buffer.sample(100).rewards.flatten().tolist())) == [1.0, 2.0]


class EndlessSuccess(TinyEnv):
    """Successful from the first step on, in episodes that never end."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self._observation(), 1.0, False, False, {"is_success": True}


def test_an_iteration_without_a_valid_transition_learns_nothing() -> None:
    """Only the first transition counts; in the second rollout everything comes after the success."""
    model = _model(EndlessSuccess, n_envs=1, balance_success=True, history_size=1, target_clip=(0.0, 1.0), reward_scale=1.0)
    _iterate(model)
    assert model.n_actor_updates == 4
    before = _state(model.policy)
    _iterate(model)
    assert not _rooms_moved(model, before) and model.n_actor_updates == 4


# ---------------------------------------------------------------------- critics on chains with a known Q


class ChainEnv(gym.Env):
    """
    Three states, one after another; reward ``BASE[s] + SLOPE[s] a``, so that the actions' mean is all that values need.

    :param ring: whether the third state leads back to the first one, for ever but for a time limit of 4; it ends the episode
        otherwise
    """

    BASE, SLOPE = np.array([1.0, -2.0, 3.0]), np.array([2.0, -1.0, 1.5])
    observation_space = spaces.Box(0, 1, (3,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, ring: bool) -> None:
        self.ring = ring

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state, self.steps = int(self.np_random.integers(3)), 0
        return np.eye(3, dtype=np.float32)[self.state], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = float(self.BASE[self.state] + self.SLOPE[self.state] * action[0])
        self.state, self.steps = (self.state + 1) % 3, self.steps + 1
        return np.eye(3, dtype=np.float32)[self.state], reward, not self.ring and self.state == 0, self.steps == 4, {}


@pytest.mark.parametrize("ring", [False, True], ids=["terminates", "is cut off by a time limit"])
@pytest.mark.parametrize(("td_lambda", "reward_scale"), [(0.0, "ema"), (0.5, 1.0)])
def test_critics_of_a_fixed_policy_approach_its_q(ring: bool, td_lambda: float, reward_scale: Any) -> None:
    """
    V(s) = base + slope E[a] + gamma V(s'), solved as a linear system. Values of the ring are those without the time limit.
    """
    gamma = 0.8
    model = _model(
        lambda: ChainEnv(ring),
        n_envs=4,
        n_steps=32,
        gamma=gamma,
        learning_rate=0.0,
        actor_steps=0,
        critic_steps=200,
        n_refreshes=10,
        refresh_size=512,
        batch_size=64,
        critic_learning_rate=3e-3,
        tau=0.05,
        td_lambda=td_lambda,
        reward_scale=reward_scale,
        exploration_scale=0.0,
        policy_kwargs=dict(net_arch=[32, 32], prior_std=0.5, observation_normalization="none"),
    )
    before = _state(model.policy.velocity_field)
    model.learn(6 * 128)
    assert all(th.equal(value, before[name]) for name, value in model.policy.velocity_field.named_parameters())
    states = th.eye(3)
    with th.no_grad():
        actions = model.policy.sample_actions(states, 5000).squeeze(-1).double()
    follows = np.roll(np.eye(3), 1, axis=1)
    if not ring:
        follows[2] = 0.0
    rewards = ChainEnv.BASE + ChainEnv.SLOPE * actions.mean(1).numpy()
    values = np.linalg.solve(np.eye(3) - gamma * follows, rewards)
    if ring:  # what would come out if every fourth step were an end
        cut = np.linalg.solve(np.eye(3) - 0.75 * gamma * follows, rewards)
        assert (values - cut).min() > 0.4
    with th.no_grad():
        for a in (-0.5, 0.0, 0.5):
            expected = ChainEnv.BASE + ChainEnv.SLOPE * a + gamma * follows @ values
            # Rarer actions are known less well: the policy's standard deviation is 0.5
            atol = 0.15 if a == 0 else 0.4
            np.testing.assert_allclose(model.policy.q_values(states, th.full((3, 1), a)), [expected] * 2, atol=atol)
        predicted = model.policy.predict_values(states.repeat_interleave(500, 0)).view(3, 500).mean(1)
    np.testing.assert_allclose(predicted, values, atol=0.15)


class StopCallback(BaseCallback):
    """Stops ``learn`` in the middle of a rollout."""

    def _on_step(self) -> bool:
        return self.num_timesteps < SIZE + N_ENVS * 3


def test_a_rollout_that_a_callback_stops_is_not_learnt_from() -> None:
    model = _model()
    model.learn(10 * SIZE, callback=StopCallback())
    assert model.n_transitions == SIZE and model.rollout_buffer.n_rollouts == 1
    model.learn(SIZE, reset_num_timesteps=False)
    assert model.n_transitions == 2 * SIZE
