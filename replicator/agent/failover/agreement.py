"""What `arbiter.py` has to know of a group to see that its source has stopped and its witness agrees."""

from collections.abc import Callable
from typing import Protocol

from replicator.agent.failover.arbiter import Arbiter, Try
from replicator.agent.failover.grants import Grants
from replicator.agent.failover.guards import boottime_s
from replicator.agent.failover.procedure import Question, Say
from replicator.errors import ReplicatorError
from replicator.failover.candidate import Action, Candidacy, CopyFacts, may_begin
from replicator.failover.phases import OWNING
from replicator.failover.terms import terms_of
from replicator.failover.witness import Ballot
from replicator.failovers import Monitor, Promotion


class Failed(Protocol):
    """`watching.Watching`."""

    def has_failed(self, uuid: str) -> bool: ...


class Agreement:
    """`procedure.Arbiter`. `agent`: the uuid of this one. `record`: the last promotion of a group that it
    knows of.
    """

    def __init__(
        self,
        agent: str,
        arbiter: Arbiter,
        grants: Grants,
        monitors: Failed,
        record: Callable[[str], Promotion | None],
    ) -> None:
        self._agent = agent
        self._arbiter = arbiter
        self._grants = grants
        self._monitors = monitors
        self._record = record

    async def check(self, question: Question) -> None:
        """See `procedure.Arbiter`."""
        verdict = may_begin(self._candidacy(question))
        if verdict.action is not Action.GO:
            raise ReplicatorError(verdict.reason)

    async def before_fence(self, question: Question, say: Say) -> None:
        """See `procedure.Arbiter`."""
        group = question.monitor.uuid
        await self._arbiter.before_fence(
            self._try(question),
            self._candidacy(question),
            say,
            lambda: self._monitors.has_failed(group),
        )

    async def agree(self, question: Question, say: Say) -> str:
        """See `procedure.Arbiter`."""
        group = question.monitor.uuid
        return await self._arbiter.agree(
            self._try(question),
            self._candidacy(question),
            say,
            lambda: self._monitors.has_failed(group),
        )

    async def withdraw(self, question: Question) -> None:
        """See `procedure.Arbiter`."""
        await self._arbiter.withdraw(self._try(question))

    def is_armed(self, monitor: Monitor) -> bool:
        """Whether its source has said that its mounts stop by themselves, under the settings of now."""
        armed = self._grants.granter(monitor.uuid).memory.armed
        return armed is not None and armed == monitor.terms

    def _candidacy(self, question: Question) -> Candidacy:
        monitor, settings = question.monitor, question.monitor.settings
        granter = self._grants.granter(monitor.uuid)
        record = self._record(monitor.uuid)
        rival = record if record and record.owner != self._agent and record.epoch >= question.epoch else None
        return Candidacy(
            now_s=boottime_s(),
            order=question.order,
            automatic=settings.automatic,
            even_if_partitioned=settings.even_if_partitioned,
            failed=self._monitors.has_failed(monitor.uuid),
            owns=monitor.phase in OWNING,
            rival=rival.owner_name if rival else "",
            copies=tuple(
                CopyFacts(name=name, flaw=flaw.removeprefix(f"{name}: "))  # it names itself
                for name, flaw in question.flaws.items()
            ),
            fence_command=bool(settings.fence_command),
            fenced=question.fenced,
            armed=self.is_armed(monitor),
            granting=not granter.is_stopped,
            free_s=granter.free_s,
            witness=bool(settings.witness),
            lag_max_s=settings.lag_max_s,
            behind_s=self._grants.behind_s(monitor),
        )

    def _try(self, question: Question) -> Try:
        monitor = question.monitor
        # What another target of this source would claim as well: copies are of one target only.
        claims = tuple(address.address.partition("/")[0] for address in monitor.settings.taken)
        return Try(
            group=monitor.uuid,
            witness=monitor.settings.witness,
            ballot=Ballot(
                agent=self._agent,
                candidate=self._agent,
                owner=monitor.source_uuid,
                parent_epoch=monitor.epoch,
                epoch=question.epoch,
                attempt=question.attempt,
                lease_s=terms_of(monitor.settings).lease_s,
                claims=claims,
                promotion=self._record(monitor.uuid),
            ),
            terms=monitor.terms,
        )
