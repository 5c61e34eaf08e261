"""The FUSE protocol as data, without a mount: layouts, negotiation, replies, and the binding's dispatch."""

import errno
import os
import re
import stat
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from kit.mount import Bench

from replicator import limits
from replicator.fs import kernel_protocol as protocol
from replicator.fs.kernel_binding import Binding, Failure, Later
from replicator.fs.kernel_protocol import (
    IN_HEADER,
    INIT_FLAGS,
    OPERATIONS,
    OPTIONAL_FLAGS,
    REFUSED_FLAGS,
    InitFlag,
    Opcode,
)
from replicator.fs.kernel_session import Spin
from replicator.fs.passthrough import Passthrough

HEADER = Path("/usr/include/linux/fuse.h")  # of Debian's linux-libc-dev
OLD_KERNEL = 7, 31
ALL_FLAGS = 0x7FFF_FFFF
MORE_FLAGS = struct.pack("<I", 0xFFFF_FFFF) + bytes(44)

# sizeof of the structures behind the header, from fuse.h
SIZES = {
    Opcode.FORGET: 8,
    Opcode.GETATTR: 16,
    Opcode.SETATTR: 88,
    Opcode.MKNOD: 16,
    Opcode.MKDIR: 8,
    Opcode.RENAME: 8,
    Opcode.RENAME2: 16,
    Opcode.LINK: 8,
    Opcode.OPEN: 8,
    Opcode.READ: 40,
    Opcode.WRITE: 40,
    Opcode.RELEASE: 24,
    Opcode.FSYNC: 16,
    Opcode.SETXATTR: 16,
    Opcode.GETXATTR: 8,
    Opcode.CREATE: 16,
    Opcode.IOCTL: 32,
    Opcode.FALLOCATE: 32,
    Opcode.LSEEK: 24,
    Opcode.COPY_FILE_RANGE: 56,
    Opcode.STATX: 24,
}


def test_layouts_have_the_sizes_of_the_kernels_structures() -> None:
    for opcode, size in SIZES.items():
        assert OPERATIONS[opcode].layout.size == size, opcode
    assert (IN_HEADER.size, protocol.OUT_HEADER.size) == (40, 16)
    assert (protocol.ENTRY_BYTES, protocol.DIRENT_BYTES) == (128, 24)
    state = os.stat(".")
    assert (len(protocol.attributes(1, state)), len(protocol.opened(1))) == (104, 16)
    assert len(protocol.statfs(os.statvfs("."))) == 80
    assert len(protocol.statx(1, bytes(256))) == 32 + 256


@pytest.mark.skipif(not HEADER.exists(), reason="needs linux-libc-dev")
def test_numbers_are_those_of_the_system_header() -> None:
    text = HEADER.read_text()
    numbers = dict(re.findall(r"^\s*FUSE_(\w+)\s*= (\d+),", text, re.MULTILINE))
    for opcode in Opcode:
        if opcode.name in numbers:  # an older header lacks the newest
            assert int(numbers[opcode.name]) == opcode, opcode.name
    bits = re.findall(r"^#define FUSE_(\w+)\s+\(1(?:ULL)? << (\d+)\)", text, re.MULTILINE)
    for name, bit in bits:
        if name in InitFlag.__members__:
            assert InitFlag[name] == 1 << int(bit), name


def test_every_flag_has_a_reason_and_a_side() -> None:
    tables = (INIT_FLAGS, OPTIONAL_FLAGS, REFUSED_FLAGS)
    assert sorted(flag for table in tables for flag in table) == sorted(InitFlag)
    assert all(reason for table in tables for reason in table.values())


def test_only_what_both_sides_know_is_agreed() -> None:
    agreement, reply = protocol.negotiate(7, 45, 131072, ALL_FLAGS, MORE_FLAGS)
    assert (agreement.minor, agreement.can_prune) == (45, True)
    assert set(agreement.flags) == set(INIT_FLAGS)
    assert InitFlag.WRITEBACK_CACHE not in agreement.flags
    assert len(reply) == 64
    major, minor, _, low, _, _, write_bytes = struct.unpack_from("<IIIIHHI", reply)
    assert (major, minor, write_bytes) == (7, 45, limits.REQUEST_BYTES)
    (high,) = struct.unpack_from("<I", reply, 32)
    assert high << 32 | low == agreement.flags


def test_an_old_kernel_gets_what_it_knows() -> None:
    few = InitFlag.ASYNC_READ | InitFlag.BIG_WRITES
    agreement, reply = protocol.negotiate(*OLD_KERNEL, 131072, int(few), b"")
    assert agreement == (31, few)
    assert not agreement.can_prune
    assert struct.unpack_from("<II", reply) == OLD_KERNEL
    # Without INIT_EXT what follows means nothing.
    assert protocol.negotiate(7, 36, 0, 0, MORE_FLAGS)[0].flags == 0


def test_kernels_of_other_versions() -> None:
    _, reply = protocol.negotiate(8, 0, 0, 0, b"")
    assert struct.unpack_from("<I", reply) == (7,)  # it asks again
    with pytest.raises(protocol.UnsupportedKernel, match=r"7\.12.*7\.31"):
        protocol.negotiate(7, 12, 0, 0, b"")


def test_attributes_as_the_kernel_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    os.utime(path, ns=(-1_500_000_000, 2_000_000_007))
    state = path.stat()
    fields = struct.unpack("<QQQQII" + "QQQqqqIIIIIIIIII", protocol.entry(77, state))
    assert fields[0] == fields[6] == 77
    assert fields[7:9] == (5, state.st_blocks)
    assert (fields[9], fields[12]) == (-2, 500_000_000)  # atime: 1.5 s before the epoch
    assert (fields[10], fields[13]) == (2, 7)
    assert stat.S_ISREG(fields[15])
    assert fields[16] == 1
    assert fields[2:6] == (60, 60, 0, 0)


def test_how_long_replies_are_valid() -> None:
    state = os.stat(".")
    validity = protocol.Validity(attributes_s=0.0, entries_s=1.5)
    fields = struct.unpack_from("<QQQQII", protocol.entry(7, state, validity))
    assert fields == (7, 0, 1, 0, 500_000_000, 0)
    assert struct.unpack_from("<QQQQII", validity.no_entry) == (0, 0, 1, 0, 500_000_000, 0)
    validity = protocol.Validity(attributes_s=2.25, entries_s=0.0)
    assert struct.unpack_from("<QI", protocol.attributes(7, state, validity)) == (2, 250_000_000)
    assert struct.unpack_from("<QI", protocol.statx(7, bytes(256), validity)) == (2, 250_000_000)
    assert struct.unpack_from("<QQ", validity.no_entry)[1] == 0


def test_what_options_need_of_init() -> None:
    agreement, reply = protocol.negotiate(7, 45, 131072, ALL_FLAGS, MORE_FLAGS)
    assert agreement.flags & InitFlag.PASSTHROUGH and agreement.flags & InitFlag.DIRECT_IO_ALLOW_MMAP
    assert not agreement.flags & InitFlag.REQUEST_TIMEOUT
    assert struct.unpack_from("<IH", reply, 36) == (1, 0)
    agreement, reply = protocol.negotiate(7, 45, 131072, ALL_FLAGS, MORE_FLAGS, request_timeout_s=600)
    assert agreement.flags & InitFlag.REQUEST_TIMEOUT
    assert struct.unpack_from("<IH", reply, 36) == (1, 600)
    # One that does not know it is not told.
    few = InitFlag.ASYNC_READ | InitFlag.INIT_EXT
    agreement, reply = protocol.negotiate(7, 38, 131072, int(few), bytes(48), request_timeout_s=600)
    assert agreement.flags == few
    assert struct.unpack_from("<IH", reply, 36) == (0, 0)


def test_a_file_that_the_kernel_reads_is_told_with_its_number() -> None:
    reply = protocol.opened(9, protocol.FOPEN_PASSTHROUGH, 4)
    assert struct.unpack("<QIi", reply) == (9, 1 << 7, 4)
    assert protocol.backing_map(6) == struct.pack("<iIQ", 6, 0, 0)
    assert protocol.backing_number(4) == struct.pack("<I", 4)
    # _IOW(229, number, size)
    assert 0x4000_0000 | len(protocol.backing_map(6)) << 16 | 229 << 8 | 1 == protocol.BACKING_OPEN
    assert 0x4000_0000 | len(protocol.backing_number(4)) << 16 | 229 << 8 | 2 == protocol.BACKING_CLOSE


def test_directory_entries_are_aligned() -> None:
    for length in range(1, 30):
        name = b"n" * length
        entry = protocol.directory_entry(5, 6, name, 8)
        assert len(entry) == protocol.directory_entry_bytes(name)
        assert len(entry) % 8 == 0
        assert struct.unpack_from("<QQII", entry) == (5, 6, length, 8)
        assert entry[24:].rstrip(b"\0") == name


def test_notifications() -> None:
    message = protocol.prune([3, 4])
    assert struct.unpack("<IiQIIQQQ", message) == (len(message), 9, 0, 2, 0, 0, 3, 4)
    message = protocol.forget_entry(7, b"name")
    assert struct.unpack("<IiQQII5s", message) == (len(message), 3, 0, 7, 4, 0, b"name\0")
    assert struct.unpack("<IiQQqq", protocol.forget_attributes(9))[3:] == (9, -1, 0)
    assert struct.unpack("<IiQ", protocol.resend()) == (16, 7, 0)


# --- dispatch ---


class Broken(Passthrough):
    """Has a bug in every operation used here."""

    def __init__(self) -> None:
        pass

    def getattr(self, node_id: int) -> os.stat_result:
        raise ZeroDivisionError

    def statfs(self) -> os.statvfs_result:
        raise OSError(errno.ENOSPC, "full")

    def readlink(self, node_id: int) -> bytes:
        raise OSError(errno.ELOOP, "links")


def request(binding: Binding, opcode: int, body: bytes = b"", node_id: int = 1) -> tuple[int, ...]:
    """Put a request into the buffer; its header."""
    length = IN_HEADER.size + len(body)
    binding.buffer[:length] = IN_HEADER.pack(length, opcode, 2, node_id, 0, 0, 1, 0, 0) + body
    return IN_HEADER.unpack_from(binding.buffer)


def failure(reply: object) -> int:
    assert isinstance(reply, Failure), reply
    return reply.number


def test_every_operation_has_a_handler() -> None:
    Binding(Broken())
    missing = Opcode.FLUSH, Opcode.INTERRUPT, Opcode.ACCESS, Opcode.SETLK, Opcode.BMAP, 4000
    binding = Binding(Broken())
    for opcode in missing:
        assert failure(binding.handle(request(binding, opcode))) == errno.ENOSYS


def test_whatever_a_handler_raises_becomes_an_errno(caplog: pytest.LogCaptureFixture) -> None:
    binding = Binding(Broken())
    assert failure(binding.handle(request(binding, Opcode.GETATTR, bytes(16)))) == errno.EIO
    assert "ZeroDivisionError" in caplog.text
    assert failure(binding.handle(request(binding, Opcode.READLINK))) == errno.ELOOP
    later = binding.handle(request(binding, Opcode.STATFS))
    assert isinstance(later, Later)
    with pytest.raises(OSError, match="full"):
        later.function()


def test_a_request_cut_short_is_an_error_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    binding = Binding(Broken())
    for opcode, operation in OPERATIONS.items():
        if operation.layout.size and opcode != Opcode.INIT:
            assert failure(binding.handle(request(binding, opcode, bytes(operation.layout.size - 1))))
    assert not caplog.text


def test_names_and_sizes_of_attributes(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    try:
        binding = Binding(bench.fs)
        body = struct.pack("<IIII", 7, 45, 0, ALL_FLAGS) + MORE_FLAGS
        assert len(binding.handle(request(binding, Opcode.INIT, body))) == 64  # type: ignore[arg-type]
        value = bytes(range(64))
        body = struct.pack("<IIII", len(value), 0, 0, 0) + b"user.a\0" + value
        assert binding.handle(request(binding, Opcode.SETXATTR, body)) == b""
        assert os.getxattr(tmp_path, "user.a") == value
        ask = struct.pack("<II", 0, 0) + b"user.a\0"
        assert binding.handle(request(binding, Opcode.GETXATTR, ask)) == protocol.size(64)
        ask = struct.pack("<II", 63, 0) + b"user.a\0"
        assert failure(binding.handle(request(binding, Opcode.GETXATTR, ask))) == errno.ERANGE
        ask = struct.pack("<II", 64, 0) + b"user.a\0"
        assert binding.handle(request(binding, Opcode.GETXATTR, ask)) == value
        assert binding.handle(request(binding, Opcode.LISTXATTR, struct.pack("<II", 99, 0))) == b"user.a\0"
    finally:
        bench.close()


# --- spinning ---


def test_a_busy_mount_is_looked_at_longer_and_an_idle_one_not_at_all() -> None:
    spin = Spin()
    assert spin.seconds == 0
    spin.slept(10.0)
    assert spin.seconds == 0
    spin.slept(limits.SPIN_S / 2)
    assert 0 < spin.seconds <= limits.SPIN_S
    for _ in range(10):
        spin.came()
    assert spin.seconds == limits.SPIN_S
    for _ in range(10):
        spin.missed()
    assert spin.seconds == 0


def test_where_looking_never_helps_it_is_tried_ever_more_rarely() -> None:
    spin = Spin()
    attempts = []
    for sleep in range(5000):
        spin.slept(limits.SPIN_S / 2)
        if spin.seconds:
            attempts.append(sleep)
            spin.missed()
            assert spin.seconds == 0
    pauses = [after - before for before, after in pairwise(attempts)]
    assert pauses[:3] == [2, 4, 8]
    assert pauses[-1] == limits.SPIN_PATIENCE
