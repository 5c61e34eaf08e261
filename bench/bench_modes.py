"""What the options of a mount do for which program: see docs/administrators/mount-modes.md.

One mount for each mode, all with the kernel binding and journaling for a reader, mounted at once on a fresh
ext4; they take turns within each round. Each cell is the median over rounds of the time within one round as a
multiple of the storage's own: below the cell of "default" a mode is better for that program, at 1 it costs
nothing. The last table compares serving a request in one thread and in two.
"""

import os
import statistics
import threading
import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import bench_capture
import file_systems
import harness
from bench_capture import DISK_BYTES, QUICK, Make, Times
from file_systems import FileSystem
from kit.mount import Bench
from programs import Programs, Sizes

from replicator.fs import kernel_protocol as protocol
from replicator.fs.credentials import Caller
from replicator.fs.kernel_binding import Binding
from replicator.mount_options import DEFAULTS, MountOptions

NATIVE = "native"
MODES: dict[str, MountOptions] = {
    "default": DEFAULTS,
    "writes=direct": MountOptions(writes="direct"),
    "reads=passthrough": MountOptions(reads="passthrough"),
    "both": MountOptions(writes="direct", reads="passthrough"),
    "attribute_timeout=1": MountOptions(attribute_timeout=1.0),
    "timeouts 0": MountOptions(attribute_timeout=0.0, entry_timeout=0.0),
}
# Of `Programs`: the other ones open nothing, or look no different in any mode.
LEFT_OUT = ("stat of what is not there", "unlink", "untar")


def compared(work: Path) -> dict[str, Make]:
    makers: dict[str, Make] = {NATIVE: file_systems.native}
    for name, options in MODES.items():
        makers[name] = partial(_mode, work / "memory", options)
    return makers


def _mode(memory: Path, options: MountOptions, base: Path) -> AbstractContextManager[FileSystem]:
    return file_systems.ours(base, memory / base.name, "kernel", options)


def show(times: Times, names: list[str]) -> None:
    modes = [name for name in names if name != NATIVE]
    table = harness.Table("Modes and programs (ext4)", "times the storage's own, median", "native µs", *modes)
    for label in dict.fromkeys(label for label, _ in times):
        own = times[label, NATIVE]
        microseconds = statistics.median(own) * 1e6
        ratios = [
            statistics.median(a / b for a, b in zip(times[label, mode], own, strict=True)) for mode in modes
        ]
        table.row(label, f"{microseconds:,.1f}", *(f"{ratio:.2f}" for ratio in ratios))


def compare_threads(directory: Path, count: int, rounds: int) -> None:
    """Writes of 4 KiB as the binding handles them, without the kernel in front. Two threads share nothing
    but the interpreter: a real mount would share its tables as well.
    """
    elapsed: dict[int, list[float]] = {1: [], 2: []}
    servers = [_Server(directory / f"thread-{number}") for number in (1, 2)]
    for _ in range(rounds):
        for threads, times in elapsed.items():
            workers = [
                threading.Thread(target=server.serve, args=(count // threads,))
                for server in servers[:threads]
            ]
            start = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            times.append((time.perf_counter() - start) / count)
    for server in servers:
        server.close()
    table = harness.Table("4 KiB writes handled by one thread and by two", "", "µs a write")
    for threads, times in elapsed.items():
        table.row(f"{threads} thread{'s' * (threads > 1)}", harness.median_text([t * 1e6 for t in times], 2))


class _Server:
    """A binding that gets the same request again and again."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._bench = Bench(directory)
        self._bench.journal.append = lambda *_, **__: 0  # type: ignore[method-assign, assignment, misc]
        self._binding = Binding(self._bench.fs)
        self._handle, _ = self._bench.fs.create(1, b"f", 0o644, os.O_RDWR, Caller(0, 0, 0, 0))
        write = protocol.OPERATIONS[protocol.Opcode.WRITE].layout.pack(self._handle, 0, 4096, 0, 0, 0, 0)
        length = protocol.HEADER_BYTES + len(write) + 4096
        header = protocol.IN_HEADER.pack(length, protocol.Opcode.WRITE, 2, 1, 0, 0, 1, 0, 0)
        self._binding.buffer[: len(header) + len(write)] = header + write

    def serve(self, count: int) -> None:
        handle, buffer, unpack = self._binding.handle, self._binding.buffer, protocol.IN_HEADER.unpack_from
        for _ in range(count):
            handle(unpack(buffer))

    def close(self) -> None:
        self._bench.fs.release(self._handle)
        self._bench.close()


def measure(work: Path, quick: bool) -> None:
    work.chmod(0o711)  # PostgreSQL, as a user of its own, must get through
    rounds = 1 if quick else 5
    makers = compared(work)
    programs = {
        label: program
        for label, program in Programs(work, QUICK if quick else Sizes()).all().items()
        if not label.startswith(LEFT_OUT)
    }
    with harness.disk(work / "disk", DISK_BYTES) as disk:
        os.chmod(disk.path, 0o755)
        show(bench_capture.measure_at(disk.path, makers, programs, rounds), list(makers))
        compare_threads(disk.path, 5_000 if quick else 100_000, rounds)


if __name__ == "__main__":
    harness.run(__doc__, measure)
