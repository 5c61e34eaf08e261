"""Which files a target syncs one by one, and when it syncs whole file systems."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator import limits
from replicator.receiver.unsynced import Unsynced


class Calls:
    """What was synced, in order: names of files, or "all"."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.made: list[str] = []
        self.error: OSError | None = None
        monkeypatch.setattr(os, "fsync", self._fsync)
        self.unsynced = Unsynced()
        self.sync()
        assert self.made == ["all"]  # a predecessor may have left anything
        self.made.clear()

    def _fsync(self, descriptor: int) -> None:
        if self.error is not None:
            raise self.error
        self.made.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    def change(self, name: str) -> None:
        descriptor = os.open(self.directory / name, os.O_RDWR | os.O_CREAT)
        try:
            if not self.unsynced.has(name):
                self.unsynced.add_file(name, descriptor)
        finally:
            os.close(descriptor)

    def sync(self) -> list[str]:
        self.made.clear()
        self.unsynced.sync(lambda: self.made.append("all"))
        return sorted(self.made)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    before = len(os.listdir("/proc/self/fd"))
    calls = Calls(tmp_path, monkeypatch)
    yield calls
    calls.unsynced.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_few_files_are_synced_each_once(calls: Calls) -> None:
    for name in ("a", "b", "a"):
        calls.change(name)
    assert calls.sync() == ["a", "b"]
    assert calls.sync() == []
    calls.change("b")
    assert calls.sync() == ["b"]


def test_many_files_or_anything_else_mean_all(calls: Calls) -> None:
    for number in range(limits.SYNC_FILES + 1):
        calls.change(str(number))
    calls.change("one more")
    assert calls.sync() == ["all"]
    calls.change("a")
    calls.unsynced.add_anything()
    calls.change("b")
    assert calls.sync() == ["all"]
    calls.change("a")
    assert calls.sync() == ["a"]


def test_what_changes_while_it_is_synced_is_synced_next_time(calls: Calls) -> None:
    calls.unsynced.add_anything()
    calls.unsynced.sync(lambda: calls.change("late"))
    assert calls.sync() == ["late"]


def test_after_an_error_nothing_is_known_to_be_synced(calls: Calls) -> None:
    calls.change("a")
    calls.error = OSError(5, "Input/output error")
    with pytest.raises(OSError, match="Input"):
        calls.sync()
    calls.error = None
    assert calls.sync() == ["all"]


def test_a_file_that_waits_to_be_synced_can_be_executed(calls: Calls, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)
    calls.change("program")
    assert subprocess.run([program], check=False).returncode == 7
