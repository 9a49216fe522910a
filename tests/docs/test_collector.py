"""A block that is wrong, or that nothing runs, fails: the checks of the pages are checked."""

from pathlib import Path
from typing import Any

import pytest

from tests.docs import pages
from tests.docs.commands import check_command, inline_commands
from tests.docs.conftest import bounded
from tests.docs.pages import run_page


def page(folder: Path, *blocks: tuple[str, str]) -> Path:
    path = folder / "page.md"
    path.write_text("# A page\n\n" + "\n\n".join(f"```{language}\n{code}\n```" for language, code in blocks) + "\n")
    return path


def test_blocks_run_in_order_in_one_namespace(tmp_path: Path) -> None:
    found: list[int] = []
    path = page(
        tmp_path, ("python", "x = start + 1"), ("text", "no code"), ("python", "if __name__ == '__main__':\n    keep(x)")
    )
    assert run_page(path, dict(start=1, keep=found.append)) == 2
    assert found == [2]


@pytest.mark.parametrize(
    ("language", "code", "error"),
    [
        ("python", "model.lern(10)", NameError),
        ("python", "from sb3_scoreflow import ScoreFlowPPO", ImportError),
        ("python", "x = (1", SyntaxError),
        ("python", "assert 1 == 2", AssertionError),
        ("bash", "sb3-scoreflow clone file.hdf5 --env Hopper-v5 --output clone.zip --horizons 4", AssertionError),
        ("bash", "make test &&\nsb3-scorflow --help", AssertionError),
        ("yaml", "Hopper-v5:\n  n_env: 20", AssertionError),
        ("json", "{}", AssertionError),
        ("", "python examples/quickstart.py", AssertionError),
    ],
)
def test_wrong_blocks_fail(language: str, code: str, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        run_page(page(tmp_path, ("python", "x = 1"), (language, code)), {})


def test_blocks_that_cannot_run_are_compiled_and_their_imports_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "COMPILED_ONLY", {"import absent_package": "absent_package"})
    assert run_page(page(tmp_path, ("python", "import absent_package\nimport json\n1 / 0")), {}) == 1
    with pytest.raises(ImportError, match="no_such_name"):
        run_page(page(tmp_path, ("python", "import absent_package\nfrom sb3_scoreflow import no_such_name")), {})
    with pytest.raises(SyntaxError):
        run_page(page(tmp_path, ("python", "import absent_package\nx = (1")), {})


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sb3-scoreflow export tuned.zip", "arguments are required: POLICY"),
        ("python examples/deploy.py hopper.onnx --episode_s 10", "unrecognized arguments"),
        ("python examples/absent.py", "there is no file"),
        ("python -m absent_module", "there is no module"),
        ("python -m benchmarks.tasks --task socker-v3", "invalid choice"),
        ("python -m benchmarks.curves", "does not parse"),
        ("python -m sb3_scoreflow.zoo train --algo scoreflow --env Hopper-v5", "invalid choice: 'scoreflow'"),
        ("python -m sb3_scoreflow.zoo trian --algo rldt", "invalid choice: 'trian'"),
        ('pip install "sb3-scoreflow[mujocco]"', "mujocco"),
        ('pip install -e ".[example,mujoco]"', "example"),
        ("make tests", "tests"),
        ("pytest tests/absent.py", "absent"),
        ("flow train", "'flow' is neither"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_wrong_commands_fail(command: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_command(command)


@pytest.mark.parametrize(
    "command",
    [
        "sb3-scoreflow train --help",
        "CUDA_VISIBLE_DEVICES=0 python -m sb3_scoreflow.zoo train --algo rldt --env Pendulum-v1  # a comment",
        "make PYTHON=python3.12 install",
        "git clone somewhere",
        "# nothing but a comment",
    ],
)
def test_right_commands_pass(command: str) -> None:
    check_command(command)


def test_commands_in_the_text() -> None:
    text = "`make\ntest`, `python -m benchmarks.soak`, `python -m benchmarks.speed PART`, `n_steps`\n```bash\nmake lint\n```\n"
    assert inline_commands(text) == ["make test", "python -m benchmarks.soak --help"]


def test_numbers_are_bounded() -> None:
    def learn(total_timesteps: int, n_steps: int | None = None) -> Any:
        return total_timesteps, n_steps

    short = bounded(learn, total_timesteps=4, n_steps=5)
    assert short(1_000_000) == (4, 5) and short(total_timesteps=2, n_steps=3) == (2, 3)
