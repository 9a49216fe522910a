"""Commands of the documentation: programs, files, targets, extras and options must exist. Nothing is done but parsing."""

import argparse
import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sybil import Example

ROOT = Path(__file__).parents[2]
#: Programs that are not ours, whose arguments are not looked at
FOREIGN = {"git", "hf", "cd", "export", "nvidia-smi", "docker", "ray"}
_PLACEHOLDER = re.compile(r"\.\.\.|^[A-Z]{2,}\b")


class _Parsed(BaseException):
    """Ends a program whose arguments were understood; no ``except Exception`` of the program catches it."""


def _parse(program: Callable[[], Any], arguments: Sequence[str]) -> None:
    """Run a program up to where it has parsed its arguments (of the zoo's, up to the second parser: the first knows verbs)."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        result = original(parser, args, namespace)
        if vars(result).keys() == {"verb"}:
            return result
        raise _Parsed

    said, command = io.StringIO(), " ".join(arguments)
    with (
        patch.object(argparse.ArgumentParser, "parse_args", parse_args),
        patch.object(sys, "argv", list(arguments)),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            program()
        except _Parsed:
            return
        except SystemExit as end:
            assert end.code == 0, f"{command}: {said.getvalue() or end.code}"  # 0: --help
            return
    raise AssertionError(f"{command}: this program does not parse its arguments")


def _run_ours(arguments: Sequence[str]) -> None:
    from sb3_scoreflow.cli import main

    _parse(main, ["sb3-scoreflow", *arguments])


def _run_python(arguments: Sequence[str]) -> None:
    if arguments[0] != "-m":
        path = ROOT / arguments[0]
        assert path.is_file(), f"there is no file {arguments[0]}"
        _parse(lambda: runpy.run_path(str(path), run_name="__main__"), arguments)
        return
    name = arguments[1]
    if name.partition(".")[0] not in ("benchmarks", "sb3_scoreflow"):
        assert importlib.util.find_spec(name) is not None, f"there is no module {name}"
        return
    _parse(lambda: runpy.run_module(name, run_name="__main__", alter_sys=True), arguments[1:])


def _install(arguments: Sequence[str]) -> None:
    """pip: the extras must exist."""
    known = metadata("sb3-scoreflow").get_all("Provides-Extra", [])
    for argument in arguments:
        found = re.search(r"(?:sb3-scoreflow|^\.)\[([\w,]+)\]", argument)
        missing = set(found[1].split(",")) - set(known) if found else set()
        assert not missing, f"there are no extras {sorted(missing)}"


def _make(arguments: Sequence[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {argument for argument in arguments if "=" not in argument}
    assert named <= set(targets), f"make: there are no targets {sorted(named - set(targets))}"


def _pytest(arguments: Sequence[str]) -> None:
    named = [argument for argument in arguments if re.match(r"(tests|examples)\b", argument)]
    assert all((ROOT / name.partition("::")[0]).exists() for name in named), f"pytest: {named}"


PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "sb3-scoreflow": _run_ours,
    "python": _run_python,
    "python3": _run_python,
    "pip": _install,
    "make": _make,
    "pytest": _pytest,
}


def check_command(line: str) -> None:
    """
    :param line: line of a shell
    :raises AssertionError: if the program is unknown or does not take these arguments
    """
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Z_0-9]+=", words[0]):
        words = words[1:]
    if not words or words[0] in FOREIGN:
        return
    assert words[0] in PROGRAMS, f"{words[0]!r} is neither one of {sorted(PROGRAMS)} nor in FOREIGN: {line}"
    PROGRAMS[words[0]](words[1:])


def check_commands(example: Example) -> None:
    """The evaluator of blocks in bash; a backslash joins lines, && separates commands."""
    for line in re.sub(r"\\\n", " ", example.parsed).splitlines():
        for command in line.split("&&"):
            check_command(command)
    return


def inline_commands(text: str) -> list[str]:
    """
    :param text: text of a page
    :return: the project's commands outside of blocks, without commands with placeholders (NAME, ...); ``--help`` is added to a
        program that is named without arguments
    """
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    codes = (" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose))
    ours = [
        code for code in codes if re.match(r"python -m (benchmarks|sb3_scoreflow)|python examples/|make |sb3-scoreflow ", code)
    ]
    named = [code for code in ours if not any(_PLACEHOLDER.search(word) for word in code.split())]
    return [f"{code} --help" if re.fullmatch(r"python (-m )?[\w./]+", code) else code for code in named]
