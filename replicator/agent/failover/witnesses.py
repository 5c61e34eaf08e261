"""Witnesses of the groups of this agent, as they are asked: another agent, or an etcd (`etcd.py`).

witness = witnesses.at(settings.witness)
answer = await witness.renew(group, Renew(…))      # `failover/lease.py`, `failover/witness.py`: what is said
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol, cast

from replicator import limits
from replicator.addresses import Address, parse_host_port
from replicator.agent.failover.calls import Calls
from replicator.agent.failover.witness_service import PROMOTED, RENEW, VOTE, WITHDRAW
from replicator.config import Failover
from replicator.failover.lease import Renew, Renewed
from replicator.failover.witness import Ballot, Tell, Told, Voted, Withdraw

ETCD = ("etcd://", "etcds://")


class WitnessClient(Protocol):
    """One witness. All raise UnreachableError, and ReplicatorError for what it refuses. Whoever renews counts
    the lease from before the call, however long that takes.
    """

    async def renew(self, group: str, request: Renew) -> Renewed: ...

    async def vote(self, group: str, ballot: Ballot) -> Voted:
        """Not given, with `wait_s`: to be asked again then. The same ballot may be asked as often as one
        likes.
        """
        ...

    async def promoted(self, group: str, tell: Tell) -> Told: ...

    async def withdraw(self, group: str, withdraw: Withdraw) -> Told: ...

    async def watch(self, group: str) -> None:
        """Somebody may want a vote soon: where each agent counts leases by its own clock, it begins to."""
        ...


class Witnesses:
    """Of one agent. `settings`: the present configuration."""

    def __init__(self, calls: Calls, settings: Callable[[], Failover] = Failover) -> None:
        self._calls = calls
        self._settings = settings
        self._known: dict[str, WitnessClient] = {}

    def at(self, name: str) -> WitnessClient:
        """As `MonitorSettings.witness` spells it. Raises UsageError."""
        if name not in self._known:
            if name.startswith(ETCD):
                etcd = _etcd()
                witness = etcd.EtcdWitness(etcd.parse_etcd(name), access=self._access)
                self._known[name] = cast(WitnessClient, witness)
            else:
                self._known[name] = AgentWitness(self._calls, parse_host_port(name))
        return self._known[name]

    def _access(self) -> Any:
        settings = self._settings()
        user, file = settings.etcd_user, settings.etcd_password_file
        return _etcd().Access(user, file, settings.etcd_authorities)


def check(name: str) -> None:
    """Whether a witness is spelled as it should be. Raises UsageError."""
    if name.startswith(ETCD):
        _etcd().parse_etcd(name)
    else:
        parse_host_port(name)


def _etcd() -> Any:
    """Loaded when it is needed: HTTP and TLS take a tenth of a second."""
    return import_module("replicator.agent.failover.etcd")


class AgentWitness:
    """A third agent."""

    def __init__(self, calls: Calls, address: Address) -> None:
        self._calls = calls
        self._address = address

    async def renew(self, group: str, request: Renew) -> Renewed:
        return await self._calls.ask(
            self._address, RENEW, group, request, Renewed, timeout_s=limits.WITNESS_CALL_S
        )

    async def vote(self, group: str, ballot: Ballot) -> Voted:
        return await self._calls.ask(
            self._address, VOTE, group, ballot, Voted, timeout_s=limits.WITNESS_CALL_S
        )

    async def promoted(self, group: str, tell: Tell) -> Told:
        return await self._calls.ask(
            self._address, PROMOTED, group, tell, Told, timeout_s=limits.WITNESS_CALL_S
        )

    async def withdraw(self, group: str, withdraw: Withdraw) -> Told:
        return await self._calls.ask(
            self._address, WITHDRAW, group, withdraw, Told, timeout_s=limits.WITNESS_CALL_S
        )

    async def watch(self, group: str) -> None:
        """It counts by its own clock."""
