"""Progress bars."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback

T = TypeVar("T")


def progress(
    iterable: Iterable[T],
    total: int | Callable[[], int] | None,
    show: bool,
    *,
    size: Callable[[T], int] | None = None,
    **options: Any,
) -> Iterable[T]:
    """
    :param iterable: items to iterate over
    :param total: sum of the items' sizes, or a function that returns it if it may change; None if it is unknown
    :param show: whether to show a progress bar
    :param size: function that returns the progress of an item; None: 1 per item
    :param options: options of tqdm's bar, such as ``desc`` and ``unit``
    :return: the same items
    :raises ImportError: if a bar is to be shown and tqdm is not installed; at once, before the first item
    """
    if not show:
        return iterable
    current = total if callable(total) else (lambda: total)
    return _with_bar(iterable, _import_tqdm()(total=current(), **options), size or (lambda item: 1), current)


class LearningBar(ProgressBarCallback):
    """
    Stable-Baselines3's progress bar of ``learn``, in the style of all progress bars of this package: notebooks show a widget,
    and tqdm is the only requirement.

    :raises ImportError: if tqdm is not installed
    """

    def __init__(self) -> None:
        BaseCallback.__init__(self)  # the classes in between need another package
        self._tqdm = _import_tqdm()

    def _on_training_start(self) -> None:
        self.pbar = self._tqdm(total=self.locals["total_timesteps"] - self.model.num_timesteps)


def _import_tqdm() -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError('A progress bar needs tqdm: pip install "sb3-scoreflow[examples]".') from error
    return tqdm


def _with_bar(iterable: Iterable[T], bar: Any, size: Callable[[T], int], total: Callable[[], int | None]) -> Iterator[T]:
    """:return: the items; the request for the next one advances the bar"""
    with bar:
        for item in iterable:
            yield item
            bar.total = total()
            bar.update(size(item))
