"""Arguments of an algorithm: checking them, resolving those left at None, and evaluating schedules."""

from typing import Any, ClassVar

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import FloatSchedule

from sb3_scoreflow.common.action_space import check_action_space
from sb3_scoreflow.common.checks import Rule, check_argument, check_arguments, check_scheduled
from sb3_scoreflow.common.moved_arguments import adopt_moved
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.schedules import Progress
from sb3_scoreflow.common.utils import ArgumentError


class ArgumentResolution(OnPolicyAlgorithm):
    """
    An algorithm whose attributes are the current values of its arguments.

    The default of an argument left at None depends on whether the policy is pretrained, and on the environment. The model
    remembers, and saves, which arguments were left at None and what their values depend on. They are resolved again when that
    changes, for example by pretraining or by loading with another environment. Otherwise a model keeps its values, even if a
    later release has other defaults. The class is abstract: subclasses declare the tables.
    """

    #: Valid values of the arguments
    rules: ClassVar[dict[str, Rule]]
    #: Values of arguments left at None: "scratch" and "pretrained" -> argument -> value
    defaults: ClassVar[dict[str, dict[str, Any]]]
    #: Further arguments that may be left at None, whose values depend on the environment
    sizes: ClassVar[tuple[str, ...]] = ("n_steps",)
    policy: FlowMatchingPolicy  # type: ignore[assignment]
    n_transitions: int
    #: Arguments left at None -> what their values depend on, in a form that can be saved
    _at_default: dict[str, Any]
    _was_pretrained: bool

    def __setattr__(self, name: str, value: Any) -> None:
        """
        Setting an argument replaces its default. ``learning_rate`` and ``lr_schedule`` stay equal if either of them is set.
        """
        name = "learning_rate" if name == "lr_schedule" else name
        super().__setattr__(name, value)
        if name in self.__dict__.get("_at_default", ()):
            del self._at_default[name]
        if name == "learning_rate" and value is not None and "lr_schedule" in self.__dict__:
            self._setup_lr_schedule()

    def _setup_lr_schedule(self) -> None:
        self.__dict__["lr_schedule"] = self._schedule("learning_rate")

    def _check_arguments(self) -> None:
        """
        Check all arguments.

        :raises ValueError: if an argument is invalid; the message names the argument, its value and a remedy
        """
        if not hasattr(self, "action_space"):
            raise ArgumentError(
                "env must be an environment or the name of one, got None: only load() works without an environment."
            )
        check_action_space(self.action_space)
        adopt_moved(self)
        values = check_arguments(self.rules, self, {*self.defaults["scratch"], *self.sizes})
        self.__dict__.update(values)
        self._resolve_defaults()
        self._check_combinations()

    def _check_combinations(self) -> None:
        """:raises ValueError: if arguments are valid separately, but not in combination"""

    def _warn_of_arguments(self) -> None:
        """Warn about values that are valid, but probably not intended."""

    @property
    def _pretrained(self) -> bool:
        if not hasattr(self, "policy"):  # not built yet: the file says whether it is pretrained
            return bool(self.__dict__.get("_was_pretrained", False))
        return bool(self.policy.pretrained > 0.5)

    def _default(self, name: str) -> Any:
        """Current value of an argument left at None; it depends on the environment and on whether the policy is pretrained."""
        return self.defaults["pretrained" if self._pretrained else "scratch"][name]

    def _default_depends_on(self, name: str) -> list[Any]:
        """
        :param name: name of an argument that may be left at None
        :return: values that its default depends on, besides the tables: plain numbers, lists and dictionaries
        """
        return [self._pretrained, self.n_envs] if name in self.sizes else [self._pretrained]

    def _resolve_defaults(self) -> None:
        """Set the values of arguments left at None, if the facts that they depend on have changed."""
        given = self.__dict__.pop("_given", ())  # arguments passed to `load`
        names = (*self.defaults["scratch"], *self.sizes)
        before = {name: about for name, about in self.__dict__.get("_at_default", {}).items() if name not in given}
        missing = [name for name in names if name not in before and getattr(self, name) is None]
        self._at_default = {**before, **dict.fromkeys(missing)}
        self._was_pretrained = self._pretrained
        about = {name: self._default_depends_on(name) for name in self._at_default}
        self.__dict__.update({name: self._default(name) for name in about if about[name] != before.get(name)})
        self._at_default = about
        self._setup_lr_schedule()

    def _schedule(self, name: str) -> FloatSchedule:
        """Schedule of an argument."""
        value = getattr(self, name)
        return FloatSchedule(value if callable(value) else check_argument(self.rules[name], name, value))

    def _scheduled(self, name: str) -> float:
        """Value of an argument at the current point of training."""
        progress = self._current_progress_remaining
        return check_scheduled(name, self._schedule(name)(progress), f"with {progress} of training remaining")

    # ------------------------------------------------------------------ progress

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """Set the argument of all schedules: a number in [0, 1] that also carries the number of transitions."""
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self._count_transitions(0)

    def _count_transitions(self, n: int) -> None:
        """Advance schedules by ``n`` transitions."""
        self.n_transitions += n
        self._current_progress_remaining = Progress(self._current_progress_remaining, self.n_transitions)
