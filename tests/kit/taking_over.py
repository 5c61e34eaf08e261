"""A simulated pair whose target takes over: the steps of `agent/failover`, without agents.

record = await take_over(forward)          # the copy is promoted; its source may live, and write on
back = opened(forward)                     # programs write at the target: `back.source`
tails = await tails_of(forward, record)
back.prepare(tails, record); back.start()
await back.drained()
"""

import uuid
from collections.abc import Mapping

import trio

from kit.simulation import Simulation
from replicator.failovers import CopyFork, Promotion
from replicator.paths import Home
from replicator.queue.cursor import Cursor
from replicator.queue.dirty import DirtyMap
from replicator.receiver.prepared import prepare
from replicator.sender.arguments import Restored, SenderOptions

GROUP = str(uuid.UUID(int=99))
Tails = Mapping[str, DirtyMap | None]


async def take_over(forward: Simulation, *, drain: bool = True, epoch: int = 1) -> Promotion:
    receiver = forward.receiver
    assert receiver is not None
    exact = receiver.replica.state.data_state == "OK"
    await receiver.shut(GROUP)
    while drain and not receiver.replica.drained:  # noqa: ASYNC110 -- nobody tells
        await trio.sleep(0.01)
    await receiver.restore_begins(GROUP)
    fork = CopyFork(
        connection=forward.connection,
        parent_epoch=receiver.replica.state.epoch,
        marks={journal: (p.sequence, p.chain) for journal, p in receiver.replica.applied.marks.items()},
        exact=exact and receiver.replica.state.data_state == "OK",
    )
    record = Promotion(
        group=GROUP,
        epoch=epoch,
        parent_epoch=0,
        owner=forward.agents[1],
        owner_name=forward.hosts[1],
        copies=(fork,),
    )
    await receiver.promote(record)
    await receiver.seal()
    return record


class Back(Simulation):
    """The return connection."""

    def prepare(self, tails: Tails, record: Promotion) -> None:
        """The former source becomes its target. Paths are the same on both sides here."""
        directory = Home(str(self.home)).target(self.connection)
        (tail,) = tails.values()
        prepare(
            self.target_world,
            directory,
            self.connection,
            source_uuid=self.agents[0],
            source_name=self.hosts[0],
            epoch=record.epoch,
            tails={self.journal_id: tail},
        )

    def unmount(self) -> None:
        """The owner's directories are not captured any more: their journal goes."""
        self._keeper_scope.cancel()
        self.writer.close(persist=False)
        disk = self.source_world.disk
        places = (self.settings.memory_directory, self.settings.disk_directory)
        for path in [path for path in disk.paths() if path.startswith(places)]:
            disk.unlink(path)
        for path in [path for path in disk.pages if path.startswith(places)]:
            del disk.pages[path]

    def start(self) -> None:
        self.start_receiver()
        self.start_sender()


def opened(
    forward: Simulation, record: Promotion, seed: int, *, reader_first: bool = True, losing: bool = False
) -> Back:
    """The copy is captured: what is changed from here on is journaled."""
    options = SenderOptions(mirror=None, orphans="keep")
    back = Back(seed, forward.directory, forward.nursery, options, [], losing, forward)
    if reader_first:
        open_reader(back)
    back.epoch = record.epoch
    back.restored = Restored(f"{record.group} {record.epoch}")
    return back


def open_reader(back: Back) -> None:
    Cursor.open(back.source_world, back.settings, back.journal_id, back.connection, create=True).close()


async def tails_of(forward: Simulation, record: Promotion) -> Tails:
    """What the former source did behind the fork point; its sender ends."""
    sender = forward.sender or forward.start_sender()
    sender.supersede("superseded")
    await trio.testing.wait_all_tasks_blocked()
    (fork,) = record.copies
    found = await sender.tail(fork.marks, exact=fork.exact)
    await forward.kill_sender()
    journals = found.journals.items()
    return {journal: None if tail is None else DirtyMap.decode(tail) for journal, tail in journals}
