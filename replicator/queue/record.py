"""Records as bytes: the same in the journal, on the wire and in a target's spool. FORMAT.md has the layout.

Every record carries a chain value: xxh3_64 over the record (with its chain field zero), seeded with the chain
value of the record before it. It is checksum and proof of place at once.
"""

import struct
from collections.abc import Iterator

import xxhash

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import Kind, Position, Record

HEADER_BYTES = 80
ALIGNMENT = 8
RECORD_BYTES_MAX = (
    HEADER_BYTES + 2 * limits.PATH_BYTES + limits.RECORD_PAYLOAD_BYTES + ALIGNMENT - 1
) & -ALIGNMENT

_HEADER = struct.Struct("<IBBHQQQQQIIQQHHI")
_LENGTH = struct.Struct("<I")
_CHAIN = struct.Struct("<Q")
_CHAIN_OFFSET = 16
_AFTER_CHAIN = _CHAIN_OFFSET + 8
_NO_CHAIN = bytes(8)
_PADDING = tuple(bytes(n) for n in range(ALIGNMENT))
_KINDS = frozenset(int(kind) for kind in Kind)

_xxh3 = xxhash.xxh3_64
_xxh3_digest = xxhash.xxh3_64_intdigest
_new_record = tuple.__new__

Buffer = bytes | bytearray | memoryview


class CorruptRecord(JournalError):
    """Bytes that no writer of ours wrote, or that do not belong in this place."""


class IncompleteRecord(JournalError):
    """The buffer ends inside of a record."""


def encode(
    kind: int,
    sequence: int,
    previous_chain: int,
    boot: int,
    monotonic_ns: int,
    wall_ns: int,
    path: bytes,
    path2: bytes = b"",
    payload: bytes | memoryview = b"",
    flags: int = 0,
    inode: int = 0,
    generation: int = 0,
    arg0: int = 0,
    arg1: int = 0,
) -> tuple[list[bytes | memoryview], int, int]:
    """Return (buffers, length in bytes, chain).

    `payload` is not copied. ValueError: a path or the payload is too long.
    """
    path_bytes = len(path)
    path2_bytes = len(path2)
    payload_bytes = len(payload)
    if (
        path_bytes > limits.PATH_BYTES
        or path2_bytes > limits.PATH_BYTES
        or payload_bytes > limits.RECORD_PAYLOAD_BYTES
    ):
        raise ValueError(f"record of {path_bytes} + {path2_bytes} + {payload_bytes} bytes is too long")
    used = HEADER_BYTES + path_bytes + path2_bytes + payload_bytes
    length = (used + ALIGNMENT - 1) & -ALIGNMENT
    header = _HEADER.pack(
        length,
        kind,
        flags,
        path_bytes,
        sequence,
        0,
        monotonic_ns,
        wall_ns,
        inode,
        generation,
        boot,
        arg0,
        arg1,
        path2_bytes,
        0,
        payload_bytes,
    )
    names = path + path2 if path2 else path
    padding = _PADDING[length - used]
    if payload_bytes:
        state = _xxh3(header + names, previous_chain)
        state.update(payload)
        if padding:
            state.update(padding)
        chain: int = state.intdigest()
    else:
        names += padding
        chain = _xxh3_digest(header + names, previous_chain)
    start = header[:_CHAIN_OFFSET] + _CHAIN.pack(chain) + header[_AFTER_CHAIN:] + names
    if not payload_bytes:
        return [start], length, chain
    if padding:
        return [start, payload, padding], length, chain
    return [start, payload], length, chain


def decode(buffer: Buffer, offset: int = 0) -> tuple[Record, int]:
    """Decode the record at `offset`; return it and its length. Does not check the chain (see `check`).

    The payload is a view of `buffer`. Raises CorruptRecord, or IncompleteRecord when the buffer ends inside
    of the record.
    """
    view = buffer if type(buffer) is memoryview else memoryview(buffer)
    if len(view) - offset < HEADER_BYTES:
        raise IncompleteRecord(f"record header cut short at byte {offset}")
    (
        length,
        kind,
        flags,
        path_bytes,
        sequence,
        chain,
        monotonic_ns,
        wall_ns,
        inode,
        generation,
        boot,
        arg0,
        arg1,
        path2_bytes,
        reserved,
        payload_bytes,
    ) = _HEADER.unpack_from(view, offset)
    path_end = HEADER_BYTES + path_bytes
    payload_start = path_end + path2_bytes
    used = payload_start + payload_bytes
    if (
        kind not in _KINDS
        or length != (used + 7) & -8
        or path_bytes > limits.PATH_BYTES
        or path2_bytes > limits.PATH_BYTES
        or payload_bytes > limits.RECORD_PAYLOAD_BYTES
        or reserved
        or not sequence
    ):
        raise CorruptRecord(f"no record at byte {offset}")
    if len(view) - offset < length:
        raise IncompleteRecord(f"record of {length} bytes cut short at byte {offset}")
    record = _new_record(
        Record,
        (
            kind,
            flags,
            sequence,
            chain,
            boot,
            monotonic_ns,
            wall_ns,
            inode,
            generation,
            arg0,
            arg1,
            bytes(view[offset + HEADER_BYTES : offset + path_end]),
            bytes(view[offset + path_end : offset + payload_start]) if path2_bytes else b"",
            view[offset + payload_start : offset + used],
        ),
    )
    return record, length


def record_length(buffer: Buffer, offset: int = 0) -> int:
    """Length in bytes of the record that begins at `offset`, whole or not.

    CorruptRecord: no record can be that long.
    """
    (length,) = _LENGTH.unpack_from(buffer, offset)
    if not HEADER_BYTES <= length <= RECORD_BYTES_MAX or length % ALIGNMENT:
        raise CorruptRecord(f"no record at byte {offset}")
    return int(length)


def check(buffer: Buffer, offset: int, length: int, previous_chain: int) -> int:
    """Verify that the record of `length` bytes at `offset` follows `previous_chain`; return its own chain.

    Raises CorruptRecord.
    """
    view = buffer if type(buffer) is memoryview else memoryview(buffer)
    after = offset + _AFTER_CHAIN
    state = _xxh3(view[offset : offset + _CHAIN_OFFSET], previous_chain)
    state.update(_NO_CHAIN)
    state.update(view[after : offset + length])
    chain: int = state.intdigest()
    if chain != _CHAIN.unpack_from(view, offset + _CHAIN_OFFSET)[0]:
        raise CorruptRecord(f"checksum of the record at byte {offset} does not fit")
    return chain


def iterate(buffer: Buffer, previous: Position) -> Iterator[tuple[int, int, Record]]:
    """Yield (offset, length, record) of the records that fill `buffer` and follow `previous` without a gap.

    Each is verified, sequence and chain, before it is yielded. Raises CorruptRecord or IncompleteRecord at
    the first that is not so.
    """
    view = memoryview(buffer)
    end = len(view)
    sequence, chain = previous
    offset = 0
    while offset < end:
        record, length = decode(view, offset)
        sequence += 1
        if record.sequence != sequence:
            raise CorruptRecord(f"record {record.sequence} stands at byte {offset} in place of {sequence}")
        chain = check(view, offset, length, chain)
        yield offset, length, record
        offset += length
