"""Checkers of the guarantees, for simulated runs: each looks at every step, not only at the end.

| guarantee | checker |
|---|---|
| order | records are applied in the order of their sequences, and of their stamps across mounts |
| prefix consistency | an exact copy equals the source after the record applied last (`Watch.probe`) |
| no silent loss | an exact copy is not given a record without the one before it; both end equal |
| production first | appending to a journal never raises (`kit.topology.Mount`) |
| crash safety | nothing is applied twice but the record in doubt; not all is compared after a kill |
| durability | what a source is told to be durable was synced before |
| nobody gets out | a directory beside the copy stays as it is |
| states | no forbidden step (`kit.stories`) |
| completeness | no copy that lacks something is left to itself (`kit.left_behind`) |
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.trees import Node, differences, snapshot
from replicator.mirror.pieces import Batch, Refused
from replicator.net.frames import Connect
from replicator.ops import Kind, Record
from replicator.receiver.receiver import Receiver
from replicator.receiver.replica_tree import ReplicaTree

_NOT_JOURNALED_AT_ONCE = frozenset({"mtime_ns"})


class Watch:
    """Looks at one target. `copies`: where it has what each of its journals captures."""

    def __init__(self, copies: list[Path], *, ignore: frozenset[str] = frozenset()) -> None:
        self.receiver: Receiver | None = None
        self.illness: Callable[[str], None] = lambda operation: None
        self.after_sync: Callable[[], None] = lambda: None
        self.probed = self.applied = 0
        self._copies = copies
        self._ignore = ignore | _NOT_JOURNALED_AT_ONCE
        self._probes: dict[tuple[int, int], dict[bytes, Node]] = {}
        self._last: dict[int, int] = {}
        self._stamp = 0
        self._exact: set[int] = set()  # journals whose last record met an exact copy
        self._in_doubt = False
        self._synced: dict[str, int] = {}

    # --- what a test tells ---

    def probe(self, journal: int, sequence: int, source: Path) -> None:
        """This is the source after the operation with that sequence."""
        self._probes[journal, sequence] = snapshot(source)

    def lost_power(self) -> None:
        """The copy is as it was at some time before, or worse."""
        self._last.clear()
        self._exact.clear()
        self._stamp = 0
        self._in_doubt = True

    def check_durable(self, durable: dict[str, int]) -> None:
        """What the source was told."""
        for journal_id, sequence in durable.items():
            known = self._synced.get(journal_id)
            assert known is None or sequence <= known, f"{sequence} is told to be durable, synced was {known}"

    # --- what a tree tells ---

    def opened_by(self, receiver: Receiver | None) -> None:
        """A receiver that follows a killed one may apply one record again."""
        self._in_doubt = self._in_doubt or receiver is not self.receiver
        self.receiver = receiver

    def stretch_begins(self) -> None:
        """A mirror begins or has ended: it makes up for what is left out."""
        self._exact.clear()

    def record_applied(self, journal: int, record: Record, tolerant: bool) -> None:
        self.applied += 1
        last = self._last.get(journal)
        what = f"{Kind(record.kind).name} {record.path!r} with sequence {record.sequence}"
        if last is not None:
            again = record.sequence == last and self._in_doubt
            assert record.sequence > last or again, f"order: {what} was applied after {last}"
            if journal in self._exact and not again:
                assert record.sequence == last + 1, f"silent loss: {what} was applied after {last}"
        assert record.monotonic_ns >= self._stamp, f"order across mounts: {what} is older than the one before"
        self._in_doubt = False
        self._stamp = record.monotonic_ns
        self._last[journal] = record.sequence
        if not tolerant:
            self._exact.add(journal)
            expected = self._probes.pop((journal, record.sequence), None)
            if expected is not None:
                self.probed += 1
                found = differences(expected, snapshot(self._copies[journal]), self._ignore)
                assert not found, f"no prefix: after {what}\n" + "\n".join(found[:20])

    def begin_sync(self) -> dict[str, int]:
        assert self.receiver is not None
        return {name: mark.sequence for name, mark in self.receiver.replica.applied.marks.items()}

    def synced(self, marks: dict[str, int]) -> None:
        self._synced = marks
        self.after_sync()


class WatchedTree(ReplicaTree):
    """A target's tree whose every step is told to a `Watch`, and which falls ill when that says so."""

    def __init__(self, watch: Watch, connect: Connect, directory: str) -> None:
        self._watch = watch
        super().__init__(connect, directory)

    def apply(self, journal: int, record: Record, *, tolerant: bool, **how: Any) -> None:
        self._watch.illness("apply")
        super().apply(journal, record, tolerant=tolerant, **how)
        self._watch.record_applied(journal, record, tolerant)

    def place(self, batch: Batch) -> list[Refused]:
        self._watch.illness("place")
        return super().place(batch)

    def sync(self) -> None:
        self._watch.illness("sync")
        marks = self._watch.begin_sync()
        super().sync()
        self._watch.synced(marks)

    def forget_links(self) -> None:
        super().forget_links()
        self._watch.stretch_begins()
