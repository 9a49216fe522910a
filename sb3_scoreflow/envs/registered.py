"""
Gymnasium ids for tasks of Meta-World and robosuite, for programs that create environments only by id:
``gym.make("sb3_scoreflow/soccer-v3")``, ``gym.make("sb3_scoreflow/Lift-v0", max_episode_steps=100)``.
"""

import gymnasium as gym

#: Tasks of Meta-World 3
_METAWORLD = """
assembly basketball bin-picking box-close button-press-topdown button-press-topdown-wall button-press button-press-wall
coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open door-unlock drawer-close drawer-open
faucet-close faucet-open hammer hand-insert handle-press-side handle-press handle-pull-side handle-pull lever-pull
peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide-back-side plate-slide-back
plate-slide-side plate-slide push-back push push-wall reach reach-wall shelf-place soccer stick-pull stick-push sweep-into
sweep window-close window-open
""".split()
#: Tasks of robomimic: name in the id -> name of the task
_ROBOMIMIC = {"Lift": "lift", "Can": "can", "Square": "square", "Transport": "transport", "ToolHang": "tool_hang"}


def register_tasks() -> None:
    """
    Register ``sb3_scoreflow/TASK-v3`` (:func:`~sb3_scoreflow.envs.make_metaworld`) and ``sb3_scoreflow/Lift-v0`` and the like
    (:func:`~sb3_scoreflow.envs.make_robomimic`); ``gym.make`` takes their arguments. Calling it again is harmless.
    """
    for name in _METAWORLD:
        _register(f"{name}-v3", "sb3_scoreflow.envs.metaworld:make_metaworld", task=f"{name}-v3")
    for name, task in _ROBOMIMIC.items():
        _register(f"{name}-v0", "sb3_scoreflow.envs.robomimic:make_robomimic", dataset_or_task=task)


def _register(name: str, entry_point: str, **kwargs: str) -> None:
    env_id = f"sb3_scoreflow/{name}"
    if env_id not in gym.registry:
        gym.register(env_id, entry_point, kwargs=kwargs, disable_env_checker=True)
