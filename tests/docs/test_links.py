"""Links within the repository lead to files and headings that are there; those to elsewhere have the form of an address."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.docs.pages import PAGES, ROOT

_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")

#: Paths with a variable part, ids of environments, what the build writes, and a script that is in an old commit only
_NO_FILE = re.compile(r"NAME|ALGORITHM|-v\d$|/_build|^benchmarks/speed/changes\.py$")


def prose(text: str) -> str:
    """:return: the text without code"""
    return re.sub(r"(?<!`)`[^`]+`(?!`)", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    """:return: anchors of a page's headings as GitHub makes them, and those set by ``(name)=``"""
    without_blocks = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    found: dict[str, int] = {}
    result = set(re.findall(r"^\(([\w-]+)\)=$", without_blocks, re.MULTILINE))
    for heading in re.findall(r"^#+ +(.+?) *$", without_blocks, re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        count = found[slug] = found.get(slug, -1) + 1
        result.add(f"{slug}-{count}" if count else slug)
    return result


def problem(link: str, page: Path) -> str | None:
    """:return: what is wrong with a link of a page, None if nothing is"""
    if re.match(r"[a-z]+:", link):
        parts = urlsplit(link)
        fine = parts.scheme == "mailto" or (parts.scheme in ("https", "http") and "." in (parts.hostname or ""))
        return None if fine else "no address"
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.exists():
        return "no such file"
    if anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
        return "no such heading"
    return None


@pytest.mark.parametrize("name", PAGES)
def test_links(name: str) -> None:
    page = PAGES[name]
    links = _LINK.findall(prose(page.read_text()))
    assert {link: wrong for link in links if (wrong := problem(link, page))} == {}


@pytest.mark.parametrize("name", PAGES)
def test_paths_in_code_style(name: str) -> None:
    """Files of the repository that the text names exist, unless their name has a variable part."""
    folders = r"(?:benchmarks|docs|examples|sb3_scoreflow|tests)/"
    paths = re.findall(rf"(?<!`)`({folders}[\w./-]+)`(?!`)", PAGES[name].read_text())
    kept = [path for path in paths if not _NO_FILE.search(path)]
    assert [path for path in kept if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("link", "wrong"),
    [
        ("#second-part-of-it", None),
        ("#a-heading-1", None),
        ("other.md#there", None),
        ("https://example.org/x#y", None),
        ("#absent", "no such heading"),
        ("absent.md", "no such file"),
        ("other.md#here", "no such heading"),
        ("https:/example.org", "no address"),
        ("htps://example.org", "no address"),
    ],
)
def test_wrong_links_are_found(link: str, wrong: str | None, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading\n\n## Second part: `of` [it](x)\n\n## A heading\n\n```bash\n# absent\n```\n")
    (tmp_path / "other.md").write_text("# There\n")
    assert problem(link, page) == wrong


def test_links_in_code_are_none() -> None:
    assert _LINK.findall(prose("[a](b.md), `[c](d.md)`\n```\n[e](f.md)\n```\n[g\nh](<i.md>)")) == ["b.md", "i.md"]
