"""Feeds the meter of a connection: what its journals, its stream and its target's acknowledgements say."""

import contextlib
from collections.abc import Callable, Sequence

import trio

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import Record
from replicator.sender.flow import Flow
from replicator.sender.meter import Meter, Stage
from replicator.status import Lag
from replicator.world import World


class LagWatch:
    """The meter, its clock, and its ticks."""

    def __init__(self, world: World, flows: list[Flow]) -> None:
        self._clock = world.clock
        self._flows = flows
        self._meter = Meter(len(flows))
        self._moved = trio.Event()
        self._closed = False
        for flow, meter in zip(flows, self._meter.flows, strict=True):
            sequence, bytes_ = flow.cursor.reach()
            _, unread = flow.cursor.backlog()
            _, held = flow.cursor.held()
            there, kept = flow.cursor.position.sequence, flow.cursor.acknowledged
            meter.resume(
                (sequence, there, there, kept, kept),
                (bytes_, bytes_ - unread, bytes_ - unread, bytes_ - held, bytes_ - held),
                self._clock.monotonic_ns(),
            )

    @property
    def queue_exhausted(self) -> bool:
        """Whether a journal can take nothing at the moment."""
        return not self._closed and any(flow.cursor.losing for flow in self._flows)

    def close(self) -> None:
        """The cursors are about to go: they are not looked at any more."""
        self._closed = True

    def lag(self) -> Lag:
        self._look()
        return self._meter.lag(self._clock.monotonic_ns())

    def wake(self) -> None:
        """Whether somebody says when a journal has something new may be otherwise now."""
        self._moved.set()

    # --- what is told ---

    def resume(self, applied: Sequence[int], durable: Sequence[int]) -> None:
        """A session begins; the flows stand where the stream goes on."""
        now_ns = self._clock.monotonic_ns()
        for index, (flow, meter) in enumerate(zip(self._flows, self._meter.flows, strict=True)):
            sequence, bytes_ = flow.cursor.reach()
            _, unread = flow.cursor.backlog()
            there = bytes_ - unread
            sent = flow.position.sequence
            known_durable = min(durable[index] or sent, sent)
            held = flow.cursor.held()[1] if known_durable < sent else unread
            meter.resume(
                (sequence, sent, sent, min(applied[index] or sent, sent), known_durable),
                (bytes_, there, there, there, min(bytes_ - held, there)),
                now_ns,
            )
        self._moved.set()

    def rang(self) -> None:
        """The journals have something that they had not when they were asked last."""
        if self._closed:
            return
        now_ns = self._clock.monotonic_ns()
        for flow, meter in zip(self._flows, self._meter.flows, strict=True):
            meter.journaled(*flow.cursor.reach(), now_ns, rang=True)
        self._moved.set()

    def read(self, index: int, first: Record) -> None:
        if first.boot == self._flows[index].cursor.boot:
            self._meter.flows[index].read(first.sequence, first.monotonic_ns)

    def sent(self) -> None:
        """The stream was sent up to where the flows stand."""
        if self._closed:
            return
        now_ns = self._clock.monotonic_ns()
        for flow, meter in zip(self._flows, self._meter.flows, strict=True):
            meter.journaled(*flow.cursor.reach(), now_ns)
            meter.passed(Stage.SENT, flow.position.sequence, now_ns)
        self._moved.set()

    def acknowledged(self, received: Sequence[int], applied: Sequence[int], durable: Sequence[int]) -> None:
        now_ns = self._clock.monotonic_ns()
        for index, meter in enumerate(self._meter.flows):
            meter.passed(Stage.RECEIVED, received[index], now_ns)
            meter.passed(Stage.APPLIED, applied[index], now_ns)
            meter.passed(Stage.DURABLE, durable[index], now_ns)

    # --- ticks ---

    def _look(self) -> None:
        """See where the journals are, and how old what waits in them is."""
        if self._closed:
            return
        now_ns = self._clock.monotonic_ns()
        for flow, meter in zip(self._flows, self._meter.flows, strict=True):
            sequence, bytes_ = flow.cursor.reach()
            if sequence > flow.position.sequence:
                record = None
                with contextlib.suppress(JournalError):
                    record = flow.cursor.peek()
                if record is not None and record.boot == flow.cursor.boot:
                    meter.oldest_unsent(record.sequence, record.monotonic_ns)
            meter.journaled(sequence, bytes_, now_ns)

    async def run(self, told: Callable[[], bool]) -> None:
        """Note samples until cancelled. `told`: whether somebody says when a journal has something new; then
        nothing is done while nothing happens.
        """
        while not self._closed:
            self._moved = trio.Event()
            self._look()
            busy = self._meter.tick(self._clock.monotonic_ns(), self._clock.wall_ns() / 1e9)
            if not busy and told() and not self.queue_exhausted:
                await self._moved.wait()
            await trio.sleep(limits.METER_TICK_S)
