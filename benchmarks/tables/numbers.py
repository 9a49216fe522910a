"""Numbers in sentences of the pages, computed from the results."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple


class Number(NamedTuple):
    """One or several numbers in a sentence of a page."""

    page: Path
    fragment: str
    """The shortest unique part of the sentence around the numbers, with a ``{}`` for each number"""
    values: Callable[[], Sequence[str]]
    """Function that returns the numbers as the page writes them"""

    def expected(self) -> str:
        return self.fragment.format(*self.values())

    def is_in(self, text: str) -> bool:
        """
        :param text: text of the page; line breaks do not matter
        :return: whether the text contains the expected sentence; a match within longer numbers does not count
        """
        padded = f" {' '.join(text.split())} "
        start = padded.find(expected := self.expected())
        while start >= 0:
            before, after = padded[start - 1], padded[start + len(expected) :][:2]
            if not (before.isdigit() or before in ".-" or after[0].isdigit() or (after[0] in ".," and after[1].isdigit())):
                return True
            start = padded.find(expected, start + 1)
        return False
