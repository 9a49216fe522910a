"""
Print the tables of results in README.md and in the pages of the documentation, and the numbers in their sentences, from the
committed results.

    python -m benchmarks.tables

A test compares the pages with the output.
"""

from benchmarks.tables import chunks, comparison, data, experts, exploration, fpo, implementation, rldt, robots, scoreflow_ppo
from benchmarks.tables.cells import Tables
from benchmarks.tables.numbers import Number

_PAGES = (comparison, chunks, scoreflow_ppo, rldt, fpo, implementation, exploration, robots, experts, data)
TABLES: Tables = {name: table for pages in _PAGES for name, table in pages.TABLES.items()}
NUMBERS: list[Number] = [number for pages in _PAGES for number in getattr(pages, "NUMBERS", ())]
