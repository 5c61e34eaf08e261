"""The receiver: spools what arrives, and a replica applies it.

The network task (`sessions.py`) has each frame verified and appended to the spool (`intake.py`); the replica
(`replica.py`) applies the spool whether a session is there or not; a report task (`reporter.py`) sends the
three marks, refusals and states. Everything comes through the World, so that the simulator runs it as it is.
"""

import os
import sys
from collections.abc import Callable

import msgspec
import trio

from replicator import config
from replicator.errors import JournalError, ReplicatorError
from replicator.failovers import Promotion
from replicator.mirror.local_copy import Wanted
from replicator.net.frames import Connect
from replicator.orphans import OrphanSettings
from replicator.paths import Home
from replicator.queue.settings import JournalSettings
from replicator.receiver.arguments import ReceiverArguments
from replicator.receiver.drift import Drift, one_for_each_journal
from replicator.receiver.drift_watch import DriftWatch
from replicator.receiver.drill_hold import DrillHold
from replicator.receiver.intake import Intake
from replicator.receiver.local_offers import OwnProcesses
from replicator.receiver.position_file import PositionFile
from replicator.receiver.receiver_status import ReceiverStatus, status_of
from replicator.receiver.recovery import Remains, Standing, open_page
from replicator.receiver.refused_file import RefusedFile
from replicator.receiver.replica import Replica
from replicator.receiver.replica_state import ReplicaState, StateFile
from replicator.receiver.replica_tree import ReplicaTree, Tree, release, remove_unfinished
from replicator.receiver.reporter import Reporter
from replicator.receiver.sessions import Sessions
from replicator.receiver.spool import Spool
from replicator.world import World


class Receiver:
    """See the module. `run` until `stop` or `forget`; everything else may be called while it runs."""

    def __init__(
        self,
        world: World,
        arguments: ReceiverArguments,
        open_tree: Callable[[Connect, str], Tree] = ReplicaTree,
    ) -> None:
        """Opens state and spool. Raises ReplicatorError if they are damaged or another process has them."""
        self.forgotten = False
        self._world = world
        self._arguments = arguments
        self._directory = directory = Home(arguments.home).target(arguments.connection_uuid)
        self._memory = memory = arguments.memory_directory
        self._spool_directory = arguments.disk_directory or os.path.join(directory, "spool")
        world.disk.makedirs(directory)
        world.disk.makedirs(memory)
        state_file = StateFile(world, directory)
        state = state_file.load() or ReplicaState(connection_uuid=arguments.connection_uuid)
        settings = JournalSettings(
            memory,
            self._spool_directory,
            arguments.segment_bytes,
            arguments.memory_bytes,
            arguments.disk_bytes,
            arguments.disk_free_min_bytes,
        )
        self._spool = spool = Spool(world, settings, arguments.connection_uuid)
        try:
            self._positions = PositionFile(world, directory)
            self._received_page = open_page(world, memory, "received")
            self._applied_page = open_page(world, memory, "applied")
            refused_file = RefusedFile(world, memory)
            remains = Remains(
                world,
                directory,
                spool,
                state_file,
                self._positions,
                self._received_page,
                self._applied_page,
                refused_file,
            )
            found = remains.recover(state)
        except BaseException:
            spool.close()
            raise
        self.replica = Replica(
            world,
            spool,
            state_file,
            found.state,
            self._positions,
            found.applied,
            self._applied_page,
            found.refused,
            refused_file.save,
            lambda connect: open_tree(connect, directory),
            self._news_here,
            _drift(world, directory, found),
            found.comes_again,
            arguments.orphans,
        )
        self.own = OwnProcesses()
        self._drift_watch = DriftWatch(
            world,
            self.replica,
            Home(arguments.home).bell,
            self.own,
            wanted=arguments.watch != config.WATCH_OFF,
        )
        self.drill_hold = DrillHold(self.replica)
        self._intake = Intake(spool, self.replica, found.received, self._received_page, self._news_here)
        self._reporter = Reporter(self.replica, self._intake, spool)
        self.replica.durability.answered = self._reporter.hurry
        self._sessions = Sessions(arguments, self.replica, self._intake, self._reporter, self.forget)
        self._restored = ""  # the restore that makes void what was received and not applied

    # --- what the agent asks for ---

    def adopt(
        self, stream: trio.abc.Stream, first_bytes: bytes = b"", other_targets: tuple[str, ...] = ()
    ) -> None:
        """See `Sessions.adopt`."""
        self._sessions.adopt(stream, first_bytes, other_targets)

    def pause(self) -> None:
        """PT-01: apply nothing; what arrives is spooled."""
        self.replica.halts.pause()

    def resume(self) -> None:
        self.replica.halts.resume()

    async def restore_begins(self, restore: str) -> None:
        """The copy stands still until `restore_ends` or `restored`, and is durable as it is now."""
        await self.replica.ownership.hold_for(restore)
        self.drill_hold.keep()

    async def restore_ends(self, restore: str) -> None:
        """The copy is what it was, and goes on."""
        await self.replica.ownership.release(restore)
        self.drill_hold.keep()

    def drop_peer(self, uuid: str) -> None:
        """That agent is trusted no more: a session with it ends at once."""
        self._sessions.drop_peer(uuid)

    async def restored(self, restore: str, epoch: int, source_uuid: str = "") -> None:
        """A source was restored from the copy. This process ends; for the next one, what was received and not
        applied never was.
        """
        if self.replica.state.restoring != restore:
            return  # it was done already
        await self.replica.ownership.restored(epoch, source_uuid)
        self._restored = restore
        self._end("the source was restored from this copy")

    async def shut(self, group: str) -> None:
        """No source is let in any more: the copy is being taken over. A session that is there ends."""
        await self.replica.ownership.shut(group)
        self._sessions.break_off(f"{self._arguments.agent_name} is taking over")

    async def reopen(self, group: str) -> None:
        """It is not taken over after all."""
        await self.replica.ownership.reopen(group)

    async def promote(self, record: Promotion) -> None:
        """The data belongs to this host now; see `Ownership.promote`."""
        await self.replica.ownership.promote(record)

    async def learn(self, record: Promotion) -> None:
        """Another host owns what the source of this copy had. A session with that ends."""
        await self.replica.ownership.learn(record)
        self._sessions.break_off(f"{record.owner_name} has taken over")

    async def seal(self) -> dict[str, bytes | None]:
        """What is changed in the copy from now on is captured. By journal id: what others had changed before,
        as an encoded dirty map in terms of the former source's paths; None: anything.
        """
        replica = self.replica
        if replica.ownership.is_promoted and replica.state.closed:
            await self._drift_watch.look_now()
            await replica.ownership.seal()
            self._drift_watch.look_again()
        return {
            report.journal_id: None if report.dirty is None else report.encoded
            for report in one_for_each_journal(replica.drift.reports)
        }

    def set_orphans(self, settings: OrphanSettings) -> None:
        """How orphans are handled from now on; what was decided already goes on."""
        self.replica.orphans.settings = settings
        self.replica.tell()

    def offer(self, wanted: Wanted) -> int | None:
        """To a sender on this host."""
        tree = self.replica.in_use.tree
        try:
            return tree.offer(*msgspec.structs.astuple(wanted)) if tree is not None else None
        except ReplicatorError:  # it is none of the copy's places
            return None

    def stop(self) -> None:
        """End `run` cleanly; the next process goes on here."""
        self._end("the target is being stopped")

    def forget(self) -> None:
        """End `run` and remove what is known of the connection. The copy stays as it is."""
        self.forgotten = True
        self._end("the connection was deleted on the target")

    def _end(self, reason: str) -> None:
        self.replica.stop()
        self._sessions.end(reason)

    def status(self) -> ReceiverStatus:
        return status_of(
            self._arguments,
            self.replica,
            self._intake,
            self._spool,
            self._drift_watch.state,
            connected=self._sessions.connected,
        )

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve sessions and apply, until `stop` or `forget`. Cancelling it is like a kill: nothing is
        lost.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.replica.durability.keep_durable)
                nursery.start_soon(self.replica.durability.keep_secure)
                nursery.start_soon(self._drift_watch.run)
                nursery.start_soon(self.drill_hold.run)
                task_status.started()
                async with trio.open_nursery() as working:
                    working.start_soon(self._apply)
                    working.start_soon(self._sessions.run)
                await self._drift_watch.look_now()
                nursery.cancel_scope.cancel()
            if self._restored:
                self.replica.spool_lost()
                self._intake.spool_lost("the source was restored from this copy")
                await self.replica.ownership.release(self._restored)
            if not self.forgotten:
                try:
                    await self.replica.durability.make_durable(clean=True)
                except OSError as error:
                    print(f"stopped without sync: {error}", file=sys.stderr, flush=True)
        finally:
            self.replica.close()
            self._spool.close()
            self._positions.close()
            self._received_page.close()
            self._applied_page.close()
            self._sessions.close()
        if self.forgotten:
            self._release()
            self._remove_everything()

    def _release(self) -> None:
        connect = self.replica.state.connect
        if connect is None:
            return
        try:
            release(connect)
        except OSError as error:
            self._log(f"the copy may still be locked, see findmnt: {error}")
        try:
            remove_unfinished(connect)
        except OSError as error:
            self._log(f"unfinished files are left in the copy: {error}")

    async def _apply(self) -> None:
        while True:
            try:
                await self.replica.run()
                return
            except JournalError as error:  # AD-03: an I/O error, or damage
                reason = f"the target's queue is lost, what it held has to come again: {error}"
                self._log(reason)
                self.replica.spool_lost()
                self._intake.spool_lost(reason)
                self._sessions.break_off(reason)

    def _remove_everything(self) -> None:
        disk = self._world.disk
        for directory in (self._memory, self._spool_directory, self._directory):
            for name in disk.listdir(directory) if disk.exists(directory) else ():
                path = os.path.join(directory, name)
                if path != os.path.join(self._directory, "spool"):
                    disk.unlink(path)

    def _news_here(self) -> None:
        """A mark, a status or a refusal is new."""
        self._reporter.news()
        self._intake.look_for_room()

    def _log(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _drift(world: World, directory: str, found: Standing) -> Drift:
    """What the source is to be told that is not as it should be; anything, if nobody knows what it was."""
    drift, state = Drift(world, directory), found.state
    forgotten = state.lacking_since_ns is not None and not found.refused
    if drift.damaged or forgotten or (state.drifted and not drift.pending):
        for journal in state.connect.journals if state.connect is not None else ():
            drift.add(journal.journal_id, None)
        drift.tell()
    return drift
