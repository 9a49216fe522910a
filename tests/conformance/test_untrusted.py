"""
Files of strangers: with ``trusted=False``, nothing is unpickled, and what is loaded is, to the last bit, what a trusted load
gives.
"""

import base64
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_scoreflow import ActionChunking, CosineSchedule
from sb3_scoreflow.common import untrusted
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.untrusted import STATES
from tests.conformance.algorithm import Algorithm, Case
from tests.conformance.envs import make_toy, observe, some_states
from tests.conformance.saving import assert_same, saved
from tests.payload import Payload, rewritten, with_data

DATA = Path(__file__).parent / "data"


@pytest.fixture
def no_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    """What restores pickles is not there."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("unpickled")

    monkeypatch.setattr(cloudpickle, "loads", fail)
    monkeypatch.setattr("pickle.load", fail)
    monkeypatch.setattr("pickle.loads", fail)


def pickled(value: Any) -> dict[str, Any]:
    """:return: an entry of ``data`` as Stable-Baselines3 writes it"""
    return {":type:": "<class 'numpy.ndarray'>", ":serialized:": base64.b64encode(cloudpickle.dumps(value)).decode()}


# ------------------------------------------------------------------ the same as by a trusted load


def test_acts_and_learns_as_after_a_trusted_load(algorithm: Algorithm, case: Case) -> None:
    model = algorithm.make(case.alias, make_toy(case.kind, n_envs=2), case.kind).learn(2 * algorithm.iteration(2))
    file, states, actions = saved(model), [], []
    for trusted in (True, False):
        loaded = algorithm.cls.load(file, make_toy(case.kind, n_envs=2), device="cpu", trusted=trusted)
        assert_same(
            {name: value for name, value in vars(loaded).items() if name in _plain_attributes(model)},
            {name: value for name, value in vars(model).items() if name in _plain_attributes(model)},
        )
        obs = observe(case.kind, some_states(5))
        actions.append(loaded.predict(obs, deterministic=True)[0])
        loaded.set_random_seed(4)
        loaded.learn(algorithm.iteration(2), reset_num_timesteps=False)
        states.append((loaded.get_parameters(), loaded.num_timesteps, list(loaded.ep_info_buffer), vars(loaded).keys()))
    assert np.array_equal(*actions)
    assert_same(states[0][:2], states[1][:2])
    assert [each["r"] for each in states[0][2]] == [each["r"] for each in states[1][2]]
    assert states[0][3] == states[1][3]


def _plain_attributes(model: Any) -> set[str]:
    """Those that can be compared, and are in the file: all but spaces, arrays and networks."""
    other = {"observation_space", "action_space", "_last_obs", "_last_episode_starts", "return_statistics", "lr_schedule"}
    other |= {*model._excluded_save_params(), "_current_progress_remaining", "clip_range", "reference", "_last_original_obs"}
    return set(vars(model)) - other


def test_without_an_environment(algorithm: Algorithm, case: Case, no_unpickling: None) -> None:
    model = algorithm.make(case.alias, make_toy(case.kind), case.kind)
    loaded = algorithm.cls.load(saved(model), device="cpu", trusted=False)
    assert loaded.observation_space == model.observation_space and loaded.action_space == model.action_space
    obs = observe(case.kind, some_states(5))
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    loaded.set_env(make_toy(case.kind))
    loaded.learn(algorithm.iteration())


def test_chunks_and_vec_normalize(algorithm: Algorithm, tmp_path: Path) -> None:
    def make() -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: ActionChunking(gym.make("Pendulum-v1"), horizon=3)]))

    model = algorithm.make("FlowPolicy", make()).learn(algorithm.iteration())
    model.save(tmp_path / "model")
    parameters = []
    for trusted in (True, False):
        loaded = algorithm.cls.load(tmp_path / "model", make(), device="cpu", trusted=trusted)
        assert loaded.chunks == model.chunks and loaded.action_space.shape == (3, 1)
        loaded.set_random_seed(4)
        parameters.append(loaded.learn(algorithm.iteration()).get_parameters())
    assert_same(*parameters)


def test_arguments_that_are_no_json(algorithm: Algorithm, no_unpickling: None) -> None:
    """Schedules, classes and settings."""
    arguments = dict(
        learning_rate=CosineSchedule(1e-3, 1e-4, 0.1),
        critic_learning_rate=LinearSchedule(1e-3, 1e-4, 0.5),
        policy_kwargs=dict(
            activation_fn=th.nn.Tanh,
            optimizer_class=th.optim.SGD,
            optimizer_kwargs=dict(momentum=0.5),
            features_extractor_class=FlattenExtractor,
        ),
        **algorithm.known(dict(clip_range=LinearSchedule(0.1, 0.05, 1.0), transport=dict(kernel="delta"), seed=None)),
    )
    model = algorithm.make("FlowPolicy", make_toy(), **arguments)
    loaded = algorithm.cls.load(saved(model), trusted=False)
    assert loaded.policy_kwargs == model.policy_kwargs and loaded.policy.activation_fn is th.nn.Tanh
    for name in {"learning_rate", "critic_learning_rate", "clip_range"} & vars(model).keys():
        assert_same(getattr(loaded, name), getattr(model, name))
    assert getattr(loaded, "transport", None) == getattr(model, "transport", None)


def test_saved_again(algorithm: Algorithm, no_unpickling: None) -> None:
    """A file that was loaded without trust is one that can be."""
    model = algorithm.cls.load(saved(algorithm.make("FlowPolicy", make_toy(), gamma=0.5)), trusted=False)
    assert "_plain" not in vars(model)
    assert algorithm.cls.load(saved(model), trusted=False).gamma == 0.5


def test_states_are_known(algorithm: Algorithm) -> None:
    arguments = algorithm.known(dict(bc_coef=0.1))
    model = algorithm.make("FlowPolicy", make_toy(), **arguments).learn(algorithm.iteration())
    names, variables = model._get_torch_save_params()
    assert set(names) <= set(STATES) and variables == []
    loaded = algorithm.cls.load(saved(model), trusted=False)
    assert_same(loaded.get_parameters(), model.get_parameters())


# ------------------------------------------------------------------ payloads


def test_a_payload_in_data(algorithm: Algorithm, tmp_path: Path) -> None:
    """What docs/security.md says of a plain load, and of one without trust."""
    marker = tmp_path / "marker"
    model = algorithm.make("FlowPolicy", make_toy())
    model.note = Payload(marker)
    file = saved(model)
    with pytest.raises(ValueError, match=r"pickles .* describes: note \(tests\.payload:Payload\)\. Pass .*trusted=True"):
        algorithm.cls.load(file, trusted=False)
    assert not marker.exists()
    assert algorithm.cls.load(file, custom_objects={"note": "mine"}, trusted=False).note == "mine"
    path = tmp_path / "model.zip"
    path.write_bytes(file.getvalue())
    other = algorithm.make("FlowPolicy", make_toy(), seed=1)
    other.set_parameters(path)  # reads weights only
    assert_same(other.get_parameters(), model.get_parameters())
    model.policy.pretrained.fill_(1.0)
    model.save(path)
    other.load_clone(path, trusted=False)
    assert not marker.exists()
    other.load_clone(path)
    assert marker.exists()
    marker.unlink()
    algorithm.cls.load(file)
    assert marker.exists()


@pytest.mark.parametrize("name", ["observation_space", "policy_class", "lr_schedule", "ep_info_buffer", "_last_obs"])
def test_a_payload_in_place_of_an_entry(algorithm: Algorithm, name: str, tmp_path: Path) -> None:
    """The file's description counts, whatever is pickled beside it."""
    marker = tmp_path / "marker"
    model = algorithm.make("FlowPolicy", make_toy()).learn(algorithm.iteration())
    file = with_data(saved(model), lambda data: data.update({name: pickled(Payload(marker))}))
    loaded = algorithm.cls.load(file, trusted=False)
    assert_same(loaded.get_parameters(), model.get_parameters())
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017 whatever becomes of a wrong value
        algorithm.cls.load(file)
        raise RuntimeError("it was not needed")
    assert marker.exists()


def poisoned(marker: Path) -> bytes:
    buffer = io.BytesIO()
    th.save({"weight": th.zeros(1), "payload": Payload(marker)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("entry", ["policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"])
def test_a_payload_in_a_state(algorithm: Algorithm, entry: str, tmp_path: Path) -> None:
    """Stable-Baselines3 reads weights alone, too."""
    marker = tmp_path / "marker"
    (tmp_path / "model.zip").write_bytes(
        rewritten(saved(algorithm.make("FlowPolicy", make_toy())), {entry: poisoned(marker)}).getvalue()
    )
    with pytest.raises(
        ValueError,
        match=rf"model\.zip is not loaded with trusted=False: '{re.escape(entry)}' contains something other than weights",
    ):
        algorithm.cls.load(tmp_path / "model.zip", trusted=False)
    with pytest.raises(Exception, match="Weights only load failed"):
        algorithm.cls.load(tmp_path / "model.zip")
    assert not marker.exists()


def test_a_payload_in_a_policy(algorithm: Algorithm, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", str(tmp_path / "policy.pth")
    policy = algorithm.make("FlowPolicy", make_toy()).policy
    cls = type(policy)
    policy.save(path)
    saved_policy = th.load(path, weights_only=True)
    assert set(saved_policy) == {"state_dict", "arguments"}
    th.save({**saved_policy, "note": Payload(marker)}, path)
    with pytest.raises(ValueError, match=r"policy\.pth is not .*: 'policy\.pth' contains something other .*tests\.payload"):
        cls.load(path, trusted=False)
    model = algorithm.make("FlowPolicy", make_toy())
    with pytest.raises(ValueError, match=r"policy\.pth is not loaded with trusted=False"):
        model.load_clone(path, trusted=False)
    assert not marker.exists()
    cls.load(path)
    assert marker.exists()


# ------------------------------------------------------------------ policies


def test_policy(algorithm: Algorithm, case: Case, tmp_path: Path, no_unpickling: None) -> None:
    policy = algorithm.make(case.alias, make_toy(case.kind), case.kind).policy
    policy.save(str(tmp_path / "policy"))
    loaded = type(policy).load(str(tmp_path / "policy"), trusted=False)
    obs = observe(case.kind, some_states(5))
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], policy.predict(obs, deterministic=True)[0])
    assert_same(dict(loaded.state_dict()), dict(policy.state_dict()))


class OwnExtractor(FlattenExtractor):
    """A user's."""


def test_own_classes(algorithm: Algorithm, tmp_path: Path) -> None:
    """They come from the user, in place of what the file says."""
    own = dict(net_arch=[16, 16], features_extractor_class=OwnExtractor)
    model = algorithm.make("FlowPolicy", make_toy(), policy_kwargs=own)
    path = tmp_path / "model.zip"
    model.save(path)
    with pytest.raises(ValueError, match=r"policy_kwargs\['features_extractor_class'\] \(tests\..*:OwnExtractor\)") as caught:
        algorithm.cls.load(path, trusted=False)
    assert "_built_from['policy']['features_extractor_class']" in str(caught.value)
    loaded = algorithm.cls.load(path, custom_objects=dict(policy_kwargs=own), trusted=False)
    assert isinstance(loaded.policy.features_extractor, OwnExtractor)
    assert_same(loaded.get_parameters(), model.get_parameters())
    with pytest.raises(ValueError, match=r"policy_kwargs\['features_extractor_class'\] .* pass trusted=True"):
        algorithm.make("FlowPolicy", make_toy()).load_clone(path, trusted=False)
    model.policy.save(str(tmp_path / "policy"))
    with pytest.raises(ValueError, match=r"policies with your own classes, are pickles"):
        type(model.policy).load(str(tmp_path / "policy"), trusted=False)
    assert isinstance(type(model.policy).load(str(tmp_path / "policy")).features_extractor, OwnExtractor)


def test_own_schedules(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy(), learning_rate=lambda progress: 1e-3 * progress)
    with pytest.raises(ValueError, match=r"describes: learning_rate \(builtins:function\)\."):
        algorithm.cls.load(saved(model), trusted=False)
    loaded = algorithm.cls.load(saved(model), learning_rate=1e-4, trusted=False)
    assert loaded.learning_rate == 1e-4 and loaded.lr_schedule(1.0) == 1e-4
    assert algorithm.cls.load(saved(model), lr_schedule=1e-5, trusted=False).learning_rate == 1e-5


def test_a_replay_buffer_in_the_file(replay: Algorithm) -> None:
    model = replay.make("FlowPolicy", make_toy()).learn(replay.iteration())
    file = saved(model, include=["rollout_buffer"])
    with pytest.raises(ValueError, match=r"describes: rollout_buffer \("):
        replay.cls.load(file, trusted=False)
    loaded = replay.cls.load(file, custom_objects={"rollout_buffer": None}, trusted=False)
    assert_same(loaded.get_parameters(), model.get_parameters())
    assert loaded.rollout_buffer.n_rollouts == 0 < model.rollout_buffer.n_rollouts


def test_clones(algorithm: Algorithm, tmp_path: Path, no_unpickling: None) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    model.policy.pretrained.fill_(1.0)
    model.save(tmp_path / "model")
    model.policy.save(str(tmp_path / "policy.pt"))
    for name in ("model", "policy.pt"):
        other = algorithm.make("FlowPolicy", make_toy(), seed=1)
        other.load_clone(tmp_path / name, trusted=False)
        obs = observe("flat", some_states(5))
        assert np.array_equal(other.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


# ------------------------------------------------------------------ older files, other files


def test_files_of_0_1_0(algorithm: Algorithm, tmp_path: Path) -> None:
    path = DATA / f"{algorithm}-0_1_0.zip"
    if not path.exists():
        pytest.skip("there was no such algorithm")
    with pytest.raises(ValueError, match="describes: policy_class") as caught:
        algorithm.cls.load(path, make_toy(n_envs=2), trusted=False)
    assert "_space" not in str(caught.value) and "learning_rate (<class 'sb3_scoreflow.schedules.CosineSch" in str(
        caught.value
    )
    with pytest.raises(ValueError, match=r"observation_space .*action_space"):
        algorithm.cls.load(path, trusted=False)
    model = algorithm.make("FlowPolicy", make_toy())
    with pytest.raises(ValueError, match=r"file describes policy_class \(.*load the model with trusted=True"):
        model.load_clone(path, trusted=False)
    # The remedies
    trusted = algorithm.cls.load(path, make_toy(n_envs=2))
    trusted.save(tmp_path / "again")
    again = algorithm.cls.load(tmp_path / "again", trusted=False)
    assert_same(again.get_parameters(), trusted.get_parameters())
    names = re.findall(r"(\w+) \(<class", str(caught.value))
    given = {name: getattr(trusted, name) for name in names}
    with pytest.warns(UserWarning, match=r"does not describe _last_obs, .*: new episodes begin"):
        by_hand = algorithm.cls.load(path, make_toy(n_envs=2), custom_objects=given, trusted=False)
    assert_same(by_hand.get_parameters(), trusted.get_parameters())
    assert by_hand.observation_space == trusted.observation_space


def test_policies_of_0_1_0(algorithm: Algorithm, tmp_path: Path) -> None:
    """They are written as Stable-Baselines3 does."""
    policy, path = algorithm.make("FlowPolicy", make_toy()).policy, str(tmp_path / "policy")
    th.save({"state_dict": policy.state_dict(), "data": policy._get_constructor_parameters()}, path)
    assert_same(dict(type(policy).load(path).state_dict()), dict(policy.state_dict()))
    with pytest.raises(ValueError, match=r"Files of 0\.1\.0, .* are pickles"):
        type(policy).load(path, trusted=False)
    type(policy).load(path).save(path)  # the remedy
    assert_same(dict(type(policy).load(path, trusted=False).state_dict()), dict(policy.state_dict()))


def test_files_of_other_algorithms(algorithm: Algorithm, tmp_path: Path) -> None:
    PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8).save(tmp_path / "ppo")
    with pytest.raises(ValueError, match=rf"was written by PPO, not by {algorithm}"):
        algorithm.cls.load(tmp_path / "ppo", trusted=False)


# ------------------------------------------------------------------ harm without pickles


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("env", "antigravity:Any-v0"),  # Gymnasium would import the module
        ("policy", "x"),
        ("device", "cuda"),
        ("_logger", 1),
        ("learn", 1),
        ("rules", {}),
        ("defaults", {}),
        ("capabilities", {}),
        ("__class__", 1),
    ],
)
def test_entries_that_a_file_must_not_have(algorithm: Algorithm, name: str, value: Any) -> None:
    file = with_data(saved(algorithm.make("FlowPolicy", make_toy())), lambda data: data.update({name: value}))
    with pytest.raises(ValueError, match=rf"its entry 'data' has \['{name}'\], which a file must not set"):
        algorithm.cls.load(file, trusted=False)
    described = with_data(file, lambda data: data.update({name: pickled(0), "_plain": {**data["_plain"], name: 1}}))
    with pytest.raises(ValueError, match=name):
        algorithm.cls.load(described, trusted=False)


def test_a_folder_to_log_to(algorithm: Algorithm, tmp_path: Path) -> None:
    model = algorithm.make("FlowPolicy", make_toy(), tensorboard_log=str(tmp_path / "theirs"))
    with pytest.warns(UserWarning, match=r"names a folder to log to, '.*theirs', which is not used: pass tensorboard_log"):
        loaded = algorithm.cls.load(saved(model), trusted=False)
    assert loaded.tensorboard_log is None
    mine = str(tmp_path / "mine")
    assert algorithm.cls.load(saved(model), trusted=False, tensorboard_log=mine).tensorboard_log == mine


def test_made_up_descriptions(algorithm: Algorithm) -> None:
    file = saved(algorithm.make("FlowPolicy", make_toy()))
    for name, description, message in (
        ("policy_class", {"kind": "class", "name": "os:system"}, r"policy_class \(the class os:system\)"),
        ("_built_from", {"other": {}}, r"_built_from \(KeyError"),
        ("_built_from", [], r"_built_from \(TypeError"),
    ):
        changed = with_data(file, lambda data, name=name, text=description: data["_plain"].update({name: text}))  # type: ignore[misc]
        with pytest.raises(ValueError, match=message):
            algorithm.cls.load(changed, trusted=False)
    wrong: Any
    for wrong in ([], {"_plain": []}):
        with pytest.raises(ValueError, match="not a JSON object with descriptions"):
            algorithm.cls.load(rewritten(file, {"data": json.dumps(wrong).encode()}), trusted=False)


def test_damaged_files(algorithm: Algorithm, tmp_path: Path) -> None:
    file = saved(algorithm.make("FlowPolicy", make_toy()))
    (tmp_path / "model.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"model\.zip is not loaded with trusted=False: File is not a zip file\. .*fetch it"):
        algorithm.cls.load(tmp_path / "model.zip", trusted=False)
    legacy, script = io.BytesIO(), io.BytesIO()
    th.save({"a": th.zeros(1)}, legacy, _use_new_zipfile_serialization=False)
    th.jit.save(th.jit.script(th.nn.ReLU()), script)
    variables = io.BytesIO()
    th.save({"policy.normalizer": th.zeros(1)}, variables)
    for changes, message in (
        ({"data": None}, "There is no item named 'data'"),
        ({"data": b"{"}, "Expecting property name"),
        ({"data": b"[" * 100_000}, "recursion"),
        ({"policy.pth": legacy.getvalue()}, r"'policy\.pth' is not a file of PyTorch \(1\.6 or later\)"),
        ({"policy.pth": script.getvalue()}, r"'policy\.pth' is a TorchScript program"),
        (
            {"policy.features_extractor.pth": variables.getvalue()},
            r"'policy\.features_extractor\.pth' is not one of the states",
        ),
        ({"../../escape.pth": variables.getvalue()}, r"'\.\./\.\./escape\.pth' is not one of the states"),
        ({"pytorch_variables.pth": variables.getvalue()}, r"'pytorch_variables\.pth' has \['policy\.normalizer'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            algorithm.cls.load(rewritten(file, changes), trusted=False)  # type: ignore[arg-type]
    twice = saved(algorithm.make("FlowPolicy", make_toy()))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("data", "{}")
    with pytest.raises(ValueError, match="two entries with the same name"):
        algorithm.cls.load(twice, trusted=False)


def test_zip_bombs(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "_LARGE", 2**20)
    file = saved(algorithm.make("FlowPolicy", make_toy()))
    bomb = rewritten(file, {"data": b" " * 2**21}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=rf"'data' of it has {2**21} bytes packed into \d+, which no release writes"):
        algorithm.cls.load(bomb, trusted=False)
    inner = io.BytesIO()
    th.save({"a": th.zeros(2**19)}, inner)
    inner.seek(0)
    with pytest.raises(ValueError, match=r"of 'policy\.pth' has \d+ bytes packed"):
        algorithm.cls.load(
            rewritten(file, {"policy.pth": rewritten(inner, {}, zipfile.ZIP_DEFLATED).getvalue()}), trusted=False
        )
    repacked = rewritten(file, {}, zipfile.ZIP_DEFLATED)  # by a user, to save space
    assert_same(algorithm.cls.load(repacked, trusted=False).get_parameters(), algorithm.cls.load(file).get_parameters())


def test_policy_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    for content, message in (
        ({"state_dict": {}}, "'arguments'"),
        ({"arguments": "[1]", "state_dict": {}}, "no arguments of a"),
    ):
        th.save(content, path)
        with pytest.raises(ValueError, match=message):
            FlowMatchingPolicy.load(str(path), trusted=False)
