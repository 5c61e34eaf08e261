"""May a target promote now: every row of the decision, and an attempt that has a memory."""

import msgspec
import pytest

from replicator.failover.candidate import Action, Attempt, Candidacy, CopyFacts, Order, judge, may_begin
from replicator.failover.lease import Granter, GrantMemory
from replicator.failover.witness import Ballot, Voted
from replicator.failovers import Promotion

RECORD = Promotion(group="g", epoch=2, parent_epoch=1, owner="other", owner_name="gamma")
FLAWED = (CopyFacts(name="data", flaw="its first mirror is not complete"),)
# An automatic monitor with a witness, whose source stops by itself, at the moment of failure.
ARMED = Candidacy(now_s=100.0, order=Order.MONITOR, automatic=True, failed=True, armed=True, witness=True)
STOPPED = {"granting": False, "free_s": 90.0}
NOTED = Voted(given=False, noted=True, wait_s=3.0, reason="a lease of the owner may be valid")
GIVEN = {"voted": Voted(given=True), "voted_s": 99.0}
# A manual one of two hosts, without anything.
PLAIN = Candidacy(now_s=100.0, order=Order.PERSON, failed=True, granting=False)


@pytest.mark.parametrize(
    ("facts", "fields", "action"),
    [
        # whether anybody wants it
        (ARMED, {"owns": True}, Action.REFUSE),
        (ARMED, {"rival": "gamma"}, Action.REFUSE),
        (ARMED, {"failed": False}, Action.REFUSE),
        (ARMED, {"automatic": False}, Action.ASK),
        (ARMED, {"automatic": False, "order": Order.PERSON}, Action.STOP_GRANTING),
        (ARMED, {"failed": False, "order": Order.PERSON}, Action.STOP_GRANTING),
        (ARMED, {"lag_max_s": 60.0}, Action.ASK),  # nobody knows
        (ARMED, {"lag_max_s": 60.0, "behind_s": 60.1}, Action.ASK),
        (ARMED, {"lag_max_s": 60.0, "behind_s": 59.9}, Action.STOP_GRANTING),
        (ARMED, {"behind_s": 9999.0}, Action.STOP_GRANTING),  # whatever they lack
        (ARMED, {"lag_max_s": 60.0, "order": Order.PERSON}, Action.STOP_GRANTING),
        # whether the copies may be used
        (ARMED, {"copies": FLAWED}, Action.ASK),
        (ARMED, {"copies": FLAWED, "order": Order.PERSON}, Action.ASK),
        (ARMED, {"copies": FLAWED, "order": Order.FORCE}, Action.STOP_GRANTING),
        # whether there is any use in beginning
        (ARMED, {"armed": False}, Action.ASK),
        (ARMED, {"armed": False, "order": Order.FORCE}, Action.ASK),
        (ARMED, {"armed": False, "order": Order.OFF}, Action.STOP_GRANTING),
        (ARMED, {"armed": False, "witness": False}, Action.ASK),
        (ARMED, {"armed": False, "witness": False, "even_if_partitioned": True}, Action.STOP_GRANTING),
        (ARMED, {"armed": False, "even_if_partitioned": True}, Action.ASK),  # it has a witness
        (ARMED, {"armed": False, "fence_command": True}, Action.STOP_GRANTING),
        # whether the owner has stopped
        (ARMED, {"granting": False, "free_s": 100.5}, Action.WAIT),
        (ARMED, {**STOPPED, "fence_command": True}, Action.VOTE),  # the witness is told first
        (ARMED, {**STOPPED, "fence_command": True, "unreachable": "cut"}, Action.FENCE),
        (ARMED, {**STOPPED, "fence_command": True, "voted": NOTED}, Action.FENCE),
        (ARMED, {**STOPPED, "fence_command": True, "voted": Voted(given=False, reason="no")}, Action.ASK),
        (ARMED, {**STOPPED, "fence_command": True, "witness": False}, Action.FENCE),
        (ARMED, {**STOPPED, "fence_command": True, "fenced": True, "voted": NOTED}, Action.VOTE),
        (ARMED, {**STOPPED, "fenced": True, "voted": NOTED, "voted_s": 99.9, "cleared": True}, Action.VOTE),
        (ARMED, {**STOPPED, "fenced": True, "voted": NOTED, "voted_s": 99.9}, Action.WAIT),
        (ARMED, {**STOPPED, "fence_command": True, "fenced": False}, Action.ASK),
        (ARMED, {**STOPPED, "fence_command": True, "fenced": False, "order": Order.FORCE}, Action.VOTE),
        (ARMED, {"granting": False, "free_s": 999.0, "fence_command": True, "fenced": True}, Action.VOTE),
        (ARMED, {"granting": False, "free_s": 999.0, "at_rest": True}, Action.VOTE),
        (ARMED, {"granting": False, "free_s": 999.0, "order": Order.OFF}, Action.WAIT),  # it stops by itself
        (ARMED, {"granting": False, "order": Order.OFF, "armed": False}, Action.VOTE),
        # whether the witness agrees
        (ARMED, STOPPED, Action.VOTE),
        (ARMED, STOPPED | GIVEN, Action.GO),
        (
            ARMED,
            STOPPED | {"voted": Voted(given=False, wait_s=3.0, reason="a lease"), "voted_s": 99.9},
            Action.WAIT,
        ),
        (ARMED, STOPPED | {"voted": Voted(given=False, wait_s=3.0), "voted_s": 98.0}, Action.VOTE),
        (ARMED, STOPPED | {"voted": Voted(given=False), "voted_s": 99.9}, Action.ASK),
        (ARMED, STOPPED | {"voted": Voted(given=False, epoch=2, promotion=RECORD)}, Action.REFUSE),
        (ARMED, STOPPED | {"unreachable": "cut", "voted_s": 99.9}, Action.WAIT),
        (ARMED, STOPPED | {"unreachable": "cut", "voted_s": 98.0}, Action.VOTE),
        (ARMED, STOPPED | {"unreachable": "cut", "order": Order.FORCE, "voted_s": 99.9}, Action.WAIT),
        (ARMED, STOPPED | {"unreachable": "cut", "order": Order.OFF}, Action.GO),
        (ARMED, STOPPED | {"voted": Voted(given=False, reason="no"), "order": Order.OFF}, Action.ASK),
        # nobody to be asked
        (PLAIN, {}, Action.GO),
        (PLAIN, {"order": Order.MONITOR, "automatic": True}, Action.ASK),
        (PLAIN, {"armed": True, "free_s": 101.0}, Action.WAIT),  # leases of the target alone
        (PLAIN, {"armed": True, "free_s": 99.0, "order": Order.MONITOR, "automatic": True}, Action.GO),
    ],
)
def test_what_comes_next(facts: Candidacy, fields: dict[str, object], action: Action) -> None:
    verdict = judge(msgspec.structs.replace(facts, **fields))
    assert verdict.action is action
    assert verdict.reason or action in (Action.STOP_GRANTING, Action.FENCE, Action.VOTE)


def test_whether_to_begin_changes_nothing() -> None:
    assert may_begin(ARMED).action is Action.GO
    assert may_begin(msgspec.structs.replace(ARMED, armed=False)).action is Action.ASK


def test_a_refusal_across_a_partition_says_what_would_help() -> None:
    verdict = judge(msgspec.structs.replace(ARMED, armed=False, witness=False))
    assert "witness" in verdict.reason and "even if partitioned" in verdict.reason


# --- an attempt ---

BALLOT = Ballot(agent="t", candidate="t", owner="s", parent_epoch=4, epoch=5, attempt="1")


@pytest.fixture
def granter() -> Granter:
    """It has granted a lease of 3 s at 99."""
    granter = Granter(GrantMemory(lease_s=3.0, armed=1), 0.0)
    granter._free_s = 102.0
    return granter


def test_an_attempt_stops_granting_waits_and_asks(granter: Granter) -> None:
    attempt = Attempt(ARMED, BALLOT, granter, 1, witness=True)
    verdict = attempt.look(100.0, failed=True)
    assert granter.is_stopped and verdict.action is Action.WAIT and verdict.until_s == 102.0
    assert attempt.look(102.0, failed=True).action is Action.VOTE
    assert attempt.ballot().armed and not attempt.ballot().insist
    attempt.silence("cut", 102.1)
    assert attempt.look(102.2, failed=True).action is Action.WAIT
    assert attempt.look(103.2, failed=True).action is Action.VOTE
    attempt.vote(Voted(given=True), 103.3)
    assert attempt.look(103.4, failed=True).action is Action.GO and attempt.is_voted


def test_a_source_that_answers_again_is_left_alone_unless_a_person_wants_it(granter: Granter) -> None:
    attempt = Attempt(ARMED, BALLOT, granter, 1, witness=True)
    attempt.look(100.0, failed=True)
    assert attempt.look(100.1, failed=False).action is Action.REFUSE
    wanted = msgspec.structs.replace(ARMED, order=Order.PERSON)
    attempt = Attempt(wanted, BALLOT, granter, 1, witness=True)
    assert attempt.look(100.1, failed=False).action is Action.WAIT
    assert attempt.ballot().insist


def test_a_source_that_was_armed_by_other_settings_is_not_armed(granter: Granter) -> None:
    attempt = Attempt(ARMED, BALLOT, granter, 2, witness=True)
    assert attempt.look(200.0, failed=True).action is Action.ASK
    assert not granter.is_stopped


def test_a_source_that_is_disarmed_meanwhile_is_seen(granter: Granter) -> None:
    attempt = Attempt(ARMED, BALLOT, granter, 1, witness=True)
    attempt.look(100.0, failed=True)
    granter.memory = msgspec.structs.replace(granter.memory, armed=None)
    assert attempt.look(103.0, failed=True).action is Action.ASK


@pytest.fixture
def fencing(granter: Granter) -> Attempt:
    facts = msgspec.structs.replace(ARMED, fence_command=True)
    attempt = Attempt(facts, BALLOT, granter, 1, witness=True)
    assert attempt.look(100.0, failed=True).action is Action.VOTE
    assert attempt.ballot().insist and not attempt.ballot().fenced
    return attempt


def test_a_source_that_was_fenced_when_the_witness_knew_is_not_waited_for(fencing: Attempt) -> None:
    fencing.vote(NOTED, 100.1)
    assert fencing.look(100.2, failed=True).action is Action.FENCE
    fencing.fence(True, 100.2)
    assert fencing.look(101.0, failed=True).action is Action.VOTE and fencing.ballot().fenced
    fencing.vote(Voted(given=True, noted=True), 101.1)
    assert fencing.look(101.2, failed=True).action is Action.GO


@pytest.mark.parametrize(("ago_s", "fenced"), [(1.5, True), (0.5, False)])
def test_a_source_that_may_be_up_again_is_waited_for(fencing: Attempt, ago_s: float, fenced: bool) -> None:
    """The witness did not answer before the fence: what counts is when it gave the last lease."""
    fencing.silence("cut", 100.1)
    assert fencing.look(100.2, failed=True).action is Action.FENCE
    fencing.fence(True, 100.2)
    assert fencing.look(101.2, failed=True).action is Action.VOTE
    fencing.vote(msgspec.structs.replace(NOTED, granted_ago_s=ago_s), 101.3)
    assert fencing.ballot().fenced is fenced
    verdict = fencing.look(101.4, failed=True)
    assert verdict.action is (Action.VOTE if fenced else Action.WAIT)


def test_a_fence_command_that_fails_leaves_the_leases(fencing: Attempt) -> None:
    fencing.vote(NOTED, 100.1)
    fencing.fence(False, 100.2)
    assert fencing.look(100.3, failed=True).action is Action.ASK and not fencing.ballot().fenced
