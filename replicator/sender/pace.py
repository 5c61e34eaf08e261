"""How fast the scanner of one sender reads on: its share of the time, what is on its way, how long a step
takes.

Three rules, each bounding what applications and their changes notice of a recovery: `duty.py` (the speed of
the host and the priority of the set, as the agent has shared them out), `in_flight.py` (a change waits only
so long behind pieces), and here the length of one step, at whose place the stream waits.
"""

from replicator import limits
from replicator.sender.duty import WAIT_FOR_NEWS, Duty
from replicator.sender.in_flight import InFlight
from replicator.world import Clock


class Pace:
    """`share`: see `duty.py`; it may change at any time."""

    def __init__(self, clock: Clock, share: float = 1.0) -> None:
        self._clock = clock
        self._duty = Duty(share)
        self._in_flight = InFlight()
        self._step_files = limits.STEP_FILES
        self._step_since_ns = 0

    @property
    def share(self) -> float:
        """Of its time that it may work; 0: suspended."""
        return self._duty.share

    @share.setter
    def share(self, share: float) -> None:
        self._duty.share = share

    @property
    def window_bytes(self) -> int:
        """So much may be on its way."""
        return self._in_flight.bytes

    @property
    def part_bytes(self) -> int:
        """Content to read in one step."""
        return self._in_flight.part_bytes

    @property
    def is_held(self) -> bool:
        """The target puts nothing in place, though something is on its way (MR-09)."""
        return self._in_flight.held_ns(self._clock.monotonic_ns()) > limits.MIRROR_HELD_NS

    @property
    def step_files(self) -> int:
        """Files to read in one step."""
        return min(self._step_files, limits.STEP_FILES)

    # --- the scanner ---

    def pause_s(self, *, in_flight: bool) -> float | None:
        """Until the next step may be taken: 0 for at once; None if time alone does not allow it."""
        pause_ns = self._duty.pause_ns(self._clock.monotonic_ns(), in_flight=in_flight)
        return None if pause_ns == WAIT_FOR_NEWS else pause_ns / 1e9

    def rest(self) -> None:
        """There is nothing to do, or nothing may be done."""
        self._duty.rest(self._clock.monotonic_ns())

    def step_begins(self) -> None:
        self._step_since_ns = self._clock.monotonic_ns()

    def step_ends(self) -> None:
        """Files are read in shorter steps where each of them takes long."""
        took_ns = self._clock.monotonic_ns() - self._step_since_ns
        if took_ns > limits.RECOVERY_STEP_NS:
            self._step_files = max(self.step_files * limits.RECOVERY_STEP_NS // took_ns, 1)
        elif took_ns < limits.RECOVERY_STEP_NS // 4:
            self._step_files = min(self._step_files * 2, limits.STEP_FILES)

    # --- the shipper ---

    def session_begins(self) -> None:
        self._in_flight.begin()

    def sent(self, number: int, size: int, ahead_bytes: int) -> None:
        """This batch is in the stream, and so much of a recovery before it that has not arrived."""
        self._in_flight.sent(number, size, ahead_bytes, self._clock.monotonic_ns())

    def arrived(self, number: int) -> None:
        """The target has it in place, and all before."""
        self._in_flight.arrived(number, self._clock.monotonic_ns())
