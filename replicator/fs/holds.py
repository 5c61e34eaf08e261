"""Replies that wait until the targets of a synchronous mount have what they tell of.

A reply that waits holds no thread and no lock: other requests are served meanwhile, whatever they are.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from replicator.fences import WAITING
from replicator.fs.fence import ERRNO, Fence
from replicator.fs.held_notes import HeldNotes
from replicator.fs.kernel_binding import NAME_OPERATIONS, Failure, Header, Held, Reply, Sync
from replicator.fs.kernel_protocol import RESENT
from replicator.fs.passthrough import Passthrough
from replicator.fs.tickets import Synchrony


class Gate:
    """Handles requests of a synchronous mount: says which replies have to wait. Under the lock."""

    def __init__(
        self,
        handle: Callable[[Header], Reply],
        passthrough: Passthrough,
        synchrony: Synchrony,
        notes: HeldNotes | None = None,
    ) -> None:
        """`notes`: for a successor that is handed requests out again whose replies wait."""
        self._notes = notes
        self._handle = handle
        self._fs = passthrough
        self._synchrony = synchrony

    def handle(self, header: Header) -> Reply:
        fs, synchrony = self._fs, self._synchrony
        before = fs.head_sequence
        reply = self._handle(header)
        if type(reply) is Sync:
            path = fs.handle_path(reply.handle)
            # Asked before the storage here is synced: both take their time at the same time.
            ticket = synchrony.want(path, durable=True) if path is not None else None
            return reply if ticket is None else reply._replace(reply=Held(reply.reply, ticket))
        if not synchrony.of_all or reply is None:
            return reply
        # What a predecessor has done is journaled already.
        if fs.head_sequence != before or header[2] & RESENT:
            ticket = synchrony.want(None, durable=False)
            if ticket is not None:
                if self._notes is not None and header[1] in NAME_OPERATIONS and type(reply) is bytes:
                    self._notes.note(header[2] & ~RESENT, reply)
                return Held(reply, ticket)
        return reply


class _Waiting(NamedTuple):
    header: Header
    held: Held


class Holds:
    """Of one mount. `hold` may be called by any thread, all else by the one that serves."""

    def __init__(
        self,
        reply: Callable[[Header, Reply], None],
        wake: Callable[[], None],
        notes: HeldNotes | None = None,
    ) -> None:
        """`wake` makes the serving thread call `tend`. `notes`: see `Gate`."""
        self._notes = notes
        self._reply = reply
        self._wake = wake
        self._waiting: deque[_Waiting] = deque()
        self.fence: Fence | None = None
        """Closed, it lets out no promise: that targets were given up meanwhile says that they lack it."""

    @property
    def are_pending(self) -> bool:
        """Whether `tend` may have something to do."""
        return bool(self._waiting)

    def hold(self, header: Header, held: Held) -> None:
        if (reply := self._due(held)) is not None:
            self._answer(header, reply)
            return
        self._waiting.append(_Waiting(header, held))
        self._wake()  # it may have been met while nobody was there to be rung

    def tend(self) -> None:
        """Give the replies that have waited long enough, in their order."""
        for _ in range(len(self._waiting)):
            waiting = self._waiting.popleft()
            if (reply := self._due(waiting.held)) is not None:
                self._answer(waiting.header, reply)
            else:
                self._waiting.append(waiting)

    def _due(self, held: Held) -> Reply:
        """None: it has to wait."""
        mode = self.fence.closed() if self.fence is not None else None
        if mode is not None:
            return None if mode in WAITING else Failure(ERRNO[mode])
        return held.reply if held.ticket.is_met() else None

    def _answer(self, header: Header, reply: Reply) -> None:
        self._reply(header, reply)
        if self._notes is not None:
            self._notes.answered(header[2] & ~RESENT)

    def finish(self, *, is_left: bool, error: int = 0) -> None:
        """Nobody serves any more. `is_left`: a successor is asked for them again. Else they are given now, or
        this `error` in their place.
        """
        while self._waiting:
            waiting = self._waiting.popleft()
            if not is_left:
                self._answer(waiting.header, Failure(error) if error else waiting.held.reply)
