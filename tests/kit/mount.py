"""Capture in tests: a `Passthrough` that records into a list, and a real capture process with its mount."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import trio

import replicator
from kit.recording import make_record
from kit.trees import differences, snapshot
from replicator.capture import held_mount, resumption
from replicator.capture.arguments import CaptureSettings
from replicator.child.control import Control
from replicator.fs.apply import Applier
from replicator.fs.beneath import Root
from replicator.fs.mounts import FSTYPE, read_mountinfo
from replicator.fs.mtimes import Notes
from replicator.fs.passthrough import Passthrough
from replicator.fs.recorder import Recorder
from replicator.ops import Attributes, Kind, Record
from replicator.paths import Home
from replicator.queue.cursor import Cursor, Run
from replicator.world import World

READER = "7d1e6a52-3d3b-4a3f-8f0a-2b1c9d4e0001"
MOUNT_ID = "0b4a3e5c-6f0e-4f0e-9a52-52a1f7b0a001"
START_TIMEOUT_S = 20.0
CALL_TIMEOUT_S = 20.0
COVER_TIMEOUT_S = 10.0
_PACKAGE_PARENT = str(Path(replicator.__file__).parents[1])


class ListJournal:
    """A journal in memory, with one reader unless told otherwise."""

    def __init__(self) -> None:
        self.has_readers = True
        self.records: list[Record] = []
        self.in_flight: tuple[int, bytes, bytes] | None = None

    def flight(self, kind: int, path: bytes, path2: bytes = b"") -> None:
        assert self.in_flight is None, f"{self.in_flight} never ended"
        self.in_flight = (kind, path, path2)

    def clear_flight(self) -> None:
        self.in_flight = None

    def append(
        self,
        kind: int,
        path: bytes,
        *,
        path2: bytes = b"",
        payload: bytes | memoryview = b"",
        flags: int = 0,
        inode: int = 0,
        generation: int = 0,
        arg0: int = 0,
        arg1: int = 0,
    ) -> int:
        record = make_record(
            kind, path, path2, bytes(payload), arg0=arg0, arg1=arg1, flags=flags, inode=inode
        )
        self.records.append(record._replace(sequence=len(self.records) + 1))
        return len(self.records)


class ManualClock:
    """Monotonic time that moves when told."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


class Bench:
    """A `Passthrough` over a directory, driven without any mount."""

    def __init__(
        self,
        root: Path,
        *,
        active: Iterable[bytes] = (b"",),
        descriptors_max: int = 64,
        notes: str | None = None,
    ) -> None:
        self.root = root
        self.journal = ListJournal()
        self.recorder = Recorder(self.journal)
        self.recorder.set_active(active)
        self.clock = ManualClock()
        self.fs = Passthrough(
            os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC),
            self.recorder,
            descriptors_max=descriptors_max,
            monotonic_ns=self.clock,
            notes=None if notes is None else Notes(notes),
        )

    def id(self, path: str | bytes) -> int:
        """The node of a path, looked up as the kernel would, component by component."""
        node_id = 1
        for name in os.fsencode(path).split(b"/") if path else ():
            node_id = self.fs.lookup(node_id, name).node_id
        return node_id

    def records(self) -> list[Record]:
        """Those since the last call."""
        assert self.journal.in_flight is None, f"{self.journal.in_flight} never ended"
        found, self.journal.records = self.journal.records, []
        return found

    def settled(self) -> list[Record]:
        """The same, with every mtime that was pending."""
        self.fs.settle()
        return self.records()

    def close(self) -> None:
        self.fs.close()


def shown(records: Iterable[Record]) -> list[str]:
    """Records in a form that reads well in an assertion."""
    return [_shown(record) for record in records]


def _shown(record: Record) -> str:
    text = f"{Kind(record.kind).name} {os.fsdecode(record.path)}"
    if record.path2:
        text += f" {os.fsdecode(record.path2)}"
    if record.kind == Kind.WRITE:
        text += f" {len(record.payload)}@{record.arg0}"
    elif record.kind == Kind.TRUNCATE:
        text += f" {record.arg0}"
    elif record.kind == Kind.SETATTR:
        mask = Attributes.decode(record.payload).mask
        names = {1: "mode", 2: "uid", 4: "gid", 8: "atime", 16: "mtime"}
        text += " " + ",".join(name for bit, name in names.items() if mask & bit)
    return text


def replay(records: Iterable[Record], target: Path) -> None:
    """Apply records strictly, as a target whose mirror is complete."""
    root = Root(str(target))
    try:
        applier = Applier([(b"", root)])
        for record in records:
            applier.apply(record, tolerant=False)
    finally:
        root.close()


class CaptureMount:
    """A capture process below `base`: source `src` (also the mountpoint unless `beside`), journal, home."""

    def __init__(
        self,
        base: Path,
        *,
        beside: bool = False,
        active: Iterable[bytes] = (b"",),
        settings: dict[str, Any] | None = None,
        program: tuple[str, ...] = ("-m", "replicator.capture.process"),
    ) -> None:
        """`program`: arguments of the interpreter that make it a capture."""
        self.program = program
        self.source = base / "src"
        self.mountpoint = base / "mnt" if beside else self.source
        self.settings = CaptureSettings(
            **{
                "home": str(base / "home"),
                "mount_id": MOUNT_ID,
                "path": str(self.source),
                "mountpoint": str(self.mountpoint),
                "memory_directory": str(base / "memory"),
                "disk_directory": str(base / "disk"),
                "active": list(active),
                **(settings or {}),
            }
        )
        home = Home(self.settings.home)
        self.socket = home.socket("capture", MOUNT_ID)
        for directory in (self.source, self.mountpoint, Path(self.socket).parent):
            directory.mkdir(parents=True, exist_ok=True)
        os.chmod(self.source, 0o755)  # whatever the umask of this process is
        self._log = base / "capture.log"
        self._arguments = base / "arguments.json"
        self._cursor: Cursor | None = None
        self.process: subprocess.Popen[bytes] | None = None

    # --- the process ---

    def start(self) -> "CaptureMount":
        """Start it and wait until it answers."""
        self.spawn()
        return self.wait()

    def wait(self) -> "CaptureMount":
        """Until it answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            try:
                if self.call("status")["state"] == "serving":
                    return self
            except Exception:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def spawn(self) -> "subprocess.Popen[bytes]":
        self._arguments.write_bytes(msgspec.json.encode(self.settings))
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, "--arguments", str(self._arguments)],
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": _PACKAGE_PARENT},
                start_new_session=True,
            )
        return self.process

    def log(self) -> str:
        return self._log.read_text()

    def call(self, call: str, **arguments: Any) -> Any:
        async def main() -> Any:
            return await Control(self.socket).call(call, CALL_TIMEOUT_S, **arguments)

        return trio.run(main)

    def call_for_descriptor(self, call: str) -> int:
        async def main() -> list[int]:
            return (await Control(self.socket).call_with_descriptors(call, CALL_TIMEOUT_S))[1]

        (descriptor,) = trio.run(main)
        return descriptor

    def stop(self, **arguments: bool) -> int:
        self.call("stop", **arguments)
        assert self.process is not None
        return self.process.wait(CALL_TIMEOUT_S)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(CALL_TIMEOUT_S)

    def close(self) -> None:
        """End whatever still runs and unmount; for finalisers."""
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(CALL_TIMEOUT_S)
        held_mount.give_up(self.settings.memory_directory)
        for _ in range(self.layers):
            subprocess.run(["umount", "-l", self.mountpoint], capture_output=True, timeout=10, check=False)

    @property
    def is_mounted(self) -> bool:
        try:
            os.statvfs(self.mountpoint)
        except OSError as error:
            assert error.errno == errno.ENOTCONN, error
        return self.layers > 0

    @property
    def layers(self) -> int:
        """File systems of ours at the mountpoint, dead ones included."""
        return sum(e.point == str(self.mountpoint) and e.fstype == FSTYPE for e in read_mountinfo())

    # --- what it captured ---

    def attach(self) -> "CaptureMount":
        """Register a reader: from here on operations are journaled."""
        self._cursor = Cursor.open(World(), self.settings.journal, MOUNT_ID, READER, create=True)
        return self

    def records(self, *, settle: bool = True) -> list[Record]:
        """Those since the last call, with payloads of their own."""
        if settle:
            self.call("settle")
        found: list[Record] = []
        for run in self._runs():
            found += [record._replace(payload=bytes(record.payload)) for _, _, record in run.records]
        return found

    def _runs(self) -> Iterator[Run]:
        """Up to the present end, acknowledged. What the activity log does not tell of durably comes later."""
        cursor = self._cursor
        assert cursor is not None
        head = cursor.head().sequence
        deadline = time.monotonic() + COVER_TIMEOUT_S
        while True:
            run = cursor.read()
            if run is not None:
                cursor.acknowledge(run.last.sequence)
                yield run
            elif cursor.position.sequence >= head or time.monotonic() > deadline:
                return
            else:
                time.sleep(0.001)

    def drain(self) -> int:
        """Acknowledge those since the last call, and keep nothing. How many there were."""
        return sum(len(run.records) for run in self._runs())

    def assert_replays(
        self,
        records: Iterable[Record],
        target: Path,
        doubtful: Iterable[bytes] = (),
        ignore: frozenset[str] = frozenset(),
    ) -> None:
        """`target`, once equal to the source, is so again after these records, but for `doubtful` paths and
        the aspects to `ignore`.

        Compared with the storage below, as the root descriptor shows it.
        """
        replay(records, target)
        descriptor = self.call_for_descriptor("root")
        try:
            source, copy = snapshot(f"/proc/self/fd/{descriptor}/."), snapshot(target)
        finally:
            os.close(descriptor)
        for path in doubtful:
            source.pop(path, None)
            copy.pop(path, None)
        found = differences(source, copy, ignore)
        assert not found, "\n" + "\n".join(found[:50])

    def __repr__(self) -> str:
        return f"CaptureMount({json.dumps(msgspec.to_builtins(self.settings))})"


def replace_by_kill(mount: CaptureMount) -> None:
    mount.kill()
    mount.start()


def replace_in_order(mount: CaptureMount) -> None:
    """As an agent reloads it."""
    mount.call("leave", format=resumption.FORMAT)
    assert mount.process is not None
    assert mount.process.wait(CALL_TIMEOUT_S) == 0
    mount.start()
