"""Models on the Hugging Face Hub, in the layout that the RL Zoo's tools read."""

import datetime
import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
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
from sb3_scoreflow.common.utils import ArgumentError, copy_statistics, warn, without_folders
from sb3_scoreflow.hub_card import card_text, training_config
from sb3_scoreflow.registry import ALGORITHMS

#: Learning curves; the only zip file that is not a model
_METRICS = "train_eval_metrics.zip"
#: Content of vec_normalize.pkl that can be read without unpickling
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
    Evaluate a model and write the files that :func:`push_to_hub` uploads, so that you can look at them first.

    The files are ``ALGORITHM-ENVIRONMENT.zip`` and its extracted content, ``results.json``, ``args.yml``, ``config.yml``,
    ``env_kwargs.yml``, ``train_eval_metrics.zip``, ``README.md`` (the model card), and, if available, ``vec_normalize.pkl``,
    ``vec_normalize.json`` and ``replay.mp4``. Absolute paths in settings are shortened to their last part. The folder appears
    only when it is complete.

    :param model: model to publish
    :param folder: folder to create, or an empty folder
    :param eval_env: evaluation environment, wrapped as in training, but not the training environment itself; a
        ``VecNormalize`` gets the training environment's statistics, and no longer updates them
    :param env_id: name of the environment; None: its Gymnasium id
    :param env_kwargs: keyword arguments of the environment
    :param n_eval_episodes: number of evaluation episodes with deterministic actions, and with stochastic actions
    :param seed: seed of the evaluation
    :param video: path of an MP4 file, or a ``VecVideoRecorder`` that has written one; None: no video
    :param run_folder: folder of a run of the RL Zoo, whose settings and learning curves replace the model's
    :param repo_id: "user/name", for the model card
    :return: the folder
    :raises FileExistsError: if the folder is not empty
    :raises FileNotFoundError: if the video does not exist
    :raises ImportError: if huggingface_hub is not installed
    :raises OSError: if the folder cannot be written, for example because the disk is full
    :raises ValueError: if the model does not belong to this package, or the environment does not fit it or has no name
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
        raise FileExistsError(f"folder: {folder} is not empty, and all its files would be published: pass a new folder.")
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
        model.save(new / f"{name}.zip", exclude=["tensorboard_log"])  # an absolute path
        with zipfile.ZipFile(new / f"{name}.zip") as archive:
            archive.extractall(new / name)  # can be viewed on the Hub without loading the model
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

    :param model: model to publish
    :param repo_id: "user/name"; the repository is created if it does not exist
    :param eval_env: evaluation environment, see :func:`write_hub_folder`
    :param private: whether a new repository is private
    :param token: access token of the Hub; None: the token of ``hf auth login``. It is never written to a file
    :param commit_message: commit message of the upload
    :param kwargs: further arguments of :func:`write_hub_folder`
    :return: URL of the repository
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
    Download a model and load it with the algorithm that wrote it. Nothing is unpickled unless you pass ``trust=True``.

    :param repo_id: "user/name"
    :param trust: whether files may be unpickled, which can execute arbitrary code; otherwise the model is rebuilt from weights
        and JSON
    :param revision: commit, branch or tag; only a commit cannot change after you have looked at it. None: the main branch
    :param filename: file name of the model; needed if the repository has several models
    :param token: access token of the Hub, for private repositories
    :param env: environment for further training; it gets the repository's ``VecNormalize`` statistics, if there are any
    :param kwargs: further arguments of the algorithm's ``load``, such as ``device``
    :return: the model
    :raises FileNotFoundError: if the repository has no such model
    :raises ImportError: if huggingface_hub is not installed
    :raises ValueError: if another package's algorithm wrote the file, there are several models, or the model can only be
        restored by unpickling and ``trust`` is False
    """
    hub = _import_hub("load_from_hub")
    patterns = ["*.zip", "vec_normalize.pkl", _STATISTICS]
    folder = Path(hub.snapshot_download(repo_id, revision=revision, token=token, allow_patterns=patterns))
    found = sorted(path.name for path in folder.glob("*.zip") if path.name != _METRICS)
    if filename is None and len(found) > 1:
        raise ArgumentError(f"{repo_id} has several models, {found}: pass one of them as filename.")
    if not found or filename not in (None, *found):
        raise FileNotFoundError(f"{repo_id} has no model {filename or '*.zip'}; it has {found or 'no models'}: check repo_id.")
    path = folder / (filename or found[0])
    writer = written_by(path)
    classes = {cls.__name__: cls for cls in ALGORITHMS.values()}
    if writer not in classes:
        raise ArgumentError(
            f"{repo_id}: {path.name} was written by {writer or 'an unknown algorithm'}, not by one of {sorted(classes)}: load "
            "it with the method load of that algorithm."
        )
    try:
        if any((folder / name).is_file() for name in ("vec_normalize.pkl", _STATISTICS)):
            env = _normalized(env, folder, repo_id, trust)
        return classes[writer].load(path, env=env, trusted=trust, **kwargs)
    except UntrustedFileError as error:
        where = f"https://huggingface.co/{repo_id}/tree/{revision or 'main'}"
        raise ArgumentError(
            f"load_from_hub: without trust, nothing is unpickled, because unpickling executes code from the file; but {error} "
            f"Look at {where}: check its owner, who uploaded it, and, in the file 'data' of the model's folder, which entries "
            "have a ':serialized:' part: these are unpickled, as is vec_normalize.pkl. If you trust their authors, pass "
            "trust=True, and revision='<the commit that you looked at>'."
        ) from error


def algorithm_name(model: FlowAlgorithm) -> str:
    """
    :param model: model of this package, or of a class derived from one of its algorithms
    :return: registered name of the algorithm
    """
    names = [name for name, cls in ALGORITHMS.items() if isinstance(model, cls)]
    return names[0] if names else type(model).__name__.lower()


def file_name(model: FlowAlgorithm, env_id: str) -> str:
    """
    :param model: model of this package
    :param env_id: name of an environment, perhaps with a module or a namespace
    :return: the RL Zoo's file name of the model, without suffix
    """
    return f"{algorithm_name(model)}-{env_id.split(':')[-1].replace('/', '-')}"


def _check_raw(model: FlowAlgorithm) -> None:
    if model.__dict__.get("sees_normalized"):
        raise ArgumentError(
            "eval_env: the model was trained on observations normalized by VecNormalize, but eval_env has no VecNormalize: "
            "pass VecNormalize(eval_env, training=False) with a model that has its training environment, or "
            "VecNormalize.load('vecnormalize.pkl', eval_env)."
        )


def _env_id(env: VecEnv) -> str:
    spec = (ask(lambda: env.get_attr("spec")) or [None])[0]
    if spec is None:
        raise ArgumentError("env_id: the environment is not registered with Gymnasium and has no name: pass env_id='Name-v0'.")
    return str(spec.id)


def _evaluate(model: FlowAlgorithm, env: VecEnv, n_episodes: int, seed: int) -> dict[str, Any]:
    """:return: the RL Zoo's entries for deterministic actions, and additional ones for stochastic actions"""
    normalizer = unwrap_vec_normalize(env)
    if normalizer is not None:
        normalizer.training = normalizer.norm_reward = False
        own = model.get_vec_normalize_env()
        if own is not None:
            copy_statistics(own, normalizer)
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
    """Write the settings that the RL Zoo's loader needs: the settings of a zoo run, or equivalent settings."""
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
            f"{repo_id}: the model needs observations normalized by VecNormalize. Pass env, which then gets the statistics, "
            "and take observations from model.get_env()."
        )
        return None
    inner = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    pickled = folder / "vec_normalize.pkl"
    trusted = trust and pickled.is_file()
    normalizer = VecNormalize.load(str(pickled), inner) if trusted else _plain_normalizer(inner, folder)
    normalizer.training = normalizer.norm_reward = False
    return normalizer


def _described(normalizer: VecNormalize) -> Any:
    """:return: description from which :func:`_plain_normalizer` rebuilds the normalizer"""
    names = (*_NORMALIZER_ARGUMENTS, *_NORMALIZER_STATISTICS)
    return describe({name: getattr(normalizer, name, None) for name in names})


def _plain_normalizer(env: VecEnv, folder: Path) -> VecNormalize:
    """:raises UntrustedFileError: if the statistics are only available as a pickle, or do not fit the environment"""
    try:
        state = restore(json.loads((folder / _STATISTICS).read_text(encoding="utf-8")), "vec_normalize")
        normalizer = VecNormalize(env, **{name: state[name] for name in _NORMALIZER_ARGUMENTS})
        for name in _NORMALIZER_STATISTICS:
            setattr(normalizer, name, state[name])
        normalizer.normalize_obs(env.observation_space.sample())
    except Exception as error:  # a manipulated description may raise any error
        raise UntrustedFileError(
            f"there is no readable {_STATISTICS} with the statistics of vec_normalize.pkl ({error!r})."
        ) from error
    return normalizer


def _import_hub(function: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f'{function} needs huggingface_hub ({error}): pip install "sb3-scoreflow[hub]"') from error
    return huggingface_hub
