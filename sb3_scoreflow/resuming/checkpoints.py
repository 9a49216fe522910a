"""A folder of checkpoints. Each is written to a temporary folder and renamed, so that a checkpoint is never incomplete."""

import json
import pickle
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from sb3_scoreflow.common.files import atomic_folder, remove_folder, remove_leftovers
from sb3_scoreflow.common.utils import ArgumentError

_PREFIX = "checkpoint_"
MODEL, STATE, FACTS = "model.zip", "state.pkl.z", "checkpoint.json"


class Checkpoint(NamedTuple):
    """
    A checkpoint: a folder with ``model.zip``, which the algorithm's ``load`` reads, the other state of the run in
    ``state.pkl.z``, and facts about the checkpoint in ``checkpoint.json``.
    """

    path: Path

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps for which the model had been trained."""
        return int(self.path.name.removeprefix(_PREFIX))

    @property
    def model(self) -> Path:
        """Path of the saved model."""
        return self.path / MODEL

    def facts(self) -> dict[str, Any]:
        """:return: numbers and strings: "algorithm", "num_timesteps", "score", "log_folder", "versions" """
        facts = json.loads((self.path / FACTS).read_text())
        assert isinstance(facts, dict)
        return facts

    def state(self) -> dict[str, Any]:
        """:return: the other state of the run; unpickling executes code in the file"""
        state = pickle.loads(zlib.decompress((self.path / STATE).read_bytes()))
        assert isinstance(state, dict)
        return state


class CheckpointFolder:
    """
    The checkpoints of one run.

    :param path: folder of the checkpoints; it is created if it does not exist
    :param keep: number of newest checkpoints to keep, at least 1; the one with the highest score is always kept
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".lock", timeout=0)

    def __enter__(self) -> "CheckpointFolder":
        """:raises ArgumentError: if another process uses the folder"""
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ArgumentError(
                f"folder={str(self.path)!r} is used by another process, which trains there: wait until it ends, or pass "
                "another folder."
            ) from error
        remove_leftovers(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def all(self) -> list[Checkpoint]:
        """:return: the checkpoints, oldest first"""
        found = [Checkpoint(path) for path in self.path.glob(f"{_PREFIX}*") if path.is_dir()]
        return sorted(found, key=lambda checkpoint: checkpoint.num_timesteps)

    def newest(self) -> Checkpoint | None:
        """:return: the checkpoint to continue from; None if there are no checkpoints"""
        return max(self.all(), key=lambda checkpoint: checkpoint.num_timesteps, default=None)

    def write(self, model: Any, include: tuple[str, ...], state: dict[str, Any], facts: dict[str, Any]) -> Checkpoint:
        """
        Write a checkpoint, and remove outdated ones.

        :param model: algorithm to save
        :param include: additional attributes to save with the model
        :param state: the other state of the run, which must be picklable
        :param facts: facts about the checkpoint, see :meth:`Checkpoint.facts`
        :return: the checkpoint
        :raises OSError: if it cannot be written, for example because the disk is full; earlier checkpoints are kept then
        """
        name = f"{_PREFIX}{model.num_timesteps:012d}"
        # A checkpoint with the same number of timesteps is the end of a run that is now prolonged
        with atomic_folder(self.path / name, replace=True) as unfinished:
            model.save(unfinished / MODEL, include=include)
            (unfinished / STATE).write_bytes(zlib.compress(pickle.dumps(state), 1))
            (unfinished / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        self._prune()
        return Checkpoint(self.path / name)

    def best(self) -> Checkpoint | None:
        """:return: the checkpoint with the highest score; None if no checkpoint has a score"""
        scored = [(float(score), each) for each in self.all() if (score := each.facts()["score"]) is not None]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None

    def _prune(self) -> None:
        best = self.best()
        for checkpoint in self.all()[: -self.keep]:
            if checkpoint != best:
                remove_folder(checkpoint.path)
