"""The compared settings (arms): published, searched, the best of each variant, the defaults and changes to them."""

from pathlib import Path
from typing import Any

from benchmarks import study
from benchmarks.locomotion import CLONE_BATCHES
from sb3_scoreflow import CosineSchedule, HoldCosineSchedule

RESULTS = study.RESULTS / "score"
VARIANTS = ("learned", "constant", "none")

#: The published settings (docs/scoreflow_ppo.md) at an eighth of the published iteration: 20 x 250 chunks instead of 40 x 500.
_PUBLISHED: dict[str, Any] = dict(
    n_steps=250,
    batch_size=1250,  # published batches count transitions of the chain: 5000 of them
    n_epochs=5,
    clip_range=0.01,
    ent_coef=0.03 / 5,  # the official code divides the entropy by K + 1 once more
    target_kl=1.0,
    min_std=0.1,
)
_DECAY, _HOLD = HoldCosineSchedule(0.24, 0.198), 0.24
_RATES: dict[str, dict[str, Any]] = {
    "Hopper-v5": dict(
        learning_rate=CosineSchedule(4.5e-5, 2e-5), critic_learning_rate=CosineSchedule(6.5e-4, 3e-4), max_std=_DECAY
    ),
    "Walker2d-v5": dict(learning_rate=4e-4, critic_learning_rate=4e-3, max_std=_DECAY, critic_warmup_iterations=1),
    "HalfCheetah-v5": dict(
        learning_rate=CosineSchedule(3e-5, 1.5e-5),
        critic_learning_rate=CosineSchedule(3e-4, 1.5e-4),
        max_std=_HOLD,
        critic_warmup_iterations=1,
    ),
}


def published(env_id: str, variant: str) -> dict[str, Any]:
    """The published settings; as in the official code, noise network and score coefficient have the velocity's rate."""
    rates = _RATES[env_id]
    return {**_PUBLISHED, **rates, "noise_learning_rate": rates["learning_rate"], "score_drift": variant}


#: Our settings, from which the search and the ablation start.
_OURS: dict[str, Any] = dict(
    n_steps=50,
    batch_size=250,
    n_epochs=8,
    clip_range=0.02,
    max_std=HoldCosineSchedule(0.24, 0.1),
    critic_learning_rate=1e-3,
    critic_batches=CLONE_BATCHES // 5,
)


def _rates(velocity: float) -> dict[str, Any]:
    """The noise network and the score coefficient learn at five times the velocity's rate; all rates decay to a tenth."""
    return dict(
        learning_rate=CosineSchedule(velocity, velocity / 10),
        noise_learning_rate=CosineSchedule(5 * velocity, velocity / 2),
    )


#: The search, which is the same for every variant: learning rates, and iterations of 1000 chunks with 8 epochs or of 2000
#: chunks with 5 epochs.
SEARCH: dict[str, dict[str, Any]] = {
    "lr1e-4_n50": _rates(1e-4),
    "lr2e-4_n50": _rates(2e-4),
    "lr4e-4_n50": _rates(4e-4),
    "lr2e-4_n100": dict(_rates(2e-4), n_steps=100, n_epochs=5),
}
#: The defaults of version 0.1, with iterations of 2000 chunks instead of 2048 and minibatches of 250 instead of 256 because of
#: the 20 environments. ABLATION takes back their changes to the published settings one at a time.
_DEFAULT = {**_OURS, **SEARCH["lr2e-4_n100"], "score_drift": "learned"}
ABLATION: dict[str, dict[str, Any]] = {
    "critic_from_scratch": dict(critic_batches=0),
    "noise_rate_2e-4": dict(noise_learning_rate=_rates(2e-4)["learning_rate"]),
    "clip_0.01": dict(clip_range=0.01),
    "constant_rates_and_noise": dict(learning_rate=2e-4, noise_learning_rate=1e-3, max_std=0.24),
}
#: Changes to the defaults that were tried and not adopted.
ALTERNATIVES: dict[str, dict[str, Any]] = {
    "velocity_4e-4": _rates(4e-4),
    "velocity_4e-4_kl_guard": dict(_rates(4e-4), target_kl=3e-4),  # about the divergence with a rate of 2e-4
    "clip_0.04": dict(clip_range=0.04),
}
#: Stage -> pairs of arms to compare, the first with the second
COMPARISONS: dict[str, list[tuple[str, str]]] = {
    "published": [("published_learned", "published_none"), ("published_learned", "published_constant")],
    "best": [
        ("best_learned", "best_none"),
        ("best_learned", "best_constant"),
        ("best_learned", "published_learned"),
        ("best_constant", "published_constant"),
        ("best_none", "published_none"),
        ("best_none", "published_learned"),
    ],
    "ablation": [("default", f"without_{name}") for name in ABLATION],
    "alternatives": [("default", f"with_{name}") for name in ALTERNATIVES],
    "defaults": [("package", "default")],
}
_WITHOUT, _WITH = "without_", "with_"


def search_name(variant: str, candidate: str) -> str:
    """:return: name of an arm of the search"""
    return f"search_{variant}_{candidate}"


def names(stage: str) -> list[str]:
    """:return: names of the arms that a stage runs"""
    if stage == "search":
        return [search_name(variant, candidate) for candidate in SEARCH for variant in VARIANTS]
    if stage == "ablation":
        return ["default", *(_WITHOUT + name for name in ABLATION)]
    if stage == "alternatives":
        return ["default", *(_WITH + name for name in ALTERNATIVES)]
    if stage == "defaults":
        return ["package"]
    return [f"{stage}_{variant}" for variant in VARIANTS]


def settings(arm: str, env_id: str, folder: Path = RESULTS) -> dict[str, Any]:
    """:return: settings of an arm; the settings of "best" come from the search's summary in the folder of the results"""
    if arm == "default":
        return _DEFAULT
    if arm == "package":  # the current defaults, with the same iteration
        return {name: _DEFAULT[name] for name in ("n_steps", "batch_size", "n_epochs", "critic_batches")}
    if arm.startswith(_WITHOUT):
        return {**_DEFAULT, **ABLATION[arm.removeprefix(_WITHOUT)]}
    if arm.startswith(_WITH):
        return {**_DEFAULT, **ALTERNATIVES[arm.removeprefix(_WITH)]}
    stage, variant, *candidate = arm.split("_", 2)
    if stage == "published":
        return published(env_id, variant)
    if stage == "best":
        candidate = [study.read_summary(folder)["search"]["chosen"][variant]["best"]]
    return {**_OURS, **SEARCH[candidate[0]], "score_drift": variant}
