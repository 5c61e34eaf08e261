"""A witness: what it grants, votes for, remembers and forgets; as an agent, and over a store."""

import msgspec
import pytest

from replicator import limits
from replicator.failover.lease import Renew, lapse_s
from replicator.failover.witness import (
    Ballot,
    Entry,
    Observer,
    Tell,
    Withdraw,
    Witness,
    WitnessFile,
    WitnessRefusedError,
    renewed,
    voted,
)
from replicator.failovers import Promotion

G, S, T = "group", "source", "target"
RECORD = Promotion(group=G, epoch=1, parent_epoch=0, owner=T, owner_name="beta")
HOME = Promotion(group=G, epoch=2, parent_epoch=1, owner=S, owner_name="alpha")


def a_renewal(**fields: object) -> Renew:
    known = {"agent": S, "other": T, "epoch": 0, "lease_s": 3.0, "enforced": True, "holds_lease": True}
    return msgspec.convert(known | fields, Renew)


def a_ballot(**fields: object) -> Ballot:
    known = {
        "agent": T,
        "candidate": T,
        "owner": S,
        "parent_epoch": 0,
        "epoch": 1,
        "attempt": "1",
        "lease_s": 3.0,
        "armed": True,
    }
    return msgspec.convert(known | fields, Ballot)


@pytest.fixture
def witness() -> Witness:
    """It has given the source a lease at 10."""
    witness = Witness(WitnessFile(), 0.0)
    assert witness.renew(G, a_renewal(), 10.0).granted
    return witness


FREE_S = 10.0 + lapse_s(3.0)


def test_it_votes_when_no_lease_may_be_valid(witness: Witness) -> None:
    answer = witness.vote(G, a_ballot(), 11.0)
    assert not answer.given and answer.wait_s == pytest.approx(FREE_S - 11.0)
    assert witness.renew(G, a_renewal(), 11.0).granted  # the owner lives, so it goes on
    assert not witness.vote(G, a_ballot(), FREE_S).given
    assert witness.vote(G, a_ballot(), FREE_S + 1.0).given


def test_after_its_vote_the_owner_gets_nothing_until_that_is_taken_back(witness: Witness) -> None:
    assert witness.vote(G, a_ballot(), FREE_S).given
    assert not witness.renew(G, a_renewal(), 20.0).granted
    assert witness.vote(G, a_ballot(), 20.0).given  # the same question, the same answer
    witness.withdraw(G, Withdraw(agent=T, attempt="1"), 21.0)
    assert witness.renew(G, a_renewal(), 22.0).granted
    answer = witness.vote(G, a_ballot(), 99.0)
    assert not answer.given and "given up" in answer.reason


def test_a_try_that_was_given_up_and_asks_late_does_not_end_the_next_one(witness: Witness) -> None:
    assert witness.vote(G, a_ballot(attempt="2"), FREE_S).given
    assert witness.vote(G, a_ballot(attempt="1"), FREE_S).given
    witness.withdraw(G, Withdraw(agent=T, attempt="1"), 21.0)
    assert not witness.renew(G, a_renewal(), 22.0).granted
    witness.withdraw(G, Withdraw(agent=T, attempt="2"), 23.0)
    assert witness.renew(G, a_renewal(), 24.0).granted


def test_tries_that_are_never_taken_back_are_bounded(witness: Witness) -> None:
    for number in range(limits.WITNESS_ATTEMPTS):
        assert witness.vote(G, a_ballot(attempt=str(number)), FREE_S).given
    assert not witness.vote(G, a_ballot(attempt="one more"), FREE_S).given


def test_a_person_may_insist(witness: Witness) -> None:
    """Then the owner gets no lease any more, though it lives; the vote is given when its last has lapsed."""
    assert not witness.vote(G, a_ballot(insist=True), 11.0).given
    assert not witness.renew(G, a_renewal(), 11.5).granted
    assert witness.vote(G, a_ballot(insist=True), FREE_S).given


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({}, False),
        ({"fenced": True}, False),  # it may be up again, with this very lease
        ({"armed": False}, False),
        ({"armed": False, "fenced": True}, False),
        ({"agent": S, "candidate": T}, True),  # the owner itself, which has stopped
        ({"epoch": 0}, False),
        ({"epoch": 7}, False),  # epochs may jump: the lease still counts
        ({"parent_epoch": 1, "epoch": 2}, False),
        ({"owner": T}, False),
    ],
)
def test_who_gets_a_vote_while_a_lease_is_valid(
    witness: Witness, fields: dict[str, object], given: bool
) -> None:
    assert witness.vote(G, a_ballot(**fields), 11.0).given is given


@pytest.mark.parametrize("armed", [False, True])
def test_an_owner_that_was_fenced_after_the_witness_had_noted_it_is_voted_away(
    witness: Witness, armed: bool
) -> None:
    answer = witness.vote(G, a_ballot(armed=armed, insist=True), 11.0)
    assert not answer.given and answer.noted and answer.granted_ago_s == 1.0
    assert not witness.renew(G, a_renewal(), 11.1).granted
    assert witness.vote(G, a_ballot(armed=armed, fenced=True), 11.2).given


def test_after_a_restart_a_lease_may_be_as_young_as_the_witness(witness: Witness) -> None:
    answer = Witness(witness.file, 100.0).vote(G, a_ballot(insist=True), 101.5)
    assert answer.granted_ago_s == 1.5


def test_an_owner_that_would_not_stop_is_not_voted_away(witness: Witness) -> None:
    answer = witness.vote(G, a_ballot(armed=False), 99.0)
    assert not answer.given and answer.wait_s is None


def test_who_was_superseded_gets_the_record(witness: Witness) -> None:
    witness.vote(G, a_ballot(), FREE_S)
    witness.tell(G, Tell(agent=T, promotion=RECORD), 20.0)
    answer = witness.renew(G, a_renewal(), 21.0)
    assert not answer.granted and answer.promotion == RECORD and answer.epoch == 1
    assert not witness.vote(G, a_ballot(attempt="2", candidate=S, agent=S, owner=S), 22.0).given
    assert witness.vote(G, a_ballot(), 22.0).given  # the answer had not come


def test_an_owner_hands_over(witness: Witness) -> None:
    witness.tell(G, Tell(agent=T, promotion=RECORD), 20.0)
    back = a_ballot(agent=T, candidate=S, owner=T, parent_epoch=1, epoch=2, armed=False, promotion=RECORD)
    assert witness.vote(G, back, 21.0).given
    assert witness.renew(G, a_renewal(epoch=2, promotion=HOME), 22.0).granted
    assert [record.epoch for record in witness.file.groups[G].log] == [1, 2]


def test_the_epoch_only_rises_and_has_one_owner(witness: Witness) -> None:
    witness.tell(G, Tell(agent=T, promotion=RECORD), 20.0)
    other = msgspec.structs.replace(RECORD, owner=S, owner_name="alpha")
    assert witness.tell(G, Tell(agent=S, promotion=other), 21.0).promotion == RECORD
    witness.tell(G, Tell(agent=S, promotion=HOME), 22.0)
    assert witness.tell(G, Tell(agent=T, promotion=RECORD), 23.0).epoch == 2


def test_whom_it_has_voted_for_is_not_passed_over(witness: Witness) -> None:
    witness.vote(G, a_ballot(), FREE_S)
    other = msgspec.structs.replace(RECORD, owner=S, owner_name="alpha")
    assert witness.tell(G, Tell(agent=S, promotion=other), 21.0).epoch == 0


# --- what it does not know ---


def test_a_source_without_a_lease_is_not_let_in_by_a_witness_that_does_not_know_it() -> None:
    """It may have been superseded while another was the witness, or before this one was told to forget."""
    witness = Witness(WitnessFile(), 0.0)
    assert not witness.renew(G, a_renewal(holds_lease=False), 99.0).granted
    assert not witness.file.groups
    assert witness.renew(G, a_renewal(), 100.0).granted
    assert witness.renew(G, a_renewal(holds_lease=False), 100.0).granted


def test_a_group_that_was_forgotten_is_voted_for_when_its_leases_have_lapsed(witness: Witness) -> None:
    witness.forget(G)
    assert not witness.vote(G, a_ballot(), 11.0).given
    assert not witness.vote(G, a_ballot(), 11.0 + lapse_s(3.0) - 0.1).given
    assert witness.vote(G, a_ballot(), 11.0 + lapse_s(3.0)).given


def test_the_first_two_agents_are_listened_to(witness: Witness) -> None:
    for act in (
        lambda: witness.renew(G, a_renewal(agent="stranger"), 11.0),
        lambda: witness.vote(G, a_ballot(agent="stranger", candidate="stranger"), 11.0),
        lambda: witness.tell(G, Tell(agent="stranger", promotion=RECORD), 11.0),
        lambda: witness.withdraw(G, Withdraw(agent="stranger", attempt="1"), 11.0),
        lambda: witness.withdraw("unknown", Withdraw(agent=T, attempt="1"), 11.0),
    ):
        with pytest.raises(WitnessRefusedError):
            act()


def test_a_target_that_the_source_could_not_name_is_the_second() -> None:
    witness = Witness(WitnessFile(), 0.0)
    witness.renew(G, a_renewal(other=""), 10.0)
    witness.vote(G, a_ballot(), 11.0)
    assert witness.file.groups[G].agents == (S, T)


def test_two_targets_of_a_source_do_not_both_take_over() -> None:
    witness = Witness(WitnessFile(), 0.0)

    def is_voted(group: str, ballot: Ballot, now_s: float) -> bool:
        witness.vote(group, ballot, now_s)  # unknown until then: leases of it may be out
        return witness.vote(group, ballot, now_s + 5.0).given

    assert is_voted(G, a_ballot(claims=("journal 1",)), 10.0)
    second = a_ballot(agent="other", candidate="other", claims=("journal 1", "journal 2"))
    assert not is_voted("second", second, 20.0)
    witness.tell(G, Tell(agent=T, promotion=RECORD), 30.0)
    assert not is_voted("second", second, 40.0)
    assert is_voted("third", msgspec.structs.replace(second, claims=("journal 3",)), 50.0)
    witness.tell(G, Tell(agent=S, promotion=HOME), 60.0)
    assert is_voted("second", second, 70.0)


def test_groups_are_bounded(monkeypatch: pytest.MonkeyPatch, witness: Witness) -> None:
    monkeypatch.setattr(limits, "WITNESS_GROUPS", 1)
    with pytest.raises(WitnessRefusedError):
        witness.renew("second", a_renewal(), 11.0)


def test_the_log_is_bounded_and_a_large_record_is_kept_without_its_fork_points(witness: Witness) -> None:
    for epoch in range(1, limits.WITNESS_LOG + 5):
        owner = T if epoch % 2 else S
        record = Promotion(group=G, epoch=epoch, parent_epoch=epoch - 1, owner=owner, owner_name=owner)
        witness.tell(G, Tell(agent=owner, promotion=record), 20.0)
    assert len(witness.file.groups[G].log) == limits.WITNESS_LOG
    large = msgspec.structs.replace(record, epoch=99, reason="x" * limits.WITNESS_RECORD_BYTES)
    assert witness.tell(G, Tell(agent=owner, promotion=large), 21.0).promotion is not None


# --- restarts ---


def test_after_a_restart_it_waits_for_leases_that_may_be_out(witness: Witness) -> None:
    again = Witness(witness.file, 100.0)
    assert not again.vote(G, a_ballot(), 100.0 + lapse_s(3.0) - 0.1).given
    assert again.vote(G, a_ballot(), 100.0 + lapse_s(3.0)).given


def test_after_a_restart_the_owner_may_go_on_at_once(witness: Witness) -> None:
    """It has not been superseded: that would be in the file."""
    assert Witness(witness.file, 100.0).renew(G, a_renewal(holds_lease=False), 100.0).granted


def test_a_vote_outlives_a_restart(witness: Witness) -> None:
    witness.vote(G, a_ballot(), FREE_S)
    data = msgspec.json.encode(witness.file)
    again = Witness(msgspec.json.decode(data, type=WitnessFile), 100.0)
    assert not again.renew(G, a_renewal(), 200.0).granted


def test_only_what_has_to_be_durable_is_saved(witness: Witness) -> None:
    before = witness.file
    assert witness.renew(G, a_renewal(), 11.0).granted
    assert witness.file is before  # a lease is waited for after a restart
    assert witness.renew(G, a_renewal(lease_s=4.0), 11.0).granted
    assert witness.file is not before  # and that has to be long enough
    before = witness.file
    witness.vote(G, a_ballot(), 99.0)
    assert witness.file is not before


# --- a store that counts no leases ---


def test_a_candidate_counts_from_when_it_saw_a_lease_that_was_given() -> None:
    observer, entry = Observer(), Entry(group=G, agents=(S, T), epoch=0, owner=S, lease_s=3.0)
    observer.see(G, 7, 100.0)
    observer.see(G, 7, 102.0)
    assert observer.wait_s(G, entry, a_ballot(), 102.0) == pytest.approx(lapse_s(3.0) - 2.0)
    observer.see(G, 8, 103.0)  # the owner has renewed
    assert observer.wait_s(G, entry, a_ballot(), 103.0) == pytest.approx(lapse_s(3.0))
    assert observer.wait_s(G, entry, a_ballot(), 110.0) == 0.0


def test_each_lease_changes_the_entry() -> None:
    entry, _ = renewed(None, G, a_renewal())
    again, _ = renewed(entry, G, a_renewal())
    assert entry != again
    refused, answer = renewed(voted(entry, G, a_ballot(), 0.0, 9.0, {})[0], G, a_renewal())
    assert not answer.granted and refused is not None and refused.vote is not None
