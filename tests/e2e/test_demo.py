"""The demo, as a newcomer runs it, on a small tree: equal, nothing left, nothing damaged."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from kit import leftovers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout_s(240)]

DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    for number in range(30):
        directory = source / f"d{number % 5}" / f"sub{number}"
        directory.mkdir(parents=True)
        (directory / "file").write_bytes(os.urandom(20_000))
        (directory / "link").symlink_to("file")
        (directory / "name").hardlink_to(directory / "file")
    with open(source / "sparse", "wb") as file:
        file.truncate(10 << 20)
        file.seek(5 << 20)
        file.write(b"data")
    os.utime(source, ns=(10**18, 10**18))
    return source


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The demo's directories go below this test's, so that leftovers would be found there."""
    below = tmp_path / "tmp"
    below.mkdir()
    return {**os.environ, "TMPDIR": str(below)}


def snapshot(tree: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for directory, names, files in os.walk(tree):
        for name in (*names, *files, "."):
            path = os.path.join(directory, name)
            state = os.lstat(path)
            found[path] = (state.st_ino, state.st_size, state.st_mtime_ns)
    return found


def assert_nothing_left(tmp_path: Path, memory_before: set[str]) -> None:
    assert leftovers.mounts_below(tmp_path) == []
    assert leftovers.processes_of(tmp_path) == {}
    assert list((tmp_path / "tmp").iterdir()) == []
    assert memory_directories() <= memory_before


def memory_directories() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("replicator-demo-")}


def test_equal_and_clean(tmp_path: Path, source: Path, environment: dict[str, str]) -> None:
    before, memory = snapshot(source), memory_directories()
    copy = tmp_path / "copy"
    result = subprocess.run(
        [sys.executable, DEMO, "--source", source, "--target", copy],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Source and copy are equal" in result.stdout
    assert snapshot(source) == before
    assert (copy / "sparse").stat().st_size == 10 << 20
    assert_nothing_left(tmp_path, memory)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_in_the_middle(
    tmp_path: Path, source: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    before, memory = snapshot(source), memory_directories()
    command = [sys.executable, DEMO, "--source", source]
    demo = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("  mirror"):  # writers run now
                break
        demo.send_signal(number)
        demo.stdout.read()
        code = demo.wait(60)
    finally:
        demo.kill()
        demo.stdout.close()
        demo.wait()
    if number == signal.SIGKILL:
        # The kernel ended everything; what lies around is removed by the next demo.
        deadline_s = time.monotonic() + 20
        while leftovers.processes_of(tmp_path) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert leftovers.processes_of(tmp_path) == {}
        result = subprocess.run(
            [*command, "--target", "/proc/self"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 1  # refused, after the sweep
        os.utime(source, ns=(10**18, 10**18))
    else:
        assert code == 130
    assert snapshot(source) == before
    assert_nothing_left(tmp_path, memory)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--source", "/no/such"], "is not a directory"),
        (["--source", tempfile.gettempdir(), "--target", "/proc"], "is not an empty directory"),
    ],
)
def test_refusals(arguments: list[str], words: str, environment: dict[str, str]) -> None:
    result = subprocess.run(
        [sys.executable, DEMO, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
