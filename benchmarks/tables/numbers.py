"""Numbers in sentences: what the pages have to say, from the results."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple


class Number(NamedTuple):
    """One or several numbers in a sentence of a page."""

    page: Path
    fragment: str
    """What stands around them, as short as it can be without being found elsewhere, with a ``{}`` for each number"""
    values: Callable[[], Sequence[str]]
    """As the page writes them"""

    def expected(self) -> str:
        return self.fragment.format(*self.values())

    def is_in(self, text: str) -> bool:
        """
        :param text: of the page; where its lines end does not matter
        :return: whether it says what the results do, and not as a part of longer numbers
        """
        padded = f" {' '.join(text.split())} "
        start = padded.find(expected := self.expected())
        while start >= 0:
            before, after = padded[start - 1], padded[start + len(expected) :][:2]
            if not (before.isdigit() or before in ".-" or after[0].isdigit() or (after[0] in ".," and after[1].isdigit())):
                return True
            start = padded.find(expected, start + 1)
        return False
