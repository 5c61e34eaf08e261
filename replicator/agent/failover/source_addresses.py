"""Which addresses a host has, for whoever is about to watch it (FO-01): asked of its agent.

Any agent that may ask at all is told: it could as well look at the network.
"""

import msgspec

from replicator.addresses import Address
from replicator.agent.failover.calls import Caller, Calls, Nothing
from replicator.failover import addresses

ACTION = "addresses"


class OwnAddress(msgspec.Struct, frozen=True, kw_only=True):
    """`address`: with its prefix."""

    address: str
    interface: str


class OwnAddresses(msgspec.Struct, frozen=True, kw_only=True):
    addresses: tuple[OwnAddress, ...] = ()


class SourceAddresses:
    """Of one agent, on either side. `agent`: its uuid."""

    def __init__(self, agent: str, calls: Calls) -> None:
        self._agent = agent
        self._calls = calls
        calls.register(ACTION, Nothing, self._mine)

    async def of(self, source: Address) -> tuple[OwnAddress, ...]:
        """Raises UnreachableError, and what that agent refuses."""
        # There is no group yet.
        found = await self._calls.ask(source, ACTION, self._agent, Nothing(), OwnAddresses)
        return found.addresses

    async def _mine(self, group: str, about: Nothing, caller: Caller) -> OwnAddresses:
        host = await addresses.look()
        return OwnAddresses(
            addresses=tuple(
                OwnAddress(address=str(own.address), interface=link.name)
                for own in host.addresses
                if (link := host.link(own.ifindex)) is not None
                and not (own.address.ip.is_loopback or own.address.ip.is_link_local)
            )
        )
