"""What a full journal could not take is told by its HOLE, over kills, stops and failures."""

import errno
from typing import Literal

import pytest
from kit.disk import Fault, MemoryDisk, ProcessDied
from kit.journals import Host, append, read_all, small, write

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import Flag, Identity, Kind, Record
from replicator.queue import losses
from replicator.queue.dirty import Dirty, DirtyMap, Scope
from replicator.queue.journal import JournalWriter

LOSSES = "/memory/j/losses"
SAVED = "/disk/j/losses"


def full_host(segment_bytes: int = 16_384, disk: MemoryDisk | None = None) -> tuple[Host, JournalWriter]:
    """A journal that has just lost the record of `filler`; somebody reads it."""
    host = Host(small(segment_bytes, 2 * segment_bytes, 0), disk)
    writer = host.writer()
    host.cursor(create=True).close()
    while append(writer, write(b"filler", 1000)):
        pass
    return host, writer


def make_room(host: Host) -> list[Record]:
    """Whoever reads has read all, and needs it no more."""
    cursor = host.cursor()
    found = read_all(cursor)
    cursor.acknowledge(cursor.position.sequence)
    cursor.close()
    return found


def next_hole(host: Host, writer: JournalWriter) -> Record:
    records = make_room(host)
    assert writer.record_losses()
    (hole,) = [record for record in records + make_room(host) if record.kind == Kind.HOLE]
    return hole


def paths(hole: Record) -> list[bytes]:
    return [entry.path for entry in DirtyMap.decode(hole.payload)]


def test_a_hole_says_what_was_lost() -> None:
    host, writer = full_host()
    assert not writer.append(Kind.WRITE, b"d/f", payload=bytes(5000), arg0=8192, inode=7)
    assert not writer.append(Kind.SETATTR, b"d", flags=Flag.DIRECTORY)
    assert not writer.append(Kind.CREATE, b"d/new", inode=9)
    hole = next_hole(host, writer)
    assert hole.arg0 == 4
    assert list(DirtyMap.decode(hole.payload)) == [
        Dirty(b"d", Scope.NAMES | Scope.ATTRIBUTES | Scope.DIRECTORY, Identity(0, 0)),
        Dirty(b"d/f", Scope(0), Identity(7, 0), ((8192, 16384),)),
        Dirty(b"d/new", Scope.WHOLE, Identity(9, 0)),
        Dirty(b"filler", Scope(0), Identity(0, 0), ((0, 4096),)),
    ]
    assert not host.disk.paths(LOSSES)
    while append(writer, write(b"again", 1000)):
        pass
    assert paths(next_hole(host, writer)) == [b"again"]


@pytest.mark.parametrize("end", ["kill", "close", "stop", "kill twice", "kill and lose more"])
def test_it_survives_the_writer(end: str) -> None:
    host, writer = full_host()
    assert not writer.append(Kind.WRITE, b"d/f", payload=bytes(5000), arg0=8192, inode=7)
    assert not writer.append(Kind.SETXATTR, b"d/g", path2=b"user.x", payload=bytes(100), inode=8)
    expected = [b"d/f", b"d/g", b"filler"]
    if end == "close":
        writer.close(persist=False)
    elif end == "stop":
        writer.close(persist=True)
        assert not host.disk.paths("/memory")
        host.reboot()
    elif end.startswith("kill"):
        host.kill()
    writer = host.writer()
    if end == "kill twice":
        host.kill()
        writer = host.writer()
    elif end == "kill and lose more":
        assert not writer.append(Kind.UNLINK, b"e/f", inode=9)
        host.kill()
        writer = host.writer()
        expected.insert(2, b"e")
    hole = next_hole(host, writer)
    assert paths(hole) == expected
    assert DirtyMap.decode(hole.payload).estimate().bytes == 8192 + 4096
    assert not host.disk.paths(LOSSES)
    assert not host.disk.paths(SAVED)


def test_loss_of_power_leaves_everything_to_be_compared() -> None:
    host, writer = full_host()
    writer.close(persist=True)
    host.reboot()
    writer = host.writer()
    host.lose_power()
    writer = host.writer()
    assert writer.recovery.new_boot
    cursor = host.cursor()
    (hole,) = read_all(cursor)
    assert not hole.payload


def test_while_nobody_reads_nothing_is_folded() -> None:
    host = Host(small(16_384, 32_768, 0))
    writer = host.writer()
    while append(writer, write(b"filler", 40_000)):
        pass
    assert not host.disk.paths(LOSSES)
    host.cursor(create=True).close()
    assert not next_hole(host, writer).payload


def test_what_no_map_can_tell() -> None:
    host, writer = full_host()
    assert not writer.append(Kind.FRAME, b"x", payload=bytes(1000))
    assert not host.disk.paths(LOSSES)
    assert not append(writer, write(b"f", 1000))
    assert not next_hole(host, writer).payload


def test_many_losses_become_coarser_and_the_file_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOSSES_FILE_BYTES", 6000)
    host, writer = full_host()
    for number in range(400):
        assert not append(writer, write(b"d%d/f%d" % (number % 3, number), 1))
        assert len(host.disk.contents(LOSSES)) < 2 * 6000
    host.kill()
    writer = host.writer()
    hole = next_hole(host, writer)
    assert hole.arg0 == 401
    assert set(paths(hole)) - {b"filler"} == {b"d0", b"d1", b"d2"}


def test_a_large_map_is_not_encoded_for_each_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the last segment could take a short HOLE, but not this one."""
    host = Host(small(1 << 20, 1 << 20, 0))
    writer = host.writer()
    host.cursor(create=True).close()
    while append(writer, write(b"filler", 40_000)):
        pass
    encoded = 0
    encode = DirtyMap.encode

    def counted(self: DirtyMap) -> bytes:
        nonlocal encoded
        encoded += 1
        return encode(self)

    for number in range(1000):
        writer.append(Kind.CREATE, b"new/%d-%s" % (number, b"x" * 80), inode=number, payload=bytes(40_000))
    monkeypatch.setattr(DirtyMap, "encode", counted)
    while writer.append(Kind.CREATE, b"more", payload=bytes(1000)):
        pass
    before = encoded
    for number in range(1000):
        writer.append(Kind.CREATE, b"later/%d-%s" % (number, b"x" * 80), inode=number, payload=bytes(40_000))
    assert encoded - before < 100


@pytest.mark.parametrize("when", ["before", "after", "torn"])
def test_death_at_every_call(
    when: Literal["before", "after", "torn"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever call was the last: the HOLE names all that was lost, and not the rest."""
    monkeypatch.setattr(limits, "LOSSES_FILE_BYTES", 1500)
    call, ended = 0, False
    while not ended:
        call += 1
        host, writer = full_host(disk=MemoryDisk())
        host.disk.die_at(host.disk.calls + call, when)
        lost = {b"filler"}
        tried = b""
        try:
            for number in range(8):
                tried = b"f%d" % number
                assert not append(writer, write(tried, 1000))
                lost.add(tried)
            ended = True
        except ProcessDied:
            pass
        host.kill()
        writer = host.writer()
        hole = next_hole(host, writer)
        assert hole.arg0 == len(lost)
        assert lost <= set(paths(hole)) <= lost | {tried}


@pytest.mark.parametrize("when", ["before", "after", "torn"])
def test_death_while_it_is_told(when: Literal["before", "after", "torn"]) -> None:
    """At every call of the stop, of the opening after it, and of the HOLE."""
    call, ended = 0, False
    while not ended:
        call += 1
        host, writer = full_host(disk=MemoryDisk())
        make_room(host)
        host.disk.die_at(host.disk.calls + call, when)
        try:
            writer.close(persist=True)
            host.reboot()
            writer = host.writer()
            ended = True
        except ProcessDied:
            pass
        host.kill()
        writer = host.writer()
        assert writer.record_losses()
        records = [record for record in make_room(host) if record.kind == Kind.HOLE]
        assert [paths(record) for record in records] == [[b"filler"]]
        while append(writer, write(b"later", 1000)):
            pass
        host.kill()
        assert paths(next_hole(host, host.writer())) == [b"later"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("kill", [False, True])
def test_failures_of_the_file_at_every_call(number: int, kill: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map goes on in memory; a successor of a killed writer has everything compared."""
    monkeypatch.setattr(limits, "LOSSES_FILE_BYTES", 1500)
    told = everything = 0
    for call in range(1, 40):
        host = Host(small(16_384, 2 * 16_384, 0), MemoryDisk())
        seen = 0

        def fault(_: int, name: str, path: str, call: int = call) -> Fault | None:
            nonlocal seen
            seen += "losses" in path
            return Fault(error=number) if "losses" in path and seen == call else None

        writer = host.writer()
        host.disk.fault = fault
        host.cursor(create=True).close()
        while append(writer, write(b"filler", 1000)):
            pass
        lost = {b"filler", *(b"f%d" % n for n in range(8))}
        for path in sorted(lost - {b"filler"}):
            assert not append(writer, write(path, 1000))
        host.disk.heal()
        if kill:
            host.kill()
            writer = host.writer()
        hole = next_hole(host, writer)
        if hole.payload:
            told += 1
            assert set(paths(hole)) == lost
        else:
            everything += 1
            assert kill
    assert told
    assert bool(everything) is kill


def test_a_damaged_file_is_not_believed() -> None:
    host, writer = full_host()
    for name in (b"f", b"g"):
        assert not append(writer, write(name, 1000))
    host.kill()
    good = host.disk.contents(LOSSES)
    for place in range(len(good)):
        host, writer = full_host(disk=MemoryDisk())
        for name in (b"f", b"g"):
            assert not append(writer, write(name, 1000))
        host.kill()
        assert host.disk.contents(LOSSES) == good
        host.disk.damage(LOSSES, good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        assert not next_hole(host, host.writer()).payload


def test_an_old_file_is_not_believed() -> None:
    host, writer = full_host()
    old = host.disk.contents(LOSSES)
    next_hole(host, writer)
    while append(writer, write(b"other", 1000)):
        pass
    host.kill()
    host.disk.damage(LOSSES, old)
    assert not next_hole(host, host.writer()).payload


def test_a_stop_that_failed_goes_on() -> None:
    host, writer = full_host(disk=MemoryDisk())
    host.disk.fault = lambda n, name, path: Fault(error=errno.EIO) if "header.saved" in path else None
    with pytest.raises(JournalError):
        writer.close(persist=True)
    host.disk.heal()
    assert not append(writer, write(b"more", 1000))
    host.kill()
    assert paths(next_hole(host, host.writer())) == [b"filler", b"more"]


# --- planted mistakes ---


def _count_is_not_looked_at(self: losses.Losses, path: str, first: int, last: int) -> DirtyMap | None:
    return right_read(self, path, 1 << 60, 0)


def _notes_are_not_written(self: losses.Losses, lost: Record) -> None:
    pass


right_read = losses.Losses._read


@pytest.mark.parametrize(
    ("name", "wrong", "check"),
    [
        ("_read", _count_is_not_looked_at, test_an_old_file_is_not_believed),
        ("_note", _notes_are_not_written, lambda: test_it_survives_the_writer("kill")),
        ("save", lambda self, lost, pending: None, lambda: test_it_survives_the_writer("stop")),
        ("clear", lambda self: None, test_a_hole_says_what_was_lost),
    ],
)
def test_planted_mistakes_are_found(
    name: str, wrong: object, check: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses.Losses, name, wrong)
    with pytest.raises((AssertionError, JournalError)):
        check()  # type: ignore[operator]
