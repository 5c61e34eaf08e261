"""The page of a fence, and what its gate does with requests."""

import errno
import os
import struct
from pathlib import Path

import pytest

from replicator.fences import FOREVER_NS, WAITING, FenceMode
from replicator.fs import fence as fences
from replicator.fs import fence_gate
from replicator.fs.fence import Fence, FencePage, boottime_ns, fence_at
from replicator.fs.fence_gate import CHANGES, FenceGate
from replicator.fs.kernel_binding import After, Failure, Header, Reply
from replicator.fs.kernel_protocol import HEADER_BYTES, OPERATIONS, RESENT, WRITE_CACHE, Opcode
from replicator.fs.pyfuse3_binding import _CHANGES

LOOKS = frozenset(OPERATIONS) - CHANGES - {Opcode.OPEN}


# --- the page ---


def test_a_new_page_lets_nothing_through(tmp_path: Path) -> None:
    page = FencePage(str(tmp_path / "fence"))
    assert Fence.at(str(tmp_path / "fence")).closed() is FenceMode.READ_ONLY
    page.close()


@pytest.mark.parametrize("mode", FenceMode)
def test_it_is_obeyed_from_its_end_on(tmp_path: Path, mode: FenceMode) -> None:
    page = FencePage(str(tmp_path / "fence"))
    fence = Fence.at(str(tmp_path / "fence"))
    page.set(mode, boottime_ns() + 10**12)
    assert fence.closed() is None and page.is_open
    page.set(mode, boottime_ns())
    assert fence.closed() is (None if mode is FenceMode.NONE else mode)
    page.set(mode, FOREVER_NS)
    assert fence.closed() is None
    page.close()


def test_it_outlives_who_made_it(tmp_path: Path) -> None:
    path = str(tmp_path / "fence")
    page = FencePage(path)
    page.set(FenceMode.FROZEN, 7)
    page.close()
    known = FencePage.find(path)
    assert known is not None and (known.mode, known.until_ns) == (FenceMode.FROZEN, 7)
    known.remove()
    assert FencePage.find(path) is None


def test_a_page_of_another_boot_closes_the_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of an expiry began again: it may lie far ahead."""
    path = str(tmp_path / "fence")
    with monkeypatch.context() as patch:
        patch.setattr(fences, "_boot_id", lambda: b"b" * 36)
        page = FencePage(path)
        page.set(FenceMode.SUSPEND, FOREVER_NS)
        page.close()
    assert FencePage.find(path) is None
    fence = fence_at(path)
    assert fence is not None and fence.closed() is FenceMode.READ_ONLY
    page = FencePage(path)
    assert (page.mode, page.until_ns) == (FenceMode.READ_ONLY, 0)
    page.close()


@pytest.mark.parametrize("content", [None, b"", b"x" * 4096])
def test_a_page_that_cannot_be_read_closes_the_mount(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "fence"
    if content is not None:
        path.write_bytes(content)
    fence = fence_at(str(path))
    assert fence is not None and fence.closed() is FenceMode.READ_ONLY
    assert fence_at("") is None


# --- the gate ---


class Bench:
    """A gate in front of a handler that notes what it gets."""

    def __init__(self, tmp_path: Path) -> None:
        self.page = FencePage(str(tmp_path / "fence"))
        self.done: list[tuple[int, bytes]] = []
        self.forgotten: list[int] = []
        self.buffer = memoryview(bytearray(4096))
        self.gate = FenceGate(
            Fence.at(str(tmp_path / "fence")), self._handle, self.buffer, self.forgotten.append
        )

    def _handle(self, header: Header) -> Reply:
        self.done.append((header[1], bytes(self.buffer[HEADER_BYTES : header[0]])))
        return b"done"

    def ask(self, opcode: int, body: bytes = b"", unique: int = 1) -> Reply:
        self.buffer[HEADER_BYTES : HEADER_BYTES + len(body)] = body
        return self.gate.handle((HEADER_BYTES + len(body), opcode, unique, 77, 0, 0, 0, 0, 0))

    def tend(self) -> list[Reply]:
        replies: list[Reply] = []
        while (header := self.gate.next()) is not None:
            replies.append(self.gate.resumed(header))
        return replies


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def opening(flags: int) -> bytes:
    return struct.pack("<II", flags, 0)


def number_of(reply: Reply) -> int:
    assert isinstance(reply, Failure)
    return reply.number


@pytest.mark.parametrize("mode", [m for m in FenceMode if m is not FenceMode.NONE])
@pytest.mark.parametrize("opcode", sorted(CHANGES))
def test_changes(bench: Bench, mode: FenceMode, opcode: int) -> None:
    bench.page.set(mode, FOREVER_NS)
    assert bench.ask(opcode, bytes(64)) == b"done"
    bench.page.set(mode, 0)
    reply = bench.ask(opcode, bytes(64))
    assert len(bench.done) == 1
    if mode in WAITING:
        assert reply is None and bench.gate.waiting == 1
    else:
        assert number_of(reply) == {FenceMode.READ_ONLY: errno.EROFS, FenceMode.IO_ERROR: errno.EIO}[mode]


@pytest.mark.parametrize("mode", FenceMode)
@pytest.mark.parametrize("opcode", sorted(LOOKS))
def test_all_else(bench: Bench, mode: FenceMode, opcode: int) -> None:
    bench.page.set(mode, 0)
    reply = bench.ask(opcode, bytes(64))
    if mode is FenceMode.IO_ERROR and opcode not in fence_gate._LETTING_GO:
        assert number_of(reply) == errno.EIO
    else:
        assert reply == b"done"


DONE, WAITS = 0, -1


@pytest.mark.parametrize(
    ("mode", "flags", "outcome"),
    [
        (FenceMode.SUSPEND, os.O_RDONLY, DONE),
        (FenceMode.SUSPEND, os.O_RDWR, DONE),
        (FenceMode.SUSPEND, os.O_WRONLY | os.O_TRUNC, WAITS),
        (FenceMode.FROZEN, os.O_RDONLY | os.O_TRUNC, WAITS),
        (FenceMode.READ_ONLY, os.O_RDONLY, DONE),
        (FenceMode.READ_ONLY, os.O_RDWR, errno.EROFS),
        (FenceMode.READ_ONLY, os.O_WRONLY, errno.EROFS),
        (FenceMode.READ_ONLY, os.O_RDONLY | os.O_TRUNC, errno.EROFS),
        (FenceMode.IO_ERROR, os.O_RDONLY, errno.EIO),
        (FenceMode.NONE, os.O_RDWR | os.O_TRUNC, DONE),
    ],
)
def test_opens(bench: Bench, mode: FenceMode, flags: int, outcome: int) -> None:
    bench.page.set(mode, 0)
    reply = bench.ask(Opcode.OPEN, opening(flags))
    if outcome == DONE:
        assert reply == b"done"
    elif outcome == WAITS:
        assert reply is None and bench.gate.waiting == 1
    else:
        assert number_of(reply) == outcome


def test_what_waits_is_done_in_its_order(bench: Bench) -> None:
    bench.page.set(FenceMode.SUSPEND, 0)
    for name in (b"a\0", b"b\0", b"c\0"):
        assert bench.ask(Opcode.UNLINK, name, unique=RESENT | 5) is None
    assert bench.ask(Opcode.LOOKUP, b"looked up\0") == b"done"
    assert bench.tend() == []
    bench.page.set(FenceMode.SUSPEND, FOREVER_NS)
    assert bench.ask(Opcode.UNLINK, b"later\0") is None  # not before those that came first
    assert bench.tend() == [b"done"] * 4
    assert [body for opcode, body in bench.done if opcode == Opcode.UNLINK] == [
        b"a\0",
        b"b\0",
        b"c\0",
        b"later\0",
    ]
    assert bench.ask(Opcode.UNLINK, b"d\0") == b"done"


def test_what_waits_fails_when_somebody_else_owns_the_group(bench: Bench) -> None:
    bench.page.set(FenceMode.SUSPEND, 0)
    bench.ask(Opcode.UNLINK, b"a\0")
    bench.ask(Opcode.OPEN, opening(os.O_RDWR | os.O_TRUNC))
    bench.page.set(FenceMode.READ_ONLY, 0)
    assert [number_of(reply) for reply in bench.tend()] == [errno.EROFS] * 2
    assert bench.done == []


def test_a_fence_that_closes_again_keeps_the_order(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.page.set(FenceMode.SUSPEND, 0)
    bench.ask(Opcode.UNLINK, b"a\0")
    bench.ask(Opcode.UNLINK, b"b\0")
    bench.page.set(FenceMode.SUSPEND, FOREVER_NS)
    header = bench.gate.next()
    assert header is not None
    bench.page.set(FenceMode.SUSPEND, 0)
    assert bench.gate.resumed(header) is None
    bench.page.set(FenceMode.SUSPEND, FOREVER_NS)
    bench.tend()
    assert [body for _, body in bench.done] == [b"a\0", b"b\0"]


def test_without_fence_what_waits_goes_on(bench: Bench) -> None:
    bench.page.set(FenceMode.SUSPEND, 0)
    bench.ask(Opcode.UNLINK, b"a\0")
    bench.gate.replace(Fence.fixed(FenceMode.NONE))
    assert bench.tend() == [b"done"]


def test_a_refused_page_of_a_mapping_is_forgotten(bench: Bench) -> None:
    """The kernel takes it for clean, and would show it to everybody."""
    layout = OPERATIONS[Opcode.WRITE].layout
    bench.page.set(FenceMode.READ_ONLY, 0)
    assert number_of(bench.ask(Opcode.WRITE, layout.pack(1, 0, 0, 0, 0, 0, 0))) == errno.EROFS
    reply = bench.ask(Opcode.WRITE, layout.pack(1, 0, 0, WRITE_CACHE, 0, 0, 0))
    assert isinstance(reply, After)
    assert isinstance(reply.reply, Failure)
    assert number_of(reply.reply) == errno.EROFS
    assert bench.forgotten == []
    reply.function()
    assert bench.forgotten == [77]


def test_both_bindings_hold_up_the_same() -> None:
    """The other one lacks what pyfuse3 does not know, and names some things once."""
    names = {OPERATIONS[opcode].handler for opcode in CHANGES}
    assert names - _CHANGES == {"tmpfile", "fallocate", "copy_file_range", "copy_file_range_64", "rename2"}
    assert not _CHANGES - names
