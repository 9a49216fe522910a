"""Cloning that was interrupted goes on from its file, and ends as if it had not been."""

import io
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_scoreflow import ScoReFlowPPO, pretrain_bc
from tests.bc.clone_run import main as program
from tests.bc.helpers import make_demonstrations, make_model

SETTINGS: dict[str, Any] = dict(
    n_batches=50, batch_size=16, log_interval=10, critic_batches=20, validation_fraction=0.25, seed=1
)


class Killed(Exception):
    pass


def clone(
    checkpoint: Path | str | None, kill_at: int | None = None, **kwargs: Any
) -> tuple[ScoReFlowPPO, dict[str, list[float]]]:
    """A call of ``pretrain_bc`` in a script that makes its model anew; it ends at a log point as if it were killed there."""
    model, calls = make_model(), []

    def callback(metrics: dict[str, float]) -> None:
        calls.append(metrics)
        if len(calls) == kill_at:
            raise Killed

    arguments = {**SETTINGS, **kwargs}
    return model, pretrain_bc(model, make_demonstrations(), callback=callback, checkpoint=checkpoint, **arguments)


def same(a: Any, b: Any) -> bool:
    ours, theirs = a.policy.state_dict(), b.policy.state_dict()
    return all(th.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kills", [[1], [2, 1], [5], [1, 1, 1, 1, 1]])
def test_interrupted_clone_equals_the_uninterrupted(kills: list[int], tmp_path: Path) -> None:
    whole, history = clone(None)
    path = tmp_path / "clone.pt"
    for kill_at in kills:
        with pytest.raises(Killed):
            clone(path, kill_at)
        assert path.exists()
    resumed, resumed_history = clone(path)
    assert same(resumed, whole) and not path.exists()
    for name in history.keys() - {"bc/time_elapsed"}:
        assert resumed_history[name] == history[name], name
    assert history["batch"] == [10, 20, 30, 40, 50] and len(history["bc/critic_loss"]) == 1


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    whole, _ = clone(None, n_batches=100)
    path = tmp_path / "clone.pt"
    with pytest.raises(Killed):
        clone(path, 8, n_batches=100)  # when the average has begun to be one
    content = path.read_bytes()
    assert same(clone(path, n_batches=100)[0], whole)
    for part in ("generator", "rng", "optimizer", "average", "order"):
        state = th.load(io.BytesIO(content), weights_only=True)
        if part == "generator":
            state[part] = th.Generator().manual_seed(5).get_state()
        elif part == "rng":
            state[part] = np.random.default_rng(5).bit_generator.state
        elif part == "optimizer":
            state[part]["state"] = {}
        elif part == "average":
            state[part] = {name: value * 1.5 if value.is_floating_point() else value for name, value in state[part].items()}
        else:
            state[part] = state[part].flip(0)
        th.save(state, path)
        assert not same(clone(path, n_batches=100)[0], whole), part


def test_ctrl_c_leaves_the_file(tmp_path: Path) -> None:
    model = make_model()

    def interrupt(_: dict[str, float]) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "clone.pt"
    with pytest.raises(KeyboardInterrupt):
        pretrain_bc(model, make_demonstrations(), callback=interrupt, checkpoint=path, **SETTINGS)
    assert path.exists() and same(clone(str(path))[0], clone(None)[0])


def test_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clone.pt"
    with pytest.raises(Killed):
        clone(path, 2)
    for other in (dict(n_batches=60), dict(learning_rate=1e-4), dict(seed=2)):
        with pytest.raises(
            ValueError,
            match=r"checkpoint=.*clone.pt' belongs to a run with another.*delete the file",
        ):
            clone(path, **other)
    with pytest.raises(ValueError, match="another policy, demonstrations or arguments"):
        pretrain_bc(make_model(), make_demonstrations(n=50), checkpoint=path, **SETTINGS)
    others = make_demonstrations()
    assert isinstance(others.observations, np.ndarray)
    others.observations[-1, 0] += 1e-3
    with pytest.raises(ValueError, match="another policy, demonstrations or arguments"):
        pretrain_bc(make_model(), others, checkpoint=path, **SETTINGS)
    others = make_demonstrations()
    others.truncations[10] = True
    with pytest.raises(ValueError, match="another policy, demonstrations or arguments"):
        pretrain_bc(make_model(), others, checkpoint=path, **SETTINGS)
    path.unlink()  # the remedy
    clone(path, n_batches=60)


@pytest.mark.parametrize("content", [b"", b"something else", b"PK\\x03\\x04"])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clone.pt"
    path.write_bytes(content)
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match="is not a checkpoint of cloning"):
        pretrain_bc(model, make_demonstrations(), checkpoint=path, **SETTINGS)
    assert all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())
    assert path.read_bytes() == content


def clone_by_program(folder: Path, name: str, n_kills: int) -> dict[str, th.Tensor]:
    """:return: the clone's state, of a program that was killed at random moments, and goes on to its end in this process"""
    rng = np.random.default_rng(0)
    output = folder / f"{name}.pth"
    command = [sys.executable, "-m", "tests.bc.clone_run", str(folder / f"{name}.pt"), str(output)]
    for _ in range(n_kills):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "begins\n"
            time.sleep(rng.uniform(0.0, 0.6))
            process.kill()
        if output.exists():  # it was fast
            break
    if not output.exists():
        program(folder / f"{name}.pt", output)
    assert {path.name for path in folder.iterdir() if name in path.name or path.name.startswith(".sb3")} == {output.name}
    return ScoReFlowPPO.policy_aliases["FlowPolicy"].load(str(output)).state_dict()


@pytest.mark.parametrize("n_kills", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_programs(n_kills: int, tmp_path: Path) -> None:
    whole, killed = (clone_by_program(tmp_path, name, n) for name, n in (("whole", 0), ("killed", n_kills)))
    assert all(th.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.parametrize(
    "other",
    [dict(denoising_steps=2), dict(policy_kwargs=dict(net_arch=[8])), dict(policy_kwargs=dict(net_arch=[16], prior_std=0.5))],
)
def test_a_checkpoint_of_another_policy_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "clone.pt"
    with pytest.raises(Killed):
        clone(path, 2)
    model = make_model(**other)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=r"belongs to a run with another policy.*or delete the file"):
        pretrain_bc(model, make_demonstrations(), checkpoint=path, **SETTINGS)
    assert all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())
    path.unlink()  # the remedy
    pretrain_bc(model, make_demonstrations(), checkpoint=path, **SETTINGS)
