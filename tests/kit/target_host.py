"""A target host that outlives its receivers: real trees, memory for everything else, virtual time.

async with host.receiver() as receiver, host.session(receiver) as (source, connected):
    await source.send(*host.journal.run(0, end))
    await source.applied(end)
"""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from kit.disk import MemoryDisk, ProcessDied, SteppingClock, memory_world
from kit.links import Link
from kit.recording import Source
from kit.scripted_source import CONNECTION, RecordedJournal, ScriptedSession, connect_frame
from replicator.mirror.pieces import Batch
from replicator.net.frames import Connect, Connected, Mark, RefusedConnection
from replicator.ops import RENAME_EXCHANGE, Position, Record
from replicator.receiver.arguments import ReceiverArguments
from replicator.receiver.receiver import Receiver
from replicator.receiver.replica_tree import ReplicaTree
from replicator.world import World

T = TypeVar("T")
AGENT = "22222222-6f43-4b1b-9d0e-000000000001"


class InlineWorld(World):
    """No threads: virtual time must not run on while one works."""

    async def in_thread(self, function: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return function()


class TestTree(ReplicaTree):
    """The real tree, with what a test wants to go wrong before or after operation number `operations`."""

    __test__ = False

    def __init__(self, connect: Connect, directory: str, host: "Host") -> None:
        super().__init__(connect, str(host.links))
        self._host = host

    def apply(self, journal: int, record: Record, **more: Any) -> None:
        host = self._host
        host.calls += 1
        if host.before is not None:
            host.before(record)
        super().apply(journal, record, **more)
        host.applied.append((journal, record.sequence))
        if host.after is not None:
            host.after(record)

    def place(self, batch: Batch) -> Any:
        if self._host.before_place is not None:
            self._host.before_place(batch)
        return super().place(batch)

    def sync(self) -> None:
        if self._host.before_sync is not None:
            self._host.before_sync()
        super().sync()
        self._host.synced_to = len(self._host.applied)


@dataclass
class Host:
    """A target host that outlives its receivers."""

    directory: Path
    disk: MemoryDisk = field(default_factory=MemoryDisk)
    clock: SteppingClock = field(default_factory=SteppingClock)
    before: Callable[[Record], None] | None = None
    after: Callable[[Record], None] | None = None
    before_place: Callable[[Batch], None] | None = None
    before_sync: Callable[[], None] | None = None
    synced_to: int = 0  # operations applied before the last sync that succeeded
    calls: int = 0
    applied: list[tuple[int, int]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.source = Source(self.directory / "source")
        self.target = self.directory / "target"
        self.links = self.directory / "links"
        (self.directory / "source").mkdir(mode=0o755)
        self.links.mkdir()
        self.journal = RecordedJournal()

    def world(self) -> World:
        return InlineWorld(**vars(memory_world(self.disk, self.clock)))

    def arguments(self) -> ReceiverArguments:
        return ReceiverArguments(
            home="/home",
            connection_uuid=CONNECTION,
            agent_uuid=AGENT,
            agent_name="target",
            memory_directory="/memory/spool",
            **self.settings,
        )

    @asynccontextmanager
    async def receiver(self) -> AsyncIterator[Receiver]:
        """A receiver that is killed at the end of the block."""
        receiver = Receiver(self.world(), self.arguments(), partial(TestTree, host=self))
        async with trio.open_nursery() as nursery:
            await nursery.start(receiver.run)
            yield receiver
            nursery.cancel_scope.cancel()

    def record_everything(self) -> None:
        for record in self.source.records[len(self.journal) :]:
            self.journal.add(record)

    def link(self, seed: int = 1, **more: Any) -> Link:
        return Link(random.Random(seed), **more)

    @asynccontextmanager
    async def session(
        self, receiver: Receiver, connect: Connect | None = None, link: Link | None = None, **more: Any
    ) -> AsyncIterator[tuple[ScriptedSession, Connected]]:
        near, far = (link or self.link()).streams()
        receiver.adopt(far)
        source = ScriptedSession(near)
        answer = await source.open(connect or connect_frame(str(self.target)), **more)
        assert isinstance(answer, Connected), answer
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.listen)
            nursery.start_soon(source.session.heartbeat)
            yield source, answer
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(near)

    async def ask(self, receiver: Receiver, connect: Connect, **more: Any) -> Connected | RefusedConnection:
        near, far = self.link().streams()
        receiver.adopt(far, b"", more.pop("others", ()))
        try:
            return await ScriptedSession(near).open(connect, **more)
        finally:
            await trio.aclose_forcefully(near)


def some_work(source: Source) -> None:
    """Operations of which none may be done twice, left out, or done in another order."""
    source.mkdir(b"d")
    source.create(b"d/a", 0o640, (3, 4))
    source.write(b"d/a", 0, b"first" * 100)
    source.create(b"b")
    source.write(b"b", 5, b"second")
    source.rename(b"d/a", b"b", RENAME_EXCHANGE)
    source.link(b"b", b"d/c")
    source.unlink(b"b")
    source.rename(b"d/c", b"b")
    source.truncate(b"b", 7)
    source.create(b"d/c")
    source.rename(b"d", b"e")
    source.symlink(b"d", b"e/a")
    source.setxattr(b"b", b"user.x", b"y")
    source.removexattr(b"b", b"user.x")
    source.unlink(b"e/c")
    source.create(b"e/c", 0o600)
    source.chmod(b"e/c", 0o400)
    source.mkdir(b"gone")
    source.rmdir(b"gone")
    source.settle()


def die_at_once(*_: object) -> None:
    raise ProcessDied


def mark(position: Position) -> Mark:
    return Mark(position.sequence, position.chain)
