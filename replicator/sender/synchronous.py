"""What a sender does for programs that wait for its target (a synchronous mount).

It says in the journals whether its target can be waited for, asks the target for what is wanted, at once and
in one frame for all that wait, and tells the journals what the target has. What the target has counts only
while the copy is exact: the position of a copy to which something is still to be brought proves nothing.
"""

from collections.abc import Callable

import trio

from replicator.net.frames import Secure
from replicator.queue.answers import Teller
from replicator.sender.flow import Flow
from replicator.sender.known_copy import KnownCopy
from replicator.synchrony import Readiness


class Synchronous:
    """Of one sender. `readiness`: what it is now, while there is a session; between two checkpoints."""

    def __init__(
        self,
        flows: list[Flow],
        copy: KnownCopy,
        readiness: Callable[[], Readiness],
        hurry: Callable[[], None],
    ) -> None:
        """`hurry`: makes the shipper look at once."""
        self._flows = flows
        self._copy = copy
        self._readiness = readiness
        self._hurry = hurry
        self._tellers: list[Teller] = [flow.cursor.teller() for flow in flows]
        self._asked = [0] * len(flows)
        self._asked_received = [0] * len(flows)
        self._said = Readiness.AWAY
        self.observe()

    # --- what the target has ---

    def observe(self) -> None:
        """Whether it can be waited for may be new, or how far it is."""
        readiness = self._readiness()
        if readiness is not self._said:
            self._said = readiness
            for teller in self._tellers:
                teller.is_ready(readiness)
            self._hurry()
        if readiness is Readiness.READY:
            copy = self._copy
            for teller, secured, received in zip(self._tellers, copy.secured, copy.received, strict=False):
                teller.has(secured, received)

    # --- what is wanted ---

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for something that the target was not asked for."""
        return self._said is Readiness.READY and any(
            teller.wanted(durable=True) > asked or teller.wanted(durable=False) > asked_received
            for teller, asked, asked_received in zip(
                self._tellers, self._asked, self._asked_received, strict=False
            )
        )

    def close(self) -> None:
        """The cursors are about to go."""
        for teller in self._tellers:
            teller.is_ready(Readiness.AWAY)
            teller.remove()
        self._tellers.clear()

    def session_begins(self) -> None:
        self._asked = [0] * len(self._flows)
        self._asked_received = [0] * len(self._flows)

    def request(self) -> Secure | None:
        """What is to be sent behind what was sent last; None: nothing."""
        if self._said is not Readiness.READY:
            return None
        due = False
        for index, (flow, teller) in enumerate(zip(self._flows, self._tellers, strict=False)):
            sent = flow.position.sequence
            if self._asked[index] < teller.wanted(durable=True) <= sent:
                # Whoever wants something of what is sent by now is served by the same.
                self._asked[index], due = sent, True
            if self._asked_received[index] < teller.wanted(durable=False) <= sent:
                self._asked_received[index], due = sent, True
        return Secure(tuple(self._asked)) if due else None

    async def run(self) -> None:
        """Hear of what is wanted. Until cancelled."""
        async with trio.open_nursery() as nursery:
            for teller in self._tellers:
                nursery.start_soon(self._listen, teller)

    async def _listen(self, teller: Teller) -> None:
        bell = teller.listen()
        try:
            while True:
                await bell.wait()
                self._hurry()
        finally:
            bell.close()
