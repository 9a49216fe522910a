"""State of a cloning run, and the checkpoint from which the run continues."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from torch.optim.swa_utils import AveragedModel

from sb3_scoreflow.bc.averaging import copy_parameters, warmed_up_average
from sb3_scoreflow.common.files import atomic_path
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.utils import ArgumentError
from sb3_scoreflow.demonstrations import Demonstrations
from sb3_scoreflow.demonstrations.arrays import named_observations

#: Attributes of a policy on which its clone, or the state of its cloning, depends
_OF_POLICY = ("denoising_steps", "prior_std", "net_arch", "activation_fn", "time_embedding_dim", "observation_normalization")


class Descent:
    """
    Gradient descent on a policy's actor, with a moving average of its weights.

    :param policy: policy to be cloned into
    :param rng: generator of the minibatches
    :param length: number of chunks in the demonstrations
    :param batch_size: chunks per gradient step
    :param ema_decay: decay of the moving average per gradient step, in [0, 1)
    :param learning_rate: learning rate at the start
    :param weight_decay: weight decay of AdamW
    :param n_batches: number of gradient steps
    """

    def __init__(
        self,
        policy: FlowMatchingPolicy,
        rng: np.random.Generator,
        length: int,
        batch_size: int,
        ema_decay: float,
        learning_rate: float,
        weight_decay: float,
        n_batches: int,
    ) -> None:
        self.policy, self.rng, self.length, self.batch_size = policy, rng, length, batch_size
        self.generator = th.Generator(device=policy.device)
        self.generator.manual_seed(int(rng.integers(2**31)))
        self.actor = th.nn.ModuleList([policy.features_extractor, policy.velocity_field])
        self.average = AveragedModel(self.actor, multi_avg_fn=warmed_up_average(ema_decay))
        parameters = [p for p in self.actor.parameters() if p.requires_grad]
        self.optimizer = th.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
        #: Number of completed gradient steps, and of all
        self.n_done, self.n_batches = 0, n_batches
        self._order, self._next = np.zeros(0, np.int64), 0

    def next_batch(self) -> np.ndarray:
        """:return: indices of the next minibatch; every pass over the data is shuffled, and its last batch may be smaller"""
        if self._next >= len(self._order):
            self._order, self._next = self.rng.permutation(self.length), 0
        indices = self._order[self._next : self._next + self.batch_size]
        self._next += self.batch_size
        return indices

    def step(self, loss: th.Tensor, learning_rate: float) -> None:
        """
        :param loss: loss of the minibatch
        :param learning_rate: learning rate of this step
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.average.update_parameters(self.actor)
        self.n_done += 1

    def finish(self) -> None:
        """Give the policy the averaged weights."""
        copy_parameters(self.average.module, self.actor)

    def save(self, path: Path, fingerprint: str, history: dict[str, list[float]]) -> None:
        """
        :param path: path of the checkpoint
        :param fingerprint: identifies the run, see :func:`fingerprint_of`
        :param history: metrics so far
        :raises OSError: if the file cannot be written
        """
        state = {
            "fingerprint": fingerprint,
            "history": {name: list(values) for name, values in history.items()},
            "n_done": self.n_done,
            "n_batches": self.n_batches,
            "policy": self.policy.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": self.rng.bit_generator.state,
            "order": th.from_numpy(self._order),
            "next": self._next,
        }
        # With a path instead of a file object, PyTorch would not report disk errors
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            th.save(state, file)

    def restore(self, path: Path, fingerprint: str) -> dict[str, list[float]]:
        """
        :param path: path of the checkpoint
        :param fingerprint: identifies the run
        :return: metrics so far
        :raises ArgumentError: if the file is not a checkpoint of cloning, or belongs to another run
        :raises OSError: if the file cannot be read
        """
        try:
            state: dict[str, Any] = th.load(path, map_location=self.policy.device, weights_only=True)
            saved, n_batches = state["fingerprint"], state["n_batches"]
        except OSError:
            raise
        except Exception as error:  # torch raises many kinds of errors for invalid files
            raise ArgumentError(
                f"checkpoint={str(path)!r} is not a checkpoint of cloning ({error}): pass another path, or delete it."
            ) from error
        if saved != fingerprint:
            raise ArgumentError(
                f"checkpoint={str(path)!r} belongs to a run with another policy, demonstrations or arguments ({saved}, not "
                f"{fingerprint}): pass those, or another path, or delete the file. Without a seed, every run holds out "
                "different episodes."
            )
        self.policy.load_state_dict(state["policy"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.rng.bit_generator.state = state["rng"]
        self._order, self._next = state["order"].cpu().numpy(), state["next"]
        self.n_done, self.n_batches = state["n_done"], n_batches
        history: dict[str, list[float]] = state["history"]
        return history


def fingerprint_of(demonstrations: Demonstrations, policy: FlowMatchingPolicy, settings: dict[str, Any]) -> str:
    """
    :param demonstrations: demonstrations of the run
    :param policy: policy to be cloned into
    :param settings: arguments of the run
    :return: text that differs between runs whose policies, arguments, actions, episodes or observations differ. Of images that
        stay in a file, only the shape counts: reading them all would take as long as cloning
    """
    digest = hashlib.sha256(np.ascontiguousarray(demonstrations.actions).tobytes())
    for flags in (demonstrations.terminations, demonstrations.truncations):  # which chunks there are
        digest.update(flags.tobytes())
    for name, part in sorted(named_observations(demonstrations.observations).items()):
        digest.update(f"{name}{part.shape}".encode())
        if isinstance(part, np.ndarray):
            digest.update(np.ascontiguousarray(part).tobytes())
    facts = {name: getattr(policy, name) for name in _OF_POLICY} | settings
    classes = (type(each).__name__ for each in (policy, policy.features_extractor))
    given = (f"{name}={getattr(value, '__name__', value)}" for name, value in facts.items())
    return ", ".join([f"{len(demonstrations)} transitions {digest.hexdigest()[:16]}", *classes, *given])
