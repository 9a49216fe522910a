"""The pages of the documentation, and how their blocks of code are run: Python in order, commands by their parsers."""

import re
from pathlib import Path
from typing import Any

import yaml
from sybil import Example, Sybil
from sybil.document import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.myst import CodeBlockParser
from sybil.typing import Evaluator

from tests.docs.commands import check_commands

ROOT = Path(__file__).parents[2]
#: By their path from the root
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in sorted(
        [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md", *ROOT.glob("docs/**/*.md")]
    )
    if "_build" not in path.parts
}

#: All exceptions. A block with one of these lines runs where the package is installed, which has no wheels for some Pythons;
#: elsewhere it is compiled, and its other imports run. None stands for what nothing here can run (a GPU).
COMPILED_ONLY: dict[str, str | None] = {
    "from sb3_scoreflow.envs import EnvPoolVecEnv": "envpool",
    "from sb3_scoreflow.export import export_onnx": "onnxscript",
    "import onnxruntime": "onnxruntime",
}
#: Languages of blocks that are no code
NO_CODE = {"text", "bibtex"}

_FENCE = re.compile(r"^ *(?:```+|~~~+) *([^\n`]*)$", re.MULTILINE)


def _installed(package: str | None) -> bool:
    from importlib.util import find_spec

    return package is not None and find_spec(package) is not None


class PythonBlocks(PythonEvaluator):
    """Runs blocks; of those in ``COMPILED_ONLY`` only the imports of what is installed."""

    def __call__(self, example: Example) -> None:
        lines = example.parsed.splitlines()
        needed = [package for line, package in COMPILED_ONLY.items() if line in lines]
        if all(_installed(package) for package in needed):
            super().__call__(example)
            return
        compile(example.parsed, example.path, "exec")
        for line in lines:
            if re.match(r"(from|import) ", line) and not any(line == each for each in COMPILED_ONLY):
                exec(line, example.namespace)


def check_yaml(example: Example) -> None:
    """A block of YAML is an entry of the zoo's file, whose arguments must be an algorithm's."""
    import inspect

    from sb3_scoreflow import ScoReFlowPPO
    from sb3_scoreflow.zoo.cloning import KEYS

    arguments = {
        *inspect.signature(ScoReFlowPPO).parameters,
        "n_envs",
        "n_timesteps",
        "env_wrapper",
        *KEYS,
    }
    for entry in yaml.safe_load(example.parsed).values():
        assert entry.keys() <= arguments, f"{sorted(entry.keys() - arguments)} are no arguments"


def languages(text: str) -> set[str]:
    """:return: languages of all blocks; an empty one where a block has none"""
    return {match[1].strip() for match in list(_FENCE.finditer(text))[::2]}


def run_page(path: Path, namespace: dict[str, Any]) -> int:
    """
    Run all blocks of a page, in order and in one namespace.

    :param path: a Markdown file
    :param namespace: what the page takes for granted
    :return: number of blocks
    :raises Exception: what a block raises
    """
    known: dict[str, Evaluator] = {"python": PythonBlocks(), "bash": check_commands, "yaml": check_yaml}
    unknown = {each for each in languages(path.read_text()) if each not in {*known, *NO_CODE} and not each.startswith("{")}
    assert not unknown, f"{path.name}: blocks in {sorted(unknown)}, which nothing checks: use one of {sorted(known)}, or text"
    parsers = [CodeBlockParser(language, evaluator) for language, evaluator in known.items()]
    document: Document = Sybil(parsers).parse(path)
    document.namespace.update(namespace, __name__="__main__")
    examples = list(document)
    for example in examples:
        example.evaluate()
    return len(examples)
