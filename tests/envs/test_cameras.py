"""From a robomimic file with images to fine-tuning on one camera: robosuite's Lift, end to end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from benchmarks.make_robosuite_demonstrations import main as make_demonstrations
from sb3_scoreflow import RLDT, ActionChunking, Demonstrations, ScoReFlowPPO, ViTExtractor, load_demonstrations, pretrain_bc
from sb3_scoreflow.demonstrations.lazy import LazyImages
from sb3_scoreflow.envs import make_robomimic

HORIZON, CHUNK = 8, 4
PPO: dict[str, Any] = dict(n_steps=4, batch_size=4, n_epochs=1)
TRANSPORT: dict[str, Any] = dict(
    n_steps=4, batch_size=4, critic_steps=2, n_refreshes=1, refresh_size=8, actor_steps=1, actor_batch_size=4, n_particles=2
)
VIT: dict[str, Any] = dict(
    features_extractor_class=ViTExtractor, features_extractor_kwargs=dict(width=16, n_heads=2, features_dim=16)
)
RUNS = [
    (ScoReFlowPPO, PPO, VIT),
    (ScoReFlowPPO, PPO, {}),
    (RLDT, dict(TRANSPORT, critic_warmup_transitions=0), VIT),
    (RLDT, dict(TRANSPORT, critic_warmup_transitions=0, encoder_learning_rate=0.0), {}),
]


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    """Two episodes of eight steps: about the data path, not about lifting."""
    path = tmp_path_factory.mktemp("lift") / "image.hdf5"
    make_demonstrations(
        ["--output", str(path), "--episodes", "2", "--horizon", str(HORIZON), "--camera", "agentview", "--no-reflections"]
    )
    return load_demonstrations(f"robomimic:{path}")


def make_env(n_envs: int, vec_env_cls: type[VecEnv] | None = None) -> VecEnv:
    return make_vec_env(
        make_robomimic,
        n_envs,
        env_kwargs=dict(dataset_or_task="lift", cameras="agentview", horizon=HORIZON, reflections=False),
        wrapper_class=ActionChunking,  # type: ignore[arg-type]
        wrapper_kwargs=dict(horizon=CHUNK),
        vec_env_cls=vec_env_cls,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def env() -> Iterator[VecEnv]:
    env = make_env(1)
    yield env
    env.close()


@pytest.mark.parametrize(("cls", "arguments", "policy_kwargs"), RUNS)
def test_cloning_and_fine_tuning(
    cls: Any,
    arguments: dict[str, Any],
    policy_kwargs: dict[str, Any],
    demonstrations: Demonstrations,
    env: VecEnv,
    tmp_path: Path,
) -> None:
    policy_kwargs = dict(net_arch=[16], **policy_kwargs)
    model = cls("MultiInputPolicy", env, gamma=0.999, seed=0, device="cpu", policy_kwargs=policy_kwargs, **arguments)
    history = pretrain_bc(model, demonstrations, n_batches=3, batch_size=8, seed=0)
    assert np.isfinite(history["bc/loss"]).all()
    before = [p.clone() for p in model.policy.features_extractor.parameters()]
    model.learn(8, log_interval=None)
    assert model.num_env_steps == 8 * CHUNK
    # Logged as rollout/success_rate; one of the four episodes of ScoReFlowPPO validates the clone
    assert len(model.ep_success_buffer) == 4 - (cls is ScoReFlowPPO) and set(model.ep_success_buffer) <= {0.0, 1.0}
    after = list(model.policy.features_extractor.parameters())
    assert any(not th.equal(a, b) for a, b in zip(before, after, strict=True))
    images = model.rollout_buffer.observations["agentview_image"]
    assert images.dtype == np.uint8 and images.shape[-3:] == (3, 84, 84) and images.std() > 10
    obs = env.reset()
    action = model.predict(obs, deterministic=True)[0]
    assert action.shape == (1, CHUNK, 7)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(cls.load(tmp_path / "model", device="cpu").predict(obs, deterministic=True)[0], action)


def test_images_stay_in_the_file(demonstrations: Demonstrations) -> None:
    observations = demonstrations.observations
    assert isinstance(observations, dict) and "object" not in observations
    images: Any = observations["agentview_image"]
    assert isinstance(images, LazyImages) and images.shape == (2 * HORIZON, 84, 84, 3)


@pytest.mark.slow
def test_processes() -> None:
    """Every environment renders in a process of its own; the rollouts are those of environments in one process."""
    states = []
    for vec_env_cls in (None, SubprocVecEnv):
        env = make_env(2, vec_env_cls)
        model = ScoReFlowPPO("FlowPolicy", env, seed=0, device="cpu", policy_kwargs=dict(net_arch=[8]), **PPO).learn(8)
        observations: Any = model.rollout_buffer.observations
        states.append({key: part.copy() for key, part in observations.items()})
        env.close()
    for key, part in states[0].items():
        np.testing.assert_array_equal(part, states[1][key])
