"""How fast a target is: records applied and small files placed, against rsync on the same disk.

    python bench/apply.py [--files 50000] [--writes 50000] [--directory DIR]

Prints one line per measurement; everything it makes below DIR (default: the current directory) is removed.
ext4 avoids inode numbers freed in the last minutes, at a high price per new file: for figures that compare,
give it a file system on which nothing was removed just before.
"""

import argparse
import os
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path

from replicator.fs.apply import Applier
from replicator.fs.beneath import Root
from replicator.fs.credentials import prepare_process
from replicator.mirror.links import LinkTable
from replicator.mirror.pieces import (
    AnyEntry,
    Batch,
    Content,
    File,
    Listing,
    Times,
    decode_batch,
    encode_batch,
)
from replicator.mirror.place import Placer
from replicator.ops import CREATION_MASK, AttributeMask, Attributes, Identity, Kind, Record

_FILES_PER_DIRECTORY = 100
_ENTRIES_PER_BATCH = 64
_FILE = Attributes(int(CREATION_MASK | AttributeMask.MTIME), stat.S_IFREG | 0o644, 1000, 1000, 0, 0, 10**18)
_DIRECTORY = _FILE._replace(mode=stat.S_IFDIR | 0o755)


def _record(kind: Kind, path: bytes, payload: bytes, offset: int = 0) -> Record:
    return Record(kind, 0, 0, 0, 0, 0, 0, 1, 0, offset, 0, path, b"", payload)


def bench_writes(base: Path, count: int) -> None:
    """4 KiB writes at random places of a few files, as a database makes them."""
    base.mkdir()
    data = os.urandom(4096)
    with Root(base) as root:
        applier = Applier([(b"", root)])
        paths = [b"file%d" % number for number in range(8)]
        for path in paths:
            applier.apply(_record(Kind.CREATE, path, _FILE.encode()), tolerant=False)
        records = [_record(Kind.WRITE, paths[n % 8], data, (n * 7919 % 4096) * 4096) for n in range(count)]
        started = time.perf_counter()
        for record in records:
            applier.apply(record, tolerant=False)
        took = time.perf_counter() - started
    print(f"WRITE of 4 KiB: {took / count * 1e6:.1f} us each")


def bench_names(base: Path, count: int) -> None:
    """Create, write, close and rename, as an editor or a package manager does."""
    base.mkdir()
    times = Attributes(int(AttributeMask.MTIME), stat.S_IFREG, mtime_ns=10**18).encode()
    with Root(base) as root:
        applier = Applier([(b"", root)])
        for number in range(count // 100 + 1):
            applier.apply(_record(Kind.MKDIR, b"d%d" % number, _DIRECTORY.encode()), tolerant=False)
        started = time.perf_counter()
        for number in range(count):
            old, new = b"d%d/t%d" % (number // 100, number), b"d%d/f%d" % (number // 100, number)
            applier.apply(_record(Kind.CREATE, old, _FILE.encode()), tolerant=False)
            applier.apply(_record(Kind.WRITE, old, b"x" * 2048), tolerant=False)
            applier.apply(_record(Kind.SETATTR, old, times)._replace(flags=4), tolerant=False)
            applier.apply(_record(Kind.RENAME, old, b"")._replace(path2=new), tolerant=False)
        took = time.perf_counter() - started
    print(f"CREATE, WRITE, SETATTR, RENAME: {took / count / 4 * 1e6:.1f} us each")


def _batches(files: int, content: bytes) -> list[bytes]:
    entries: list[AnyEntry] = []
    count = -(-files // _FILES_PER_DIRECTORY)
    entries.append(Listing(b"", _DIRECTORY, {}, tuple(b"d%d" % n for n in range(count))))
    for directory in range(count):
        path = b"d%d" % directory
        entries.append(Listing(path, _DIRECTORY, {}))
        first = directory * _FILES_PER_DIRECTORY
        for number in range(first, min(first + _FILES_PER_DIRECTORY, files)):
            size = 1024 + number % 4096
            data = content[:size]
            name = path + b"/file%d" % number
            entries.append(File(name, Identity(number, 0), 1, _FILE, {}, size, ((0, size),), Content(data)))
        entries.append(Times(path, 10**18))
    step = _ENTRIES_PER_BATCH
    return [
        b"".join(encode_batch(Batch(number, 0, tuple(entries[start : start + step]))))
        for number, start in enumerate(range(0, len(entries), step))
    ]


def bench_place(base: Path, files: int) -> None:
    """Small files: placed on an empty target, again over it, and copied by rsync."""
    base.mkdir()
    batches = _batches(files, os.urandom(8192))
    for title in ("empty", "full"):
        with Root(base) as root:
            links = LinkTable()
            placer = Placer(Applier([(b"", root)]), links)
            os.sync()
            started, used = time.perf_counter(), time.process_time()
            for batch in batches:
                assert placer.place(decode_batch(batch)) == []
            took, used = time.perf_counter() - started, time.process_time() - used
            placer.close()
            links.close()
        print(
            f"place {files} files, {title} target: {took:.2f} s, {took / files * 1e6:.0f} us each, "
            f"processor {used:.2f} s"
        )
    if shutil.which("rsync"):
        os.sync()
        started = time.perf_counter()
        subprocess.run(["rsync", "-a", f"{base}/", f"{base}.rsync/"], check=True)
        took = time.perf_counter() - started
        print(f"rsync -a of the same {files} files: {took:.2f} s, {took / files * 1e6:.0f} us each")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--writes", type=int, default=50_000)
    parser.add_argument("--directory", type=Path, default=Path())
    arguments = parser.parse_args()
    prepare_process()
    base = Path(tempfile.mkdtemp(prefix="bench-apply-", dir=arguments.directory))
    try:
        bench_writes(base / "writes", arguments.writes)
        bench_names(base / "names", max(1, arguments.writes // 10))
        bench_place(base / "place", arguments.files)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
