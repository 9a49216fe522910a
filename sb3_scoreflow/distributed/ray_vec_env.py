"""Environments on many machines as a vectorized environment of Stable-Baselines3."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from sb3_scoreflow.common.env_errors import EnvFailedError
from sb3_scoreflow.common.utils import ArgumentError, warn
from sb3_scoreflow.distributed.arguments import check_arguments, env_functions, pickled_functions
from sb3_scoreflow.distributed.pool import Lost, Pool, Worker
from sb3_scoreflow.distributed.session import check_resources, connect, cores, import_ray
from sb3_scoreflow.distributed.worker import Arrays, Failure, Resets, Steps, empty_observations


class RayVecEnv(VecEnv):
    """
    Environments in workers on any number of machines, with several environments per worker and the semantics of
    Stable-Baselines3's vectorized environments. If no worker fails, results are bit-identical to those of a ``DummyVecEnv``
    with the same seeds.

    Each step needs one message to and from each worker; the workers execute chunks of actions
    (:class:`~sb3_scoreflow.ActionChunking`). Create it with ``make_vec_env(..., vec_env_cls=RayVecEnv,
    vec_env_kwargs=dict(envs_per_worker=8))``.

    If a worker dies or does not answer in time, only the current episodes of its environments are lost: another process, on
    any node with free resources, creates the environments again. In this step, their episodes end with reward 0,
    ``TimeLimit.truncated``, the last known observation as ``terminal_observation``, and ``worker_lost`` in the info. There is
    a warning, and ``n_restarts`` increases. Attributes set by ``set_attr`` are set again. An exception of an environment is
    raised here as an :class:`~sb3_scoreflow.EnvFailedError`. See docs/scaling.md.

    :param env_fns: functions that create the environments, or a Gymnasium id or function for ``make_vec_env``
    :param n_envs: number of environments; None: the number of functions, or 1
    :param envs_per_worker: largest number of environments per worker; None: there are as many workers as processors
    :param num_cpus: number of processors that a worker needs, which may be 0 or a fraction; None: 1 in a cluster, and 0 in a
        Ray instance that was started here, where all workers share this machine
    :param num_gpus: number of GPUs that a worker needs, which may be a fraction
    :param worker_options: further options of Ray's actors, such as ``resources``, ``label_selector``,
        ``scheduling_strategy`` or ``runtime_env``
    :param address: address of a Ray cluster, such as "auto" on one of its nodes. None: the cluster that the process is
        connected to, else the environment variable ``RAY_ADDRESS``, else a new small cluster on this machine ("local")
    :param step_timeout: time limit in seconds for an answer of a worker, after which it is lost; a step includes the resets
        that may follow it. None: no limit, but a warning after a minute
    :param start_timeout: time limit in seconds for placing the workers, and again for creating their environments
    :param max_restarts: number of consecutive losses of a worker, without a step in between, that are tolerated
    :raises ImportError: if Ray is not installed
    :raises ArgumentError: if an argument is out of range, a function cannot be pickled, the spaces of environments differ, or
        the nodes lack resources
    :raises EnvFailedError: if an environment cannot be created, or Ray cannot place a worker
    """

    #: Tells ``guard_env`` that the workers check their environments
    checks_answers = True

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]] | Callable[..., gym.Env] | str,
        n_envs: int | None = None,
        envs_per_worker: int | None = None,
        *,
        num_cpus: float | None = None,
        num_gpus: float = 0.0,
        worker_options: Mapping[str, Any] | None = None,
        address: str | None = None,
        step_timeout: float | None = 300.0,
        start_timeout: float = 120.0,
        max_restarts: int = 3,
    ) -> None:
        self.closed, self.waiting = False, False
        functions = env_functions(env_fns, n_envs)
        check_arguments(envs_per_worker, num_cpus, num_gpus, worker_options, step_timeout, start_timeout, max_restarts)
        pickled_functions(functions, range(len(functions)))  # raises an error before anything is started
        own_ray, self.ray = connect(address), import_ray()
        num_cpus = (0.0 if own_ray else 1.0) if num_cpus is None else num_cpus
        options = {**(worker_options or {}), "num_cpus": num_cpus, "num_gpus": num_gpus}
        if envs_per_worker is None:
            n_workers = min(len(functions), max(int(cores(self.ray) / (num_cpus or 1.0)), 1))
        else:
            n_workers = math.ceil(len(functions) / envs_per_worker)
        check_resources(self.ray, {"CPU": num_cpus, "GPU": num_gpus, **options.get("resources", {})}, n_workers)
        parts = [range(part[0], part[-1] + 1) for part in np.array_split(range(len(functions)), n_workers)]
        workers = [Worker(pickled_functions(functions, part), part, [{} for _ in part]) for part in parts]
        self.pool = Pool(self.ray, workers, options, start_timeout, step_timeout)
        #: Number of consecutive losses of a worker that are tolerated
        self.max_restarts = max_restarts
        #: Number of losses of workers so far
        self.n_restarts = 0
        #: Seeds of the last reset
        self._last_seeds: list[int | None] = [None] * len(functions)
        self._last_observations: Arrays | None = None
        #: First observations of workers that were lost between two steps
        self._begun: dict[int, Resets] = {}
        self._refs: dict[int, Any] = {}
        try:
            super().__init__(len(functions), *self._make())
        except BaseException:
            self.pool.kill(range(n_workers))
            self.closed = True
            raise

    @property
    def step_timeout(self) -> float | None:
        """Time limit in seconds for an answer of a worker; None: no limit."""
        return self.pool.step_timeout

    @step_timeout.setter
    def step_timeout(self, seconds: float | None) -> None:
        self.pool.step_timeout = seconds

    def step_async(self, actions: np.ndarray) -> None:
        """
        Send actions to the workers and return without waiting for the step.

        :param actions: shape ``(n_envs, ...)``
        """
        self._check_open()
        if self._last_observations is None:
            raise RuntimeError("RayVecEnv was not reset. Call reset() before step().")
        actions = np.asarray(actions)
        if len(actions) != self.num_envs:
            raise ValueError(f"Got {len(actions)} actions for {self.num_envs} environments: pass one for each.")
        parts = {number: actions[_part(worker)] for number, worker in enumerate(self.pool.workers)}
        self._refs = {n: self.pool.send(n, "step", part) for n, part in parts.items() if n not in self._begun}
        self.waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations, rewards (float32), whether episodes have ended, infos
        :raises EnvFailedError: if an environment raised an exception, or a worker was lost too often in a row
        """
        self._check_open()
        if not self.waiting:
            raise RuntimeError("RayVecEnv has no actions. Call step_async() before step_wait().")
        self.waiting = False
        answers = self.pool.gather(self._refs, "step()", self.step_timeout)
        self.pool.raise_failures(answers)
        lost = {n: answer for n, answer in answers.items() if isinstance(answer, Lost) and n not in self._begun}
        self._revive(lost, "step()")
        observations = empty_observations(self.observation_space, self.num_envs)
        rewards, dones = np.zeros(self.num_envs, np.float32), np.ones(self.num_envs, bool)
        infos: list[dict[str, Any]] = []
        for number, worker in enumerate(self.pool.workers):
            if number in self._begun:
                infos += [self._lost_info(index) for index in worker.indices]
                self._enter(worker, self._begun[number], observations)
            else:
                steps = answers[number]
                rewards[_part(worker)], dones[_part(worker)] = steps.rewards, steps.dones
                infos += self._enter(worker, steps, observations)
                worker.losses = 0
        self._begun, self._last_observations = {}, observations
        return self._assembled(observations), rewards, dones, infos

    def reset(self) -> VecEnvObs:
        """:return: first observations of new episodes, with the seeds and options that were set"""
        self._check_open()
        self.waiting, self._begun, self._last_observations = False, {}, None
        answers = self._collect(self._numbers, lambda number: self._send_reset(number, self._seeds, self._options), "reset()")
        observations = empty_observations(self.observation_space, self.num_envs)
        for number, worker in enumerate(self.pool.workers):
            self._enter(worker, answers[number], observations)
        self._last_seeds, self._last_observations = list(self._seeds), observations
        self._reset_seeds()
        self._reset_options()
        return self._assembled(observations)

    def close(self) -> None:
        """Close the environments and end the workers. Ray itself keeps running until ``ray.shutdown()``."""
        if not self.closed:
            self.closed = True
            self.pool.close(self.waiting)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """:return: an image of each environment; None for each if the render mode is not "rgb_array" """
        if self.render_mode != "rgb_array":
            warnings.warn(f"The render mode is {self.render_mode}, but get_images() wants `rgb_array`.")
            return [None] * self.num_envs
        return self._ask("render", "render()", None)

    def has_attr(self, attr_name: str) -> bool:
        """
        :param attr_name: name of an attribute
        :return: whether all environments, in their wrappers, have the attribute
        """
        return all(self._ask("has_attr", f"has_attr({attr_name!r})", attr_name))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: name of an attribute, which must be picklable
        :param indices: indices of environments; None: all
        :return: the value in each environment
        """
        return self._ask("get_attr", f"get_attr({attr_name!r})", attr_name, indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: name of an attribute of the outermost wrapper; it is set again when a lost worker is replaced
        :param value: new value, which must be picklable
        :param indices: indices of environments; None: all
        """
        self._ask("set_attr", f"set_attr({attr_name!r})", (attr_name, value), indices)
        for worker, index in self._located(indices):
            worker.attributes[index - worker.indices[0]][attr_name] = value

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: name of a method of the environments
        :param method_args: its positional arguments
        :param indices: indices of environments; None: all
        :param method_kwargs: its keyword arguments
        :return: its return value in each environment
        """
        return self._ask("env_method", f"{method_name}()", (method_name, method_args, method_kwargs), indices)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: class of a wrapper
        :param indices: indices of environments; None: all
        :return: whether each environment has this wrapper
        """
        return self._ask("is_wrapped", "env_is_wrapped()", wrapper_class, indices)

    def get_checkpoint(self) -> list[Any]:
        """
        Save the environments; :func:`~sb3_scoreflow.resuming.learn_resumable` calls this method.

        :return: state of each environment
        """
        return self._ask("state", "get_checkpoint()", None)

    def set_checkpoint(self, states: list[Any]) -> None:
        """:param states: result of :meth:`get_checkpoint`"""
        for index, state in enumerate(states):
            self._ask("set_state", "set_checkpoint()", state, [index])

    # ------------------------------------------------------------------ workers

    @property
    def _numbers(self) -> range:
        return range(len(self.pool.workers))

    def _make(self) -> tuple[spaces.Space, spaces.Space]:
        """:return: observation space and action space, which are the same for all environments"""
        answers = self.pool.start(self._numbers)
        self.pool.raise_failures(answers)
        for number, answer in answers.items():
            if isinstance(answer, Lost):
                worker = self.pool.workers[number]
                raise EnvFailedError(
                    f"The worker of {worker} was lost while it created them: {answer}. Look at its last output; if they "
                    "need more time, pass a larger start_timeout.",
                    worker.indices[0],
                )
        found = [cloudpickle.loads(pair) for number in self._numbers for pair in answers[number]]
        for index, pair in enumerate(found):
            for name, space, expected in zip(("observation", "action"), pair, found[0], strict=True):
                if space != expected:
                    raise ArgumentError(
                        f"Environment {index} has the {name} space {space}, environment 0 has {expected}: all functions of "
                        "`env_fns` must create environments with the same spaces."
                    )
        return found[0]

    def _ask(self, command: str, call: str, data: Any, indices: VecEnvIndices = None) -> list[Any]:
        """:return: answer of each environment, in the order of ``indices``"""
        self._check_open()
        asked: dict[int, list[int]] = {}
        order = []
        for worker, index in self._located(indices):
            number = self.pool.workers.index(worker)
            order.append((number, len(asked.setdefault(number, []))))
            asked[number].append(index)
        answers = self._collect(asked, lambda number: self.pool.send(number, "ask", command, call, asked[number], data), call)
        return [cloudpickle.loads(answers[number][position]) for number, position in order]

    def _located(self, indices: VecEnvIndices) -> list[tuple[Worker, int]]:
        """:return: environments' indices from 0, and their workers"""
        chosen = [range(self.num_envs)[index] for index in self._get_indices(indices)]
        return [(worker, index) for index in chosen for worker in self.pool.workers if index in worker.indices]

    def _collect(self, numbers: Iterable[int], send: Callable[[int], Any], call: str) -> dict[int, Any]:
        """
        Collect answers from workers, and ask replacements of lost workers again.

        :param numbers: numbers of workers
        :param send: function that sends the call to a worker and returns a reference to the answer
        :param call: name of the call, for messages
        :return: answer of each worker
        """
        answers: dict[int, Any] = {}
        left = list(numbers)
        while left:
            found = self.pool.gather({number: send(number) for number in left}, call, self.step_timeout)
            self.pool.raise_failures(found)
            answers.update(found)
            lost = {number: answer for number, answer in found.items() if isinstance(answer, Lost)}
            self._revive(lost, call)
            left = list(lost)
        return answers

    def _revive(self, lost: dict[int, Lost], call: str) -> None:
        """
        Replace workers. If their environments had episodes, new ones begin.

        :param lost: numbers of the lost workers, and the reasons
        :param call: name of the call, for messages
        :raises EnvFailedError: if a worker is lost too often in a row
        """
        while lost:
            for number, why in lost.items():
                self._count(self.pool.workers[number], why, call)
            answers = self.pool.start(lost, again=True)
            if self._last_observations is not None:
                made = [number for number, answer in answers.items() if not isinstance(answer, (Lost, Failure))]
                seeds, options = self._fresh_seeds(), [dict[str, Any]() for _ in range(self.num_envs)]
                refs = {number: self._send_reset(number, seeds, options) for number in made}
                answers.update(self.pool.gather(refs, "reset()", self.step_timeout))
                self._begun.update({n: answers[n] for n in made if isinstance(answers[n], Resets)})
            # An error of an environment during recovery may be caused by the failure, so it counts as another loss
            failed = {n: Lost(f"its replacement failed: {a.error()}") for n, a in answers.items() if isinstance(a, Failure)}
            lost = {**{n: answer for n, answer in answers.items() if isinstance(answer, Lost)}, **failed}

    def _count(self, worker: Worker, why: Lost, call: str) -> None:
        self.n_restarts += 1
        worker.losses += 1
        place = f"process {worker.process} on {worker.host}"
        if worker.losses > self.max_restarts:
            raise EnvFailedError(
                f"The worker of {worker} ({place}) was lost {worker.losses} times without a step in between, in {call}, and "
                f"max_restarts is {self.max_restarts}. The last time: {why}. Look at the output of its environments; then "
                "create the environments again and continue from the last checkpoint.",
                worker.indices[0],
            )
        warn(
            f"Worker lost, number {self.n_restarts} of this RayVecEnv: the worker of {worker} ({place}), in {call}. Its "
            f"episodes have ended, and new ones begin in another process. {why}"
        )

    def _send_reset(self, number: int, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> Any:
        part = _part(self.pool.workers[number])
        return self.pool.send(number, "reset", seeds[part], options[part])

    def _fresh_seeds(self) -> list[int | None]:
        """:return: seeds for replaced environments, so that they do not repeat the same episodes"""
        return [
            None if seed is None else int(np.random.SeedSequence([seed, self.n_restarts]).generate_state(1)[0])
            for seed in self._last_seeds
        ]

    # ------------------------------------------------------------------ answers

    def _enter(self, worker: Worker, answer: Steps | Resets, observations: Arrays) -> list[dict[str, Any]]:
        """
        :param worker: worker that sent the answer
        :param answer: its answer
        :param observations: observations of all environments, which are changed
        :return: infos of the steps
        """
        for key, array in observations.items():
            array[_part(worker)] = answer.observations[key]
        infos = []
        for index, pickled in zip(worker.indices, answer.infos, strict=True):
            info = cloudpickle.loads(pickled)
            if isinstance(answer, Steps):
                info, reset_info = info
                infos.append(info)
                if reset_info is None:
                    continue
                info = reset_info
            self.reset_infos[index] = info
        return infos

    def _lost_info(self, index: int) -> dict[str, Any]:
        """:return: info of a lost episode's end; with chunks, it counts 0 steps"""
        assert self._last_observations is not None
        row = self._assembled({key: array[index].copy() for key, array in self._last_observations.items()})
        return {"TimeLimit.truncated": True, "terminal_observation": row, "worker_lost": True, "n_env_steps": 0}

    def _assembled(self, observations: Arrays) -> Any:
        return dict_to_obs(self.observation_space, observations)

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("RayVecEnv is closed. Make another one.")
        if not self.ray.is_initialized():
            raise RuntimeError("Ray was shut down, and with it the environments. Make another RayVecEnv.")


def _part(worker: Worker) -> slice:
    return slice(worker.indices[0], worker.indices[-1] + 1)
