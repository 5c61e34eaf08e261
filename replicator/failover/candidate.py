"""May this target promote its copies now? One pure function; whoever carries a failover out asks it again
after each thing that it says.

    verdict = judge(Candidacy(now_s=…, order=Order.MONITOR, failed=True, …))

    attempt = Attempt(candidacy, ballot, granter, terms, witness=True)     # the same with a memory
    verdict = attempt.look(now_s, failed=monitor.failed)                   # WAIT, VOTE, …; then again

The order of its questions is the order of the procedure: whether anybody wants it, whether the copies may be
used, whether the owner has stopped (it says so, was fenced, or its leases have lapsed), whether the witness
agrees.
"""

from enum import StrEnum
from typing import NamedTuple

import msgspec

from replicator import limits
from replicator.failover.lease import Granter
from replicator.failover.witness import Ballot, Voted


class Order(StrEnum):
    """Who wants it."""

    MONITOR = "monitor"  # by itself, since the monitor is automatic
    PERSON = "person"  # answered, or `failover now`
    FORCE = "force"  # a person who knows what is missing
    OFF = "source is off"  # a person who knows that, and answers for it


class Action(StrEnum):
    GO = "go"  # promote
    WAIT = "wait"  # until `until_s`, then ask again
    STOP_GRANTING = "stop granting"
    FENCE = "fence"  # run the fence command
    VOTE = "vote"  # ask the witness
    ASK = "ask a person"
    REFUSE = "refuse"


class Verdict(NamedTuple):
    """`reason`: one line for a person; why not, or why this may be done."""

    action: Action
    reason: str = ""
    until_s: float = 0.0  # CLOCK_BOOTTIME, of WAIT


class CopyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A copy that would be promoted. `flaw`: why it is no state that its source went through; "": it is."""

    name: str
    flaw: str = ""


class Candidacy(msgspec.Struct, frozen=True, kw_only=True):
    """All that the decision depends on. Times are CLOCK_BOOTTIME of this host."""

    now_s: float
    order: Order
    automatic: bool = False
    even_if_partitioned: bool = False
    failed: bool = False  # as the monitor says
    owns: bool = False  # this target owns the group already
    rival: str = ""  # name of another agent that owns it by a higher epoch
    copies: tuple[CopyFacts, ...] = ()
    at_rest: bool = False  # the owner has said that its mounts are frozen, for this very hand-over
    fence_command: bool = False  # there is one
    fenced: bool | None = None  # how it ended; None: it has not run
    cleared: bool = False  # the owner has had no lease of the witness since it was fenced, and gets none
    armed: bool = False  # the owner stops by itself when its leases have lapsed (`GrantMemory`)
    granting: bool = True  # this target grants still
    free_s: float = 0.0  # from then on no lease granted here is valid
    witness: bool = False  # there is one
    voted: Voted | None = None  # its last answer to this try
    voted_s: float = 0.0  # when it came
    unreachable: str = ""  # why it did not answer the last time; "": it did, or was not asked
    lag_max_s: float = 0.0  # as `MonitorSettings.lag_max_s`
    behind_s: float | None = None  # what the copies lacked when the source was heard last; None: unknown

    @property
    def owner_is_fenced(self) -> bool:
        """As far as this host knows: it may be up again. A person's word is of use where nothing else is."""
        return self.fenced is True or (self.order is Order.OFF and not self.armed)

    @property
    def by_person(self) -> bool:
        return self.order in (Order.PERSON, Order.FORCE, Order.OFF)

    @property
    def is_forced(self) -> bool:
        return self.order in (Order.FORCE, Order.OFF)


PARTITIONED = (
    "without a witness, a fence command or leases nobody knows whether the source is down or only cut off,"
    " and if it is cut off both hosts would write: give it a witness, or have it even if partitioned, by name"
)


def judge(facts: Candidacy) -> Verdict:
    """What comes next. GO is said only if everything else is done."""
    for question in (_is_wanted, _has_copies, _is_safe_to_begin, _has_stopped, _is_agreed):
        verdict = question(facts)
        if verdict is not None:
            return verdict
    return Verdict(Action.GO, _grounds(facts))


def may_begin(facts: Candidacy) -> Verdict:
    """Whether there is any use in beginning: GO, or why not. Nothing was stopped and nobody asked yet."""
    for question in (_is_wanted, _has_copies, _is_safe_to_begin):
        verdict = question(facts)
        if verdict is not None:
            return verdict
    return Verdict(Action.GO)


class Attempt:
    """One try, from its beginning to the moment at which the copies may be promoted."""

    def __init__(
        self, candidacy: Candidacy, ballot: Ballot, granter: Granter, terms: int, *, witness: bool
    ) -> None:
        """`candidacy`, `ballot`: what is known when it begins; what changes is looked up. `terms`: number of
        the settings, for which alone the source is armed.
        """
        self._candidacy = candidacy
        self._ballot = ballot
        self._granter = granter
        self._terms = terms
        self._witness = witness
        self._voted: Voted | None = None
        self._voted_s = 0.0
        self._unreachable = ""
        self._fence_s: float | None = None  # when it began
        self._noted_s: float | None = None  # when the witness had said that the owner gets no lease any more
        self._cleared = False
        self._asked_cleared = False

    def look(self, now_s: float, *, failed: bool) -> Verdict:
        """What comes next. From the first look on that has nothing against it nothing is granted. `failed`:
        as the monitor says now; a source that answers again is left alone, unless a person wants it.
        """
        self._candidacy = msgspec.structs.replace(self._candidacy, failed=failed)
        if self._candidacy.order is Order.OFF and self._fence_s is None and not self._is_armed:
            self._fence_s = now_s  # a person's word: it has been off since before that
        verdict = judge(self._facts(now_s))
        if verdict.action is Action.STOP_GRANTING:
            self._granter.stop(self._ballot.parent_epoch)
            verdict = judge(self._facts(now_s))
        return verdict

    def _facts(self, now_s: float) -> Candidacy:
        return msgspec.structs.replace(
            self._candidacy,
            now_s=now_s,
            granting=not self._granter.is_stopped,
            free_s=self._granter.free_s,
            armed=self._is_armed,
            witness=self._witness,
            voted=self._voted,
            voted_s=self._voted_s,
            unreachable=self._unreachable,
            cleared=self._cleared and not self._asked_cleared,
        )

    @property
    def _is_armed(self) -> bool:
        return self._granter.memory.armed is not None and self._granter.memory.armed == self._terms

    @property
    def is_voted(self) -> bool:
        return self._voted is not None and self._voted.given

    def ballot(self) -> Ballot:
        """For the witness, now."""
        candidacy = self._candidacy
        return msgspec.structs.replace(
            self._ballot,
            armed=self._is_armed,
            fenced=self._cleared,
            insist=candidacy.by_person or candidacy.fence_command,
        )

    def fence(self, fenced: bool, began_s: float) -> None:
        """How the fence command ended, and when it was begun."""
        self._candidacy = msgspec.structs.replace(self._candidacy, fenced=fenced)
        if fenced:
            self._fence_s = began_s
            self._cleared = self._noted_s is not None and self._noted_s <= began_s

    def vote(self, voted: Voted, now_s: float) -> None:
        """Its answer, which came at `now_s`."""
        self._asked_cleared = self._cleared
        self._voted, self._voted_s, self._unreachable = voted, now_s, ""
        if voted.noted and self._noted_s is None:
            self._noted_s = now_s
        if voted.noted and self._fence_s is not None and voted.granted_ago_s is not None:
            granted_s = now_s - voted.granted_ago_s * (1 - limits.LEASE_DRIFT)  # no later than that
            self._cleared = self._cleared or granted_s <= self._fence_s

    def silence(self, reason: str, now_s: float) -> None:
        """The witness did not answer."""
        self._unreachable, self._voted_s = reason, now_s


def _is_wanted(facts: Candidacy) -> Verdict | None:
    if facts.owns:
        return Verdict(Action.REFUSE, "this host owns the group already")
    if facts.rival:
        return Verdict(Action.REFUSE, f"{facts.rival} owns the group since")
    if facts.by_person:
        return None
    if not facts.failed:
        return Verdict(Action.REFUSE, "the source answers")
    if not facts.automatic:
        return Verdict(Action.ASK, "the source has failed")
    return _is_near(facts)


def _is_near(facts: Candidacy) -> Verdict | None:
    """Old data is better than none only if a person says so."""
    if not facts.lag_max_s:
        return None
    if facts.behind_s is None:
        return Verdict(Action.ASK, "nobody knows how much the copies lack (--max-lag)")
    if facts.behind_s > facts.lag_max_s:
        return Verdict(
            Action.ASK,
            f"the copies lacked the last {facts.behind_s:.0f} s when the source was heard last, and"
            f" {facts.lag_max_s:g} s are allowed (--max-lag)",
        )
    return None


def _has_copies(facts: Candidacy) -> Verdict | None:
    flaws = [f"{copy.name}: {copy.flaw}" for copy in facts.copies if copy.flaw]
    if flaws and not facts.is_forced:
        return Verdict(Action.ASK, f"not everything is there: {'; '.join(flaws)}. It can be forced")
    return None


def _is_safe_to_begin(facts: Candidacy) -> Verdict | None:
    """Nobody is asked later what is known now."""
    if facts.at_rest or facts.owner_is_fenced or facts.armed:
        return None
    if facts.fence_command and facts.fenced is None:
        return None
    if facts.witness:
        return Verdict(
            Action.ASK,
            "the source would not stop writing when it is cut off, so the witness cannot agree: see that it"
            " is off, and say so",
        )
    if facts.by_person or facts.even_if_partitioned:
        return None
    return Verdict(Action.ASK, PARTITIONED)


def _has_stopped(facts: Candidacy) -> Verdict | None:
    if facts.granting:
        return Verdict(Action.STOP_GRANTING)
    if facts.at_rest:
        return None
    if facts.fence_command and facts.fenced is None and facts.order is not Order.OFF:
        return _before_the_fence(facts)
    if facts.fenced is False and not facts.is_forced:
        return Verdict(Action.ASK, "the fence command has failed")
    if facts.armed and not facts.owner_is_fenced and facts.now_s < facts.free_s:
        return Verdict(Action.WAIT, "a lease granted here may be valid", facts.free_s)
    return None


def _before_the_fence(facts: Candidacy) -> Verdict:
    """The witness is told: else a source that is up again soon gets a new lease of it. One that does not
    answer keeps nobody from fencing; one that says no does.
    """
    if not facts.witness or facts.unreachable:
        return Verdict(Action.FENCE)
    if facts.voted is None:
        return Verdict(Action.VOTE)
    if facts.voted.noted or facts.voted.given:
        return Verdict(Action.FENCE)
    return _refused(facts.voted)


def _refused(voted: Voted) -> Verdict:
    if voted.promotion is not None and voted.promotion.epoch == voted.epoch:
        return Verdict(Action.REFUSE, f"{voted.promotion.owner_name} owns the group since")
    return Verdict(Action.ASK, f"the witness does not agree: {voted.reason}")


def _is_agreed(facts: Candidacy) -> Verdict | None:
    if not facts.witness:
        return None
    if facts.voted is not None and facts.voted.given:
        return None
    if facts.order is Order.OFF and facts.unreachable:
        return None  # a person's word in place of the witness's
    if facts.unreachable:
        again_s = facts.voted_s + limits.WITNESS_RETRY_S
        if facts.now_s < again_s:
            return Verdict(Action.WAIT, f"the witness does not answer: {facts.unreachable}", again_s)
        return Verdict(Action.VOTE)
    if facts.voted is None:
        return Verdict(Action.VOTE)
    if facts.cleared:
        return Verdict(Action.VOTE)  # at once, with the news that it is fenced
    if facts.voted.wait_s is None:
        return _refused(facts.voted)
    until_s = facts.voted_s + min(facts.voted.wait_s, limits.WITNESS_RETRY_S)
    if facts.now_s < until_s:
        return Verdict(Action.WAIT, facts.voted.reason, until_s)
    return Verdict(Action.VOTE)


def _grounds(facts: Candidacy) -> str:
    """Why the owner does not write any more, for the record."""
    if facts.at_rest:
        return "the source handed over"
    if facts.fenced:
        return "the source was fenced"
    if facts.order is Order.OFF:
        return "a person says that the source is off"
    if facts.armed:
        return "the leases of the source have lapsed"
    return "a person decided" if facts.by_person else "automatic even if partitioned"
