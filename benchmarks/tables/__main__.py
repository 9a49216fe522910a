"""The command line, which prints all tables and all numbers in sentences."""

import argparse
from collections.abc import Sequence

from benchmarks import tables
from benchmarks.provenance import ROOT


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=tables.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    for name, (page, table) in tables.TABLES.items():
        print(f"{page.relative_to(ROOT)}: {name}\n\n{table()}\n")
    for number in tables.NUMBERS:
        print(f"{number.page.relative_to(ROOT)}: {number.expected()}")


if __name__ == "__main__":
    main()
