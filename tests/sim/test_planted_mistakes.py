"""Mistakes planted into the product: runs drawn from seeds must find each of them, by the right checker.

Without this nobody knows whether a campaign that finds nothing looks at anything.
"""

import errno
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from kit import trial

from replicator.mirror.order import Decision, Order
from replicator.net.frames import Connected
from replicator.ops import Kind, Record
from replicator.queue.dirty import DirtyMap
from replicator.queue.journal import JournalWriter
from replicator.queue.merge import Merge
from replicator.receiver.durability import Durability
from replicator.receiver.shared_value import SharedValue
from replicator.sender.mirrors import Mirrors
from replicator.sender.resync import Resync
from replicator.sender.scanner import Scanner
from replicator.sender.shipper import Shipper
from replicator.status import TargetDataState

pytestmark = pytest.mark.sim

Plant = Callable[[pytest.MonkeyPatch], None]


def positions_are_stored_late(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SharedValue.store
    calls: dict[int, int] = {}

    def every_third(self: SharedValue, data: bytes) -> None:
        calls[id(self)] = number = calls.get(id(self), 0) + 1
        if number % 3 == 0:
            store(self, data)

    monkeypatch.setattr(SharedValue, "store", every_third)


def durable_is_what_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Durability, "durable", property(lambda self: dict(self._applied.marks)))


def some_attributes_are_not_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    decide = Shipper._decide

    def forgetful(self: Shipper, flow: Any, record: Record, out: Any) -> Any:
        decision = decide(self, flow, record, out)
        return Decision.SKIP if record.kind == Kind.SETATTR and record.sequence % 16 == 0 else decision

    monkeypatch.setattr(Shipper, "_decide", forgetful)
    monkeypatch.setattr(Shipper, "_ships_all", lambda *arguments: False)


def pieces_come_after_later_records(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Scanner._queue

    def late(self: Scanner, flow: Any, piece: Any) -> None:
        piece.place += 1
        queue(self, flow, piece)

    monkeypatch.setattr(Scanner, "_queue", late)


def renames_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    ship = Order.ship

    def wrongly(self: Order, record: Record) -> Decision:
        return Decision.SHIP if record.kind == Kind.RENAME else ship(self, record)

    monkeypatch.setattr(Order, "ship", wrongly)


def journals_are_read_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Merge) -> Any:
        for index, cursor in enumerate(self._cursors):
            run = cursor.read()
            if run is not None:
                return index, run
        return None

    monkeypatch.setattr(Merge, "read", read)


def a_full_queue_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    create = JournalWriter._create_segment

    def strictly(self: JournalWriter, *arguments: Any) -> bool:
        if not create(self, *arguments):
            raise OSError(errno.ENOSPC, "the queue is full")
        return True

    monkeypatch.setattr(JournalWriter, "_create_segment", strictly)


def lost_renames_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    fold = DirtyMap.fold

    def without(self: DirtyMap, record: Record) -> None:
        if record.kind != Kind.RENAME:
            fold(self, record)

    monkeypatch.setattr(DirtyMap, "fold", without)


def every_new_session_compares_all(monkeypatch: pytest.MonkeyPatch) -> None:
    resume = Mirrors.resume

    def warily(self: Mirrors, connected: Connected, lost: bool, *, was_exact: bool) -> None:
        resume(self, connected, lost or connected.data_state == TargetDataState.OK, was_exact=was_exact)

    monkeypatch.setattr(Mirrors, "resume", warily)


def a_power_loss_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    resume = Resync.resume

    async def trustingly(self: Resync, connected: Connected) -> None:
        await resume(self, msgspec.structs.replace(connected, power_lost=False))

    monkeypatch.setattr(Resync, "resume", trustingly)


PLANTS: list[tuple[Plant, str, int]] = [
    (positions_are_stored_late, "order: ", 10),
    (durable_is_what_is_applied, "is told to be durable", 0),
    (some_attributes_are_not_shipped, "silent loss: ", 0),
    (pieces_come_after_later_records, "", 0),
    (renames_are_not_followed, "", 271),
    (journals_are_read_one_after_the_other, "order across mounts: ", 0),
    (a_full_queue_is_an_error, "production first: ", 4),
    (lost_renames_are_forgotten, "", 18),
    (every_new_session_compares_all, "everything was compared", 0),
    (a_power_loss_is_not_told, "", 61),
]
"""A mistake, words of the checker that finds it, the seed from which on it is looked for."""

SEEDS = 40


@pytest.mark.timeout_s(600)
@pytest.mark.parametrize(("plant", "words", "first"), PLANTS, ids=[plant.__name__ for plant, *_ in PLANTS])
def test_a_planted_mistake_is_found(
    plant: Plant, words: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in range(first, first + SEEDS):
        try:
            trial.run(seed)
        except (Exception, BaseExceptionGroup) as error:
            if words in trial.why(error):
                return
    raise AssertionError("no run found it")
