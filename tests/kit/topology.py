"""Several captured directories and connections in one process: real senders and receivers, real trees,
everything else simulated, as in `kit.simulation`.

    async with topology(seed) as net:
        data = net.mount("data")
        one = net.connect([data], "backup")          # mirrored and replicated from here on
        data.source.create(b"file")
        await one.drained()
        one.assert_equal()

All mounts are on the host "source"; each connection ends on a host of its own name. Same seed, same run.
"""

import contextlib
import os
import random
import stat
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from kit.disk import Process, ProcessDied
from kit.journals import journal_record
from kit.left_behind import nobody_is_left_behind
from kit.links import Network
from kit.recording import Source
from kit.simulated_directory import simulated_directory
from kit.simulation import PORT, SimulatedWorld, run_receiver, simulated_world
from kit.stories import check_story
from kit.trees import assert_same_tree
from replicator import limits
from replicator.errors import ReplicatorError
from replicator.mirror.scan import Source as SourceTree
from replicator.net.frames import Connect
from replicator.ops import Record
from replicator.queue.cursor import Cursor
from replicator.queue.journal import JournalWriter
from replicator.queue.settings import JournalSettings
from replicator.receiver.arguments import ReceiverArguments
from replicator.receiver.receiver import Receiver
from replicator.receiver.replica_tree import ReplicaTree, Tree
from replicator.repset import Filter, ReplicationSet, Rule, compile_filter
from replicator.sender.arguments import JournalArguments, MapArguments, SenderArguments, SenderOptions
from replicator.sender.flow import Flow
from replicator.sender.sender import Sender
from replicator.status import ConnectionStatus

SEGMENT_BYTES = 64 * 1024
TICK_S = 0.25  # as a capture's: it collects its journal, and records what was lost
SOURCE = "source"


class Files(NamedTuple):
    """What regular files there are."""

    names: dict[bytes, int]  # absolute paths, and the inodes there
    contents: dict[int, bytes]


def torn_content(old: bytes | None, new: bytes, chance: random.Random) -> bytes:
    """What may be left of a file's changed blocks. `old`: as it was synced; None: it is new."""
    if old is None:
        return chance.choice((b"", bytes(len(new)), new[: len(new) // 2]))
    size = chance.choice((len(old), len(new)))
    blocks = []
    for start in range(0, size, 4096):
        before, after = (part[start : start + 4096].ljust(4096, b"\0") for part in (old, new))
        blocks.append(after if before == after else chance.choice((before, after, bytes(4096))))
    return b"".join(blocks)[:size]


def files_in(tree: Path) -> Files:
    found = Files({}, {})
    for directory, _, names in os.walk(os.fsencode(tree)):
        for name in names:
            path = os.path.join(directory, name)
            state = os.lstat(path)
            if stat.S_ISREG(state.st_mode):
                found.names[path] = state.st_ino
                if state.st_ino not in found.contents:
                    with open(path, "rb") as file:
                        found.contents[state.st_ino] = file.read()
    return found


class Mount:
    """A captured directory: change it by `source`, which journals as its capture would."""

    def __init__(self, world: SimulatedWorld, root: Path, number: int, **sizes: int) -> None:
        root.mkdir()
        self.root = root
        self.journal_id = str(uuid.UUID(int=number))
        directory = f"journal-{number}"
        self.settings = JournalSettings(
            f"/memory/{directory}", f"/home/queue/{directory}", segment_bytes=SEGMENT_BYTES, **sizes
        )
        self._world = world
        self.writer = JournalWriter.open(world, self.settings, self.journal_id)
        self.source = Source(root, self.journal)
        self.lost = 0

    def restart_writer(self) -> None:
        """As if its capture had been killed, and replaced: only what lies outside of it is left."""
        self.writer.close(persist=False)
        self.writer = JournalWriter.open(self._world, self.settings, self.journal_id)

    def journal(self, record: Record) -> None:
        if not self.writer.has_readers:
            return
        try:
            taken = journal_record(self.writer, record)
        except Exception as error:
            raise AssertionError(f"production first: an application would have seen {error!r}") from error
        self.lost += not taken

    def settle(self) -> int:
        """Everything is closed and quiet. Returns the sequence a target must have applied to equal it."""
        self.source.settle()
        return self.writer.position.sequence + (not self.writer.record_losses())

    async def tick(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            self.writer.collect()
            self.writer.record_losses()


class Connection:
    """One set with one target: a sender on the source, a receiver on `host`.

    A process that ends by itself is started again, as agents do (`ends` says how often, and why).
    """

    def __init__(
        self,
        net: "Topology",
        mounts: Sequence[Mount],
        host: str,
        repset: ReplicationSet,
        options: SenderOptions,
    ) -> None:
        self._net = net
        self.host = host
        self.options = options
        self._repset = repset
        self._uuid = str(uuid.UUID(int=1000 + len(net.connections)))
        self.world = simulated_world(net.seed * 7 + 100 + len(net.connections), net.dial)
        self._scope = self._sender_scope = trio.CancelScope()
        self._listening = False
        self.mounts = list(mounts)
        self.target = net.directory / host
        self.sender: Sender | None = None
        self.receiver: Receiver | None = None
        self.open_tree: Callable[[Connect, str], Tree] = ReplicaTree
        self.sender_process = self.receiver_process = Process(self.world.disk, lambda: None)
        self.ends: list[str] = []
        self.receiver_runs = False
        self._synced = Files({}, {})

    def copy_of(self, mount: Mount) -> Path:
        """Where the target has what a mount has."""
        return self.target / mount.root.name

    # --- its two processes ---

    def start_sender(self) -> None:
        home = f"/home/{self.host}"
        journals = [
            JournalArguments(
                m.journal_id, str(m.root), "", m.settings.memory_directory, m.settings.disk_directory
            )
            for m in self.mounts
        ]
        maps = [MapArguments(index, "", str(self.copy_of(m))) for index, m in enumerate(self.mounts)]
        arguments = SenderArguments(
            home=home,
            connection_uuid=self._uuid,
            agent_uuid="source-agent",
            agent_name=SOURCE,
            target_host=self.host,
            target_port=PORT,
            repset=self._repset,
            journals=journals,
            maps=maps,
            options=self.options,
        )
        scope = self._sender_scope = trio.CancelScope()
        process = self.sender_process = Process(self._net.world.disk, partial(self._die, scope))
        world = replace(self._net.world, disk=process)
        flows: list[Flow] = []
        try:
            for index, mount in enumerate(self.mounts):
                flows.append(self._flow(index, mount))
            self.sender = Sender(world, arguments, flows)
        except (OSError, ReplicatorError) as error:
            close_all(flows)
            self._restart(repr(error), scope, self.start_sender)
            return
        self._net.nursery.start_soon(self._run_sender, self.sender, flows, process, scope)

    def _die(self, scope: trio.CancelScope) -> None:
        scope.cancel()
        self._cut()

    def _cut(self) -> None:
        self._net.network.cut(SOURCE, self.host)

    def _restart(self, why: str, scope: trio.CancelScope, start: Callable[[], None]) -> None:
        self.ends.append(why)

        async def later() -> None:
            await trio.sleep(limits.RESTART_FIRST_S)
            if scope in (self._scope, self._sender_scope):  # nobody has killed or started it meanwhile
                start()

        self._net.nursery.start_soon(later)

    def _flow(self, index: int, mount: Mount) -> Flow:
        def make_filter() -> Filter:
            return compile_filter(self._repset, os.fsencode(mount.root))

        tree = SourceTree(os.open(mount.root, os.O_RDONLY | os.O_DIRECTORY), make_filter)
        opened = partial(Cursor.open, self._net.world, mount.settings, mount.journal_id)
        return Flow(
            index, mount.journal_id, opened(self._uuid, create=True), opened(None), make_filter(), tree
        )

    async def kill_sender(self) -> None:
        """As SIGKILL does: what is in memory is gone, what was written stays."""
        self.sender_process.dead = True
        self._sender_scope.cancel()
        self._sender_scope = trio.CancelScope()
        self._cut()
        await trio.testing.wait_all_tasks_blocked()

    async def _run_sender(
        self, sender: Sender, flows: list[Flow], process: Process, scope: trio.CancelScope
    ) -> None:
        ended = ""
        try:
            with scope:
                await sender.run()
        except BaseException as error:
            ended = why_ended(error)
        finally:  # also when the run is over, and cancels it
            close_all(flows, cursors=not sender.removed)
        if ended or process.died:
            self._restart(f"sender: {ended}", scope, self.start_sender)

    def start_receiver(self, **sizes: int) -> None:
        # The table of hard links is SQLite's own business, so that directory is real.
        home = self._home
        home.mkdir(parents=True, exist_ok=True)
        arguments = ReceiverArguments(
            home=str(home.parent.parent),
            connection_uuid=self._uuid,
            agent_uuid=f"{self.host}-agent",
            agent_name=self.host,
            memory_directory="/memory/spool",
            segment_bytes=SEGMENT_BYTES,
            **sizes,
        )
        self.target.mkdir(exist_ok=True)
        self.receiver_runs = True
        scope = self._scope = trio.CancelScope()
        process = self.receiver_process = Process(self.world.disk, partial(self._die, scope))
        try:
            self.receiver = Receiver(replace(self.world, disk=process), arguments, self._open_tree)
        except (OSError, ReplicatorError) as error:
            self.world.disk.owners.clear()
            self._restart(repr(error), scope, self.start_receiver)
            return
        self._net.nursery.start_soon(self._run_receiver, self.receiver, process, scope)

    def _open_tree(self, connect: Connect, directory: str) -> Tree:
        tree = self.open_tree(connect, directory)
        if self._net.power_fails:
            sync = tree.sync

            def noted() -> None:
                sync()
                self._synced = files_in(self.target)

            tree.sync = noted  # type: ignore[method-assign]
        return tree

    @property
    def _home(self) -> Path:
        return self._net.directory / f"home-{self.host}" / "target" / self._uuid

    async def _run_receiver(self, receiver: Receiver, process: Process, scope: trio.CancelScope) -> None:
        incoming = self._net.network.listen(self.host, PORT)
        self._listening = True
        ended = ""
        try:
            with scope:
                await run_receiver(receiver, incoming)
        except BaseException as error:
            ended = why_ended(error)
        if ended or process.died:
            self._stop_listening()
            self.world.disk.owners.clear()
            self._restart(f"receiver: {ended}", scope, self.start_receiver)

    def _stop_listening(self) -> None:
        if self._listening:
            self._net.network.close_listener(self.host, PORT)
            self._listening = False

    async def kill_receiver(self) -> None:
        """As SIGKILL does: what is in memory is gone, what was written stays."""
        self.receiver_process.dead = True
        self.receiver_runs = False
        self._scope.cancel()
        self._scope = trio.CancelScope()
        self._stop_listening()
        self._cut()
        await trio.testing.wait_all_tasks_blocked()
        self.world.disk.owners.clear()

    async def lose_target_power(self) -> None:
        """The target's host goes down, and is up again without a receiver. What its tree has lost is up to
        the test: `tear`, or `kit.power`.
        """
        await self.kill_receiver()
        self.world.disk.lose_power()
        self.world.clock.boot += 1
        for path in self._home.glob("*"):  # what is never synced, and need not be there
            path.unlink()

    def tear(self, chance: random.Random) -> None:
        """Undo, in part, what the copy has got since it was synced last: contents, new and removed names."""
        synced, now = self._synced, files_in(self.target)
        for path, inode in now.names.items():
            content = now.contents[inode]
            if path not in synced.names and chance.random() < 0.3:
                os.unlink(path)
            elif synced.contents.get(inode) != content and chance.random() < 0.6:
                times = os.stat(path)
                torn = torn_content(synced.contents.get(inode), content, chance)
                with open(path, "r+b") as file:
                    file.truncate(len(torn))
                    for start in range(0, len(torn), 4096):  # not all: there may be holes
                        if torn[start : start + 4096] != content[start : start + 4096]:
                            os.pwrite(file.fileno(), torn[start : start + 4096], start)
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        for path, inode in synced.names.items():
            gone = not os.path.lexists(path) and os.path.isdir(os.path.dirname(path))
            if path not in now.names and gone and chance.random() < 0.5:
                with open(path, "xb") as file:
                    file.write(synced.contents[inode])

    # --- looking ---

    @property
    def running(self) -> Sender:
        assert self.sender is not None
        return self.sender

    @property
    def status(self) -> ConnectionStatus:
        return self.running.status()

    async def applied(self, timeout_s: float = 600) -> bool:
        """Whether, in that time, everything captured was applied and no mirror ran any more."""
        sequences = {mount.journal_id: mount.settle() for mount in self.mounts}
        return await self.running.wait(sequences, timeout_s)

    async def drained(self) -> None:
        assert await self.applied(), self.status
        await nobody_is_left_behind(self.running)

    def assert_equal(self, ignore: frozenset[str] = frozenset()) -> None:
        for mount in self.mounts:
            assert_same_tree(mount.root, self.copy_of(mount), ignore)


def close_all(flows: list[Flow], *, cursors: bool = True) -> None:
    for flow in flows:
        flow.source.close()
        if cursors:
            flow.cursor.close()


def why_ended(error: BaseException) -> str:
    """In a word, if it is how a process may end; anything else is raised."""
    leaves = [error]
    for one in leaves:
        if isinstance(one, BaseExceptionGroup):
            leaves += one.exceptions
    why = [one for one in leaves if not isinstance(one, BaseExceptionGroup | trio.Cancelled)]
    if not why or any(not isinstance(one, ProcessDied | OSError | ReplicatorError) for one in why):
        raise error
    return repr(why[0])


class Topology:
    """Use `topology`."""

    def __init__(self, seed: int, directory: Path, nursery: trio.Nursery) -> None:
        self.seed = seed
        self.directory = directory
        self.nursery = nursery
        self.power_fails = False  # what copies have synced is noted, for `Connection.tear`
        self.network = Network(seed)
        self.world = simulated_world(seed * 7 + 1, self.dial)
        self.mounts: list[Mount] = []
        self.connections: list[Connection] = []

    async def dial(self, host: str, port: int) -> trio.abc.HalfCloseableStream:
        return await self.network.connect(SOURCE, host, port)

    def mount(self, name: str, **sizes: int) -> Mount:
        mount = Mount(self.world, self.directory / name, len(self.mounts) + 1, **sizes)
        self.mounts.append(mount)
        self.nursery.start_soon(mount.tick)
        return mount

    def connect(
        self,
        mounts: Sequence[Mount],
        host: str = "target",
        *,
        rules: Sequence[Rule] = (),
        options: SenderOptions | None = None,
        start: bool = True,
    ) -> Connection:
        """A connection of a set; without `rules` it is all of `mounts`."""
        rules = rules or [Rule(str(mount.root)) for mount in mounts]
        repset = ReplicationSet(name="set", generation=1, rules=tuple(rules))
        connection = Connection(self, mounts, host, repset, options or SenderOptions(mirror="full"))
        self.connections.append(connection)
        if start:
            connection.start_receiver()
            connection.start_sender()
        return connection


@contextlib.asynccontextmanager
async def topology(seed: int = 1, *, power_fails: bool = False) -> AsyncIterator[Topology]:
    """Its trees are removed in the end."""
    with simulated_directory() as directory:
        async with trio.open_nursery() as nursery:
            try:
                net = Topology(seed, directory, nursery)
                net.power_fails = power_fails
                yield net
                for connection in net.connections:
                    if connection.sender is not None:
                        await nobody_is_left_behind(connection.sender)
                        check_story(connection.sender.story.since())
            finally:
                nursery.cancel_scope.cancel()
