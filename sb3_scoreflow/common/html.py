"""HTML tables for notebooks."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    :param header: header of the columns
    :param rows: cells, as plain text
    :return: HTML
    """
    lines = [("th", header), *(("td", row) for row in rows)]
    cells = ("".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in line) for kind, line in lines)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in cells) + "</table>"
