"""The model card and the training settings that are published with a model."""

import inspect
import shlex
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.env_attributes import ask
from sb3_scoreflow.common.utils import without_folders
from sb3_scoreflow.common.versions import versions
from sb3_scoreflow.envs import ActionChunking

#: Arguments that do not affect training, and paths
_NO_SETTINGS = ("policy", "env", "device", "seed", "tensorboard_log", "verbose")


def training_config(model: FlowAlgorithm, env: VecEnv) -> dict[str, Any]:
    """
    :param model: model of this package
    :param env: environment, wrapped as in training
    :return: settings in the form of the RL Zoo's ``config.yml``: plain numbers and strings that differ from the defaults
    """
    config: dict[str, Any] = {
        "policy": next(name for name, cls in model.policy_aliases.items() if isinstance(model.policy, cls)),
        "n_envs": int(model.n_envs),
        "n_timesteps": int(model.num_timesteps),
    }
    for name, parameter in inspect.signature(type(model)).parameters.items():
        value = getattr(model, name, parameter.default)
        left_out = name in _NO_SETTINGS or name in model._at_default
        if not left_out and value != parameter.default and _is_plain(value):
            config[name] = without_folders(value) if isinstance(value, str) else value
    if any(ask(lambda: env.env_is_wrapped(ActionChunking)) or []):
        horizon, n_executed, discount = (env.get_attr(name)[0] for name in ("horizon", "n_executed", "discount"))
        wrapper = dict(horizon=horizon, n_executed=n_executed, discount=discount)
        config["env_wrapper"] = [{"sb3_scoreflow.ActionChunking": wrapper}]
    normalizer = unwrap_vec_normalize(env)
    if normalizer is not None:
        config["normalize"] = dict(norm_obs=normalizer.norm_obs, norm_reward=False)
    return config


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, (bool, int, float, str))


def card_text(
    model: FlowAlgorithm,
    algorithm: str,
    name: str,
    env_id: str,
    results: dict[str, Any],
    config: dict[str, Any],
    repo_id: str | None,
    run: Path | None,
) -> str:
    """
    :param model: model of this package
    :param algorithm: registered name of the algorithm
    :param name: name of the model's file, without suffix
    :param env_id: name of the environment
    :param results: results of the evaluation
    :param config: settings of the training
    :param repo_id: repository on the Hub; None if it is unknown
    :param run: folder of the RL Zoo's training run; None if the model was trained without the zoo
    :return: text of ``README.md``, with the header that the Hub reads
    """
    import yaml
    from huggingface_hub import EvalResult, ModelCardData

    title, exploring = type(model).__name__, results["exploring"]
    metrics = {"mean_reward": results, "mean_reward, exploring actions": exploring}
    data = ModelCardData(
        library_name="stable-baselines3",
        tags=[
            env_id,
            "deep-reinforcement-learning",
            "reinforcement-learning",
            "stable-baselines3",
            "flow-matching",
            algorithm,
        ],
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="reinforcement-learning",
                task_name="reinforcement-learning",
                dataset_type=env_id,
                dataset_name=env_id,
                metric_type="mean_reward",
                metric_name=metric,
                metric_value=f"{result['mean_reward']:.2f} +/- {result['std_reward']:.2f}",
            )
            for metric, result in metrics.items()
        ],
    )
    rows = "\n".join(
        f"| {kind} | {result['mean_reward']:.2f} +/- {result['std_reward']:.2f} | {result['mean_ep_length']:.1f} |"
        for kind, result in (("deterministic", results), ("exploring", exploring))
    )
    steps = f"{model.policy.denoising_steps} denoising steps"
    if model.policy.inference_steps != model.policy.denoising_steps:
        steps += f", {model.policy.inference_steps} in deterministic actions"
    written_with = ", ".join(f"{package} {version}" for package, version in versions().items())
    return f"""---
{data.to_yaml()}
---

# {title} on {env_id}

A flow-matching policy ({steps}) for [Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3), trained with
sb3_scoreflow for {model.num_env_steps:,} environment steps, seed {model.seed}.

## Evaluation

{results["n_eval_episodes"]} episodes each, seed {results["eval_seed"]}:

| Actions | return | episode length |
|---|---|---|
{rows}

## Loading

```python
from sb3_scoreflow.hub import load_from_hub

model = load_from_hub("{repo_id or f"USER/{name}"}")
actions, _ = model.predict(observations, deterministic=True)
```

or with the RL Zoo, in its environment:

```bash
{_commands(algorithm, name, env_id, repo_id, run)}
```

Loading unpickles parts of `{name}.zip` (with cloudpickle), which executes code in them. The entries with `:serialized:` in
`{name}/data` list these parts.

## Cloning

{_cloning_text(model)}

## Training

`{algorithm}`, arguments that differ from the defaults:

```yaml
{yaml.safe_dump(config).strip()}
```

{written_with}
"""


def _commands(algorithm: str, name: str, env_id: str, repo_id: str | None, run: Path | None) -> str:
    """:return: shell commands that show the model in action and, if the zoo trained it, repeat the training"""
    user, _, repo = (repo_id or f"USER/{name}").rpartition("/")
    zoo, task = "python -m sb3_scoreflow.zoo", f"--algo {algorithm} --env {env_id} -f logs"
    named = "" if repo == name else f" -name {repo}"
    lines = [f"TRUST_REMOTE_CODE=True {zoo} load_from_hub {task} -orga {user}{named}", f"{zoo} enjoy {task}"]
    for path in [] if run is None else sorted(run.glob("**/args.yml"))[:1]:
        options = _training_options(path)
        lines += [f"{zoo} train {options}  # how it was trained"] if options else []
    return "\n".join(lines)


def _training_options(path: Path) -> str:
    """
    :param path: file with the arguments of the zoo's run
    :return: the arguments that affect training, quoted for a shell; empty if the file was not written by the zoo
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Constructs the OrderedDict that the zoo writes; other objects, which could execute code, are rejected."""

    tag = "tag:yaml.org,2002:python/object/apply:collections.OrderedDict"
    Loader.add_constructor(tag, lambda loader, node: dict(loader.construct_sequence(node, deep=True)[0]))
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.YAMLError:  # not written by the zoo
        return ""
    options = []
    for name in ("algo", "env", "seed", "n_timesteps", "conf_file", "env_kwargs", "hyperparams"):
        value = given.get(name)
        if isinstance(value, dict):
            value = [f"{key}:{item!r}" for key, item in value.items()]
        if value in (None, [], -1):
            continue
        words = value if isinstance(value, list) else [without_folders(str(value))]
        options += [f"--{name.replace('_', '-')}", *map(shlex.quote, words)]
    return " ".join(map(str, options))


def _cloning_text(model: FlowAlgorithm) -> str:
    if model.cloning is None:
        if bool(model.policy.pretrained):
            return "Fine-tuned from a clone; the model does not contain information about the demonstrations."
        return "No cloning: the model was trained from scratch."
    facts = model.cloning
    tables = "\n\n".join(
        f"| {title} | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in facts[part].items())
        for part, title in (("settings", "Setting"), ("results", "Result"))
    )
    return f"Demonstrations:\n\n```text\n{facts['demonstrations']}\n```\n\n{tables}"
