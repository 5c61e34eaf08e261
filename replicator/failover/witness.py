"""A witness: the third that says who owns a group, when the other two cannot see each other.

It has no data, only an `Entry` per group, and changes that by compare-and-set on the epoch. It grants leases
to the owner, and gives its **vote** for the next epoch to one candidate, once no lease of the owner may be
valid. A vote is a promise and not a promotion: it holds, without end, until the candidate says that it is
promoted (`promoted`) or has given up (`withdraw`); meanwhile nobody else gets a lease or a vote.

Pure. `renewed`, `voted`, `told` and `withdrawn` are what any arbiter does, whatever keeps the entry:
`Witness` counts the leases by its own clock; over a store that others keep, each agent counts by its own
(`replicator/agent/failover/etcd.py`). Entries are durable before an answer leaves. Leases are not kept, so
after a restart no vote is given until those that may be out have lapsed. The owner that the entry names may
have a lease at once: it has not been superseded, for that would be in the entry.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from replicator import limits
from replicator.bounds import Count, Id
from replicator.errors import ReplicatorError
from replicator.failover.lease import Renew, Renewed, Seconds, lapse_s
from replicator.failovers import Promotion

VERSION = 1


class WitnessRefusedError(ReplicatorError):
    """It does not speak with this agent about this group."""


class Ballot(msgspec.Struct, frozen=True, kw_only=True):
    """Call `vote`, candidate → witness: may I be the owner from `epoch` on?"""

    agent: Id  # uuid of who asks: the candidate, or the owner, which has stopped and puts it forward
    candidate: Id  # uuid of the agent that would be promoted
    owner: Id  # uuid of the agent that owns the group until then
    parent_epoch: Count  # by which it does
    epoch: Count
    attempt: Id  # uuid of this try
    lease_s: Seconds = 0.0  # of the group: as long may a lease be that nobody remembers
    armed: bool = False  # the owner stops by itself when its leases have lapsed
    fenced: bool = False  # the owner was switched off since it had its last lease; see `Voted.granted_ago_s`
    insist: bool = False  # a person wants it, or a fence command is about to run: no lease for the owner
    claims: Annotated[
        tuple[Id, ...], msgspec.Meta(max_length=limits.WITNESS_CLAIMS)
    ] = ()  # what is taken over
    promotion: Promotion | None = None  # by which `owner` owns it; None: as configured


class Voted(msgspec.Struct, frozen=True, kw_only=True):
    """Its answer. Not given, and `wait_s`: ask again then.

    `noted`: from now on the owner gets no lease, until the try is withdrawn. `granted_ago_s`: so long ago, at
    least, it was given the last one. A host that was fenced may be up again, with a new lease: only who knows
    that the last one came before that may say `fenced`, and only once it is noted that there is no other.
    """

    given: bool
    wait_s: float | None = None
    noted: bool = False
    granted_ago_s: float | None = None
    epoch: Count = 0  # the highest that the witness knows
    promotion: Promotion | None = None  # of an epoch that is not below the one asked for
    reason: str = ""


class Tell(msgspec.Struct, frozen=True, kw_only=True):
    """Call `promoted`, anybody of the group → witness: this has happened."""

    agent: Id  # uuid of who says it
    other: Id = ""  # and of the other one
    promotion: Promotion


class Withdraw(msgspec.Struct, frozen=True, kw_only=True):
    """Call `withdraw`, whoever has asked for the vote → witness: that try is given up, and the candidate will
    not be promoted by it.
    """

    agent: Id
    attempt: Id


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to both."""

    epoch: Count
    promotion: Promotion | None = None  # the last


# --- what is kept ---


class Vote(msgspec.Struct, frozen=True, kw_only=True):
    """For a candidate that has said nothing since. `given`: False: it only insists on it.

    `attempts`: all tries that asked for it, for one that was given up may ask late, after the next one. The
    vote is void when none is left.
    """

    epoch: Count
    candidate: Id
    attempts: tuple[Id, ...]
    given: bool
    claims: tuple[Id, ...] = ()


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Of one group. `renewals`: counts leases that were given, where each is written down (etcd)."""

    group: Id
    agents: tuple[Id, ...]  # the first two that were named; nobody else is listened to
    epoch: Count
    owner: Id
    lease_s: float = 0.0  # the longest lease that may be out
    vote: Vote | None = None
    claims: tuple[Id, ...] = ()  # what the owner took over, and was not the first to have
    withdrawn: tuple[Id, ...] = ()
    log: tuple[Promotion, ...] = ()  # oldest first
    renewals: Count = 0

    @property
    def promotion(self) -> Promotion | None:
        """By which its owner owns it; None: as configured."""
        last = self.log[-1] if self.log else None
        return last if last is not None and last.epoch == self.epoch else None


def renewed(entry: Entry | None, group: str, request: Renew) -> tuple[Entry | None, Renewed]:
    """What a request of an owner makes of the entry, and the answer. Raises WitnessRefusedError."""
    if entry is None:
        # Who has no lease may be a source that was superseded while nobody, or another, was the witness.
        if not request.holds_lease:
            return None, Renewed(granted=False, reason="the witness does not know the group yet")
        entry = Entry(
            group=group, agents=_pair(request.agent, request.other), epoch=request.epoch, owner=request.agent
        )
    entry = _learn(_admit(entry, request.agent), request.promotion)
    no = Renewed(granted=False, epoch=entry.epoch)
    if request.epoch < entry.epoch:
        reason = "another owns it since"
        return entry, msgspec.structs.replace(no, promotion=entry.promotion, reason=reason)
    if request.epoch > entry.epoch or request.agent != entry.owner:
        return entry, msgspec.structs.replace(no, reason="there are two owners of one epoch")
    if entry.vote is not None:
        return entry, msgspec.structs.replace(no, reason="another takes over")
    lease_s = max(entry.lease_s, request.lease_s)
    entry = msgspec.structs.replace(entry, lease_s=lease_s, renewals=entry.renewals + 1)
    return entry, Renewed(granted=True, lease_s=request.lease_s, epoch=entry.epoch)


def voted(
    entry: Entry | None,
    group: str,
    ballot: Ballot,
    wait_s: float,
    granted_ago_s: float,
    others: Mapping[str, Entry],
) -> tuple[Entry, Voted]:
    """What a candidate's request makes of the entry, and the answer. `wait_s`: how long a lease of the owner
    may still be valid. `granted_ago_s`: see `Voted`. `others`: entries of all groups. Raises
    WitnessRefusedError.
    """
    if entry is None:
        entry = Entry(
            group=group,
            agents=_pair(ballot.owner, ballot.candidate),
            epoch=ballot.parent_epoch,
            owner=ballot.owner,
            lease_s=ballot.lease_s,
        )
    entry = _learn(_admit(_admit(entry, ballot.agent), ballot.candidate), ballot.promotion)
    no = Voted(given=False, epoch=entry.epoch)
    if entry.epoch >= ballot.epoch:
        if (entry.epoch, entry.owner) == (ballot.epoch, ballot.candidate):
            return entry, Voted(given=True, epoch=entry.epoch)
        reason = f"another owns it since epoch {entry.epoch}"
        return entry, msgspec.structs.replace(no, promotion=entry.promotion, reason=reason)
    if (ballot.parent_epoch, ballot.owner) != (entry.epoch, entry.owner):
        return entry, msgspec.structs.replace(no, reason=f"epoch {entry.epoch} has another owner")
    if ballot.attempt in entry.withdrawn:
        return entry, msgspec.structs.replace(no, reason="this try was given up")
    if entry.vote is not None and entry.vote.candidate != ballot.candidate:
        return entry, msgspec.structs.replace(no, reason="it has voted for another agent")
    if taken := _taken(ballot, others, group):
        return entry, msgspec.structs.replace(no, reason=taken)
    attempts = entry.vote.attempts if entry.vote is not None else ()
    was_noted = ballot.attempt in attempts
    if not was_noted:
        attempts = (*attempts, ballot.attempt)
    if len(attempts) > limits.WITNESS_ATTEMPTS:
        return entry, msgspec.structs.replace(no, reason="too many tries that were not taken back")
    vote = Vote(
        epoch=ballot.epoch,
        candidate=ballot.candidate,
        attempts=attempts,
        given=True,
        claims=ballot.claims,
    )
    is_at_rest = (ballot.fenced and was_noted) or ballot.agent == entry.owner
    is_voted = entry.vote is not None and entry.vote.given
    if is_at_rest or (ballot.armed and (wait_s <= 0 or is_voted)):
        return msgspec.structs.replace(entry, vote=vote), Voted(given=True, noted=True, epoch=entry.epoch)
    if ballot.insist or was_noted:
        vote = msgspec.structs.replace(vote, given=is_voted)
        entry = msgspec.structs.replace(entry, vote=vote)
    no = msgspec.structs.replace(no, noted=ballot.insist or was_noted, granted_ago_s=granted_ago_s)
    if not ballot.armed:
        return entry, msgspec.structs.replace(no, reason="the owner would not stop writing by itself")
    return entry, msgspec.structs.replace(no, wait_s=wait_s, reason="a lease of the owner may be valid")


def told(entry: Entry | None, group: str, tell: Tell) -> Entry:
    """Raises WitnessRefusedError."""
    promotion = tell.promotion
    if entry is None:
        agents = _pair(tell.agent, tell.other or promotion.owner)
        entry = Entry(group=group, agents=agents, epoch=promotion.epoch, owner=promotion.owner)
    return _learn(_admit(entry, tell.agent), promotion)


def withdrawn(entry: Entry, withdraw: Withdraw) -> Entry:
    """Raises WitnessRefusedError."""
    entry = _admit(entry, withdraw.agent)
    attempt, vote = withdraw.attempt, entry.vote
    if attempt not in entry.withdrawn:
        known = (*entry.withdrawn, attempt)[-limits.WITNESS_ATTEMPTS :]
        entry = msgspec.structs.replace(entry, withdrawn=known)
    if vote is not None and attempt in vote.attempts:
        left = tuple(other for other in vote.attempts if other != attempt)
        vote = msgspec.structs.replace(vote, attempts=left) if left else None
        entry = msgspec.structs.replace(entry, vote=vote)
    return entry


def _pair(one: str, other: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in (one, other) if name))


def _admit(entry: Entry, agent: str) -> Entry:
    if agent in entry.agents:
        return entry
    if len(entry.agents) < 2:
        return msgspec.structs.replace(entry, agents=(*entry.agents, agent))
    raise WitnessRefusedError(f"the witness knows group {entry.group} between other agents")


def _learn(entry: Entry, promotion: Promotion | None) -> Entry:
    """What a record says that the entry does not. The epoch only rises, and no epoch has two owners."""
    if promotion is None or promotion.owner not in entry.agents or promotion.epoch < entry.epoch:
        return entry
    if promotion.epoch == entry.epoch and (entry.promotion is not None or promotion.owner != entry.owner):
        return entry
    vote = entry.vote
    if vote is not None and not (vote.given and vote.epoch == promotion.epoch):
        vote = None
    if vote is not None and vote.candidate != promotion.owner:
        return entry
    if len(msgspec.json.encode(promotion)) > limits.WITNESS_RECORD_BYTES:
        promotion = msgspec.structs.replace(promotion, copies=())
    former = tuple(msgspec.structs.replace(p, copies=()) for p in entry.log if p.epoch < promotion.epoch)
    return msgspec.structs.replace(
        entry,
        epoch=promotion.epoch,
        owner=promotion.owner,
        vote=None,
        claims=vote.claims if vote is not None else (),
        log=(*former, promotion)[-limits.WITNESS_LOG :],
    )


def _taken(ballot: Ballot, others: Mapping[str, Entry], group: str) -> str:
    """Another target of the same source has taken its place, or may."""
    for other in others.values():
        if other.group == group:
            continue
        for owner, claims in _claims(other):
            if owner != ballot.candidate and not set(claims).isdisjoint(ballot.claims):
                return "another target of this source has taken its place"
    return ""


def _claims(entry: Entry) -> list[tuple[str, tuple[str, ...]]]:
    pending = (
        [(entry.vote.candidate, entry.vote.claims)] if entry.vote is not None and entry.vote.given else []
    )
    return [(entry.owner, entry.claims), *pending]


class Observer:
    """Leases of a store that counts none: by this agent's own clock, from when it saw that one was given.

    Whatever the present revision of an entry stands for was asked for before it was seen.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}

    def see(self, group: str, revision: int, now_s: float) -> None:
        """It is there now. `now_s`: a moment after it was read."""
        if self._seen.get(group, (None, 0.0))[0] != revision:
            self._seen[group] = (revision, now_s)

    def wait_s(self, group: str, entry: Entry | None, ballot: Ballot, now_s: float) -> float:
        """How long a lease of what was seen last may still be valid."""
        lease_s = max(ballot.lease_s, entry.lease_s if entry is not None else 0.0)
        return max(self._seen[group][1] + lapse_s(lease_s) - now_s, 0.0)

    def granted_ago_s(self, group: str, now_s: float) -> float:
        """Of the last lease: at least so long."""
        return now_s - self._seen[group][1]


# --- an agent that is a witness ---


class WitnessFile(msgspec.Struct, frozen=True, kw_only=True):
    """home/witness.json."""

    version: int = VERSION
    groups: dict[str, Entry] = {}


class Witness:
    """Of all groups. `file` is replaced by what an answer depends on: save it before that leaves, or put the
    former one back.
    """

    def __init__(self, file: WitnessFile, now_s: float) -> None:
        self.file = file
        # Leases may be out that were given before the restart.
        self._free_s = {uuid: now_s + lapse_s(entry.lease_s) for uuid, entry in file.groups.items()}
        self._seen_s: dict[str, float] = {}
        self._start_s = now_s
        self._granted_s: dict[str, float] = {}

    def renew(self, group: str, request: Renew, now_s: float) -> Renewed:
        """Raises WitnessRefusedError."""
        entry, answer = renewed(self.file.groups.get(group), group, request)
        if answer.granted:
            self._free_s[group] = max(self._free_s.get(group, 0.0), now_s + lapse_s(answer.lease_s))
            self._granted_s[group] = now_s
        self._keep(group, entry, now_s)
        return answer

    def vote(self, group: str, ballot: Ballot, now_s: float) -> Voted:
        """Raises WitnessRefusedError."""
        if group not in self.file.groups:  # leases may be out that were given before it was forgotten
            self._free_s[group] = now_s + lapse_s(ballot.lease_s)
        wait_s = self.lease_left_s(group, now_s)
        ago_s = now_s - self._granted_s.get(group, self._start_s)
        entry, answer = voted(self.file.groups.get(group), group, ballot, wait_s, ago_s, self.file.groups)
        self._keep(group, entry, now_s)
        return answer

    def tell(self, group: str, tell: Tell, now_s: float) -> Told:
        """Raises WitnessRefusedError."""
        entry = told(self.file.groups.get(group), group, tell)
        self._keep(group, entry, now_s)
        return Told(epoch=entry.epoch, promotion=entry.promotion)

    def withdraw(self, group: str, withdraw: Withdraw, now_s: float) -> Told:
        """Raises WitnessRefusedError: also if it does not know the group."""
        entry = self.file.groups.get(group)
        if entry is None:
            raise WitnessRefusedError("the witness does not know this group")
        entry = withdrawn(entry, withdraw)
        self._keep(group, entry, now_s)
        return Told(epoch=entry.epoch, promotion=entry.promotion)

    def forget(self, group: str) -> None:
        """A person says that the group exists no more. KeyError."""
        groups = dict(self.file.groups)
        del groups[group]
        self.file = msgspec.structs.replace(self.file, groups=groups)

    def lease_left_s(self, group: str, now_s: float) -> float:
        return max(self._free_s.get(group, now_s) - now_s, 0.0)

    def seen_s(self, group: str) -> float | None:
        """When one of its agents asked last; None: not since the start."""
        return self._seen_s.get(group)

    def _keep(self, group: str, entry: Entry | None, now_s: float) -> None:
        self._seen_s[group] = now_s
        known = self.file.groups.get(group)
        if entry is None or (known is not None and _durable(entry) == _durable(known)):
            return  # renewals alone are not worth a sync: leases are waited for after a restart
        if known is None and len(self.file.groups) >= limits.WITNESS_GROUPS:
            raise WitnessRefusedError(f"the witness has {limits.WITNESS_GROUPS} groups already")
        self.file = msgspec.structs.replace(self.file, groups={**self.file.groups, group: entry})


def _durable(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, renewals=0)
