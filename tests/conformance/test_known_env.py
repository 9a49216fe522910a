"""A model knows whether VecNormalize was around its environment: whoever leaves its statistics out is told."""

import warnings
from pathlib import Path

import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_scoreflow.export import export_program
from sb3_scoreflow.hub import write_hub_folder
from sb3_scoreflow.videos import record_video
from tests.conformance.algorithm import Algorithm


def plain() -> VecEnv:
    return make_vec_env("Pendulum-v1", seed=0)


@pytest.fixture
def normalized(algorithm: Algorithm, tmp_path: Path) -> Path:
    """A trained model, and the statistics of its environment beside it"""
    env = VecNormalize(plain())
    algorithm.make("FlowPolicy", env).learn(1).save(tmp_path / "model.zip")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    return tmp_path / "model.zip"


def test_environment_without_it_is_warned_of(algorithm: Algorithm, normalized: Path) -> None:
    remedy = VecNormalize.load(str(normalized.with_name("vecnormalize.pkl")), plain())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = algorithm.cls.load(normalized, env=remedy)
    assert model.sees_normalized
    with pytest.warns(UserWarning, match=r"trained in an environment with a VecNormalize, and this one has none"):
        algorithm.cls.load(normalized, env=plain())
    with pytest.warns(UserWarning, match=r"with a VecNormalize, and this one has none.*Pass VecNormalize\.load"):
        model.set_env(plain())


def test_one_that_comes_later_is_warned_of(algorithm: Algorithm, tmp_path: Path) -> None:
    model = algorithm.make("FlowPolicy", plain())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.set_env(VecNormalize(plain()))  # nothing was learned yet
        model.set_env(plain())
        model.learn(1)
        model.set_env(VecNormalize(plain(), norm_obs=False))
    with pytest.warns(UserWarning, match=r"with no VecNormalize, and this one has one.*Pass the environment without it"):
        model.set_env(VecNormalize(plain()))


def test_what_leaves_statistics_out_is_refused(algorithm: Algorithm, normalized: Path, tmp_path: Path) -> None:
    bare = algorithm.cls.load(normalized)
    with pytest.raises(ValueError, match=r"does not contain their statistics: load it with .*VecNormalize\.load"):
        export_program(bare, tmp_path / "policy.pt2")
    pytest.importorskip("PIL")
    with pytest.raises(ValueError, match="does not contain their statistics"):
        record_video(bare, "Pendulum-v1", tmp_path / "video.gif", n_steps=3)
    pytest.importorskip("huggingface_hub")
    with pytest.raises(ValueError, match=r"eval_env: the model was trained on observations normalized by VecNormalize"):
        write_hub_folder(bare, tmp_path / "hub", plain())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.zip", "vecnormalize.pkl"]

    statistics = str(normalized.with_name("vecnormalize.pkl"))
    model = algorithm.cls.load(normalized, env=VecNormalize.load(statistics, plain()))
    export_program(model, tmp_path / "policy.pt2", inference_steps=1)
    short = make_vec_env("Pendulum-v1", env_kwargs=dict(max_episode_steps=3))
    write_hub_folder(bare, tmp_path / "hub", VecNormalize.load(statistics, short), n_eval_episodes=1)


def test_file_of_before_says_nothing(algorithm: Algorithm, tmp_path: Path) -> None:
    model = algorithm.make("FlowPolicy", VecNormalize(plain())).learn(1)
    model.save(tmp_path / "old.zip", exclude=["sees_normalized"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = algorithm.cls.load(tmp_path / "old.zip")
        loaded.check_statistics()
        algorithm.cls.load(tmp_path / "old.zip", env=plain())
