"""Leases: of the owner, of the target that grants them, and what follows for mounts."""

import math

import msgspec
import pytest

from replicator import limits
from replicator.failover.lease import Asked, Granter, GrantMemory, Holder, Renew, Renewed, lapse_s, timers
from replicator.failover.owner import TARGET, WITNESS, Owner
from replicator.failover.writing import Facts, right
from replicator.failovers import Guard, Lapse, Promotion

RECORD = Promotion(group="g", epoch=1, parent_epoch=0, owner="target", owner_name="beta")
GUARD = Guard(group="g", target_uuid="target", witness="w", lease_s=3.0, lapse=Lapse.SUSPEND, terms=1)


@pytest.mark.parametrize(("interval_s", "misses"), [(1.0, 3), (5.0, 5), (2.0, 2), (1.0, 10)])
def test_no_failover_waits_for_a_lease(interval_s: float, misses: int) -> None:
    """The last lease may have been granted one interval after the last sign of life."""
    assert interval_s + lapse_s(timers(interval_s, misses).lease_s) <= interval_s * misses + 1e-9


def test_a_lease_is_never_too_short_to_be_renewed_or_too_long() -> None:
    assert timers(0.5, 1).lease_s == limits.LEASE_MIN_S
    assert timers(3600, 10).lease_s == limits.LEASE_MAX_S


# --- the owner ---


def test_a_lease_counts_from_the_request_however_late_the_answer_comes() -> None:
    holder = Holder(0, ["target"])
    asked = holder.ask("target", 10.0)
    assert not holder.is_valid(10.0)
    assert holder.granted(asked, 3.0)
    assert holder.is_valid(12.9) and not holder.is_valid(13.0)
    later = holder.ask("target", 12.0)
    holder.granted(later, 3.0)
    holder.granted(asked, 3.0)  # comes twice, or late
    assert holder.expiry_s == 15.0


def test_one_lease_is_enough() -> None:
    holder = Holder(0, ["target", "witness"])
    holder.granted(holder.ask("target", 1.0), 3.0)
    holder.granted(holder.ask("witness", 2.0), 3.0)
    assert holder.expiry_s == 5.0
    holder.choose(["target"])
    assert holder.expiry_s == 4.0


def test_answers_of_a_former_term_or_granter_have_no_effect() -> None:
    holder = Holder(0, ["target", "witness"])
    asked, other = holder.ask("target", 1.0), holder.ask("witness", 1.0)
    holder.begin(0)
    assert not holder.granted(asked, 3.0) and holder.expiry_s == 0.0
    holder.choose(["target"])
    assert not holder.granted(other, 3.0) and holder.expiry_s == 0.0


# --- the target ---


def renew(granter: Granter, now_s: float, *, epoch: int = 0, owns: bool = False, **fields: object) -> Renewed:
    request = msgspec.convert({"agent": "source", "epoch": 0, "lease_s": 3.0, "terms": 1} | fields, Renew)
    promotion = RECORD if epoch else None
    return granter.renew(request, now_s, epoch=epoch, owns=owns, promotion=promotion, lease_s=3.0, terms=1)


def test_a_target_that_takes_over_grants_nothing_and_waits_for_what_it_granted() -> None:
    granter = Granter(GrantMemory(), 0.0)
    assert renew(granter, 5.0).granted
    granter.stop(0)
    assert not renew(granter, 6.0).granted
    assert granter.free_s == 5.0 + lapse_s(3.0)
    granter.resume()
    assert renew(granter, 9.0).granted and not granter.is_stopped


def test_a_restarted_target_waits_for_leases_that_may_be_out() -> None:
    granter = Granter(GrantMemory(), 0.0)
    renew(granter, 5.0)
    again = Granter(granter.memory, 100.0, stopped=0)
    assert again.free_s == 100.0 + lapse_s(3.0)
    assert not renew(again, 101.0).granted


def test_a_target_that_took_over_grants_to_the_next_term() -> None:
    granter = Granter(GrantMemory(), 0.0, stopped=0)
    record = msgspec.structs.replace(RECORD, epoch=2, owner="source")
    request = Renew(agent="source", epoch=2, lease_s=3.0, promotion=record)
    answer = granter.renew(request, 1.0, epoch=2, owns=False, promotion=record, lease_s=3.0, terms=1)
    assert answer.granted


def test_a_superseded_owner_gets_the_record() -> None:
    answer = renew(Granter(GrantMemory(), 0.0), 1.0, epoch=1, owns=True)
    assert not answer.granted and answer.promotion == RECORD


def test_a_source_is_armed_by_the_settings_it_has_heard_of_only() -> None:
    granter = Granter(GrantMemory(), 0.0)
    renew(granter, 1.0, enforced=True, terms=1)
    assert granter.memory.armed == 1
    request = Renew(agent="source", epoch=0, lease_s=3.0, enforced=True, terms=1)  # was under way
    granter.renew(request, 2.0, epoch=0, owns=False, promotion=None, lease_s=3.0, terms=2)
    assert granter.memory.armed is None
    renew(granter, 3.0, enforced=False, terms=1)
    assert granter.memory.armed is None


# --- what the owner does with it ---


def test_an_owner_asks_both_and_writes_by_the_grant_of_either() -> None:
    owner = Owner("source", GUARD, 0.0, came_back=False)
    assert owner.due(0.0) == [TARGET, WITNESS] and not owner.right(0.0).holds(0.0)
    asked, request = owner.ask(WITNESS, 0.0)
    assert request.enforced and request.terms == 1 and not request.holds_lease
    owner.answered(asked, Renewed(granted=True, lease_s=3.0), 1.0)
    assert owner.right(1.0).until_s == 3.0
    assert owner.ask(TARGET, 1.0)[1].holds_lease
    assert owner.due(1.0) == [WITNESS]


def test_an_owner_that_hears_of_a_promotion_stops_when_that_is_durable() -> None:
    owner = Owner("source", GUARD, 0.0, came_back=False)
    first, _ = owner.ask(WITNESS, 0.0)
    owner.answered(first, Renewed(granted=True, lease_s=3.0), 0.1)
    asked, _ = owner.ask(TARGET, 0.2)
    assert owner.answered(asked, Renewed(granted=False, epoch=1, promotion=RECORD), 0.3) == RECORD
    owner.follow(msgspec.structs.replace(GUARD, superseded=RECORD))
    assert owner.right(0.3).until_s == 0.0 and owner.due(10.0) == []
    late, _ = owner.ask(WITNESS, 0.2)
    owner.answered(late, Renewed(granted=True, lease_s=3.0), 0.4)
    assert owner.right(0.4).until_s == 0.0


def test_settings_that_change_void_leases() -> None:
    owner = Owner("source", GUARD, 0.0, came_back=False)
    asked, _ = owner.ask(WITNESS, 0.0)
    owner.answered(asked, Renewed(granted=True, lease_s=3.0), 0.1)
    slow, _ = owner.ask(WITNESS, 0.2)
    owner.follow(msgspec.structs.replace(GUARD, witness="other", terms=2))
    assert not owner.right(0.3).holds(0.3)
    owner.answered(slow, Renewed(granted=True, lease_s=3.0), 0.4)  # of the former witness
    assert not owner.right(0.4).holds(0.4)


def test_a_frozen_owner_goes_on_when_its_target_says_so_and_not_its_witness() -> None:
    owner = Owner("source", GUARD, 0.0, came_back=False)
    early, _ = owner.ask(TARGET, 0.0)
    owner.freeze()
    assert owner.due(1.0) == [TARGET]
    owner.answered(early, Renewed(granted=True, lease_s=3.0), 0.5)  # before the freeze
    by_witness, _ = owner.ask(WITNESS, 1.0)
    owner.answered(by_witness, Renewed(granted=True, lease_s=3.0), 1.1)
    assert owner.frozen and not owner.right(1.1).holds(1.1)
    later, _ = owner.ask(TARGET, 1.2)
    owner.answered(later, Renewed(granted=True, lease_s=3.0), 1.3)
    assert not owner.frozen and owner.right(1.3).holds(1.3)


@pytest.mark.parametrize(
    ("facts", "until_s"),
    [
        (Facts(), math.inf),
        (Facts(superseded_by="beta"), 0.0),
        (Facts(superseded_by="beta", lapse=Lapse.SUSPEND, expiry_s=99.0), 0.0),
        (Facts(frozen=True), 0.0),
        (Facts(frozen=True, lapse=Lapse.SUSPEND, expiry_s=99.0), 0.0),
        (Facts(lapse=Lapse.READ_ONLY, expiry_s=99.0), 99.0),
        (Facts(lapse=Lapse.READ_ONLY), 0.0),
        (Facts(came_back_s=0.0), 0.0),
        (Facts(came_back_s=-limits.START_FENCED_S), math.inf),
        (Facts(came_back_s=-limits.START_FENCED_S, witness=True), 0.0),
        (Facts(came_back_s=-limits.START_FENCED_S, lapse=Lapse.SUSPEND), 0.0),
    ],
)
def test_until_when_mounts_may_write(facts: Facts, until_s: float) -> None:
    assert right(facts, 0.0).until_s == until_s


def test_a_fence_without_end_is_no_lease() -> None:
    """It is of settings that did not need one: nobody who grants counts on it."""
    assert not Owner("source", GUARD, 5.0, came_back=False, expiry_s=math.inf).right(5.0).holds(5.0)
    assert Owner("source", GUARD, 5.0, came_back=False, expiry_s=7.0).right(5.0).until_s == 7.0
    assert not Owner("source", GUARD, 5.0, came_back=True, expiry_s=7.0).right(5.0).holds(5.0)


def test_a_request_that_was_never_sent_is_no_lease() -> None:
    assert not Holder(0, ["target"]).granted(Asked("stranger", 1.0, 0), 3.0)
