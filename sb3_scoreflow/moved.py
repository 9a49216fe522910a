"""
Import hook for modules that have moved since 0.1.0, because saved models and users' code refer to their old names. The release
after 0.2.0 removes the old names.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Old name -> new name
MOVED = {
    **{
        f"sb3_scoreflow.{name}": f"sb3_scoreflow.common.{name}"
        for name in ("algorithm", "encoders", "flow", "linear", "networks", "policies", "schedules", "utils")
    },
    "sb3_scoreflow.critic_pretraining": "sb3_scoreflow.ppo.critic_pretraining",
    "sb3_scoreflow.pretraining": "sb3_scoreflow.bc",
    "sb3_scoreflow.rldt.presets": "sb3_scoreflow.rldt.defaults",
    "sb3_scoreflow.scoreflow_ppo.buffers": "sb3_scoreflow.ppo.buffers",
    "sb3_scoreflow.scoreflow_ppo.reward_scaling": "sb3_scoreflow.ppo.reward_scaling",
}


class _MovedFinder(MetaPathFinder, Loader):
    """Import hook that returns the module with the new name when the old name is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} has moved to {new}: import it from there.", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None  # this import has set the spec of the old name
        module.__spec__ = module.__spec__.loader_state  # the module was executed under its new name


def install() -> None:
    """Install the import hook for the old names."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
