"""What folding into a dirty map costs, on this machine: `python bench/dirty.py [--count N]`.

Records are decoded from one buffer, as a reader of a journal does, and folded. Decoding (with its checksum)
and folding are timed apart, in turn; medians of several rounds.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

from replicator import limits
from replicator.ops import Flag, Kind, Position, Record
from replicator.queue import record as codec
from replicator.queue.dirty import DirtyMap

ROUNDS = 5


def journal(count: int, make: Callable[[int], dict[str, object]]) -> bytes:
    """`count` records, one after the other."""
    parts: list[bytes | memoryview] = []
    chain = 0
    for number in range(count):
        buffers, _, chain = codec.encode(**make(number), sequence=number + 1, previous_chain=chain, **STAMPS)  # type: ignore[arg-type]
        parts += buffers
    return b"".join(parts)


STAMPS = {"boot": 1, "monotonic_ns": 1, "wall_ns": 1}
DATA = bytes(64)  # the length of the payload makes no difference to the map


def _random_write(chance: random.Random, blocks: int) -> dict[str, object]:
    """Into one of 100 files of so many blocks of 4 KiB."""
    file = chance.randrange(100)
    offset = chance.randrange(blocks) * 4096
    return {
        "kind": Kind.WRITE,
        "path": b"data/base/%d" % file,
        "payload": DATA,
        "inode": file + 2,
        "arg0": offset,
    }


def hot_writes(chance: random.Random, number: int) -> dict[str, object]:
    return _random_write(chance, 1 << 12)


def scattered_writes(chance: random.Random, number: int) -> dict[str, object]:
    return _random_write(chance, 1 << 18)


def appended(chance: random.Random, number: int) -> dict[str, object]:
    return {"kind": Kind.WRITE, "path": b"var/log/app.log", "payload": DATA, "inode": 9, "arg0": number * 64}


def cold_writes(chance: random.Random, number: int) -> dict[str, object]:
    path = b"home/%03d/%03d/%d" % (number // 10_000, number // 100 % 100, number)
    return {"kind": Kind.WRITE, "path": path, "payload": DATA, "inode": number + 2, "arg0": 0}


def new_files(chance: random.Random, number: int) -> dict[str, object]:
    """Created, written, renamed, its times set: four records a file."""
    file, step = divmod(number, 4)
    path = b"mail/%02d/tmp/%d" % (file % 50, file)
    final = b"mail/%02d/new/%d" % (file % 50, file)
    fields: dict[str, object] = {"kind": Kind.CREATE, "path": path, "inode": file + 2}
    if step == 1:
        fields |= {"kind": Kind.WRITE, "payload": DATA}
    elif step == 2:
        fields |= {"kind": Kind.RENAME, "path2": final}
    elif step == 3:
        fields |= {"kind": Kind.SETATTR, "path": final, "flags": Flag.AFTER_CLOSE}
    return fields


WORKLOADS: dict[str, Callable[[random.Random, int], dict[str, object]]] = {
    "4 KiB at random places, 100 x 16 MiB": hot_writes,
    "4 KiB at random places, 100 x 1 GiB": scattered_writes,
    "one log, appended": appended,
    "each write another file": cold_writes,
    "files made, written, renamed": new_files,
}


def seconds(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def decode(data: bytes) -> list[Record]:
    return [record for _, _, record in codec.iterate(data, Position(0, 0))]


def fold(found: DirtyMap, records: list[Record]) -> None:
    for record in records:
        found.fold(record)


def main() -> None:
    parser = argparse.ArgumentParser(description="What folding into a dirty map costs.")
    parser.add_argument("--count", type=int, default=1_000_000, help="records of each workload")
    count = parser.parse_args().count
    print(f"{'':<38} {'decode':>10} {'fold':>10}   {'cost':>9} {'encoded':>9} {'encode':>8} coarser")
    for name, make in WORKLOADS.items():
        data = journal(count, partial(make, random.Random(1)))
        decoding, folding, encoding = [], [], []
        for _ in range(ROUNDS):
            decoding.append(seconds(partial(decode, data)))
            records = decode(data)
            found = DirtyMap(limits.DIRTY_MAP_BYTES)
            folding.append(seconds(partial(fold, found, records)))
            del records
            encoding.append(seconds(found.encode))
        rates = [count / statistics.median(times) for times in (decoding, folding)]
        encode_ms = statistics.median(encoding) * 1e3
        print(
            f"{name:<38} {rates[0]:>8,.0f}/s {rates[1]:>8,.0f}/s {found.cost_bytes / 1e6:>8.1f} MB "
            f"{len(found.encode()) / 1e6:>6.2f} MB {encode_ms:>5.0f} ms {found.coarsened}"
        )


if __name__ == "__main__":
    main()
