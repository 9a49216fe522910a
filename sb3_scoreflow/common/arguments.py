"""Arguments of an algorithm over its life: checked, resolved where they were left at None, and asked as schedules."""

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
    An algorithm whose attributes show what its arguments are now.

    An argument left at None gets its default by whether the policy is pretrained, and for the environment at hand. Which were
    left at None is kept, and saved, with what their values were chosen by: they are resolved anew when that changes, by
    loading with another environment or by pretraining. Else a model keeps its values, also when a later release has other
    defaults. It is abstract: subclasses declare the tables.
    """

    #: What the arguments may be
    rules: ClassVar[dict[str, Rule]]
    #: Values of arguments left at None: "scratch" and "pretrained" -> argument -> value
    defaults: ClassVar[dict[str, dict[str, Any]]]
    #: Further arguments that may be left at None, whose values depend on the environment
    sizes: ClassVar[tuple[str, ...]] = ("n_steps",)
    policy: FlowMatchingPolicy  # type: ignore[assignment]
    n_transitions: int
    #: Arguments left at None -> what their values were chosen by, as a file can hold it
    _at_default: dict[str, Any]
    _was_pretrained: bool

    def __setattr__(self, name: str, value: Any) -> None:
        """
        Who sets an argument last is obeyed: it is no default any more. ``learning_rate`` and ``lr_schedule`` are two names of
        one thing, whichever a callback sets.
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
        :raises ValueError: if an argument is impossible; the message names it, its value and the remedy
        """
        if not hasattr(self, "action_space"):
            raise ArgumentError("env must be an environment or the name of one, got None: only load() does without.")
        check_action_space(self.action_space)
        adopt_moved(self)
        values = check_arguments(self.rules, self, {*self.defaults["scratch"], *self.sizes})
        self.__dict__.update(values)
        self._resolve_defaults()
        self._check_combinations()

    def _check_combinations(self) -> None:
        """:raises ValueError: if arguments, each possible by itself, do not go together"""

    def _warn_of_arguments(self) -> None:
        """Warn of what works, but hardly as it is meant to."""

    @property
    def _pretrained(self) -> bool:
        if not hasattr(self, "policy"):  # not yet: the file knows
            return bool(self.__dict__.get("_was_pretrained", False))
        return bool(self.policy.pretrained > 0.5)

    def _default(self, name: str) -> Any:
        """What an argument left at None is now, by whether the policy is pretrained, and for the environment at hand."""
        return self.defaults["pretrained" if self._pretrained else "scratch"][name]

    def _default_depends_on(self, name: str) -> list[Any]:
        """
        :param name: of an argument that may be left at None
        :return: what decides its default, beside the tables; plain numbers, lists and dictionaries
        """
        return [self._pretrained, self.n_envs] if name in self.sizes else [self._pretrained]

    def _resolve_defaults(self) -> None:
        """Give arguments left at None their values, unless they have those for the same circumstances."""
        given = self.__dict__.pop("_given", ())  # those that `load` was called with
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
        """The one place where schedules get their argument from: within [0, 1], with the number of transitions."""
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self._count_transitions(0)

    def _count_transitions(self, n: int) -> None:
        """Schedules move on by ``n`` transitions."""
        self.n_transitions += n
        self._current_progress_remaining = Progress(self._current_progress_remaining, self.n_transitions)
