"""Whether programs of a mount wait for its targets, and for which: the states of its synchronous connections.

Whoever serves asks `want` what a reply has to wait for, and looks at the ticket whenever the targets have
rung. Nothing here waits. `look` moves the states, a few times a second: a target that lets programs wait for
longer than the time allowed is given up (`degrade`), or they wait on (`strict`). One that was given up is
asked for the end of the journal as programs would; when it answers in half the time, programs wait again.

Guarded by the lock of the journal, but for tickets: these are looked at by whoever holds a reply.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple
from uuid import UUID

from replicator import limits
from replicator.mount_options import DEFAULTS, MountOptions
from replicator.queue.answers import Answers
from replicator.queue.header import identify
from replicator.states import Machine
from replicator.synchrony import LASTING, SYNC, WHY, Readiness, SyncEvent, SyncState, SyncView
from replicator.world import Clock


class _Wait(NamedTuple):
    sequence: int
    durable: bool
    began_ns: int


class _Connection:
    """One that is waited for, or was given up."""

    def __init__(
        self, uuid: str, answers: Answers, moved: Callable[["_Connection"], None], at_start: bool
    ) -> None:
        self.uuid = uuid
        self.reader: UUID = identify(uuid)
        self.inside: tuple[bytes, ...] = ()  # where its set begins, each with a slash behind; b"": everywhere
        self.slot = answers.find(self.reader)
        self.readiness = Readiness.AWAY
        self.unready_ns: int | None = None  # since when it is not ready
        self.waits: deque[_Wait] = deque()
        self.probe: _Wait | None = None
        self.left_ns = 0
        self.since_ns = 0  # by the wall clock
        self.times = 0
        self._answers = answers
        noted = answers.noted(self.slot) if self.slot is not None else False
        if noted is None and self.slot is not None:
            # The first process of this boot: what was synchronous before is so until the time is over.
            noted = at_start and answers.has_ever(self.slot)
        self.counts = bool(noted)
        """Whether programs wait for it."""
        state = SyncState.SYNCHRONOUS if self.counts else SyncState.DEGRADED
        self.machine: Machine[SyncState, SyncEvent] = Machine(SYNC, state, partial(self._moved, moved))
        self.machine.reason = "" if self.counts else "it has not caught up yet"

    def _moved(
        self,
        tell: Callable[["_Connection"], None],
        before: SyncState,
        after: SyncState,
        event: SyncEvent,
        reason: str,
    ) -> None:
        self.counts = after is not SyncState.DEGRADED
        if self.slot is not None:
            self._answers.note(self.slot, synchronous=self.counts)
        if after is not before:
            self.times += before is SyncState.SYNCHRONOUS
            self.waits = self.waits if self.counts else deque()
            tell(self)

    def concerns(self, path: bytes) -> bool:
        return self.inside == (b"",) or (path + b"/").startswith(self.inside)

    def has(self, sequence: int, *, durable: bool) -> bool:
        return self.slot is not None and self._answers.has(self.slot, sequence, durable=durable)

    def ask(self, wait: _Wait) -> None:
        if self.slot is not None:
            self._answers.want(self.slot, self.reader, wait.sequence, durable=wait.durable)

    def note(self, wait: _Wait) -> None:
        """Somebody waits for it. Those that begin at about the same time count from the first of them."""
        last = self.waits[-1] if self.waits else None
        if (
            last is not None
            and last.durable == wait.durable
            and wait.began_ns - last.began_ns < limits.SYNCHRONY_GATHER_NS
        ):
            self.waits[-1] = wait._replace(began_ns=last.began_ns)
        else:
            self.waits.append(wait)


class Ticket:
    """What a reply has to wait for."""

    __slots__ = ("_connections", "_durable", "_sequence")

    def __init__(self, connections: list[_Connection], sequence: int, durable: bool) -> None:
        self._connections = connections
        self._sequence = sequence
        self._durable = durable

    def is_met(self) -> bool:
        """Whether all have it that still count."""
        for connection in self._connections:
            if connection.counts and not connection.has(self._sequence, durable=self._durable):
                return False
        return True


class Synchrony:
    """Of one mount. `changed` hears of each state that is another one."""

    def __init__(
        self, answers: Answers, head: Callable[[], int], clock: Clock, changed: Callable[[], None]
    ) -> None:
        """`head`: the sequence that a target must have to have all that was done."""
        self.options = DEFAULTS
        self.bell_path = answers.bell_path
        self._answers = answers
        self._head = head
        self._clock = clock
        self._changed = changed
        self._sets: dict[str, tuple[bytes, ...]] = {}
        self._connections: dict[str, _Connection] = {}

    # --- what is to be ---

    def start(self, options: MountOptions, sets: Mapping[str, Iterable[bytes]]) -> None:
        """A process begins: what its predecessor waited for is waited for still."""
        self.options = options
        self._sets = {uuid: tuple(prefixes) for uuid, prefixes in sets.items()}
        self._settle(at_start=True)

    def configure(self, options: MountOptions) -> None:
        self.options = options
        self._settle()

    def set_connections(self, sets: Mapping[str, Iterable[bytes]]) -> None:
        """Which connections count, by uuid, and where in the mount their sets begin."""
        self._sets = {uuid: tuple(prefixes) for uuid, prefixes in sets.items()}
        self._settle()

    def _settle(self, *, at_start: bool = False) -> None:
        sets = self._sets if self.is_on else {}
        for uuid in self._connections.keys() - sets.keys():
            self._connections.pop(uuid).counts = False
        for uuid, prefixes in sets.items():
            connection = self._connections.get(uuid)
            if connection is None:
                connection = self._connections[uuid] = _Connection(uuid, self._answers, self._moved, at_start)
                connection.since_ns = self._clock.wall_ns()
            everywhere = b"" in prefixes
            connection.inside = (b"",) if everywhere else tuple(prefix + b"/" for prefix in prefixes)

    def _moved(self, connection: _Connection) -> None:
        connection.since_ns = self._clock.wall_ns()
        connection.left_ns = self._clock.monotonic_ns()
        self._changed()

    # --- what whoever serves asks ---

    @property
    def is_on(self) -> bool:
        return self.options.sync != "async"

    @property
    def of_all(self) -> bool:
        """Whether all operations wait, and not only what programs make durable."""
        return self.options.sync == "all"

    @property
    def is_strict(self) -> bool:
        return self.options.sync_policy == "strict"

    def want(self, path: bytes | None, *, durable: bool) -> Ticket | None:
        """What a reply has to wait for that tells a program that all done so far is durable at `path`, or
        received (not `durable`). None: for nothing. `path` None: wherever it is.
        """
        sequence = self._head()
        lacking = [
            connection
            for connection in self._connections.values()
            if connection.counts
            and (path is None or connection.concerns(path))
            and not connection.has(sequence, durable=durable)
        ]
        if not lacking:
            return None
        wait = _Wait(sequence, durable, self._clock.monotonic_ns())
        for connection in lacking:
            connection.note(wait)
            connection.ask(wait)
        return Ticket(lacking, sequence, durable)

    # --- the states ---

    def look(self) -> None:
        """Move those whose time has come."""
        now_ns = self._clock.monotonic_ns()
        timeout_ns = int(self.options.sync_timeout * 1e9)
        for connection in self._connections.values():
            slot = connection.slot = self._answers.find(connection.reader)
            readiness = self._answers.readiness(slot) if slot is not None else Readiness.AWAY
            connection.readiness = readiness
            if readiness is Readiness.READY:
                connection.unready_ns = None
            elif connection.unready_ns is None:
                connection.unready_ns = now_ns
            if connection.counts:
                self._look_at_waits(connection, now_ns, timeout_ns)
            else:
                self._look_for_return(connection, now_ns, timeout_ns)

    def _look_at_waits(self, connection: _Connection, now_ns: int, timeout_ns: int) -> None:
        waits, machine = connection.waits, connection.machine
        while waits and connection.has(waits[0].sequence, durable=waits[0].durable):
            waits.popleft()
        lasting = connection.readiness in LASTING
        overdue = bool(waits) and (lasting or now_ns - waits[0].began_ns > timeout_ns)
        if self.is_strict:
            if overdue:
                machine.happen(SyncEvent.OVERDUE, WHY[connection.readiness])
            elif not waits and machine.state is SyncState.WAITING:
                machine.happen(SyncEvent.CAUGHT_UP)
            return
        unready_ns = connection.unready_ns
        gone = lasting or (unready_ns is not None and now_ns - unready_ns > timeout_ns)
        if overdue or gone:
            machine.happen(SyncEvent.GIVEN_UP, WHY[connection.readiness])

    def _look_for_return(self, connection: _Connection, now_ns: int, timeout_ns: int) -> None:
        probe, machine = connection.probe, connection.machine
        if connection.readiness is not Readiness.READY:
            connection.probe = None
            if machine.reason != WHY[connection.readiness]:
                machine.happen(SyncEvent.OVERDUE, WHY[connection.readiness])
        elif probe is None:
            if now_ns - connection.left_ns >= limits.SYNCHRONY_RETURN_S * 1e9:
                connection.probe = _Wait(self._head(), True, now_ns)
                connection.ask(connection.probe)
        elif connection.has(probe.sequence, durable=True):
            connection.probe = None
            machine.happen(SyncEvent.CAUGHT_UP)
        elif now_ns - probe.began_ns > timeout_ns // 2:
            connection.probe = None  # programs would have to wait for too long
            connection.left_ns = now_ns

    def views(self) -> list[SyncView]:
        return [
            SyncView(
                connection=connection.uuid,
                state=connection.machine.state,
                since=connection.since_ns / 1e9,
                reason=connection.machine.reason,
                waiting=len(connection.waits),
                times=connection.times,
            )
            for connection in self._connections.values()
        ]
