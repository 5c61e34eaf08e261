"""The repository itself: imports point one way, and nothing lies about that does not belong here."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "replicator"

DOMAIN = frozenset(
    [
        "errors",
        "ops",
        "repset",
        "status",
        "events",
        "limits",
        "config",
        "bounds",
        "world",
        "paths",
        "addresses",
        "mount_options",
        "shares",
        "orphans",
        "restores",
        "schedules",
        "transmission",
        "local_time",
        "limit_calendar",
        "diagnostics",
        "transmission_schedule",
        "schedule_outlook",
        "states",
        "plain",
        "synchrony",
        "access",
        "failovers",
        "failover_settings",
        "failover_reports",
        "failover_drills",
        "failover_test",
        "fences",
        "unix_sockets",
    ]
)
# What each part may import besides itself and the domain. `docs/developers/architecture.md` has the reasons.
MAY_IMPORT = {
    "queue": frozenset[str](),
    "fs": frozenset({"queue"}),
    "security": frozenset[str](),
    "net": frozenset({"security"}),
    "mirror": frozenset({"queue", "fs"}),
    "failover": frozenset({"queue", "fs", "net", "mirror"}),
    "child": frozenset[str](),
    "capture": frozenset({"queue", "fs", "child"}),
    "sender": frozenset({"queue", "fs", "net", "mirror", "child", "security"}),
    "receiver": frozenset({"queue", "fs", "net", "mirror", "child", "security"}),
    "agent": frozenset(
        {"queue", "fs", "net", "mirror", "failover", "child", "capture", "sender", "receiver", "security"}
    ),
    "cli": frozenset[str](),  # a client of the API: it needs nothing but the domain
}
# The domain is pure: no waiting, no network, no processes. `world` is where the outside comes in, and
# `unix_sockets` asks the kernel about sockets that others have opened.
IMPURE = frozenset(
    ["trio", "socket", "subprocess", "threading", "pyfuse3", "hypercorn", "starlette", "typer", "rich"]
)
FUSE_MODULES = frozenset({"pyfuse3_binding", "kernel_binding"})


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The part a module belongs to: a subpackage, or "" for the domain."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else ""


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a module imports, also inside of functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            assert node.module is not None
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def violations(path: Path) -> Iterator[str]:
    part = part_of(path)
    for line, name in imports(path):
        where = f"{path.relative_to(ROOT)}:{line}: {name}"
        top, *rest = name.split(".")
        if top == "replicator" and rest:
            imported = rest[0]
            if imported in MAY_IMPORT and imported != part and imported not in MAY_IMPORT.get(part, ()):
                yield f"{where}: {part or 'the domain'} may not import {imported}"
        elif top in IMPURE and not part and path.stem not in {"world", "unix_sockets"}:
            yield f"{where}: the domain is pure"
        elif top == "pyfuse3" and path.stem not in FUSE_MODULES:
            yield f"{where}: only the bindings know FUSE"


def test_every_part_is_known() -> None:
    found = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert found == set(MAY_IMPORT)
    assert {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"} == DOMAIN


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    assert list(violations(path)) == []


def test_a_violation_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__name__ + ".PACKAGE", tmp_path)
    monkeypatch.setattr(__name__ + ".ROOT", tmp_path)
    bad = tmp_path / "queue" / "bad.py"
    bad.parent.mkdir()
    bad.write_text("def f():\n    from replicator.agent import dtd\n    import replicator.net.session\n")
    assert len(list(violations(bad))) == 2
    pure = tmp_path / "ops.py"
    pure.write_text("import trio\nfrom replicator import limits\nfrom replicator.queue import journal\n")
    assert len(list(violations(pure))) == 2


def tracked() -> list[str]:
    answer = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, timeout=30)
    if answer.returncode != 0:
        pytest.skip("not a checkout")
    return [name for name in answer.stdout.decode().split("\0") if name]


def test_no_stray_files_are_tracked() -> None:
    strays = [
        name
        for name in tracked()
        if name.endswith((".pyc", ".orig", ".rej", ".swp", "~", ".log", ".sock"))
        or "__pycache__" in name
        or name.split("/")[0] in {".venv", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}
    ]
    assert strays == []


def test_test_directories_are_no_packages() -> None:
    packages = {str(p.parent.relative_to(ROOT)) for p in (ROOT / "tests").rglob("__init__.py")}
    assert packages <= {"tests/kit", "tests/fuzz"}


def test_no_tracked_file_is_huge() -> None:
    huge = [n for n in tracked() if (ROOT / n).is_file() and (ROOT / n).stat().st_size > 512 * 1024]
    assert huge == []


def test_all_tests_can_be_collected_in_one_run() -> None:
    """pytest imports test modules by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
