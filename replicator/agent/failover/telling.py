"""Tells others that a group has a new owner, right after a failover; who cannot be reached is told later, or
asks by himself: sources by `grants.py`, a witness when the first lease is renewed.
"""

from collections.abc import Awaitable, Callable

import trio

from replicator import limits
from replicator.agent.failover.procedure import Say
from replicator.agent.failover.witnesses import Witnesses
from replicator.errors import ReplicatorError
from replicator.failover.witness import Tell
from replicator.failovers import Monitor, Promotion


class TellingAll:
    """`procedure.Telling`. `others`: who else is told, by what they are called: each raises ReplicatorError
    if that one cannot be reached.
    """

    def __init__(self, witnesses: Witnesses) -> None:
        self._witnesses = witnesses
        self.others: dict[str, Callable[[Monitor, Promotion], Awaitable[object]]] = {}

    async def tell(self, monitor: Monitor, promotion: Promotion, say: Say) -> None:
        """All at once, each for `limits.FAILOVER_TELL_S` at most: nobody waits for those that are gone."""
        missed: list[str] = []

        async def one(name: str, telling: Callable[[Monitor, Promotion], Awaitable[object]]) -> None:
            try:
                with trio.fail_after(limits.FAILOVER_TELL_S):
                    await telling(monitor, promotion)
            except trio.TooSlowError:
                missed.append(f"{name}: no answer yet")
            except ReplicatorError as error:
                missed.append(f"{name}: {error}")
            else:
                say(f"{name} knows")

        async with trio.open_nursery() as nursery:
            if monitor.settings.witness:
                nursery.start_soon(one, f"witness {monitor.settings.witness}", self._tell_witness)
            for name, telling in self.others.items():
                nursery.start_soon(one, name, telling)
        if missed:
            raise ReplicatorError("; ".join(missed))

    async def _tell_witness(self, monitor: Monitor, promotion: Promotion) -> None:
        tell = Tell(agent=promotion.owner, other=monitor.source_uuid, promotion=promotion)
        await self._witnesses.at(monitor.settings.witness).promoted(monitor.uuid, tell)
