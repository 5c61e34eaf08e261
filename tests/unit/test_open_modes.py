"""How files are opened, against a model of what the kernel allows: random opens, closes and successors."""

import errno
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from replicator import limits
from replicator.fs import open_modes
from replicator.fs.open_modes import (
    CACHED,
    DIRECT,
    HYBRID,
    PASSED,
    UNCACHED_FIRST,
    Backing,
    Noted,
    OpenModes,
    OpenNotes,
)
from replicator.mount_options import DEFAULTS, MountOptions

BOTH = MountOptions(writes="direct", reads="passthrough")
READS = MountOptions(reads="passthrough")
WRITES = MountOptions(writes="direct")


class Files(Backing):
    """The kernel's part: which ids are open."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.open_ids: dict[int, int] = {}
        self.closed: list[int] = []
        self.refuses = False

    def open(self, descriptor: int) -> int:
        if self.refuses:
            return 0
        backing_id = len(self.open_ids) + len(self.closed) + 1
        self.open_ids[backing_id] = descriptor
        return backing_id

    def close(self, backing_id: int) -> None:
        del self.open_ids[backing_id]
        self.closed.append(backing_id)


class Watched(dict[int, int]):
    def opened(self, node_id: int) -> None:
        self[node_id] = self.get(node_id, 0) + 1

    def released(self, node_id: int) -> None:
        self[node_id] -= 1
        if not self[node_id]:
            del self[node_id]

    def is_watched(self, node_id: int) -> bool:
        return node_id in self


class Kernel:
    """iomode.c: what each open of an inode must not meet."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.handles: dict[int, tuple[int, int, int]] = {}  # handle: node, FOPEN_*, backing id

    def opened(self, node_id: int, handle: int, mode: int, backing_id: int) -> None:
        others = [(flags, number) for node, flags, number in self.handles.values() if node == node_id]
        passed = [number for flags, number in others if flags & PASSED]
        if mode & PASSED:
            assert not mode & CACHED
            assert backing_id in self.files.open_ids
            assert all(flags & PASSED for flags, _ in others), "EIO, or ENODEV for a mapping of a direct one"
            assert set(passed) <= {backing_id}, "EIO"
        else:
            assert not passed, "EIO"
        self.handles[handle] = node_id, mode, backing_id

    def released(self, handle: int) -> None:
        del self.handles[handle]


def modes(options: MountOptions, files: Files | None = None, watch: Watched | None = None) -> OpenModes:
    return OpenModes(options, files or Files(), Watched() if watch is None else watch)


def test_by_default_nothing_is_to_be_decided() -> None:
    assert not modes(DEFAULTS).is_needed
    assert all(modes(options).is_needed for options in (BOTH, READS, WRITES))


def test_writers_are_direct_and_readers_cached() -> None:
    made = modes(WRITES)
    assert made.opened(7, 1, os.O_RDONLY, 0) == (CACHED, 0)
    assert made.opened(7, 2, os.O_WRONLY | os.O_APPEND, 0) == (DIRECT, 0)
    assert made.opened(7, 3, os.O_RDWR, 0) == (DIRECT, 0)
    assert made.opened(7, 4, os.O_RDONLY, 0) == (CACHED, 0)


def test_readers_share_an_id_that_ends_with_the_last() -> None:
    files = Files()
    made = modes(READS, files)
    assert made.opened(7, 1, os.O_RDONLY, 0) == (PASSED, 1)
    assert made.opened(7, 2, os.O_RDONLY, 0) == (PASSED, 1)
    assert made.opened(8, 3, os.O_RDONLY, 0) == (PASSED, 2)
    made.released(1)
    assert files.closed == []
    made.released(2)
    assert files.closed == [1]
    assert made.opened(7, 1, os.O_RDONLY, 0) == (PASSED, 3)


def test_a_reader_beside_a_writer_is_cached() -> None:
    made = modes(READS)
    assert made.opened(7, 1, os.O_WRONLY, 0) == (CACHED, 0)
    assert made.opened(7, 2, os.O_RDONLY, 0) == (CACHED, 0)
    made.released(1)
    assert made.opened(7, 3, os.O_RDONLY, 0) == (CACHED, 0)  # of one inode all are the same
    made.released(2)
    made.released(3)
    assert made.opened(7, 4, os.O_RDONLY, 0) == (PASSED, 1)


def test_a_writer_beside_a_passed_reader_is_both() -> None:
    watch = Watched()
    made = modes(READS, watch=watch)
    assert made.opened(7, 1, os.O_RDONLY, 0) == (PASSED, 1)
    assert made.opened(7, 2, os.O_WRONLY, 0) == (HYBRID, 1)
    assert not watch  # cannot be mapped
    assert made.opened(7, 3, os.O_RDWR, 0) == (HYBRID, 1)
    assert watch == {7: 1}
    made.released(1)
    made.released(2)
    assert made.opened(7, 4, os.O_RDONLY, 0) == (PASSED, 1)  # as long as one of them is open
    made.released(4)
    made.released(3)
    assert not watch
    # What was opened for both is not passed any more, and what is cached of it is not believed once.
    assert made.opened(7, 5, os.O_RDONLY, 0) == (UNCACHED_FIRST, 0)
    assert made.opened(7, 6, os.O_RDONLY, 0) == (CACHED, 0)


def test_while_it_may_still_be_mapped_nothing_cached_is_believed() -> None:
    watch = Watched()
    made = modes(READS, watch=watch)
    made.opened(7, 1, os.O_RDONLY, 0)
    made.opened(7, 2, os.O_RDWR, 0)
    watch[7] += 1  # a mapping outlives its handle
    made.released(2)
    made.released(1)
    assert made.opened(7, 3, os.O_RDONLY, 0) == (UNCACHED_FIRST, 0)
    assert made.opened(7, 4, os.O_RDONLY, 0) == (UNCACHED_FIRST, 0)
    watch.clear()
    assert made.opened(7, 5, os.O_RDONLY, 0) == (UNCACHED_FIRST, 0)
    assert made.opened(7, 6, os.O_RDONLY, 0) == (CACHED, 0)


def test_where_the_storage_cannot_be_read_past_us_files_are_cached() -> None:
    files = Files()
    files.refuses = True
    made = modes(BOTH, files)
    assert made.opened(7, 1, os.O_RDONLY, 0) == (CACHED, 0)
    assert made.opened(7, 2, os.O_RDWR, 0) == (DIRECT, 0)


@pytest.mark.parametrize(("number", "asked"), [(errno.EPERM, 1), (errno.ELOOP, 2), (errno.ENFILE, 2)])
def test_a_refusal_for_all_files_is_asked_for_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, asked: int
) -> None:
    calls = []

    def refuse(*arguments: object) -> int:
        calls.append(arguments)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(open_modes.fcntl, "ioctl", refuse)
    backing = Backing(-1)
    assert (backing.open(0), backing.open(0)) == (0, 0)
    assert len(calls) == asked
    assert len(caplog.records) == 1


def test_notes_are_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "opens")
    notes = OpenNotes(path)
    assert notes.read() == {} and not notes.are_complete
    notes.write(70, Noted(100, 5, True))
    notes.write(3, Noted(102, 6, False))
    notes.write(0, Noted(104, 0, False))
    notes.are_complete = True
    notes.close()
    notes = OpenNotes(path)
    assert notes.read() == {0: (104, 0, False), 3: (102, 6, False), 70: (100, 5, True)}
    assert notes.are_complete
    notes.clear(70)
    notes.clear(0)
    notes.are_complete = False
    assert notes.read() == {3: (102, 6, False)} and not notes.are_complete
    notes.remove()
    notes = OpenNotes(path)
    assert notes.read() == {} and not notes.are_complete
    notes.remove()


def test_a_successor_knows_what_is_passed(tmp_path: Path) -> None:
    files, watch = Files(), Watched()
    notes = OpenNotes(str(tmp_path / "opens"))
    made = OpenModes(READS, files, watch, notes)
    made.opened(7, 1, os.O_RDONLY, 100)
    made.opened(7, 2, os.O_RDWR, 102)
    made.opened(8, 3, os.O_RDWR, 104)
    made.opened(9, 4, os.O_RDONLY, 106)
    made.opened(9, 5, os.O_RDONLY, 108)
    made.opened(5, 6, os.O_RDONLY, 110)
    # Handle 6 was closed without its note, and options are the default now.
    watch = Watched()
    made = OpenModes(DEFAULTS, files, watch, notes, [(1, 7), (2, 7), (3, 8), (4, 9), (5, 9)])
    assert made.is_needed
    assert watch == {7: 1}
    assert files.closed == [3] and 6 not in notes.read()
    assert made.opened(7, 10, os.O_RDONLY, 0) == (PASSED, 1)
    assert made.opened(9, 11, os.O_WRONLY, 0) == (HYBRID, 2)
    assert made.opened(8, 12, os.O_RDONLY, 0) == (CACHED, 0)
    assert made.undelivered(108) == 5 and made.undelivered(110) == 0
    notes.remove()


def test_what_the_kernel_does_not_know_decides_nothing(tmp_path: Path) -> None:
    """A descriptor of a file that was just being opened, or closed, comes first among those of its inode."""
    files, watch = Files(), Watched()
    notes = OpenNotes(str(tmp_path / "opens"))
    made = OpenModes(READS, files, watch, notes)
    made.opened(7, 4, os.O_RDONLY, 100)
    made.opened(7, 5, os.O_RDONLY, 102)
    notes.clear(4)
    made = OpenModes(READS, files, watch, notes, [(3, 7), (4, 7), (5, 7), (8, 9)])
    assert made.unknown == [3, 4, 8]
    assert made.opened(7, 6, os.O_RDONLY, 104) == (PASSED, 1)
    assert made.opened(9, 8, os.O_RDONLY, 106) == (PASSED, 2)
    notes.remove()


def test_where_notes_were_not_wanted_all_that_is_open_counts(tmp_path: Path) -> None:
    files, watch = Files(), Watched()
    notes = OpenNotes(str(tmp_path / "opens"))
    assert not OpenModes(DEFAULTS, files, watch, notes).is_needed
    made = OpenModes(READS, files, watch, notes, [(3, 7)])
    assert made.unknown == [] and notes.are_complete
    assert made.opened(7, 4, os.O_RDONLY, 100) == (CACHED, 0)
    made = OpenModes(DEFAULTS, files, watch, notes, [(3, 7), (4, 7), (5, 8)])
    assert made.unknown == [5] and not made.is_needed  # so nobody notes what is opened from here on
    made = OpenModes(READS, files, watch, notes, [(3, 7), (4, 7), (6, 9)])
    assert made.unknown == []
    notes.remove()


def test_a_file_that_cannot_be_noted_is_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, watch = Files(), Watched()
    notes = OpenNotes(str(tmp_path / "opens"))
    made = OpenModes(READS, files, watch, notes)
    with monkeypatch.context() as patched:
        patched.setattr(notes, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        assert made.opened(7, 1, os.O_RDONLY, 100) == (CACHED, 0)
    made = OpenModes(READS, files, watch, notes, [(1, 7)])
    assert made.unknown == [] and not files.open_ids
    notes.remove()


@pytest.mark.parametrize("options", [BOTH, READS, WRITES])
def test_the_kernel_never_refuses(
    tmp_path: Path, options: MountOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAPPABLE_FILES", 2)
    for seed in range(60):
        chance = random.Random(seed)
        files, watch = Files(), Watched()
        kernel = Kernel(files)
        notes = OpenNotes(str(tmp_path / f"opens-{seed}"))
        made = OpenModes(options, files, watch, notes)
        seen = set()
        for handle in range(1, 250):
            if kernel.handles and chance.random() < 0.5:
                closed = chance.choice(list(kernel.handles))
                kernel.released(closed)  # before we hear of it
                made.released(closed)
            if chance.random() < 0.05:
                watch.clear()
                made = OpenModes(
                    chance.choice([options, DEFAULTS]),
                    files,
                    watch,
                    notes,
                    [(open_handle, node) for open_handle, (node, _, _) in kernel.handles.items()],
                )
            node_id = chance.randrange(1, 5)
            access = chance.choice([os.O_RDONLY, os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
            mode, backing_id = made.opened(node_id, handle, access, handle)
            kernel.opened(node_id, handle, mode, backing_id)
            if mode & PASSED and access == os.O_RDWR:
                assert watch.is_watched(node_id)
            seen.add(mode)
        for handle in list(kernel.handles):
            made.released(handle)
        assert not files.open_ids and not watch and not notes.read()
        if seed == 0 and options != WRITES:
            assert {CACHED, PASSED, HYBRID} <= seen
        notes.remove()


# --- a kill at any step ---


class Killed(BaseException):
    pass


class Life:
    """Applications, the kernel, and captures one after another: each ends within some request."""

    def __init__(self, seed: int, options: MountOptions, path: str) -> None:
        self.chance = random.Random(seed)
        self.options = options
        self.until_kill = 0
        self.kills = 0
        self.unnoted = 0  # a backing id
        self.leaked: set[int] = set()
        self.descriptors: dict[int, int] = {}  # handle: node
        life = self

        class SteppedFiles(Files):
            def open(self, descriptor: int) -> int:
                life.step()
                life.unnoted = super().open(descriptor)
                return life.unnoted

            def close(self, backing_id: int) -> None:
                life.step()
                if backing_id in self.open_ids:
                    super().close(backing_id)

        class SteppedNotes(OpenNotes):
            def write(self, handle: int, note: Noted) -> None:
                life.step()
                super().write(handle, note)
                life.unnoted = 0

            def clear(self, handle: int) -> None:
                life.step()
                super().clear(handle)

        self.files, self.watch, self.notes = SteppedFiles(), Watched(), SteppedNotes(path)
        self.kernel = Kernel(self.files)
        self.modes = OpenModes(options, self.files, self.watch, self.notes)

    def step(self) -> None:
        self.until_kill -= 1
        if not self.until_kill:
            raise Killed

    def survive(self, request: Callable[[bool], None]) -> None:
        """Have it handled, by as many captures as it takes."""
        is_resent, is_ready = False, True
        while True:
            self.until_kill = self.chance.randrange(1, 40)
            try:
                if not is_ready:
                    self.succeed()
                    is_ready = True
                request(is_resent)
                return
            except Killed:
                self.kills += 1
                self.leaked |= {self.unnoted} - {0}
                self.unnoted = 0
                is_resent, is_ready = True, False

    def succeed(self) -> None:
        self.watch.clear()
        known = list(self.descriptors.items())
        self.chance.shuffle(known)
        self.modes = OpenModes(self.options, self.files, self.watch, self.notes, known)
        for handle in self.modes.unknown:
            self.step()
            del self.descriptors[handle]

    def open(self, node_id: int, access: int, unique: int, is_resent: bool) -> None:
        if is_resent and (phantom := self.modes.undelivered(unique)):
            self.modes.released(phantom)
            self.step()
            del self.descriptors[phantom]
        self.step()
        handle = next(number for number in range(3, 1000) if number not in self.descriptors)
        self.descriptors[handle] = node_id
        answer = self.modes.opened(node_id, handle, access, unique)
        self.step()
        self.kernel.opened(node_id, handle, *answer)

    def release(self, handle: int, is_resent: bool) -> None:
        if is_resent and handle not in self.descriptors:
            return
        self.modes.released(handle)
        self.step()
        del self.descriptors[handle]
        self.step()

    def close(self, handle: int) -> None:
        self.kernel.released(handle)  # before we hear of it
        self.survive(partial(self.release, handle))


@pytest.mark.parametrize("options", [BOTH, READS])
def test_whenever_a_capture_is_killed_the_kernel_never_refuses(tmp_path: Path, options: MountOptions) -> None:
    kills = 0
    for seed in range(60):
        life = Life(seed, options, str(tmp_path / f"opens-{seed}"))
        for unique in range(2, 400, 2):
            if life.kernel.handles and life.chance.random() < 0.5:
                life.close(life.chance.choice(list(life.kernel.handles)))
            node_id = life.chance.randrange(1, 5)
            access = life.chance.choice([os.O_RDONLY, os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
            life.survive(partial(life.open, node_id, access, unique))
            assert life.descriptors.keys() == life.kernel.handles.keys()
        for handle in list(life.kernel.handles):
            life.close(handle)
        # Nothing is left that keeps a file from being passed.
        assert not life.descriptors and not life.notes.read() and not life.watch
        assert life.files.open_ids.keys() <= life.leaked
        life.until_kill = 0
        assert life.modes.opened(99, 3, os.O_RDONLY, 1000)[0] == PASSED
        kills += life.kills
        life.notes.remove()
    assert kills > 1000
