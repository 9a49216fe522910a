"""
Write a checkpoint of this release, for the releases to come to load: ``python -m tests.conformance.make_checkpoint``.

Run it once for every release, when its version is set, and commit the two small files. Never change those of earlier releases.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.utils import LinearSchedule

import sb3_scoreflow
from sb3_scoreflow import CosineSchedule, HoldCosineSchedule
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.envs import make_toy, observe, some_states

DATA = Path(__file__).parent / "data"

#: What exercises most of what is saved. ``prior_std`` and the like keep their defaults on purpose: a release that changes
#: a default must not change what an older file does.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "ScoReFlowPPO": dict(
        learning_rate=CosineSchedule(1e-3, 1e-4, warmup_fraction=0.1),
        critic_learning_rate=LinearSchedule(1e-3, 1e-4, 1.0),
        max_std=HoldCosineSchedule(0.4, 0.2),
        bc_coef=0.1,
        deterministic_coef=0.1,
        validation_fraction=0.2,
    ),
    "RLDT": dict(
        learning_rate=CosineSchedule(1e-3, 1e-4, warmup_fraction=0.1),
        critic_learning_rate=LinearSchedule(1e-3, 1e-4, 1.0),
        target_clip=(-10.0, 10.0),
    ),
}


def make_checkpoint(algorithm: Algorithm, path: Path) -> None:
    """
    :param algorithm: algorithm to train for three of four iterations
    :param path: path of the checkpoint; a file with the suffix ".json" next to it contains the expected results after loading
    """
    arguments = ARGUMENTS.get(str(algorithm), {})
    total = 4 * algorithm.iteration(2)

    def stop(local: dict[str, Any], _: dict[str, Any]) -> bool:
        return model.num_timesteps <= total * 3 // 4

    model = algorithm.make("FlowPolicy", make_toy(n_envs=2), policy_kwargs=dict(net_arch=[8]), **arguments)
    model.learn(total, callback=stop)
    path.parent.mkdir(exist_ok=True)
    _round(model)
    model.save(path)
    _compress(path)
    states = some_states(10)
    model.policy.set_training_mode(False)
    expected = dict(
        states=states.tolist(),
        deterministic_actions=model.predict(observe("flat", states), deterministic=True)[0].tolist(),
        num_timesteps=model.num_timesteps,
        n_updates=model._n_updates,
        learning_rate_at_half=model.lr_schedule(0.5),
    )
    path.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n")


def _round(model: Any) -> None:
    """Leave the first 14 bits of every parameter and moment, so that the file gets small when compressed."""
    moments = [moment for state in model.policy.optimizer.state.values() for moment in state.values() if moment.dim() > 0]
    with th.no_grad():
        for tensor in [*model.policy.parameters(), *moments]:
            tensor.view(th.int32).bitwise_and_(-(1 << 18))


def _compress(path: Path) -> None:
    """Rewrite the archive, which Stable-Baselines3 does not compress."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


if __name__ == "__main__":
    version = sb3_scoreflow.__version__.replace(".", "_")
    for each in ALGORITHMS:
        file = DATA / f"{each}-{version}.zip"
        make_checkpoint(each, file)
        print(f"{file}: {file.stat().st_size} bytes")
