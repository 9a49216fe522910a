"""What notebooks show of demonstrations and of histories, read back by a parser of HTML."""

from html.parser import HTMLParser

import numpy as np
from gymnasium import spaces

from sb3_scoreflow import Demonstrations, FlowMatchingPolicy, pretrain_bc


class Cells(HTMLParser):
    """The text of a table's cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.rows[-1][-1] += data


def demonstrations(**metadata: str) -> Demonstrations:
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (30, 3)).astype(np.float32)
    ends = np.arange(30) % 10 == 9
    return Demonstrations(observations, rng.uniform(-0.5, 0.5, (30, 2)), np.ones(30), ends, metadata=metadata)


def test_demonstrations_show_what_describe_says_with_markup_escaped() -> None:
    data = demonstrations(note="<b>bold</b> & more")
    header, *rows = Cells(data._repr_html_()).rows
    assert header == ["", "Demonstrations"]
    lines = data.describe().splitlines()
    assert [line.split() for line in lines] == [" ".join(row).split() for row in rows]
    assert ["metadata: note", "<b>bold</b> & more"] in rows and "<b>" not in data._repr_html_()


def test_history_shows_first_and_last_values() -> None:
    policy = FlowMatchingPolicy(spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (2,)), net_arch=[8])
    history = pretrain_bc(policy, demonstrations(), n_batches=6, log_interval=2, seed=0)
    header, *rows = Cells(history._repr_html_()).rows  # type: ignore[attr-defined]
    assert header == ["", "first", "last"]
    assert ["batch", "2", "6"] in rows and len(rows) == len(history)
    shown = {name: (float(first), float(last)) for name, first, last in rows}
    np.testing.assert_allclose(shown["bc/loss"], (history["bc/loss"][0], history["bc/loss"][-1]), rtol=1e-3)
