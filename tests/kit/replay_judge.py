"""What must hold in a replay (`kit.replay`), as seen from outside.

- *One writer.* While the target owns the group the source accepts no write, and the other way round; owners
  change no more often than epochs are raised. Not where a person or a setting allows two
  (`History.is_guarded`).
- *Epochs* never fall. *One address*: who is superseded and knows it has none, and two hosts that are alive,
  with all others in reach, do not both have it for long.
- No process of an agent ends with an exception that it did not expect.
- In the end both trees are equal, and whatever a client was told is done is with the owner, or in a bundle:
  SQLite syncs before it says so, hence not even a loss of power excuses anything.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from kit import ledger
from kit.failover_histories import History
from kit.failover_lab import VIRTUAL
from kit.failover_world import Violation
from kit.ledger_client import Acknowledged, Answer, owners
from kit.patience import until
from replicator.failovers import Phase

if TYPE_CHECKING:
    from kit.replay import Stage, Summary

LOOK_S = 0.5
ADDRESS_S = 15.0  # that two hosts may have an address, while one of them hears of the other


class Look(NamedTuple):
    """At the target at one moment, CLOCK_MONOTONIC: from before it was asked until after it had answered."""

    began_s: float
    ended_s: float
    phase: Phase
    epoch: int


class Watcher:
    """Looks at both hosts all the time, in a thread of its own: an agent that stands still answers nobody."""

    def __init__(self, stage: "Stage", history: History) -> None:
        self.looks: list[Look] = []
        self.violations: list[str] = []
        self._stage = stage
        self._guarded = history.is_guarded
        self._epochs: dict[str, int] = {}
        self._both_since_s: float | None = None
        self._superseded_since_s: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join(90)

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            with suppress(subprocess.SubprocessError):  # a host that is just being booted
                self._look()

    def _look(self) -> None:
        people = self._stage.people
        began_s = time.monotonic()
        group = people.group()
        if group is not None:
            self.looks.append(Look(began_s, time.monotonic(), Phase(group["phase"]), group["epoch"]))
            self._rise("target", group["epoch"])
        guard = people.guard()
        if guard is not None:
            self._rise("source", guard["epoch"])
        holders = self._stage.lab.holders(VIRTUAL)
        self._addresses(guard, holders)

    def _rise(self, who: str, epoch: int) -> None:
        if epoch < self._epochs.get(who, 0):
            self.violations.append(f"the epoch of the {who} falls from {self._epochs[who]} to {epoch}")
        self._epochs[who] = epoch

    def _addresses(self, guard: dict[str, Any] | None, holders: list[str]) -> None:
        now_s = time.monotonic()
        stage = self._stage
        whole = not stage.cuts and all(host.agent_runs for host in stage.hosts.values())
        both = whole and {"source", "target"} <= set(holders)
        self._both_since_s = (self._both_since_s or now_s) if both else None
        if self._guarded and self._both_since_s and now_s - self._both_since_s > ADDRESS_S:
            self.violations.append("two hosts have the address")
        superseded = (
            guard is not None and guard["superseded"] and not guard["by_hand"] and "source" in holders
        )
        self._superseded_since_s = (self._superseded_since_s or now_s) if superseded else None
        if self._superseded_since_s and now_s - self._superseded_since_s > ADDRESS_S:
            self.violations.append("a superseded source has the address")


def two_writers(looks: Sequence[Look], answers: Sequence[Answer]) -> list[Answer]:
    """Writes that one host accepted while the other one owned the group: between two looks that say so."""
    found: list[Answer] = []
    wrong = {Phase.ACTIVE: "source", Phase.WATCHING: "target"}
    for before, after in pairwise(looks):
        if before.phase is after.phase and before.epoch == after.epoch and before.phase in wrong:
            found += [
                answer
                for answer in answers
                if answer.host == wrong[before.phase]
                and answer.sent_s > before.ended_s
                and answer.answered_s < after.began_s
            ]
    return found


def judge(stage: "Stage", history: History, epoch: int, summary: "Summary", watcher: Watcher) -> "Summary":
    """`epoch`: before. Raises Violation."""
    stage.clients.close()
    answers = stage.clients.answers
    group = stage.people.group()
    assert group is not None
    summary.terms, summary.epochs = owners(answers), group["epoch"] - epoch
    summary.writes = len(answers)
    if history.is_guarded:
        if wrong := two_writers(watcher.looks, answers):
            raise Violation(f"two writers: {len(wrong)} writes of who did not own the group, {wrong[:3]}")
        if len(summary.terms) > summary.epochs + 1:
            raise Violation(f"two writers: {summary.terms} in {summary.epochs} epochs")
    if watcher.violations:
        raise Violation(watcher.violations[0])
    _judge_data(stage, answers, summary)
    _judge_logs(stage)
    return summary


def _judge_data(stage: "Stage", answers: Sequence[Answer], summary: "Summary") -> None:
    service = stage.services[0]
    service.disable()
    until(service.has_ended, 30, 0.05)
    try:
        stage.lab.assert_equal()
    except AssertionError as error:
        raise Violation(f"source and copy differ: {error}") from None
    rows = stage.lab.rows(stage.lab.source.root)
    service.enable()
    lost = {answer.number for answer in Acknowledged(answers).lost(rows)}
    bundled = bundled_rows(stage) if lost else set()
    summary.bundled, summary.lost = len(lost & bundled), len(lost - bundled)
    if nowhere := sorted(lost - bundled):
        raise Violation(f"{len(nowhere)} acknowledged writes are nowhere: {nowhere[:5]}")


def _judge_logs(stage: "Stage") -> None:
    """No process of an agent has come upon what it did not know."""
    for machine in stage.lab.machines:
        home = machine.agent.home
        for file in (home / "dtd.out", *(home / "log").iterdir()):
            _, found, rest = file.read_bytes().partition(b"Traceback (most recent call last)")
            if found:
                raise Violation(
                    f"{machine.name}: an exception, {file.name}: {rest[-1000:].decode(errors='replace')}"
                )


def bundled_rows(stage: "Stage") -> set[int]:
    """Rows that divergence bundles of both hosts have, as ordinary files."""
    found: set[int] = set()
    for machine in (stage.lab.source, stage.lab.target):
        for bundle in machine.agent.json("divergence", "list"):
            directory = stage.lab.directory / "exported"
            machine.agent.json("divergence", "export", bundle["manifest"]["id"], directory)
            for file in directory.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    found |= ledger.rows_in(file)
            shutil.rmtree(directory)
    return found
