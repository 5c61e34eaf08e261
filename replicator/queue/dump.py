"""Print segments of a journal: `python -m replicator.queue.dump FILE… [--payload]`.

One line a record. Damaged places are named, and reading goes on behind them where a record can be recognised.
Exit code 1 if anything is damaged or cut short, 2 if a file cannot be read.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import TextIO

from replicator.errors import JournalError
from replicator.ops import Flag, Kind, Position, Record
from replicator.queue import record as records
from replicator.queue import segment as segments
from replicator.queue.dirty import CorruptDirtyMap, DirtyMap, Scope
from replicator.queue.regions import END

_BYTES_PER_LINE = 16


def dump(data: bytes, out: TextIO, payload: bool = False) -> bool:
    """Print one segment file's contents; return whether it is whole and undamaged."""
    view = memoryview(data)
    intact = True
    position: Position | None = None
    try:
        header = segments.decode_header(view)
    except JournalError as error:
        print(f"damaged: {error}", file=out)
        intact = False
    else:
        position = header.previous
        print(
            f"segment {header.number} journal {header.journal} boot {header.boot:08x} "
            f"first {header.first_sequence} previous chain {header.previous_chain:016x} "
            f"bytes before {header.bytes_before}",
            file=out,
        )
    offset = segments.HEADER_BYTES
    while offset < len(view):
        try:
            record, length = records.decode(view, offset)
            doubt = _verify(view, offset, length, record, position)
        except JournalError as error:
            following = _resynchronise(view, offset + records.ALIGNMENT)
            print(f"{offset:>8} damaged: {error}; {following - offset} bytes skipped", file=out)
            intact = False
            position = None
            offset = following
            continue
        if doubt:
            intact = False
        print(f"{offset:>8} {describe(record)}{doubt}", file=out)
        if record.kind == Kind.HOLE:
            for line in _lost(record.payload):
                print(f"{'':>10}{line}", file=out)
        if payload:
            for line in _hexadecimal(record.payload):
                print(line, file=out)
        position = Position(record.sequence, record.chain)
        offset += length
    return intact


def describe(record: Record) -> str:
    """One record on one line."""
    kind = Kind(record.kind).name
    flags = f" {Flag(record.flags)!r}" if record.flags else ""
    path2 = f" -> {_name(record.path2)}" if record.path2 else ""
    return (
        f"{record.sequence} {record.chain:016x} {record.boot:08x}:{record.monotonic_ns} {kind:<11} "
        f"{record.inode}.{record.generation} {record.arg0} {record.arg1} {len(record.payload)}B "
        f"{_name(record.path)}{path2}{flags}"
    )


def _lost(payload: bytes | memoryview) -> Iterator[str]:
    """What a HOLE says was lost, one entry of its dirty map on one line."""
    if not len(payload):
        yield "everything may differ"
        return
    try:
        for entry in DirtyMap.decode(payload):
            scope = "|".join(flag.name or "" for flag in Scope if flag & entry.scope)
            places = [f"{start}-{'' if end == END else end}" for start, end in entry.regions]
            yield " ".join(("dirty", _name(entry.path), f"{entry.identity.inode}", scope, *places)).rstrip()
    except CorruptDirtyMap as error:
        yield f"damaged: {error}"


def _name(path: bytes) -> str:
    return repr(path)[1:]


def _verify(view: memoryview, offset: int, length: int, record: Record, position: Position | None) -> str:
    """What is wrong with a decodable record; "" for nothing."""
    if position is None:
        return "  [not verified: what is before it is damaged]"
    if record.sequence != position.sequence + 1:
        return f"  [damaged: sequence {position.sequence + 1} expected]"
    try:
        records.check(view, offset, length, position.chain)
    except JournalError as error:
        return f"  [damaged: {error}]"
    return ""


def _resynchronise(view: memoryview, offset: int) -> int:
    """Offset of the next place that looks like a record; the end if there is none."""
    while offset < len(view):
        try:
            records.decode(view, offset)
            return offset
        except JournalError:
            offset += records.ALIGNMENT
    return len(view)


def _hexadecimal(data: bytes | memoryview) -> Iterator[str]:
    for start in range(0, len(data), _BYTES_PER_LINE):
        part = bytes(data[start : start + _BYTES_PER_LINE])
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"{'':>10}{start:06x}  {part.hex(' '):<{3 * _BYTES_PER_LINE}} {text}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m replicator.queue.dump", description="Print journal segments."
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a segment file of either tier")
    parser.add_argument("--payload", action="store_true", help="print the data of each record, too")
    options = parser.parse_args(arguments)
    code = 0
    for path in options.files:
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            print(f"{path}: {error.strerror}", file=sys.stderr)
            code = 2
            continue
        print(f"{path}: {len(data)} bytes")
        if not dump(data, sys.stdout, options.payload):
            code = max(code, 1)
    return code


if __name__ == "__main__":
    sys.exit(main())
