import sys
from collections.abc import Iterator

import pytest

from sb3_scoreflow.common.progress import progress


def test_items_move_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    assert list(progress(iter("abc"), 3, True, desc="Letters")) == ["a", "b", "c"]
    assert "Letters: 100%" in (err := capsys.readouterr().err) and "3/3" in err
    blocks = [b"1234", b"56", b""]
    assert list(progress(blocks, 8, True, size=len, initial=2)) == blocks
    assert "8/8" in capsys.readouterr().err
    assert list(progress(blocks, None, True, size=len)) == blocks
    assert "6it" in capsys.readouterr().err


def test_a_bar_is_closed_where_the_loop_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    for number in progress(range(5), 5, True):
        if number == 2:
            break
    assert "2/5" in (err := capsys.readouterr().err) and err.endswith("\n")


def test_nothing_is_shown_or_needed_without_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def items() -> Iterator[int]:
        raise AssertionError("begun")
        yield 0

    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert list(progress([1, 2], 2, False)) == [1, 2]
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ImportError, match=r"needs tqdm: pip install \"sb3-scoreflow\[examples\]\""):
        progress(items(), 1, True)
