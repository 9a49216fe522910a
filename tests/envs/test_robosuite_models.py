"""Models and settings in robomimic's files, which may be anybody's: what they name is not read, unless it is robosuite's."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("robosuite")

import h5py
import robosuite.models

from sb3_scoreflow.envs import RobomimicEnv, make_robomimic
from tests.envs.test_robosuite_settings import FLAT, env_args, write_file

ASSETS = robosuite.models.assets_root
FILE = re.compile(r'(<mesh [^>]*)file="[^"]*"')


@pytest.fixture(scope="module")
def env() -> Iterator[RobomimicEnv]:
    env = make_robomimic("lift")
    env.reset(seed=0)
    yield env
    env.close()


@pytest.fixture
def state(env: RobomimicEnv) -> np.ndarray:
    return env.state


def test_paths_of_whoever_recorded_it(env: RobomimicEnv, state: np.ndarray) -> None:
    """As in robomimic's files: they are replaced by those of here."""
    package = str(Path(robosuite.__file__).parent)
    theirs = env.model_xml.replace(package, "/home/somebody/robosuite")
    assert package not in theirs and "/home/somebody/robosuite/models/assets" in theirs
    env.reset_to(state, theirs)
    np.testing.assert_array_equal(env.state, state)
    assert package in env.model_xml and "somebody" not in env.model_xml
    env.reset_to(state, env.model_xml)


def with_file(model: str, path: str) -> str:
    changed, count = FILE.subn(lambda match: f'{match[1]}file="{path}"', model, count=1)
    assert count == 1
    return changed


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/etc/robosuite/../passwd",
        "/x/robosuite/../../../../../../../../etc/passwd",
        f"{ASSETS}/../../macros.py",
        f"{ASSETS}_other/mesh.stl",
        "relative.stl",
        "../../etc/passwd",
        "http://example.org/mesh.stl",
        "",
    ],
)
def test_files_outside_of_the_assets(env: RobomimicEnv, state: np.ndarray, path: str) -> None:
    before = env.model_xml
    with pytest.raises(ValueError, match=r"`model_xml` names the file '.*' in <mesh>, which is not below .*leave `model_xml`"):
        env.reset_to(state, with_file(before, path))
    assert env.model_xml == before
    env.step(np.zeros(7))  # it goes on
    env.reset_to(state)  # the remedy


def test_links_out_of_the_assets(
    env: RobomimicEnv, state: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    (tmp_path / "secret.stl").write_text("mine")
    (assets / "link.stl").symlink_to(tmp_path / "secret.stl")
    monkeypatch.setattr(robosuite.models, "assets_root", str(assets))
    model = FILE.sub(r"\1", env.model_xml)
    model = re.sub(r'(<texture [^>]*)file="[^"]*"', r"\1", model).replace(
        "<asset>", f'<asset><mesh file="{assets}/link.stl"/>'
    )
    with pytest.raises(ValueError, match=r"names the file '.*link\.stl' in <mesh>"):
        env.reset_to(state, model)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<asset>", '<include file="/etc/passwd"/><asset>', r"has an element <include> .*/etc/passwd"),
        (
            "<asset>",
            '<extension><plugin plugin="mujoco.elasticity.cable"/></extension><asset>',
            r"has an element <extension>",
        ),
        ("</worldbody>", '<body><plugin plugin="x"/></body></worldbody>', r"has an element <plugin>"),
        ("<compiler ", '<compiler strippath="true" ', r"has strippath='true' in <compiler>"),
        ("<asset>", '<asset><hfield name="h" file="/etc/passwd"/>', r"names the file '/etc/passwd' in <hfield>"),
        ("<asset>", '<asset><skin name="s" file="/etc/passwd"/>', r"names the file '/etc/passwd' in <skin>"),
        ("<asset>", '<asset><model name="m" file="/etc/passwd"/>', r"names the file '/etc/passwd' in <model>"),
        (
            "<asset>",
            '<asset><texture name="t" type="cube" fileup="/etc/passwd"/>',
            r"names the file '/etc/passwd' in <texture>",
        ),
        (
            "<mujoco ",
            '<!DOCTYPE mujoco [<!ENTITY x SYSTEM "file:///etc/passwd">]><mujoco ',
            r"has a document type, 'mujoco'",
        ),
        ("<mujoco ", '<!DOCTYPE mujoco SYSTEM "http://127.0.0.1:9/x.dtd"><mujoco ', r"has a document type"),
        ("</mujoco>", "", r"is not valid XML \(no element found"),
    ],
)
def test_what_a_model_must_not_have(env: RobomimicEnv, state: np.ndarray, old: str, new: str, message: str) -> None:
    model = env.model_xml
    assert old in model
    with pytest.raises(ValueError, match=rf"^`model_xml` {message}"):
        env.reset_to(state, model.replace(old, new, 1))
    assert env.model_xml == model


def test_what_it_may_say(env: RobomimicEnv, state: np.ndarray) -> None:
    env.reset_to(state, env.model_xml.replace("<compiler ", '<compiler strippath="false" ', 1))


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("kwargs", "entry"),
    [
        (dict(controller_configs="/tmp/controller.json"), r"env_kwargs\['controller_configs'\]='/tmp/controller\.json'"),
        (dict(controller_configs=["osc.JSON"]), r"env_kwargs\['controller_configs'\]\[0\]='osc\.JSON'"),
        (dict(controller_configs={**FLAT, "type": "../x"}), r"env_kwargs\['controller_configs'\]\['type'\]='\.\./x'"),
        (dict(robots=["C:\\robot"]), r"env_kwargs\['robots'\]\[0\]='C:.*robot'"),
        (dict(gripper_types="/x"), r"env_kwargs\['gripper_types'\]='/x'"),
    ],
)
def test_settings_that_name_files(tmp_path: Path, kwargs: dict[str, Any], entry: str) -> None:
    path = write_file(tmp_path / "file.hdf5", json.dumps(env_args(**kwargs)))
    with pytest.raises(ValueError, match=rf"file\.hdf5 has {entry}, which is the path of a file\. .*pass the corresponding"):
        make_robomimic(path)
    with pytest.raises(ValueError, match=r"^The dict of env_args has"):
        make_robomimic(env_args(**kwargs))
    # The remedy
    trusted: dict[str, Any] = {"controller_configs": FLAT, "robots": "Panda", "gripper_types": "default"}
    own = {name: trusted[name] for name in kwargs}
    make_robomimic(path, **own).close()


def test_settings_that_are_not_handed_on(tmp_path: Path) -> None:
    """What robosuite does not get is reported, as ever."""
    path = write_file(tmp_path / "file.hdf5", json.dumps(env_args(lang="/x", renderer_config="/y")))
    with pytest.warns(UserWarning, match=r"have no effect.*env_kwargs\['lang'\]='/x'"):
        make_robomimic(path).close()


def test_names_of_envs_that_are_none(tmp_path: Path) -> None:
    for name in ("os", "../Lift", "robosuite.environments.manipulation.lift:Lift"):
        path = write_file(tmp_path / "file.hdf5", json.dumps(env_args(name)))
        with pytest.raises(ValueError, match=rf"file\.hdf5 names the task '{re.escape(name)}', which robosuite does not have"):
            make_robomimic(path)


def test_a_file_of_demonstrations(env: RobomimicEnv, state: np.ndarray, tmp_path: Path) -> None:
    """The whole way, from the file."""
    path = write_file(tmp_path / "file.hdf5", json.dumps(env.env_args))
    with h5py.File(path, "a") as file:
        for name, model in (("demo_0", env.model_xml), ("demo_1", with_file(env.model_xml, "/etc/passwd"))):
            file.create_group(f"data/{name}").attrs["model_file"] = model
            file[f"data/{name}/states"] = state[None]
    player = make_robomimic(path)
    with h5py.File(path) as file:
        player.reset_to(file["data/demo_0/states"][0], file["data/demo_0"].attrs["model_file"])
        with pytest.raises(ValueError, match="names the file '/etc/passwd'"):
            player.reset_to(file["data/demo_1/states"][0], file["data/demo_1"].attrs["model_file"])
    player.close()
