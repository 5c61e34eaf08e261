"""Orphans, as seen from a source: whether its mirrors say all names, runs that compare nothing else, and what
the target tells of them.

What is removed is decided and done on the target, see `replicator.mirror.orphans`.
"""

from collections.abc import Callable

import msgspec

from replicator import limits
from replicator.errors import RemoteProtocolError, ReplicatorError, UsageError
from replicator.net.frames import Connected, Orphans, OrphanTask
from replicator.net.session import Session
from replicator.orphans import FORCE, PREVIEW, START, OrphanReport
from replicator.sender.changes import Changes
from replicator.sender.mirror_commands import MirrorCommands
from replicator.sender.mirrors import Mirrors


class OrphanControl:
    """Of one sender."""

    def __init__(
        self, mirrors: Mirrors, commands: MirrorCommands, changes: Changes, ring: Callable[[], object]
    ) -> None:
        """`ring`: the agent is to look, for a run has ended."""
        self._ring = ring
        self.ended: Callable[[OrphanReport], None] = lambda report: None
        """Hears how each run ended on the target, perhaps again in each session."""
        self.report = OrphanReport()  # of the target, with its names
        self._mirrors = mirrors
        self._commands = commands
        self._changes = changes
        self._understood = False
        self._names: list[str] = []
        self._names_bytes = 0

    def session_begins(self, connected: Connected) -> None:
        self._understood = connected.orphans is not None
        self._mirrors.want_orphans(bool(connected.orphans))

    def told(self, orphans: Orphans) -> None:
        """What the target says. msgspec.DecodeError if it cannot be read."""
        self._mirrors.want_orphans(orphans.wanted)
        report = msgspec.msgpack.decode(orphans.report, type=OrphanReport)
        if orphans.first == 0:
            self._names, self._names_bytes = [], 0
        if orphans.first == len(self._names):
            self._names += orphans.names
            self._names_bytes += sum(len(name.encode()) for name in orphans.names)
            if self._names_bytes > 2 * limits.ORPHANS_TOLD_BYTES:
                raise RemoteProtocolError("the target tells more names of orphans than it may")
        ended = not report.at_work and report.finished != self.report.finished
        self.report = msgspec.structs.replace(report, names=tuple(self._names))
        if ended:
            self.ended(report)
            self._ring()
        self._changes.notify()

    def start(self, mode: str, session: Session | None) -> str:
        """Compare all names. Returns the id of the run, which the report of its end has."""
        if mode not in (PREVIEW, START, FORCE):
            raise UsageError(f"unknown way to handle orphans {mode!r}")
        self._check(session)
        self._commands.find_orphans(mode)
        assert self._mirrors.run is not None
        return self._mirrors.run.run_id

    async def act(self, action: str, session: Session | None) -> None:
        """`pause`, `resume` or `stop`: the comparison of names, or what the target removes."""
        checked = self._check(session)
        run = self._mirrors.run
        comparing = run is not None and run.looks_for_orphans
        if not comparing and not self.report.at_work:
            raise ReplicatorError("no orphans are being handled")
        if comparing:
            if action == "pause":
                self._commands.pause()
            elif action == "resume":
                self._commands.resume()
            else:
                self._commands.stop_orphans()
        else:
            await checked.send(OrphanTask(action))

    def _check(self, session: Session | None) -> Session:
        if session is None:
            raise ReplicatorError("the target is not connected: its orphans are not known")
        if not self._understood:
            raise ReplicatorError("the target's agent is of a release that does not handle orphans")
        return session
