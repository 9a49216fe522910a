"""The pages have the tables and numbers of the results, and it is found when they do not."""

from pathlib import Path

import pytest

from benchmarks import study
from benchmarks.tables import NUMBERS, TABLES
from benchmarks.tables.__main__ import main
from benchmarks.tables.cells import listed, markdown, range_of, thousands, with_interval
from benchmarks.tables.numbers import Number


def test_a_table() -> None:
    assert with_interval({"mean": 2.345, "ci95": [1.0, 30.06]}, 1) == "2.3 [1.0, 30.1]"
    assert with_interval({"value": 0.5, "ci95": [0.25, 0.75]}, name="value", factor=100) == "50 [25, 75]"
    assert listed([1.26, -0.04], 1) == "1.3, -0.0" and range_of([3.0, 1.0, 2.0]) == "1 to 3"
    assert thousands(78_600) == "79,000"
    assert markdown(("", "b"), [("1", ""), ("x", "y")]) == "| | b |\n|---|---|\n| 1 | |\n| x | y |"


@pytest.mark.parametrize("name", TABLES)
def test_pages_have_the_tables_of_the_results(name: str) -> None:
    page, table = TABLES[name]
    assert table() in page.read_text(), f"Copy it from `python -m benchmarks.tables` to {page}."


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: f"{number.page.stem}: {number.fragment}")
def test_sentences_have_the_numbers_of_the_results(number: Number) -> None:
    text = number.page.read_text()
    assert number.is_in(text), f"{number.page.name} does not say '{number.expected()}': correct it, or the fragment."
    # The same sentence with other numbers is found
    values = number.values()
    others = [value.translate(str.maketrans("0123456789", "1234567890")) for value in values]
    others = [f"not {value}" if value == other else other for value, other in zip(values, others, strict=True)]
    changed = " ".join(text.split()).replace(number.expected(), number.fragment.format(*others))
    assert not number.is_in(changed)


def test_a_changed_table_is_found() -> None:
    page, table = TABLES["encoders"]
    text, row = page.read_text(), table().splitlines()[2]
    assert row == "| NatureCNN | 0.13 | 0.39 |"  # of the result when this was written
    assert table() not in text.replace(row, row.replace("0.13", "0.14"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It takes 1.5 s, or 3.", True),
        ("It takes 1.5\n    s, or 3", True),
        ("It takes 1.5 s, or 3, or more", True),
        ("It takes 1.6 s, or 3.", False),
        ("It takes 1.5 s, or 31.", False),
        ("It takes 1.5 s, or 3.1.", False),
        ("It takes 1.5 s, or 3,000.", False),
        ("It takes 11.5 s, or 3.", False),
        ("It takes -1.5 s, or 3.", False),
        ("It takes 11.5 s, or 3, else 1.5 s, or 3.", True),
    ],
)
def test_a_number_is_not_a_part_of_another(text: str, found: bool) -> None:
    assert Number(Path("page.md"), "{} s, or {}", lambda: ["1.5", "3"]).is_in(text) is found


def test_command_prints_all(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr().out
    assert all(table() in printed for _, table in TABLES.values())
    assert all(f"{number.page.relative_to(study.RESULTS.parents[1])}: {number.expected()}\n" in printed for number in NUMBERS)
    assert printed.startswith("README.md: overview\n\n| Task |")


def test_tables_say_what_the_summaries_do() -> None:
    hopper = study.read_summary(study.RESULTS / "finetune")["Hopper-v5"]
    final = hopper["return_deterministic"]["variants"]["rldt"]["final"]
    row = next(line for line in TABLES["overview"][1]().splitlines() if line.startswith("| Hopper-v5"))
    assert row.split(" | ")[3].startswith(f"{final['mean']:.0f} [{final['ci95'][0]:.0f}, ")
    row = next(line for line in TABLES["Hopper-v5"][1]().splitlines() if line.startswith("| RLDT"))
    assert row.endswith(f"| {hopper['cpu_seconds']['rldt']['mean']:.0f} |")
