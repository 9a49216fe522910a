"""Progress bars."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def progress(
    iterable: Iterable[T], total: int | None, show: bool, *, size: Callable[[T], int] | None = None, **options: Any
) -> Iterable[T]:
    """
    :param iterable: what to go through
    :param total: what its sizes add up to; None if it is unknown
    :param show: whether to show a bar meanwhile
    :param size: by how much an item moves the bar; 1 if None
    :param options: of tqdm's bar, such as ``desc`` and ``unit``
    :return: the same items
    :raises ImportError: if a bar is to be shown and tqdm is not installed; at once, before the first item
    """
    if not show:
        return iterable
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError('A progress bar needs tqdm: pip install "sb3-scoreflow[examples]".') from error
    return _with_bar(iterable, tqdm(total=total, **options), size or (lambda item: 1))


def _with_bar(iterable: Iterable[T], bar: Any, size: Callable[[T], int]) -> Iterator[T]:
    """:return: The items, each of which moves the bar when the next one is asked for"""
    with bar:
        for item in iterable:
            yield item
            bar.update(size(item))
