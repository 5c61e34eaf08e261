"""Whether programs wait for a target: both sides of a journal's header, and the states between them."""

from collections.abc import Callable

import pytest
from kit.journals import READER, READERS, Host, append, write

from replicator import limits
from replicator.capture.synchrony import Synchrony, Ticket
from replicator.mount_options import MountOptions
from replicator.queue.answers import Teller
from replicator.queue.journal import JournalWriter
from replicator.synchrony import SYNC, Readiness, SyncEvent, SyncState, SyncView, worst

TIMEOUT_S = 2.0


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def pass_s(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)

    def monotonic_ns(self) -> int:
        return self.now_ns

    wall_ns = monotonic_ns

    def boot_id(self) -> str:
        return "boot"


class Mount:
    """A synchronous mount with one target, and its clock."""

    def __init__(self, host: Host | None = None, *, at_start: bool = False, **options: object) -> None:
        self.host = host or Host()
        self.writer: JournalWriter = self.host.writer()
        self.cursor = self.host.cursor(create=True)
        self.teller: Teller = self.cursor.teller()
        self.clock = Clock()
        self.changes = 0
        self.synchrony = Synchrony(
            self.writer.answers(), lambda: self.writer.wanted_sequence, self.clock, self._changed
        )
        wanted = MountOptions(**{"sync": "fsync", "sync_timeout": TIMEOUT_S, **options})  # type: ignore[arg-type]
        if at_start:
            self.synchrony.start(wanted, {READER: [b""]})
        else:
            self.synchrony.configure(wanted)
            self.synchrony.set_connections({READER: [b""]})

    def _changed(self) -> None:
        self.changes += 1

    @property
    def view(self) -> SyncView:
        return next(view for view in self.synchrony.views() if view.connection == READER)

    @property
    def head(self) -> int:
        return self.writer.position.sequence

    def write(self) -> int:
        append(self.writer, write(b"f", 1))
        return self.head

    def want(self) -> Ticket | None:
        return self.synchrony.want(b"f", durable=True)

    def look(self, after_s: float = 0.0) -> SyncState:
        self.clock.pass_s(after_s)
        self.synchrony.look()
        return self.view.state

    def caught_up(self) -> "Mount":
        self.write()
        self.teller.is_ready(Readiness.READY)
        self.look()
        assert self.look(limits.SYNCHRONY_RETURN_S) is SyncState.DEGRADED  # it was asked
        assert self.teller.wanted(durable=True) == self.head
        self.teller.has(self.head, self.head)
        assert self.look() is SyncState.SYNCHRONOUS
        return self


def test_a_reply_waits_until_the_target_has_all_that_was_done() -> None:
    mount = Mount().caught_up()
    assert mount.want() is None  # it has everything
    mount.write()
    ticket = mount.want()
    assert ticket is not None and not ticket.is_met()
    assert mount.teller.wanted(durable=True) == mount.head
    mount.teller.has(mount.head - 1, mount.head)
    assert not ticket.is_met(), "what is in a target's memory is not durable"
    mount.teller.has(mount.head, mount.head)
    assert ticket.is_met()


def test_received_is_enough_for_what_need_not_be_durable() -> None:
    mount = Mount(sync="all").caught_up()
    mount.write()
    ticket = mount.synchrony.want(None, durable=False)
    assert ticket is not None and not ticket.is_met()
    mount.teller.has(0, mount.head)
    assert ticket.is_met()


def test_what_the_journal_could_not_take_is_waited_for() -> None:
    mount = Mount().caught_up()
    mount.writer._pending_ops = 1  # a HOLE is still to come
    ticket = mount.want()
    assert ticket is not None
    mount.teller.has(mount.head, mount.head)
    assert not ticket.is_met()


def test_a_writer_is_rung_by_what_it_wants_and_by_nothing_else() -> None:
    mount = Mount().caught_up()
    bells = mount.host.world.doorbells
    rung: list[str] = []
    bells.ring = lambda path: rung.append(path) or True  # type: ignore[func-returns-value, method-assign]
    mount.teller.has(mount.write(), mount.head)
    assert not rung
    mount.write()
    mount.want()
    assert len(rung) == 1 and rung.pop().endswith(".urgent")
    mount.teller.has(mount.head, mount.head)
    assert rung == [mount.synchrony.bell_path]
    mount.teller.has(mount.head, mount.head)
    assert len(rung) == 1


def test_only_sets_that_include_the_path_count() -> None:
    mount = Mount()
    mount.synchrony.set_connections({READER: [b"data", b"other"]})
    mount.caught_up()
    mount.write()
    assert mount.synchrony.want(b"database/f", durable=True) is None
    assert mount.synchrony.want(b"data/f", durable=True) is not None
    assert mount.synchrony.want(b"data", durable=True) is not None


def test_all_targets_are_waited_for() -> None:
    mount = Mount().caught_up()
    second = mount.host.cursor(READERS[1], create=True).teller()
    mount.synchrony.set_connections({READER: [b""], READERS[1]: [b""]})
    second.is_ready(Readiness.READY)
    mount.look()
    second.has(mount.head, mount.head)
    mount.look()
    mount.write()
    ticket = mount.want()
    mount.teller.has(mount.head, mount.head)
    assert ticket is not None and not ticket.is_met()
    second.has(mount.head, mount.head)
    assert ticket.is_met()


def test_a_slow_target_is_given_up_and_waited_for_again_when_it_keeps_up() -> None:
    mount = Mount().caught_up()
    mount.write()
    ticket = mount.want()
    assert mount.look(TIMEOUT_S * 0.9) is SyncState.SYNCHRONOUS
    assert mount.look(TIMEOUT_S * 0.2) is SyncState.DEGRADED
    assert ticket is not None and ticket.is_met()
    assert mount.view.reason == "the target is slow" and mount.view.times == 1
    assert mount.want() is None
    mount.look(limits.SYNCHRONY_RETURN_S)  # it is asked again
    assert mount.look(TIMEOUT_S * 0.6) is SyncState.DEGRADED  # and takes too long
    mount.teller.has(mount.head, mount.head)
    assert mount.look() is SyncState.DEGRADED, "it was given up for this time"
    mount.write()
    mount.look(limits.SYNCHRONY_RETURN_S)
    mount.teller.has(mount.head, mount.head)
    assert mount.look(TIMEOUT_S * 0.4) is SyncState.SYNCHRONOUS
    assert mount.view.reason == "" and mount.changes == 3


def test_who_waits_longest_decides() -> None:
    mount = Mount().caught_up()
    for _ in range(3):
        mount.write()
        mount.want()
        mount.clock.pass_s(TIMEOUT_S * 0.4)
    mount.teller.has(mount.head - 2, mount.head)
    assert mount.look() is SyncState.SYNCHRONOUS  # the first has it
    assert mount.look(TIMEOUT_S * 0.3) is SyncState.DEGRADED  # the second is overdue, not only the third


@pytest.mark.parametrize("readiness", [Readiness.AWAY, Readiness.INEXACT])
def test_a_target_that_is_away_is_given_up_also_if_nobody_waits(readiness: Readiness) -> None:
    mount = Mount().caught_up()
    mount.teller.is_ready(readiness)
    assert mount.look() is SyncState.SYNCHRONOUS
    mount.look(TIMEOUT_S * 0.5)
    mount.teller.is_ready(Readiness.READY)  # a moment does no harm
    mount.look(TIMEOUT_S * 0.6)
    mount.teller.is_ready(readiness)
    assert mount.look() is SyncState.SYNCHRONOUS
    assert mount.look(TIMEOUT_S * 1.1) is SyncState.DEGRADED


@pytest.mark.parametrize("readiness", [Readiness.PAUSED, Readiness.UNABLE])
def test_nobody_waits_for_what_a_person_has_stopped(readiness: Readiness) -> None:
    mount = Mount().caught_up()
    mount.teller.is_ready(readiness)
    assert mount.look() is SyncState.DEGRADED


@pytest.mark.parametrize("readiness", list(Readiness))
def test_strict_waits_whatever_happens(readiness: Readiness) -> None:
    mount = Mount(sync_policy="strict").caught_up()
    mount.teller.is_ready(readiness)
    assert mount.look(TIMEOUT_S * 2) is SyncState.SYNCHRONOUS  # nobody waits
    mount.write()
    ticket = mount.want()
    assert ticket is not None
    for _ in range(5):
        assert mount.look(TIMEOUT_S * 2) is SyncState.WAITING
        assert not ticket.is_met()
    mount.teller.is_ready(Readiness.READY)
    mount.teller.has(mount.head, mount.head)
    assert mount.look() is SyncState.SYNCHRONOUS and ticket.is_met()


def test_strict_begins_when_the_target_has_caught_up_for_the_first_time() -> None:
    mount = Mount(sync_policy="strict")
    mount.write()
    assert mount.want() is None and mount.look(TIMEOUT_S * 2) is SyncState.DEGRADED


def test_a_person_who_ends_it_lets_programs_go_on() -> None:
    mount = Mount(sync_policy="strict").caught_up()
    mount.write()
    first = mount.want()
    mount.synchrony.configure(MountOptions(sync="fsync", sync_policy="degrade", sync_timeout=TIMEOUT_S))
    mount.look(TIMEOUT_S * 2)
    assert first is not None and first.is_met()
    other = Mount(sync_policy="strict").caught_up()
    other.write()
    second = other.want()
    other.synchrony.configure(MountOptions())
    assert second is not None and second.is_met() and not other.synchrony.views()


def test_a_connection_that_is_removed_counts_no_more() -> None:
    mount = Mount(sync_policy="strict").caught_up()
    mount.write()
    ticket = mount.want()
    mount.synchrony.set_connections({})
    assert ticket is not None and ticket.is_met() and mount.want() is None


@pytest.mark.parametrize("synchronous", [True, False])
def test_the_successor_of_a_killed_process_goes_on_where_it_was(synchronous: bool) -> None:
    mount = Mount().caught_up()
    if not synchronous:
        mount.teller.is_ready(Readiness.PAUSED)
        mount.look()
    mount.writer.close(persist=False)
    successor = Mount(mount.host, at_start=True)
    successor.write()
    assert (successor.want() is not None) is synchronous


def test_after_a_boot_what_was_synchronous_is_waited_for_at_once() -> None:
    mount = Mount().caught_up()
    mount.writer.save_header()
    mount.host.reboot()
    successor = Mount(mount.host, at_start=True)
    assert successor.view.state is SyncState.SYNCHRONOUS
    assert successor.writer.answers().readiness(0) is Readiness.AWAY  # of the former boot


def test_tables() -> None:
    assert set(SYNC) == {(state, event) for state in SyncState for event in SyncEvent}
    views = [SyncView(connection="", state=state, since=0) for state in SyncState]
    found: Callable[..., SyncView | None] = worst
    assert found(views).state is SyncState.DEGRADED and found([]) is None  # type: ignore[union-attr]
