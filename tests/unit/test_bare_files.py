"""Files that need not be asked for extended attributes: only while it is certain that they have none."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from replicator import limits
from replicator.fs import bare_files, calls, many_states
from replicator.fs.bare_files import BareFiles
from replicator.fs.many_states import ManyStates, read_states

NAMES = [b"f%02d" % number for number in range(20)]


class Asked:
    """A directory of twenty files, and how often they were asked for their attributes."""

    def __init__(self, base: Path) -> None:
        self.path = base / "files"
        self.path.mkdir()
        for name in NAMES:
            (self.path / os.fsdecode(name)).write_bytes(name)
        self.descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        self.memory = base / "bare-files"
        self.times = 0

    def states(self) -> ManyStates:
        return read_states(self.descriptor, NAMES)

    def look(self, boot_id: str = "this boot", *, states: ManyStates | None = None) -> list[int]:
        """As a process that was just started does."""
        bare = BareFiles(str(self.memory), boot_id)
        found = bare.with_xattrs(self.descriptor, states or self.states())
        os.close(bare._descriptor)
        return found


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """Files count as quiet as soon as they are made."""
    files = Asked(tmp_path)
    really = many_states.with_xattrs

    def ask(directory: int, names: Sequence[bytes]) -> list[int]:
        files.times += 1
        return really(directory, names)

    monkeypatch.setattr(bare_files, "with_xattrs", ask)
    monkeypatch.setattr(limits, "FILE_CLOCK_STEP_NS", -2 * 10**9)
    if files.states().mount() is None:
        pytest.skip("this kernel does not number mounts")
    if calls.file_system_type(files.descriptor) not in bare_files._STAMPING:
        pytest.skip("files of such a file system are always asked")
    yield files
    os.close(files.descriptor)


def test_files_that_had_none_are_asked_once(asked: Asked) -> None:
    assert [asked.look() for _ in range(3)] == [[], [], []] and asked.times == 1


def replaced(path: Path) -> None:
    """By one with the same inode number, if that is free, with all that can be set as it was."""
    state = path.stat()
    path.unlink()
    path.write_bytes(b"f07")
    os.setxattr(path, "user.a", b"b")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], None], list[int]]] = {
    "an attribute": (lambda path: os.setxattr(path, "user.a", b"b"), [7]),
    "another file": (replaced, [7]),
    "the mode": (lambda path: os.chmod(path, 0o600), []),
    "the content": (lambda path: path.write_bytes(b"other") and None, []),
    "a second name": (lambda path: os.link(path, path.with_name("second")), []),
    "gone": (lambda path: path.unlink(), []),
}


@pytest.mark.parametrize("what", CHANGES)
def test_after_a_change_they_are_asked_again(what: str, asked: Asked) -> None:
    change, found = CHANGES[what]
    asked.look()
    before = (asked.path / "f07").stat()
    change(asked.path / "f07")
    if (asked.path / "f07").exists():  # as a program that hides what it did
        os.utime(asked.path / "f07", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert asked.look() == found and asked.times == 2


def test_files_that_have_some_are_always_asked(asked: Asked) -> None:
    os.setxattr(asked.path / "f03", "user.a", b"b")
    assert [asked.look(), asked.look()] == [[3], [3]] and asked.times == 2
    os.removexattr(asked.path / "f03", "user.a")
    assert [asked.look(), asked.look()] == [[], []] and asked.times == 3


def test_a_change_in_the_same_tick_as_the_look_could_not_be_seen(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FILE_CLOCK_STEP_NS", 10**9)
    os.chmod(asked.path / "f11", 0o600)
    assert [asked.look(), asked.look()] == [[], []] and asked.times == 2


def test_a_clock_that_was_put_back_makes_everything_unknown(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.look()
    now_ns = time.time_ns()
    monkeypatch.setattr(bare_files.time, "time_ns", lambda: now_ns - 3600 * 10**9)
    monkeypatch.setattr(limits, "FILE_CLOCK_STEP_NS", 0)  # to it the files are of the future
    asked.look()
    monkeypatch.undo()
    assert asked.memory.stat().st_size == 0


def test_another_boot_or_mount_is_another_file_system(asked: Asked) -> None:
    asked.look()
    asked.look("the next boot")
    assert asked.times == 2
    elsewhere = asked.states()
    mounts = elsewhere._column(many_states._MOUNT)
    for place, mount in enumerate(mounts):
        mounts[place] = mount + 1
    asked.look(states=elsewhere)
    assert asked.times == 3


def test_file_systems_that_may_not_stamp_every_change(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "file_system_type", lambda descriptor: 0x65735546)  # FUSE
    asked.look()
    asked.look()
    assert asked.times == 2


def test_without_room_to_remember_they_are_asked(asked: Asked) -> None:
    asked.memory.mkdir()
    bare = BareFiles(str(asked.memory), "this boot")
    assert [bare.with_xattrs(asked.descriptor, asked.states()) for _ in range(2)] == [[], []]
    assert asked.times == 2


def test_what_is_remembered_is_bounded(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BARE_GROUPS", 4)
    for count in range(1, 20):
        asked.look(states=read_states(asked.descriptor, NAMES[:count]))
    assert asked.times == 19 and asked.memory.stat().st_size <= 5 * 8
    asked.look(states=read_states(asked.descriptor, NAMES[:19]))
    assert asked.times == 19
