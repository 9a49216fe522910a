"""A clone that noise destroys is not lost silently: a warning, whose remedies work, and none where nothing is lost."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_scoreflow import FPO, ScoReFlowPPO, calibrate_noise, pretrain_bc
from sb3_scoreflow.ppo.first_episodes import FirstEpisodes
from tests.scoreflow_ppo.needle import Needle, demonstrations_of_zero

MESSAGE = "The first .* training episodes have a mean return of"
CLONING: dict[str, Any] = dict(n_batches=500, critic_batches=20, seed=0)


def make(width: float, n_envs: int = 3, fee: float = 0.0, cls: Any = ScoReFlowPPO) -> Any:
    """A model that does not try less noise itself"""
    env = make_vec_env(Needle, n_envs, env_kwargs=dict(width=width, fee=fee))
    arguments: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[32, 32]), n_steps=12, batch_size=12, n_epochs=1)
    arguments |= dict(noise_scale=1.0) if cls is ScoReFlowPPO else {}
    return cls("FlowPolicy", env, **arguments, seed=0, device="cpu")


def evaluation(width: float) -> VecEnv:
    return make_vec_env(Needle, 10, env_kwargs=dict(width=width))


def warned(model: Any, timesteps: int = 120) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(timesteps)
    return [str(each.message) for each in caught if "training episodes" in str(each.message)]


@pytest.fixture(scope="module")
def clone() -> ScoReFlowPPO:
    model = make(0.25)
    pretrain_bc(model, demonstrations_of_zero(), **CLONING)
    assert isinstance(model, ScoReFlowPPO)
    return model


def started_from(clone: Any, width: float, **arguments: Any) -> Any:
    model = make(width, **arguments)
    model.load_clone(clone)
    return model


def test_too_much_noise_and_the_remedy(clone: ScoReFlowPPO) -> None:
    noisy = started_from(clone, 0.25)
    (message,) = warned(noisy)
    assert "The first 6 training episodes" in message and "but the demonstrations have 10." in message
    assert "calibrate_noise(model, eval_env) lowers" in message
    assert not warned(noisy), "it is said once"
    remedied = started_from(clone, 0.25)
    assert calibrate_noise(remedied, evaluation(0.25), n_episodes=20).scale < 1
    assert not warned(remedied)


def test_no_warning_where_nothing_is_lost(clone: ScoReFlowPPO) -> None:
    assert not warned(started_from(clone, 4.0))
    assert not warned(started_from(clone.policy, 0.25)), "a policy knows nothing of its demonstrations"


def test_rewards_of_another_unit(clone: ScoReFlowPPO) -> None:
    (message,) = warned(started_from(clone, 4.0, fee=0.7))  # 0.3 instead of 1 per step
    assert "a mean return of 3," in message and "the environment's rewards are not those of the demonstrations" in message


def test_a_weak_clone_of_fpo_and_the_remedy() -> None:
    returns: dict[int, list[str]] = {}
    for n_batches in (1, 500):
        model = make(0.25, cls=FPO)
        pretrain_bc(model, demonstrations_of_zero(), **{**CLONING, "n_batches": n_batches})
        returns[n_batches] = warned(model)
    assert "which FPO cannot lower: use ScoReFlowPPO" in returns[1][0] and "for longer" in returns[1][0]
    assert not returns[500]


def test_a_clone_from_a_file_and_a_trained_model_from_one(clone: ScoReFlowPPO, tmp_path: Path) -> None:
    clone.save(tmp_path / "clone")
    loaded = ScoReFlowPPO.load(tmp_path / "clone", make(0.25).get_env())
    assert len(warned(loaded, 72)) == 1
    loaded.save(tmp_path / "model")
    assert not warned(ScoReFlowPPO.load(tmp_path / "model", make(0.25).get_env()))


def test_cloned_by_a_callback() -> None:
    class Clones(BaseCallback):
        def _init_callback(self) -> None:
            pretrain_bc(self.model, demonstrations_of_zero(), **CLONING)  # type: ignore[arg-type]

        def _on_step(self) -> bool:
            return True

    with pytest.warns(UserWarning, match=MESSAGE):
        make(0.25).learn(72, callback=Clones())


def test_every_environment_counts_alike() -> None:
    """Episodes of one environment last 1 step and earn 0, those of the other last 4 and earn 10: their mean is 5."""
    check, step = FirstEpisodes(9.0, 2), 0
    done = False
    while not done:
        step += 1
        late: dict[str, Any] = {"episode": {"r": 10.0}} if step % 4 == 0 else {}
        done = check.add([{"episode": {"r": 0.0}}, late], [True, step % 4 == 1])
    assert step == 12 and check.of_env == [[0.0] * 3, [10.0] * 3]


@pytest.mark.parametrize(
    ("demonstrated", "returns", "warns"),
    [(10, 2, True), (10, 6, False), (10, -5, True), (0, -5, False), (-10, -18, False), (-10, -22, True), (-10, 3, False)],
)
def test_when_it_warns(demonstrated: float, returns: float, warns: bool) -> None:
    check = FirstEpisodes(demonstrated, 5)
    infos = [{"episode": {"r": returns + noise}} for noise in np.linspace(-0.1, 0.1, 5)]
    with pytest.warns(UserWarning, match=MESSAGE) if warns else warnings.catch_warnings():
        warnings.simplefilter("always" if warns else "error")
        assert check.add(infos, [True] * 5)
        check.warn("which nothing lowers")


def test_returns_that_vary_too_much_to_judge() -> None:
    check = FirstEpisodes(10.0, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check.add([{"episode": {"r": r}} for r in (0.0, 0.0, 0.0, 0.0, 20.0)], [True] * 5)
        check.warn("which nothing lowers")
