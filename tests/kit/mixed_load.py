"""Several applications at once on one directory, and how much they change.

    with mixed_load(source / "hot", outputs, seed=1) as load:
        before = load.written_bytes
        ...
        with load.paused():          # nobody changes anything, in the middle of whatever they do
            written = load.written_bytes - before

`workloads` and a SQLite `bank`, whose files say whether they are a state that was, and random operations of a
`file_exerciser`. `write` is one application more: the test's own.
"""

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kit import bank
from kit.snapshots import frozen
from kit.workloads import CHECKS
from kit.writers import Writer, writing

MIB = 1 << 20
PAUSE_S = "0.01"  # between two rounds: the processors are shared with what is tested
LARGE_FILES = 4
LARGE_BYTES = 24 * MIB


class Load:
    """Use `mixed_load`."""

    def __init__(self, directory: Path, writers: dict[str, Writer], seed: int) -> None:
        self.directory = directory
        self._writers = writers
        self._chance = random.Random(seed)
        self._own_bytes = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        with ExitStack() as stack:
            for writer in self._writers.values():
                stack.enter_context(frozen(writer.pid))
            yield

    def assert_running(self) -> None:
        for writer in self._writers.values():
            writer.assert_running()

    def stop(self) -> None:
        for writer in self._writers.values():
            assert writer.stop()

    @property
    def written_bytes(self) -> int:
        """By applications, since the beginning. What is stored in mappings is not counted."""
        return self._own_bytes + sum(_written_bytes(writer.pid) for writer in self._writers.values())

    def write(self, size_bytes: int) -> None:
        """Overwrite so much at random places of a few large files, as fast as it goes."""
        block = bytearray(os.urandom(MIB))
        for number in range(size_bytes // MIB):
            path = self.directory / "large" / str(self._chance.randrange(LARGE_FILES))
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                block[:8] = number.to_bytes(8, "big")
                place = self._chance.randrange(LARGE_BYTES - MIB)
                assert os.pwrite(descriptor, block, place) == MIB
            finally:
                os.close(descriptor)
        self.note(size_bytes // MIB * MIB)

    def note(self, written_bytes: int) -> None:
        """The test itself has written something."""
        self._own_bytes += written_bytes

    def problems(self, copy: Path, scratch: Path) -> list[str]:
        """What is wrong with a copy of the directory."""
        wrong = [f"{name}: {found}" for name, check in CHECKS.items() for found in check(copy / name)]
        look = bank.examine(copy / "bank", "bank.db", scratch)
        return wrong + [f"bank: {found}" for found in look.problems]


def _written_bytes(process_id: int) -> int:
    """wchar of proc(5): by write(2) and its kind."""
    for line in Path(f"/proc/{process_id}/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    raise AssertionError("a process without wchar")


@contextmanager
def mixed_load(directory: Path, outputs: Path, seed: int) -> Iterator[Load]:
    """At work in `directory`, which is made."""
    (directory / "large").mkdir(parents=True)
    (directory / "bank").mkdir()
    bank.create(directory / "bank" / "bank.db", "delete")
    commands: dict[str, tuple[str | Path, ...]] = {
        name: ("kit.workloads", name, directory / name, PAUSE_S) for name in CHECKS
    }
    commands["bank"] = ("kit.bank", directory / "bank" / "bank.db", "delete", str(seed))
    commands["exerciser"] = (
        "kit.file_exerciser", directory / "files", str(seed), "0", "--pause", PAUSE_S,
    )  # fmt: skip
    with writing(outputs, *commands.values()) as writers:
        yield Load(directory, dict(zip(commands, writers, strict=True)), seed)
