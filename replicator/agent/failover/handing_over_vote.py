"""Asks the witness of a group to agree to a hand-over, as its owner, which has stopped."""

from collections.abc import Callable

from replicator.agent.failover.failback_parts import Say
from replicator.agent.failover.witnesses import Witnesses
from replicator.errors import ReplicatorError, UnreachableError
from replicator.failover.terms import terms_of
from replicator.failover.witness import Ballot, Tell
from replicator.failovers import Monitor, Promotion


class HandingOverVote:
    """Of one agent, by its uuid. `record`: the promotion by which it owns a group."""

    def __init__(self, agent: str, witnesses: Witnesses, record: Callable[[str], Promotion | None]) -> None:
        self._agent = agent
        self._witnesses = witnesses
        self._record = record

    async def hand_over(
        self, monitor: Monitor, epoch: int, to: str, attempt: str, *, forced: bool, say: Say
    ) -> str:
        """See `failback_parts.Arbiter`."""
        witness = monitor.settings.witness
        if not witness:
            return ""
        ballot = Ballot(
            agent=self._agent,
            candidate=to,
            owner=self._agent,
            parent_epoch=monitor.epoch,
            epoch=epoch,
            attempt=attempt,
            lease_s=terms_of(monitor.settings).lease_s,
            promotion=self._record(monitor.uuid),
        )
        try:
            voted = await self._witnesses.at(witness).vote(monitor.uuid, ballot)
        except UnreachableError as error:
            if not forced:
                raise
            say(f"forced in spite of: {error}")
            return ""
        if not voted.given:
            raise ReplicatorError(f"the witness does not agree: {voted.reason}")
        return witness

    async def tell(self, monitor: Monitor, promotion: Promotion) -> None:
        """See `failback_parts.Arbiter`."""
        if monitor.settings.witness:
            tell = Tell(agent=self._agent, other=promotion.owner, promotion=promotion)
            await self._witnesses.at(monitor.settings.witness).promoted(monitor.uuid, tell)
