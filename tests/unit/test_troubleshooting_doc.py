"""Every message that docs/administrators/troubleshooting.md explains is one the code prints."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = ROOT.joinpath("docs", "administrators", "troubleshooting.md").read_text()
FROM_THE_SYSTEM = {"…: No such file or directory"}  # strerror(3)


def messages() -> Iterator[str]:
    """The first column of all tables of messages; commas separate those that share an advice."""
    for table in re.findall(r"^\| message \|.*\n\|.*\n((?:\|.*\n)+)", TEXT, flags=re.MULTILINE):
        for row in table.splitlines():
            cell = row.strip("| ").split(" | ")[0]
            yield from re.split(r", (?=… is not a directory|no connection)", cell)


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but docstrings."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield node
            yield from _walk(node)


@cache
def texts() -> tuple[str, ...]:
    """All texts of the code, with … for what is put in."""
    found = []
    for path in ROOT.joinpath("replicator").rglob("*.py"):
        for node in _walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"\{[^}]*\}", "…", node.value))
    return tuple(found)


def says(text: str, message: str) -> bool:
    """Whether the parts of `message` stand in `text`, in order, with something put in between."""
    pattern = ".*".join(re.escape(part.strip()) for part in message.split("…") if part.strip())
    return re.search(pattern, text) is not None


def test_there_are_messages() -> None:
    assert len(list(messages())) > 35


@pytest.mark.parametrize("message", list(messages()))
def test_it_is_printed(message: str) -> None:
    if message in FROM_THE_SYSTEM:
        return
    assert any(says(text, message) for text in texts())
