"""What makes a mount with the kernel binding outlive its capture, whether that is killed or reloaded: a
holder of the capture's descriptors, and files beside the journal's memory tier.

`holder`: where the holder is and what was agreed with the kernel. `nodes`: the ledger. `intent`: the change
of a name under way. `opens`: which files the kernel reads by itself. `held`: replies that wait for targets.
"""

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, replace

import trio

from replicator import limits
from replicator.capture.held_mount import HOLDER
from replicator.fs import holder, ledger
from replicator.fs.held_notes import HeldNotes
from replicator.fs.holder import Descriptors, Held, HolderError
from replicator.fs.intent import Intent
from replicator.fs.kernel_protocol import Agreement, InitFlag
from replicator.fs.ledger import Known, Ledger
from replicator.fs.open_modes import OpenNotes

logger = logging.getLogger(__name__)

FORMAT = 3
"""Of what is kept for a successor: the files named here, and which descriptors the holder has.

A software with another number cannot take over.
"""

_NODES, _INTENT, _OPENS, _HELD = "nodes", "intent", "opens", "held"


@dataclass(frozen=True)
class Resumption:
    """What a killed predecessor left, taken over."""

    descriptors: Descriptors
    agreement: Agreement
    held: Held  # a holder of this process's own
    alive: list[Known]


def take(memory_directory: str) -> Resumption | None:
    """Take over from a killed predecessor, if one left what it takes.

    To be called before the process opens anything of its own: each descriptor keeps its number. Whatever is
    missing ends the old holder: then its mount is dead, as without it.
    """
    note = os.path.join(memory_directory, HOLDER)
    held = holder.find(note)
    if held is None or holder.is_owned(held):
        return None
    try:
        if not held.minor:
            raise HolderError("it ended before the kernel had said what it speaks")
        entries = ledger.read(os.path.join(memory_directory, _NODES))
        alive = list(ledger.known(entries).values())
        descriptors = holder.take(held)
        own = _held_by(holder.start(), held)
        holder.note(note, own)
    except (OSError, ValueError, HolderError) as error:
        logger.warning("the former process's mount cannot be taken over: %s", error)
        holder.end(held)
        return None
    # It has the predecessor's own descriptors as well, the claim to the journal and its socket among them.
    holder.end(held)
    return Resumption(descriptors, Agreement(held.minor, InitFlag(held.flags)), own, alive)


def _held_by(pid: int, like: Held) -> Held:
    """The same, by a holder of this process."""
    own = os.getpid()
    return replace(
        like, pid=pid, started=holder.start_time(pid), owner=own, owner_started=holder.start_time(own)
    )


def _reap(pid: int, options: int = 0) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, options)


class Provision:
    """What a running capture keeps for its successor. Where that cannot be kept, it goes on without."""

    def __init__(self, memory_directory: str, held: Held | None = None) -> None:
        """`held`: of a `Resumption`; there is a holder already then."""
        self._directory = memory_directory
        self._held = held
        self.ledger: Ledger | None = None
        self.intent: Intent | None = None
        self.open_notes: OpenNotes | None = None
        self.held_notes: HeldNotes | None = None
        try:
            if held is None:
                self._discard(_OPENS)  # of a mount that is dead
                self._discard(_HELD)
            self.ledger = Ledger(self._path(_NODES), resume=held is not None)
            self.intent = Intent(self._path(_INTENT))
            self.open_notes = OpenNotes(self._path(_OPENS))
            self.held_notes = HeldNotes(self._path(_HELD))
        except (OSError, ValueError) as error:
            self._without(error)
            self.end()  # what a predecessor wrote is true no more

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _discard(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def _without(self, error: Exception) -> None:
        logger.warning("a kill of this process would not be survived: %s", error)

    def hold(self, fuse: int, root: int) -> None:
        """From here on the descriptors outlive this process; of use once there is an agreement."""
        if self.open_notes is not None:  # the last of what is needed
            self._start(Held(0, "", 0, "", fuse, root, minor=0, flags=0))

    def agreed(self, agreement: Agreement) -> None:
        """The kernel has said what it speaks."""
        if self._held is None:
            return
        if not agreement.flags & InitFlag.HAS_RESEND:
            self.end()  # Linux before 6.9: it would not hand anything out again
            return
        self._held = replace(self._held, minor=agreement.minor, flags=int(agreement.flags))
        try:
            holder.note(self._path(HOLDER), self._held)
        except OSError as error:
            self._without(error)

    @property
    def agreed_flags(self) -> InitFlag:
        """What was agreed with the kernel; none while it is not known, or nothing is kept."""
        return InitFlag(0) if self._held is None else InitFlag(self._held.flags)

    @property
    def is_complete(self) -> bool:
        """Whether a successor would find all it needs."""
        return self._held is not None and bool(self._held.minor)

    async def keep(self) -> None:
        """Until `end`: make another holder when one has ended."""
        while self._held is not None:
            try:
                process = os.pidfd_open(self._held.pid)
            except OSError:  # it has ended already, and somebody else has been told
                process = -1
            if process >= 0:
                try:
                    await trio.lowlevel.wait_readable(process)
                finally:
                    os.close(process)
            if self._held is None:
                return
            logger.warning("the process that holds the descriptors has ended: making another")
            _reap(self._held.pid, os.WNOHANG)
            await trio.sleep(limits.HOLDER_PAUSE_S)
            self._start(self._held)

    def _start(self, like: Held) -> None:
        try:
            self._held = _held_by(holder.start(), like)
            holder.note(self._path(HOLDER), self._held)
        except OSError as error:
            self._held = None
            self._without(error)

    def end(self) -> None:
        """The file system is gone, or no successor could do anything with it."""
        held, self._held = self._held, None
        if held is not None:
            holder.end(held)
            _reap(held.pid)
        self._discard(HOLDER)

    def remove(self) -> None:
        """`end`, and leave no file behind. The file system uses none of them any more."""
        self.end()
        if self.ledger is not None:
            self.ledger.remove()
        if self.intent is not None:
            self.intent.remove()
        if self.open_notes is not None:
            self.open_notes.remove()
        if self.held_notes is not None:
            self.held_notes.remove()
