"""A source and a target in one process: a real sender and a real receiver, real trees, everything else
simulated.

Time is trio's MockClock, the network is `kit.links`, journal and spool lie on `kit.disk`. Both trees are real
directories, and the source is changed by `kit.recording.Source`, which says in records what a capture would
have journaled. Same seed, same run.
"""

import contextlib
import os
import random
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import trio

from kit.disk import MemoryDisk, MemoryDoorbells, MemoryPage
from kit.journals import journal_record
from kit.left_behind import nobody_is_left_behind
from kit.links import LinkStream, Network
from kit.losing_source import LosingSource
from kit.patience import LONG_S, until_async
from kit.recording import Source
from kit.simulated_directory import simulated_directory
from kit.stories import check_story
from kit.trees import assert_same_tree
from replicator.capture.activity_keeper import ActivityKeeper
from replicator.failovers import return_of
from replicator.mirror.scan import Source as SourceTree
from replicator.ops import Record
from replicator.orphans import OrphanSettings
from replicator.queue.cursor import Cursor
from replicator.queue.journal import JournalWriter
from replicator.queue.settings import JournalSettings
from replicator.receiver.arguments import ReceiverArguments
from replicator.receiver.receiver import Receiver
from replicator.repset import ReplicationSet, Rule, compile_filter
from replicator.sender.arguments import (
    JournalArguments,
    MapArguments,
    Restored,
    SenderArguments,
    SenderOptions,
)
from replicator.sender.flow import Flow
from replicator.sender.sender import Sender
from replicator.status import ConnectionStatus, MirrorStatus, TargetDataState
from replicator.world import World

T = TypeVar("T")
PORT = 1500


class MockedClock:
    """`Clock` that follows trio's (mock) clock, from a fixed day on. `jump_ns`: how far it was set."""

    def __init__(self) -> None:
        self.boot = 1
        self.jump_ns = 0

    def monotonic_ns(self) -> int:
        return int(trio.current_time() * 1e9) + 1_000_000_000

    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000 + self.monotonic_ns() + self.jump_ns

    def boot_id(self) -> str:
        return f"boot-{self.boot}"


@dataclass(frozen=True)
class SimulatedWorld(World):
    """A World whose threads are checkpoints: other tasks run before and after the function, by chance more
    than once. `delays_s`: how long one may take; change it for a slow disk.
    """

    pauses: random.Random = field(default_factory=random.Random)
    delays_s: list[float] = field(default_factory=lambda: [0, 0, 0.0001, 0.001])

    async def in_thread(self, function: Callable[[], T]) -> T:
        await trio.sleep(self.pauses.choice(self.delays_s))
        result = function()
        await trio.sleep(self.pauses.choice(self.delays_s))
        return result


def simulated_world(
    seed: int, connect: Callable[[str, int], Awaitable[trio.abc.HalfCloseableStream]]
) -> SimulatedWorld:
    disk = MemoryDisk()
    rng = random.Random(seed)
    return SimulatedWorld(
        disk=disk,
        clock=MockedClock(),
        random=rng,
        connect=connect,
        shared_memory=lambda path, size, create: MemoryPage(disk, path, size, create),
        doorbells=MemoryDoorbells(),
        pauses=random.Random(seed + 1),
    )


async def run_receiver(receiver: Receiver, incoming: trio.MemoryReceiveChannel[LinkStream]) -> None:
    """A receiver's process: until it ends, it takes what dials its port."""

    async def listen() -> None:
        async with incoming:
            async for stream in incoming:
                receiver.adopt(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await receiver.run()
        nursery.cancel_scope.cancel()


class Simulation:
    """One source, one target, one connection over one mount.

    Use `simulate`.
    """

    def __init__(
        self,
        seed: int,
        directory: Path,
        nursery: trio.Nursery,
        options: SenderOptions,
        rules: list[Rule],
        losing: bool,
        forward: "Simulation | None" = None,
    ) -> None:
        """`forward`: this is the connection in the other direction, between the same hosts and trees."""
        self.random = random.Random(seed)
        self.directory = directory
        self.hosts = ("source", "target")
        if forward is None:
            self.network = Network(seed)
            self.source_world = simulated_world(seed * 7 + 1, self._connect)
            self.target_world = simulated_world(seed * 7 + 2, self._connect)
            self.source_root = directory / "source"
            self.target_root = directory / "target"
            self.source_root.mkdir()
            self.target_root.mkdir()
            self.home = directory / "home"  # of the target
            self.connection = str(uuid.UUID(int=seed + 1))
        else:
            self.hosts = (forward.hosts[1], forward.hosts[0])
            self.network = forward.network
            self.source_world = replace(forward.target_world, connect=self._connect)
            self.target_world = forward.source_world
            self.source_root, self.target_root = forward.target_root, forward.source_root
            self.home = directory / f"home-{forward.hosts[0]}"
            self.connection = return_of(forward.connection)
        self.agents = tuple(f"{host}-agent" for host in self.hosts)
        self.journal_id = str(uuid.UUID(int=seed + 2))
        self.settings = JournalSettings("/memory/journal", "/home/queue/journal", segment_bytes=64 * 1024)
        self.journaling = True
        self.sequences: list[int] = []  # of the source's records
        self.source_lost_power = False  # and with it, maybe, some lines of the story
        self.source: Source = (
            LosingSource(self.source_root, self._journal, directory / f"removed-{self.hosts[0]}")
            if losing
            else Source(self.source_root, self._journal)
        )
        self.nursery = nursery
        self._keeper_scope = trio.CancelScope()
        self._open_journal()
        self.repset = ReplicationSet(
            name="everything", generation=1, rules=tuple(rules or [Rule(str(self.source_root), True, True)])
        )
        self.options = options
        self.restored: Restored | None = None  # what the next sender is told
        self.epoch = 0
        self.orphans = OrphanSettings()  # of the target; set it before the receiver starts
        self.sender: Sender | None = None
        self.receiver: Receiver | None = None
        self._sender_scope = trio.CancelScope()
        self._receiver_scope = trio.CancelScope()

    def _open_journal(self) -> None:
        """As a capture does."""
        world = self.source_world
        self.writer = JournalWriter.open(world, self.settings, self.journal_id, keeps_activity=True)
        keeper = self.keeper = ActivityKeeper(world, self.writer, threading.Lock(), self._sync_source)
        scope = self._keeper_scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keeper.keep)
                    nursery.start_soon(keeper.run_syncs)

        self.nursery.start_soon(run)

    def _records_covered(self) -> int:
        """How many of the source's records the activity log told of durably. What came later is so young that
        no storage has it yet.
        """
        uncovered = self.writer._header.uncovered or 1 << 63
        sequences = self.sequences
        return next((n for n in range(len(sequences)) if sequences[n] >= uncovered), len(self.source.records))

    def _sync_source(self) -> None:
        if isinstance(self.source, LosingSource):
            self.source.synced()

    def _journal(self, record: Record) -> None:
        sequence = 0
        if self.journaling and self.writer.has_readers:
            sequence = journal_record(self.writer, record)
            assert sequence
        self.sequences.append(sequence)

    async def _connect(self, host: str, port: int) -> trio.abc.HalfCloseableStream:
        return await self.network.connect(self.hosts[0], host, port)

    # --- the two sides ---

    def start_sender(self) -> Sender:
        arguments = SenderArguments(
            home="/home",
            connection_uuid=self.connection,
            agent_uuid=self.agents[0],
            agent_name=self.hosts[0],
            target_host=self.hosts[1],
            target_port=PORT,
            repset=self.repset,
            journals=[
                JournalArguments(
                    self.journal_id,
                    str(self.source_root),
                    "/home/capture",  # not dialled: `tree` is given
                    "/memory/journal",
                    "/home/queue/journal",
                )
            ],
            maps=[MapArguments(0, "", str(self.target_root))],
            options=self.options,
            epoch=self.epoch,
            restored=self.restored,
        )
        world = self.source_world

        def make_filter() -> object:
            return compile_filter(self.repset, os.fsencode(self.source_root))

        tree = SourceTree(os.open(self.source_root, os.O_RDONLY | os.O_DIRECTORY), make_filter)
        cursor = Cursor.open(world, self.settings, self.journal_id, self.connection, create=True)
        lookahead = Cursor.open(world, self.settings, self.journal_id, None)
        checking = Cursor.open(world, self.settings, self.journal_id, None)
        flow = Flow(0, self.journal_id, cursor, lookahead, make_filter(), tree, checking)
        sender = self.sender = Sender(world, arguments, [flow])
        scope = self._sender_scope = trio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    await sender.run()
            finally:
                tree.close()
            if not sender.removed:
                cursor.close()
            lookahead.close()
            checking.close()

        self.nursery.start_soon(run)
        return sender

    def start_receiver(self) -> Receiver:
        # The table of hard links is SQLite's own business, so that directory is real.
        home = self.home
        (home / "target" / self.connection).mkdir(parents=True, exist_ok=True)
        arguments = ReceiverArguments(
            home=str(home),
            connection_uuid=self.connection,
            agent_uuid=self.agents[1],
            agent_name=self.hosts[1],
            memory_directory="/memory/spool",
            segment_bytes=64 * 1024,
            orphans=self.orphans,
        )
        receiver = self.receiver = Receiver(self.target_world, arguments)
        scope = self._receiver_scope = trio.CancelScope()
        incoming = self.network.listen(self.hosts[1], PORT)

        async def run() -> None:
            with scope:
                await run_receiver(receiver, incoming)

        self.nursery.start_soon(run)
        return receiver

    async def kill_sender(self) -> None:
        """As SIGKILL does: what is in memory is gone, what was written stays."""
        self._sender_scope.cancel()
        self.network.cut("source", "target")
        await trio.testing.wait_all_tasks_blocked()
        self.sender = None

    async def kill_receiver(self) -> None:
        self._receiver_scope.cancel()
        self.network.close_listener(self.hosts[1], PORT)
        self.network.cut("source", "target")
        await trio.testing.wait_all_tasks_blocked()
        self.receiver = None

    async def interrupt(self, draw: float, cut: float, receiver: float, sender: float) -> None:
        """By the first of these ascending bounds that is above `draw`: the network is cut, or that process is
        killed and started again. Above all of them: nothing.
        """
        if draw < cut:
            self.network.cut("source", "target")
        elif draw < receiver:
            await self.kill_receiver()
            self.start_receiver()
        elif draw < sender:
            await self.kill_sender()
            self.start_sender()

    async def lose_target_power(self) -> None:
        """The target's host goes down, and is up again without a receiver. What its tree has lost is up to
        the test.
        """
        await self.kill_receiver()
        self.target_world.disk.lose_power()
        self.target_world.clock.boot += 1

    async def lose_source_power(self, certain: int | None = None) -> None:
        """The same for the source: its journal is gone, its mount is up again, its sender is not.

        `certain`: a `LosingSource` loses all changes after so many records.
        """
        await self.kill_sender()
        self._keeper_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        if isinstance(self.source, LosingSource):
            self.source.lose_power(self.random, self._records_covered() if certain is None else certain)
        self.source_world.disk.lose_power()
        self.source_world.clock.boot += 1
        self._open_journal()
        self.source_lost_power = True

    # --- looking ---

    @property
    def status(self) -> ConnectionStatus:
        assert self.sender is not None
        return self.sender.status()

    async def mirror_ended(self) -> None:
        """The mirror that was begun is over, and the target has heard of it.

        Nothing is journaled to see that: what is journaled is sent whole.
        """

        def is_over() -> bool:
            return (
                bool(self.status.mirror.elapsed_s)
                and self.status.mirror_status is MirrorStatus.IDLE
                and self.status.target_data_state is not TargetDataState.MIRRORING
            )

        await until_async(is_over, LONG_S)

    async def fault(self, chance: random.Random) -> None:
        """A cable is cut for a moment, or somebody is killed, and started again."""
        which = chance.choice(("cut", "sender", "receiver", "both"))
        if which == "cut":
            self.network.cut("source", "target")
        if which in ("sender", "both"):
            await self.kill_sender()
            self.start_sender()
        if which in ("receiver", "both"):
            await self.kill_receiver()
            self.start_receiver()

    async def drained(self, timeout_s: float = 600) -> None:
        """Everything captured is applied, and no mirror runs, nor is one lacking."""
        assert self.sender is not None
        self.source.settle()
        sequences = {self.journal_id: self.writer.position.sequence}
        assert await self.sender.wait(sequences, timeout_s), self.status
        await nobody_is_left_behind(self.sender)

    def assert_equal(self, ignore: frozenset[str] = frozenset()) -> None:
        if isinstance(self.source, LosingSource):
            self.source.synced()  # until then a removed name counts as a link of its file
        assert_same_tree(self.source_root, self.target_root, ignore)


@contextlib.asynccontextmanager
async def simulate(
    seed: int,
    *,
    options: SenderOptions | None = None,
    rules: Callable[[Path], list[Rule]] | None = None,
    start: bool = True,
    losing: bool = False,
) -> AsyncIterator[Simulation]:
    """A running pair; both trees are removed in the end.

    `rules` makes the set's rules from the source directory. `losing`: the source is a `LosingSource`.
    """
    with simulated_directory() as directory:
        async with trio.open_nursery() as nursery:
            made = rules(directory / "source") if rules else []
            simulation = Simulation(
                seed, directory, nursery, options or SenderOptions(mirror="full"), made, losing
            )
            if start:
                simulation.start_receiver()
                simulation.start_sender()
            try:
                yield simulation
                if simulation.sender is not None:
                    await nobody_is_left_behind(simulation.sender)
                if simulation.sender is not None and not simulation.source_lost_power:
                    check_story(simulation.sender.story.since())
            finally:
                nursery.cancel_scope.cancel()
