"""Every block of code in the documentation runs, and every command of ours is understood."""

from pathlib import Path

import pytest

from tests.docs.commands import check_command, inline_commands
from tests.docs.pages import PAGES, run_page
from tests.docs.setups import SETUPS, on_hopper

#: Pages whose environments or files take more than a few seconds to make
SLOW = {f"docs/{name}.md" for name in ("cameras", "demonstrations", "deployment", "reliability", "scaling", "tasks")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in PAGES])
def test_blocks(name: str, place: Path) -> None:
    setup = SETUPS.get(name, lambda folder: on_hopper())
    run_page(PAGES[name], setup(place) if "```python" in PAGES[name].read_text() else {})


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("name", PAGES)
def test_commands_in_the_text(name: str) -> None:
    for command in inline_commands(PAGES[name].read_text()):
        check_command(command)


def test_setups_are_of_pages() -> None:
    assert SETUPS.keys() <= PAGES.keys() and SLOW <= PAGES.keys()
