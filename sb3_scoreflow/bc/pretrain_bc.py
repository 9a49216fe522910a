"""Behavior cloning in one call."""

from stable_baselines3.common.type_aliases import GymEnv

from sb3_scoreflow.bc.behavior_cloning import BCCallback, BehaviorCloning
from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.files import AnyPath
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.demonstrations import Demonstrations


def pretrain_bc(
    model: FlowAlgorithm | FlowMatchingPolicy,
    demonstrations: Demonstrations,
    n_epochs: int | None = None,
    n_batches: int | None = None,
    batch_size: int = 256,
    learning_rate: float | None = None,
    final_learning_rate: float = 1e-4,
    weight_decay: float = 1e-6,
    ema_decay: float = 0.995,
    validation_fraction: float = 0.0,
    clip_actions: bool = False,
    random_shift: int = 4,
    eval_env: GymEnv | None = None,
    n_eval_episodes: int = 10,
    critic_batches: int | None = None,
    log_interval: int = 1000,
    callback: BCCallback | None = None,
    progress_bar: bool = False,
    seed: int | None = None,
    checkpoint: AnyPath | None = None,
) -> dict[str, list[float]]:
    """
    Clone demonstrations; shorthand for :class:`BehaviorCloning` and its :meth:`~BehaviorCloning.train`, whose descriptions of
    the arguments are longer.

    :param model: an algorithm of this package, or a policy
    :param demonstrations: demonstrations to imitate
    :param n_epochs: passes over the demonstrations; give this or ``n_batches``, not both
    :param n_batches: gradient steps; if neither is given, the number depends on the size and the precision of the
        demonstrations
    :param batch_size: chunks per gradient step
    :param learning_rate: learning rate at the start; None: 3e-3, or 1e-3 with images
    :param final_learning_rate: learning rate at the end of the cosine schedule
    :param weight_decay: weight decay of AdamW
    :param ema_decay: decay of the moving average per gradient step, in [0, 1); 0: no averaging
    :param validation_fraction: share of the episodes held out for validation, in [0, 1)
    :param clip_actions: whether to clip actions outside the bounds instead of raising an error
    :param random_shift: largest random shift of the images in training, in pixels; 0: no shift
    :param eval_env: environment in which the deterministic clone is evaluated at the end; None: no evaluation
    :param n_eval_episodes: number of evaluation episodes, at least 1
    :param critic_batches: gradient steps that fit the critic after cloning; None: a default if the rewards determine returns
    :param log_interval: gradient steps between log points
    :param callback: called at every log point with its metrics; returning False ends training
    :param progress_bar: whether to show a progress bar (needs tqdm)
    :param seed: seed of the split, the batches and the noise; None: drawn from NumPy's global generator
    :param checkpoint: file that stores the state of cloning; the same call continues from it after an interruption
    :return: history: one list of values per metric
    :raises ValueError: if an argument is invalid, or the demonstrations do not fit the environment; nothing is changed
        in that case
    """
    cloning = BehaviorCloning(
        model,
        demonstrations,
        batch_size=batch_size,
        learning_rate=learning_rate,
        final_learning_rate=final_learning_rate,
        weight_decay=weight_decay,
        ema_decay=ema_decay,
        validation_fraction=validation_fraction,
        clip_actions=clip_actions,
        random_shift=random_shift,
        seed=seed,
    )
    return cloning.train(
        n_epochs=n_epochs,
        n_batches=n_batches,
        critic_batches=critic_batches,
        eval_env=eval_env,
        n_eval_episodes=n_eval_episodes,
        log_interval=log_interval,
        callback=callback,
        progress_bar=progress_bar,
        checkpoint=checkpoint,
    )
