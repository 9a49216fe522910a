"""Recording experts with and without noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks import make_expert_demonstrations
from benchmarks.make_expert_demonstrations import (
    EXPERTS,
    NOISE,
    NormalizedExpert,
    SaveStatistics,
    load_expert,
    record,
    save_expert,
)
from benchmarks.study import RESULTS
from sb3_scoreflow import load_demonstrations


class Expert:
    """Acts by the observation alone."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        assert deterministic
        return 0.5 * np.tanh(np.asarray(observation)[..., :3]).astype(np.float32), state


def test_precise_demonstrations_are_the_experts_actions() -> None:
    demonstrations = record(Expert(), "Hopper-v5", NOISE["precise"], n_episodes=3, seed=0)
    expected, _ = Expert().predict(demonstrations.observations, deterministic=True)
    np.testing.assert_allclose(demonstrations.actions, expected, atol=1e-6)
    assert demonstrations.n_episodes == 3


def test_noise_has_its_standard_deviation() -> None:
    noisy = record(Expert(), "Hopper-v5", NOISE["noisy"], n_episodes=20, seed=0)
    noise = noisy.actions - Expert().predict(noisy.observations, deterministic=True)[0]
    n = noise.size  # the standard deviation of n numbers is known to about 1 / sqrt(2 n)
    assert noise.std() == pytest.approx(NOISE["noisy"], rel=4 / (2 * n) ** 0.5)
    assert abs(noise.mean()) < 4 * NOISE["noisy"] / n**0.5
    again = record(Expert(), "Hopper-v5", NOISE["noisy"], n_episodes=20, seed=0)
    np.testing.assert_array_equal(again.actions, noisy.actions)


def test_expert_on_raw_observations_acts_as_on_normalized_ones(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=0))
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    model.learn(192, callback=EveryNTimesteps(192, SaveStatistics(tmp_path / "statistics.pkl")))
    expert = NormalizedExpert(model, VecNormalize.load(str(tmp_path / "statistics.pkl"), make_vec_env("Pendulum-v1")))
    raw = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    statistics: Any = env.obs_rms
    by_hand = (raw - statistics.mean) / np.sqrt(statistics.var + env.epsilon)
    expected = model.policy.predict(by_hand.astype(np.float32), deterministic=True)[0]
    np.testing.assert_allclose(expert.predict(raw)[0], expected, atol=1e-6)
    assert statistics.count > 190


def experts() -> dict[str, SAC | NormalizedExpert]:
    """Untrained experts; the PPO's statistics are not those of a new VecNormalize."""
    env = VecNormalize(make_vec_env("Hopper-v5", seed=0))
    env.reset()
    for _ in range(20):
        env.step(np.array([env.action_space.sample()]))
    return {
        "Hopper-v5": NormalizedExpert(PPO("MlpPolicy", env, seed=0, device="cpu"), env),
        "HalfCheetah-v5": SAC("MlpPolicy", make_vec_env("HalfCheetah-v5"), seed=0, device="cpu"),
    }


@pytest.mark.parametrize("env_id", ["Hopper-v5", "HalfCheetah-v5"])
def test_saved_experts_record_the_same_demonstrations_without_training(
    env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = experts()[env_id]
    training = dict(algorithm="any", steps=7, seed=0, seconds=1)
    task = env_id.split("-")[0].lower()
    save_expert(expert, tmp_path / f"{task}.pt", training)
    monkeypatch.setattr(make_expert_demonstrations, "EXPERTS", tmp_path)
    monkeypatch.setattr(make_expert_demonstrations, "TRAIN", {})
    folder = tmp_path / "demonstrations"
    make_expert_demonstrations.main(["--env", env_id, "--folder", str(folder), "--episodes", "2"])
    recorded = load_demonstrations(str(folder / f"{task}-precise.hdf5"))
    expected = record(expert, env_id, 0.0, n_episodes=2, seed=100_000)
    np.testing.assert_array_equal(recorded.actions, expected.actions)
    np.testing.assert_array_equal(recorded.observations, expected.observations)
    assert json.loads((folder / f"{task}-precise.json").read_text())["training"] == training


def test_steps_of_training_are_refused_where_nothing_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demonstrations"
    with pytest.raises(SystemExit):
        make_expert_demonstrations.main(["--env", "HalfCheetah-v5", "--steps", "10", "--folder", str(folder)])
    assert "--steps 10 is for training" in capsys.readouterr().err and not folder.exists()


def test_train_makes_another_expert_and_keeps_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy of the message above."""
    expert, calls = experts()["HalfCheetah-v5"], []

    def train(env_id: str, steps: int, seed: int, folder: Path) -> SAC | NormalizedExpert:
        calls.append((env_id, steps, seed))
        return expert

    monkeypatch.setitem(make_expert_demonstrations.TRAIN, "sac", train)
    arguments = ["--env", "HalfCheetah-v5", "--steps", "10", "--train", "--seed", "3", "--episodes", "1"]
    make_expert_demonstrations.main([*arguments, "--folder", str(tmp_path)])
    assert calls == [("HalfCheetah-v5", 10, 3)]
    kept, training = load_expert("HalfCheetah-v5", tmp_path / "halfcheetah.pt")
    assert training["steps"] == 10 and training["seed"] == 3
    recorded = load_demonstrations(str(tmp_path / "halfcheetah-precise.hdf5"))
    np.testing.assert_array_equal(recorded.actions, record(kept, "HalfCheetah-v5", 0.0, 1, seed=100_003).actions)


def test_committed_expert_is_the_one_of_the_results() -> None:
    statistics = json.loads((RESULTS / "halfcheetah-precise.json").read_text())["statistics"]
    expert, _ = load_expert("HalfCheetah-v5", EXPERTS / "halfcheetah.pt")
    returns = record(expert, "HalfCheetah-v5", 0.0, n_episodes=1, seed=100_000).statistics()["return_mean"]
    # Returns of other processors differ by rounding, which grows over 1,000 steps, but are returns of the same gait
    assert returns == pytest.approx(statistics["return_mean"], abs=5 * statistics["return_std"])
