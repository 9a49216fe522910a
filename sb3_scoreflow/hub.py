"""Models on the Hugging Face Hub, in the layout of the RL Zoo, whose tools read it."""

import datetime
import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_scoreflow.bc.checks import checked_eval_env
from sb3_scoreflow.bc.execution import execution_of
from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.env_attributes import ask
from sb3_scoreflow.common.files import AnyPath, as_path, atomic_folder, temporary_folder
from sb3_scoreflow.common.plain import describe, restore
from sb3_scoreflow.common.saved_files import written_by
from sb3_scoreflow.common.untrusted import UntrustedFileError
from sb3_scoreflow.common.utils import ArgumentError, warn, without_folders
from sb3_scoreflow.hub_card import card_text, training_config
from sb3_scoreflow.registry import ALGORITHMS

#: Learning curves, which are no model although they are a zip file
_METRICS = "train_eval_metrics.zip"
#: The same as vec_normalize.pkl, to be read without unpickling
_STATISTICS = "vec_normalize.json"
_NORMALIZER_ARGUMENTS = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
_NORMALIZER_STATISTICS = ("obs_rms", "ret_rms")


def write_hub_folder(
    model: FlowAlgorithm,
    folder: AnyPath,
    eval_env: GymEnv,
    *,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    n_eval_episodes: int = 10,
    seed: int = 0,
    video: Any = None,
    run_folder: AnyPath | None = None,
    repo_id: str | None = None,
) -> Path:
    """
    Evaluate a model and write what :func:`push_to_hub` uploads, to look at it before.

    ``ALGORITHM-ENVIRONMENT.zip`` and what is in it, ``results.json``, ``args.yml``, ``config.yml``, ``env_kwargs.yml``,
    ``train_eval_metrics.zip``, ``README.md`` (the model card), and, where there are such, ``vec_normalize.pkl``,
    ``vec_normalize.json`` and ``replay.mp4``. Of absolute paths in settings, the last part is kept. The folder appears in one
    step, when it is complete.

    :param model: to be published
    :param folder: to be made, or empty
    :param eval_env: environment in which it is evaluated, wrapped as in training, not the one it trains in; a ``VecNormalize``
        gets the training environment's statistics, and stops learning
    :param env_id: name of the environment; as registered with Gymnasium if None
    :param env_kwargs: keyword arguments of the environment
    :param n_eval_episodes: episodes, both of deterministic and of exploring actions
    :param seed: of the evaluation
    :param video: path of an MP4 file, or a ``VecVideoRecorder`` that has written one
    :param run_folder: folder of a run of the RL Zoo, whose settings and learning curves are taken instead of the model's
    :param repo_id: "user/name", for the card
    :return: the folder
    :raises FileExistsError: if there is something in the folder
    :raises FileNotFoundError: if the video does not exist
    :raises ImportError: if huggingface_hub is not installed
    :raises OSError: if it cannot be written, as when the disk is full
    :raises ValueError: if the model is of another kind, or the environment does not fit it or has no name
    """
    _import_hub("write_hub_folder")
    if not isinstance(model, FlowAlgorithm):
        raise ArgumentError(
            f"model must be an algorithm of this package, got {type(model).__name__}: pass ScoReFlowPPO.load(path)."
        )
    if n_eval_episodes < 1:
        raise ArgumentError(f"n_eval_episodes must be at least 1, got {n_eval_episodes}.")
    folder = as_path(folder)
    run = None if run_folder is None else as_path(run_folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"folder: {folder} is not empty, and all that is in it would be published: pass a new one.")
    video = None if video is None else as_path(getattr(video, "video_path", video))
    if video is not None and not video.is_file():
        raise FileNotFoundError(f"video: there is no file {video} (seen from {Path.cwd()}): check the path.")
    training = model.get_env()
    env = checked_eval_env(eval_env, model.policy, None if training is None else execution_of(training))
    if unwrap_vec_normalize(env) is None:
        _check_raw(model)
    env_id = _env_id(env) if env_id is None else env_id
    algorithm, name = algorithm_name(model), file_name(model, env_id)
    results = _evaluate(model, env, n_eval_episodes, seed)

    with atomic_folder(folder) as new:
        model.save(new / f"{name}.zip", exclude=["tensorboard_log"])  # a path
        with zipfile.ZipFile(new / f"{name}.zip") as archive:
            archive.extractall(new / name)  # to be looked at on the Hub, without loading
        normalizer = unwrap_vec_normalize(env)
        if normalizer is not None:
            normalizer.save(str(new / "vec_normalize.pkl"))
            (new / _STATISTICS).write_text(json.dumps(_described(normalizer)) + "\n")
        config = training_config(model, env)
        arguments = dict(algo=algorithm, env=env_id, env_kwargs=dict(env_kwargs or {}), seed=model.seed)
        _write_settings(new, config, arguments, run)
        if video is not None:
            shutil.copyfile(video, new / "replay.mp4")
        (new / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        card = card_text(model, algorithm, name, env_id, results, config, repo_id, run)
        (new / "README.md").write_text(card, encoding="utf-8")
    return folder


def push_to_hub(
    model: FlowAlgorithm,
    repo_id: str,
    eval_env: GymEnv,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload a flow-matching policy",
    **kwargs: Any,
) -> str:
    """
    Evaluate a model and publish it on the Hugging Face Hub.

    :param model: to be published
    :param repo_id: "user/name"; made if it does not exist
    :param eval_env: see :func:`write_hub_folder`
    :param private: whether a new repository is private
    :param token: of the Hub; the one of ``hf auth login`` if None. It is written nowhere
    :param commit_message: of the upload
    :param kwargs: further arguments of :func:`write_hub_folder`
    :return: address of the repository
    :raises ImportError: if huggingface_hub is not installed
    """
    hub = _import_hub("push_to_hub")
    with temporary_folder(Path(tempfile.gettempdir())) as temporary:
        folder = write_hub_folder(model, temporary / "hub", eval_env, repo_id=repo_id, **kwargs)
        api = hub.HfApi(token=token)
        url = api.create_repo(repo_id=repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    return str(url)


def load_from_hub(
    repo_id: str,
    *,
    trust: bool = False,
    revision: str | None = None,
    filename: str | None = None,
    token: str | None = None,
    env: GymEnv | None = None,
    **kwargs: Any,
) -> FlowAlgorithm:
    """
    Download a model and load it, by the algorithm that wrote it; without unpickling anything, unless you trust it.

    :param repo_id: "user/name"
    :param trust: whether the files may be unpickled, which can execute anything; else the model is rebuilt from weights and
        JSON
    :param revision: commit, branch or tag; a commit is what was looked at, for good
    :param filename: of the model, if there is more than one
    :param token: of the Hub, for private repositories
    :param env: environment to go on in; it gets the repository's ``VecNormalize`` statistics, if there are such
    :param kwargs: further arguments of the algorithm's ``load``, such as ``device``
    :return: the model
    :raises FileNotFoundError: if the repository has no such model
    :raises ImportError: if huggingface_hub is not installed
    :raises ValueError: without ``trust``, if the model can be restored by unpickling only; or if another package's algorithm
        wrote the file, or there are several models
    """
    hub = _import_hub("load_from_hub")
    patterns = ["*.zip", "vec_normalize.pkl", _STATISTICS]
    folder = Path(hub.snapshot_download(repo_id, revision=revision, token=token, allow_patterns=patterns))
    found = sorted(path.name for path in folder.glob("*.zip") if path.name != _METRICS)
    if filename is None and len(found) > 1:
        raise ArgumentError(f"{repo_id} has several models, {found}: pass filename.")
    if not found or filename not in (None, *found):
        raise FileNotFoundError(f"{repo_id} has no model {filename or '*.zip'}, but {found or 'none at all'}: check repo_id.")
    path = folder / (filename or found[0])
    writer = written_by(path)
    classes = {cls.__name__: cls for cls in ALGORITHMS.values()}
    if writer not in classes:
        raise ArgumentError(
            f"{repo_id}: {path.name} was written by {writer or 'an unknown algorithm'}, not by one of {sorted(classes)}: load "
            "it with that algorithm's load."
        )
    try:
        if any((folder / name).is_file() for name in ("vec_normalize.pkl", _STATISTICS)):
            env = _normalized(env, folder, repo_id, trust)
        return classes[writer].load(path, env=env, trusted=trust, **kwargs)
    except UntrustedFileError as error:
        where = f"https://huggingface.co/{repo_id}/tree/{revision or 'main'}"
        raise ArgumentError(
            f"load_from_hub: without trust, nothing is unpickled, as that executes whatever code is in a file; but {error} "
            f"Look at {where}: whose it is, who uploaded it, and, in the file 'data' of the model's folder, which entries "
            "have a ':serialized:' part: these are unpickled, as is vec_normalize.pkl. If you trust whoever wrote them, pass "
            "trust=True, and revision='<the commit that you looked at>'."
        ) from error


def algorithm_name(model: FlowAlgorithm) -> str:
    """
    :param model: of this package, or of a class derived from one of it
    :return: what it is registered as
    """
    names = [name for name, cls in ALGORITHMS.items() if isinstance(model, cls)]
    return names[0] if names else type(model).__name__.lower()


def file_name(model: FlowAlgorithm, env_id: str) -> str:
    """
    :param model: of this package
    :param env_id: name of an environment, perhaps with a module or a namespace
    :return: what the RL Zoo calls the model, without suffix
    """
    return f"{algorithm_name(model)}-{env_id.split(':')[-1].replace('/', '-')}"


def _check_raw(model: FlowAlgorithm) -> None:
    if model.__dict__.get("sees_normalized"):
        raise ArgumentError(
            "eval_env: the model was trained on observations that VecNormalize had normalized, and eval_env has none: pass "
            "VecNormalize(eval_env, training=False) with a model that has its training environment, or "
            "VecNormalize.load('vecnormalize.pkl', eval_env)."
        )


def _env_id(env: VecEnv) -> str:
    spec = (ask(lambda: env.get_attr("spec")) or [None])[0]
    if spec is None:
        raise ArgumentError("env_id: the environment is not registered with Gymnasium and has no name: pass env_id='Name-v0'.")
    return str(spec.id)


def _evaluate(model: FlowAlgorithm, env: VecEnv, n_episodes: int, seed: int) -> dict[str, Any]:
    """:return: the RL Zoo's entries for deterministic actions, and what exploring ones get beside them"""
    normalizer = unwrap_vec_normalize(env)
    if normalizer is not None:
        normalizer.training = normalizer.norm_reward = False
        own = model.get_vec_normalize_env()
        if own is not None:
            normalizer.obs_rms, normalizer.ret_rms = deepcopy(own.obs_rms), deepcopy(own.ret_rms)
    results: dict[str, Any] = {}
    for deterministic in (True, False):
        env.seed(seed)
        with th.random.fork_rng():
            th.manual_seed(seed)
            returns, lengths = evaluate_policy(model, env, n_episodes, deterministic, return_episode_rewards=True)
        results[str(deterministic)] = dict(
            mean_reward=float(np.mean(returns)), std_reward=float(np.std(returns)), mean_ep_length=float(np.mean(lengths))
        )
    return dict(
        **results["True"],
        is_deterministic=True,
        n_eval_episodes=n_episodes,
        eval_datetime=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        eval_seed=seed,
        exploring=results["False"],
    )


def _write_settings(folder: Path, config: dict[str, Any], arguments: dict[str, Any], run: Path | None) -> None:
    """What the RL Zoo's loader wants beside the model: those of a run of its own, or as it would have written them."""
    import yaml

    written = dict(config=config, args=arguments, env_kwargs=arguments["env_kwargs"])
    for name, value in written.items():
        own = [] if run is None else sorted(run.glob(f"**/{name}.yml"))
        text = own[0].read_text(encoding="utf-8") if own else yaml.safe_dump(value)
        (folder / f"{name}.yml").write_text("".join(without_folders(line) + "\n" for line in text.splitlines()))
    with zipfile.ZipFile(folder / _METRICS, "w") as archive:
        for path in [] if run is None else sorted({*run.glob("*.csv"), *run.glob("evaluations.npz")}):
            archive.write(path, path.name)


def _normalized(env: GymEnv | None, folder: Path, repo_id: str, trust: bool) -> VecNormalize | None:
    if env is None:
        warn(
            f"{repo_id}: the model sees observations that VecNormalize has normalized. Pass env, which then gets the "
            "statistics, and take observations from model.get_env()."
        )
        return None
    inner = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    pickled = folder / "vec_normalize.pkl"
    trusted = trust and pickled.is_file()
    normalizer = VecNormalize.load(str(pickled), inner) if trusted else _plain_normalizer(inner, folder)
    normalizer.training = normalizer.norm_reward = False
    return normalizer


def _described(normalizer: VecNormalize) -> Any:
    """:return: what :func:`_plain_normalizer` makes another one of"""
    names = (*_NORMALIZER_ARGUMENTS, *_NORMALIZER_STATISTICS)
    return describe({name: getattr(normalizer, name, None) for name in names})


def _plain_normalizer(env: VecEnv, folder: Path) -> VecNormalize:
    """:raises UntrustedFileError: if the statistics are pickled only, or are others than the environment's"""
    try:
        state = restore(json.loads((folder / _STATISTICS).read_text(encoding="utf-8")), "vec_normalize")
        normalizer = VecNormalize(env, **{name: state[name] for name in _NORMALIZER_ARGUMENTS})
        for name in _NORMALIZER_STATISTICS:
            setattr(normalizer, name, state[name])
        normalizer.normalize_obs(env.observation_space.sample())
    except Exception as error:  # a description that was made up may fail in any way
        raise UntrustedFileError(
            f"there is no readable {_STATISTICS}, with the statistics that vec_normalize.pkl has pickled ({error!r})."
        ) from error
    return normalizer


def _import_hub(function: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f'{function} needs huggingface_hub ({error}): pip install "sb3-scoreflow[hub]"') from error
    return huggingface_hub
