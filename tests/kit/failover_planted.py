"""Mistakes for `tests/sim/test_failover_planted.py`, and a search for histories that find them."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

import msgspec
import pytest

from kit import failover_agents
from kit.failover_agents import EtcdAgent, S, Setup, SourceAgent, T, TargetAgent, W
from kit.failover_histories import History, draw, play
from kit.failover_world import Ask, Fault, Host, Save, Violation
from replicator.agent.failover.homecoming import Homecoming
from replicator.failover import lease, plan, rejoin, witness, writing
from replicator.failover.candidate import Action, Attempt, Verdict
from replicator.failover.lease import Granter, Holder, Renew, Renewed
from replicator.failover.owner import Owner
from replicator.failover.witness import Entry, Observer, Witness
from replicator.failovers import Lapse, Promotion

Patch = pytest.MonkeyPatch


def a_lease_counts_from_its_receipt(patch: Patch) -> None:
    answered = Owner.answered

    def late(self: Owner, asked: lease.Asked, answer: Renewed, now_s: float) -> Any:
        return answered(self, asked._replace(sent_s=now_s), answer, now_s)

    patch.setattr(Owner, "answered", late)


def who_grants_counts_no_longer_than_who_holds(patch: Patch) -> None:
    for module in (lease, witness):
        patch.setattr(module, "lapse_s", lambda lease_s: 0.9 * lease_s)


def a_target_does_not_wait_for_its_own_grants(patch: Patch) -> None:
    patch.setattr(Granter, "free_s", property(lambda self: 0.0))


def a_target_grants_while_it_takes_over(patch: Patch) -> None:
    renew = Granter.renew

    def generous(self: Granter, request: Renew, now_s: float, **known: Any) -> Renewed:
        stopped, self._stopped = self._stopped, None
        try:
            return renew(self, request, now_s, **known)
        finally:
            self._stopped = stopped

    patch.setattr(Granter, "renew", generous)


def a_restarted_target_forgets_that_it_takes_over(patch: Patch) -> None:
    """And that leases of it are out."""
    patch.setattr(TargetAgent, "stopped", property(lambda self: None))

    def forgetful(self: Granter, memory: Any, now_s: float, *, stopped: int | None = None) -> None:
        self.memory, self._stopped, self._free_s = memory, None, now_s

    patch.setattr(Granter, "__init__", forgetful)


def a_restarted_witness_forgets_leases(patch: Patch) -> None:
    init = Witness.__init__

    def forgetful(self: Witness, file: Any, now_s: float) -> None:
        init(self, file, now_s)
        self._free_s.clear()

    patch.setattr(Witness, "__init__", forgetful)


def a_restarted_witness_forgets_votes(patch: Patch) -> None:
    init = Witness.__init__

    def forgetful(self: Witness, file: Any, now_s: float) -> None:
        groups = {g: msgspec.structs.replace(entry, vote=None) for g, entry in file.groups.items()}
        init(self, msgspec.structs.replace(file, groups=groups), now_s)

    patch.setattr(Witness, "__init__", forgetful)


def a_witness_grants_after_its_vote(patch: Patch) -> None:
    renewed = witness.renewed

    def generous(entry: Entry | None, group: str, request: Renew) -> Any:
        if entry is None or entry.vote is None:
            return renewed(entry, group, request)
        vote, entry = entry.vote, msgspec.structs.replace(entry, vote=None)
        entry, answer = renewed(entry, group, request)
        return msgspec.structs.replace(entry, vote=vote), answer

    patch.setattr(witness, "renewed", generous)


def a_witness_votes_while_a_lease_is_valid(patch: Patch) -> None:
    patch.setattr(Witness, "lease_left_s", lambda self, group, now_s: 0.0)


def a_witness_knows_only_the_last_try(patch: Patch) -> None:
    """One that was given up, and asks late, takes the place of the present one; and then is withdrawn."""
    voted = witness.voted

    def forgetful(entry: Entry | None, group: str, ballot: Any, *more: Any) -> Any:
        entry, answer = voted(entry, group, ballot, *more)
        if entry.vote is not None:
            vote = msgspec.structs.replace(entry.vote, attempts=entry.vote.attempts[-1:])
            entry = msgspec.structs.replace(entry, vote=vote)
        return entry, answer

    patch.setattr(witness, "voted", forgetful)


def a_witness_opens_whom_it_does_not_know(patch: Patch) -> None:
    renewed = witness.renewed

    def generous(entry: Entry | None, group: str, request: Renew) -> Any:
        return renewed(entry, group, msgspec.structs.replace(request, holds_lease=True))

    patch.setattr(witness, "renewed", generous)


def a_witness_grants_an_old_epoch(patch: Patch) -> None:
    renewed = witness.renewed

    def generous(entry: Entry | None, group: str, request: Renew) -> Any:
        if entry is not None and request.epoch < entry.epoch:
            return entry, Renewed(granted=True, lease_s=request.lease_s, epoch=request.epoch)
        return renewed(entry, group, request)

    patch.setattr(witness, "renewed", generous)


def etcd_votes_at_once(patch: Patch) -> None:
    patch.setattr(Observer, "wait_s", lambda *arguments: 0.0)


def etcd_does_not_compare(patch: Patch) -> None:
    serve = EtcdAgent.serve

    def careless(self: EtcdAgent, caller: str, action: str, body: Any) -> Any:
        if action == "swap":
            body = (self.host.disk["key"][0], body[1])
        return serve(self, caller, action, body)

    patch.setattr(EtcdAgent, "serve", careless)


def nobody_waits_for_the_witness(patch: Patch) -> None:
    look = Attempt.look

    def hasty(self: Attempt, now_s: float, *, failed: bool) -> Verdict:
        verdict = look(self, now_s, failed=failed)
        return Verdict(Action.GO) if verdict.action is Action.VOTE else verdict

    patch.setattr(Attempt, "look", hasty)


def an_undo_lowers_the_epoch(patch: Patch) -> None:
    look = TargetAgent.look

    def backwards(self: TargetAgent, step: str, reason: str) -> Any:
        if step == failover_agents.PROMOTE:
            yield Save("record", None)
        yield from look(self, step, reason)

    patch.setattr(TargetAgent, "look", backwards)


def an_undo_does_not_take_the_vote_back(patch: Patch) -> None:
    undo = TargetAgent.undo

    def forgetful(self: TargetAgent, step: str) -> Any:
        for wait in undo(self, step):
            if not (isinstance(wait, Save) and wait.key == "owed"):
                yield wait

    patch.setattr(TargetAgent, "undo", forgetful)


def a_source_that_returns_asks_nobody(patch: Patch) -> None:
    """It opens when its host has booted, as every other mount does."""
    right = writing.right

    def hasty(facts: writing.Facts, now_s: float) -> writing.Right:
        if facts.came_back_s is not None and not facts.superseded_by:
            return writing.Right(float("inf"))
        return right(facts, now_s)

    patch.setattr("replicator.failover.owner.right", hasty)


def a_superseded_source_goes_by_its_leases(patch: Patch) -> None:
    right = writing.right

    def trusting(facts: writing.Facts, now_s: float) -> writing.Right:
        return right(msgspec.structs.replace(facts, superseded_by=""), now_s)

    patch.setattr("replicator.failover.owner.right", trusting)
    patch.setattr(SourceAgent, "replicate", _replicate_without_listening)


def _replicate_without_listening(self: SourceAgent) -> Any:
    while True:
        yield failover_agents.Sleep(0.25)
        if not self.guard.is_superseded:
            yield Ask("target", "records", (self.guard.epoch, self.data, self.world.now_s), 1.0)
        self.apply()


def a_restarted_source_gives_itself_a_lease(patch: Patch) -> None:
    init = Holder.__init__

    def generous(self: Holder, epoch: int, granters: Any = (), expiry_s: float = 0.0) -> None:
        init(self, epoch, granters, 1e9)

    patch.setattr(Holder, "__init__", generous)


def settings_that_change_leave_a_source_armed(patch: Patch) -> None:
    def arm(self: Granter, request: Renew, terms: int) -> None:
        if request.enforced:
            self.memory = msgspec.structs.replace(self.memory, armed=terms)

    patch.setattr(Granter, "_arm", arm)
    patch.setattr(Attempt, "_is_armed", property(lambda self: self._granter.memory.armed is not None))


def settings_that_come_late_count(patch: Patch) -> None:
    patch.setattr(
        failover_agents,
        "_watched",
        lambda guard, lapse, terms: msgspec.structs.replace(guard, lapse=lapse, terms=terms),
    )


def a_superseded_source_keeps_its_address(patch: Patch) -> None:
    heard = SourceAgent.heard

    def clinging(self: SourceAgent, record: Promotion | None) -> Any:
        had = self.has_address
        for wait in heard(self, record):
            self.has_address = had
            yield wait
        self.has_address = had

    patch.setattr(SourceAgent, "heard", clinging)


def a_tail_is_overwritten(patch: Patch) -> None:
    decide = rejoin.rejoin

    def careless(meeting: rejoin.Meeting) -> rejoin.Verdict:
        verdict = decide(meeting)
        if verdict.action is rejoin.Action.HOLD:
            return rejoin.Verdict(rejoin.Action.FOLLOW, fenced=True)
        return verdict

    patch.setattr(rejoin, "rejoin", careless)


def a_failback_without_an_answer_is_taken_back(patch: Patch) -> None:
    """The owner thaws, though its source may have taken over."""

    def hasty(self: TargetAgent) -> Any:
        yield failover_agents.Sleep(0.0)
        return not self.owns

    patch.setattr(TargetAgent, "was_handed_over", hasty)


def a_source_that_is_lost_is_taken_to_own_nothing(patch: Patch) -> None:
    """The owner thaws by a person's word, with the epoch that it has."""

    def hasty(self: TargetAgent) -> Any:
        yield failover_agents.Sleep(0.0)
        return False

    patch.setattr(TargetAgent, "presume", hasty)


def an_owner_thaws_when_it_restarts(patch: Patch) -> None:
    start = TargetAgent.start

    def thawed(self: TargetAgent) -> None:
        start(self)
        if self.owns and self.kind == "failback":
            self.set_until(float("inf"))

    patch.setattr(TargetAgent, "start", thawed)


def a_promotion_is_not_durable(patch: Patch) -> None:
    """The record is written a second later: a crash before that forgets an epoch that others have seen."""
    save = Host._save

    def lazy(self: Host, key: str, value: Any, program: Any, life: int) -> None:
        if key != "record" or value is None or self.name != "target":
            return save(self, key, value, program, life)
        former = self.disk.get("record")
        self.disk["record"] = value  # in the page cache

        def lose() -> None:
            if life != self._life and not self.is_up and self.disk.get("record") is value:
                self.disk["record"] = former

        self.world.later(1.0, lose)
        self._step(program, life, None)

    patch.setattr(Host, "_save", lazy)


def a_plan_forgets_that_it_is_final(patch: Patch) -> None:
    decide = plan.decide

    def forgetful(shapes: Any, notes: Any) -> Any:
        return decide([shape._replace(commits=False) for shape in shapes], notes)

    patch.setattr(plan, "decide", forgetful)


# --- moments: of use where a host is to be lost just then ---


def home_stands_still_before_it_is_promoted(patch: Patch) -> None:
    """In a failback: it is asked for that, and has done nothing."""
    promote = Homecoming._promote

    async def stopped(self: Homecoming, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return await promote(self, *arguments)

    patch.setattr(Homecoming, "_promote", stopped)


def home_stands_still_when_it_is_promoted(patch: Patch) -> None:
    """The record is durable there, and nobody else knows."""
    promote = Homecoming._promote

    async def stopped(self: Homecoming, *arguments: Any) -> Any:
        record = await promote(self, *arguments)
        os.kill(os.getpid(), signal.SIGSTOP)
        return record

    patch.setattr(Homecoming, "_promote", stopped)


def home_stands_still_before_it_opens(patch: Patch) -> None:
    """The owner knows that it owns the group."""
    opened = Homecoming._open

    async def stopped(self: Homecoming, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return await opened(self, *arguments)

    patch.setattr(Homecoming, "_open", stopped)


def home_stands_still_before_it_sends(patch: Patch) -> None:
    """Its programs may write; the owner is a copy already, and has heard nothing of it as such."""
    resume = Homecoming._resume

    async def stopped(self: Homecoming, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return await resume(self, *arguments)

    patch.setattr(Homecoming, "_resume", stopped)


# --- histories in which what is rare is likely ---

Focus = Callable[[Random], History]


def _history(random: Random, setup: Setup, *faults: Fault, slow: float = 0.0) -> History:
    return History(random.randrange(2**32), setup, sorted(faults, key=lambda f: f.at_s), slow=slow)


def _cut(at_s: float, one: str, other: str) -> tuple[Fault, Fault]:
    return Fault(at_s, "cut", (one, other)), Fault(at_s, "cut", (other, one))


def a_witness_restarts_with_a_lease_out(random: Random) -> History:
    at_s = 17.7 + random.uniform(-0.5, 0.5)
    return _history(
        random,
        Setup(automatic=False, interval_s=2.0, misses=5),
        *_cut(10.0, S, T),
        Fault(10.1, "now"),
        *_cut(at_s - 0.1, S, W),
        Fault(at_s, "kill", (W,)),
        Fault(at_s + 0.1, "start", (W,)),
    )


def a_candidate_is_paused_with_its_vote(random: Random) -> History:
    at_s = 14.1 + random.uniform(0.0, 0.1)
    return _history(
        random,
        Setup(automatic=False),
        Fault(10.0, "crash", (S,)),
        *_cut(10.1, S, T),
        Fault(14.0, "now"),
        Fault(at_s, "pause", (T, 8.0)),
        Fault(at_s + 0.5, "kill", (W,)),
        Fault(at_s + 0.6, "start", (W,)),
        Fault(at_s + 1.0, "boot", (S,)),
    )


def a_try_asks_late(random: Random) -> History:
    return _history(
        random,
        Setup(automatic=False),
        *_cut(10.0, S, T),
        *_cut(10.0, S, W),
        Fault(10.1, "now"),
        Fault(12.1, "kill", (T,)),
        Fault(12.2, "start", (T,)),
        Fault(12.3, "now"),
        Fault(14.3, "heal", (S, W)),
        Fault(14.3, "heal", (W, S)),
        slow=0.6,
    )


def a_witness_is_told_to_forget(random: Random) -> History:
    at_s = 16.0 + random.uniform(0.0, 2.0)
    return _history(
        random,
        Setup(automatic=False),
        *_cut(10.0, S, T),
        *_cut(10.0, S, W),
        Fault(10.1, "now"),
        *_cut(at_s, T, W),
        Fault(at_s + 0.1, "forget"),
        Fault(at_s + 1.0, "heal", (S, W)),
        Fault(at_s + 1.0, "heal", (W, S)),
    )


def an_owner_and_a_candidate_swap_at_once(random: Random) -> History:
    return _history(
        random,
        Setup(witness="etcd", automatic=False),
        *_cut(10.0, S, T),
        Fault(10.1, "now"),
        Fault(11.0, "pause", (S, 3.0 + random.uniform(0.0, 2.0))),
        slow=0.5,
    )


def a_lapse_is_switched_off(random: Random) -> History:
    return _history(
        random,
        Setup(automatic=False),
        Fault(10.0, "edit", (Lapse.NONE,)),
        *_cut(12.0, S, T),
        *_cut(12.0, S, W),
        Fault(12.1 + random.random(), "now"),
    )


def settings_overtake_each_other(random: Random) -> History:
    edits = [
        Fault(10.0 + 1.5 * i, "edit", (lapse,)) for i, lapse in enumerate((Lapse.NONE, Lapse.SUSPEND) * 4)
    ]
    return _history(random, Setup(automatic=False), *edits, slow=0.5)


def a_hand_over_is_cut(random: Random) -> History:
    at_s = 14.0 + random.uniform(0.1, 1.0)
    return _history(
        random,
        Setup(automatic=False),
        Fault(8.0, "now"),
        Fault(14.0, "failback"),
        Fault(at_s, "cut", (S, T)),
        *_cut(at_s + 0.2, T, W),  # who would tell the owner that its source has taken over
    )


def a_person_gives_a_source_up(random: Random) -> History:
    history = a_hand_over_is_cut(random)
    cut_s = max(fault.at_s for fault in history.faults)
    return replace(history, faults=[*history.faults, Fault(cut_s + random.uniform(0.5, 4.0), "lost")])


def an_owner_restarts_in_a_hand_over(random: Random) -> History:
    at_s = 14.0 + random.uniform(0.1, 0.6)
    return _history(
        random,
        Setup(automatic=False),
        Fault(8.0, "now"),
        Fault(14.0, "failback"),
        Fault(at_s, "kill", (T,)),
        *_cut(at_s + 0.05, S, T),
        Fault(at_s + 0.1, "start", (T,)),
    )


def a_promotion_is_followed_by_a_power_loss(random: Random) -> History:
    return _history(
        random,
        Setup(witness="", lapse=Lapse.NONE, automatic=False),
        Fault(8.0, "now"),
        Fault(8.1 + random.uniform(0.0, 0.7), "crash", (T,)),
        Fault(12.0, "boot", (T,)),
    )


def a_promotion_is_interrupted(random: Random) -> History:
    return _history(
        random,
        Setup(automatic=False),
        Fault(8.0, "now"),
        Fault(8.0, "crash at save", (T, random.randint(3, 12))),
        Fault(14.0, "boot", (T,)),
    )


def a_target_restarts_with_a_lease_out(random: Random) -> History:
    return _history(
        random,
        Setup(witness="", automatic=False, misses=5),
        *_cut(10.0, S, T),
        Fault(10.1, "kill", (T,)),
        Fault(10.2, "start", (T,)),
        Fault(10.3 + random.random(), "now"),
    )


class Planted(NamedTuple):
    """`seed`: of a history that finds it; `focus` draws it, None: `failover_histories.draw`."""

    plant: Callable[[Patch], None]
    found_as: str
    seed: int
    focus: Focus | None = None

    def history(self, seed: int) -> History:
        return draw(seed) if self.focus is None else self.focus(Random(seed))


WRITERS = "two writers"
PLANTED = [
    Planted(a_lease_counts_from_its_receipt, WRITERS, 40),
    Planted(who_grants_counts_no_longer_than_who_holds, WRITERS, 33),
    Planted(a_target_does_not_wait_for_its_own_grants, WRITERS, 14),
    Planted(a_target_grants_while_it_takes_over, WRITERS, 344),
    Planted(a_restarted_target_forgets_that_it_takes_over, WRITERS, 0, a_target_restarts_with_a_lease_out),
    Planted(a_restarted_witness_forgets_leases, WRITERS, 0, a_witness_restarts_with_a_lease_out),
    Planted(a_restarted_witness_forgets_votes, WRITERS, 0, a_candidate_is_paused_with_its_vote),
    Planted(a_witness_grants_after_its_vote, WRITERS, 32),
    Planted(a_witness_votes_while_a_lease_is_valid, WRITERS, 0),
    Planted(a_witness_knows_only_the_last_try, WRITERS, 338, a_try_asks_late),
    Planted(a_witness_opens_whom_it_does_not_know, WRITERS, 0, a_witness_is_told_to_forget),
    Planted(a_witness_grants_an_old_epoch, WRITERS, 32),
    Planted(etcd_votes_at_once, WRITERS, 101),
    Planted(etcd_does_not_compare, WRITERS, 31, an_owner_and_a_candidate_swap_at_once),
    Planted(nobody_waits_for_the_witness, WRITERS, 0),
    Planted(an_undo_lowers_the_epoch, "epoch of target falls", 0, a_promotion_is_interrupted),
    Planted(an_undo_does_not_take_the_vote_back, "waits for what becomes of its vote", 7),
    Planted(a_source_that_returns_asks_nobody, WRITERS, 21),
    Planted(a_superseded_source_goes_by_its_leases, WRITERS, 440),
    Planted(a_restarted_source_gives_itself_a_lease, WRITERS, 0),
    Planted(settings_that_change_leave_a_source_armed, WRITERS, 0, a_lapse_is_switched_off),
    Planted(
        settings_that_come_late_count, "does not know that its source stops", 4, settings_overtake_each_other
    ),
    Planted(a_superseded_source_keeps_its_address, "superseded source has the address", 0),
    Planted(a_tail_is_overwritten, "changes are nowhere", 0),
    Planted(a_failback_without_an_answer_is_taken_back, WRITERS, 8, a_hand_over_is_cut),
    Planted(a_source_that_is_lost_is_taken_to_own_nothing, WRITERS, 8, a_person_gives_a_source_up),
    Planted(an_owner_thaws_when_it_restarts, WRITERS, 67, an_owner_restarts_in_a_hand_over),
    Planted(a_promotion_is_not_durable, "epoch of target falls", 0, a_promotion_is_followed_by_a_power_loss),
    Planted(a_plan_forgets_that_it_is_final, "not protected again", 0),
]


def search(planted: Planted, count: int) -> tuple[int | None, dict[str, int]]:
    """The first seed whose history finds it as it should, and what else was found before."""
    others: dict[str, int] = {}
    for seed in range(count):
        with pytest.MonkeyPatch.context() as patch:
            planted.plant(patch)
            try:
                play(planted.history(seed))
            except Violation as violation:
                if planted.found_as in str(violation):
                    return seed, others
                others[str(violation)] = seed
    return None, others


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    wanted = sys.argv[2:]
    for planted in PLANTED:
        if wanted and planted.plant.__name__ not in wanted:
            continue
        seed, others = search(planted, count)
        print(f"{planted.plant.__name__}: {seed} ({planted.found_as}) {str(others)[:200]}", flush=True)


if __name__ == "__main__":
    main()
