"""Rounds of take-over, return and failback in which agents are killed (SIGKILL) at chosen steps of them.

    rounds = Rounds(lab, random.Random(1))
    rounds.take_over(Kill("promote", lab.target))
    rounds.follow(lab.source)
    rounds.come_home("restore-first", Kill("hold and compare", lab.source))
    rounds.check()

A step is known from the notes of the procedure (`failover/procedures/GROUP.plan` of whoever does it), which
are durable before it begins. Whoever asked for a procedure asks again when it was taken back, or waits for a
person, as somebody would; nothing else helps it. A reversal swaps `lab.source` and `lab.target`.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any, NamedTuple

from kit.failover_lab import MONITOR, FailoverLab, Machine
from kit.patience import until
from replicator.failovers import Phase, ScriptKind

PATIENCE_S = 90.0
POLL_S = 0.3
LOOK_S = 0.002
WITHIN_S = 0.25  # after the step has begun
DOWN_S = 1.0


class Kill(NamedTuple):
    step: str
    victim: Machine


class Rounds:
    """Of a lab whose monitor has `scripts_of` and that takes over when it is told to."""

    def __init__(self, lab: FailoverLab, chance: random.Random) -> None:
        self.lab = lab
        self.kills = 0
        self._chance = chance
        self._number = 0
        self._written = b""

    # --- what is done ---

    def take_over(self, kill: Kill | None = None) -> None:
        """The source is alive; a person wants the target to take its place."""
        self._number += 1
        source, target = self.lab.source, self.lab.target
        (source.root / f"before-{self._number}").write_bytes(self._chance.randbytes(5000))
        with self._killed(target, kill):
            self._pursue(("failover", "now", MONITOR, "--force"), lambda view: view["phase"] == Phase.ACTIVE)
        self._written = self._chance.randbytes(5000)
        (target.root / f"at-target-{self._number}").write_bytes(self._written)

    def follow(self, victim: Machine | None = None) -> None:
        """The former source becomes a copy. `victim`: killed at some moment of that."""
        source, target = self.lab.source, self.lab.target
        if victim is not None:
            time.sleep(self._chance.uniform(0, 2))
            self._kill(victim)

        def is_ready() -> bool:
            source.agent.dtctl("failover", "follow", MONITOR)  # a person's word, if one is needed
            return target.agent.dtctl("failback", MONITOR, "--dry-run").code == 0

        until(is_ready, PATIENCE_S, POLL_S)

    def come_home(self, order: str, kill: Kill | None = None) -> None:
        """`order`: "restore-first", "failback-first" or "stay"."""
        source, target = self.lab.source, self.lab.target
        how = ("--stay",) if order == "stay" else ("--order", order)
        with self._killed(target, kill):
            if order == "stay":
                self._pursue(("failback", MONITOR, *how, "--yes"), lambda view: False, self._has_turned)
                self.lab.source, self.lab.target = target, source
            else:
                self._pursue(
                    ("failback", MONITOR, *how, "--yes"), lambda view: view["phase"] == Phase.WATCHING
                )

    def _has_turned(self) -> bool:
        here = self.lab.target.agent.dtctl("failover", "list", "--json")
        there = self.lab.source.agent.dtctl("failover", "list", "--json")
        return (here.code, there.code) == (0, 0) and here.json == [] and len(there.json) == 1

    def _pursue(
        self, command: tuple[str, ...], is_done: Callable[[Any], bool], otherwise: Callable[[], bool] = bool
    ) -> None:
        """Ask for it until it is done."""
        agent = self.lab.target.agent
        deadline_s = time.monotonic() + PATIENCE_S
        told = ""
        while True:
            with suppress(TimeoutExpired):
                done = agent.dtctl(*command)
                told = done.out[-600:] + done.err
            settles_s = time.monotonic() + 15
            while time.monotonic() < settles_s:
                shown = agent.dtctl("failover", "show", MONITOR, "--json")
                if (shown.code == 0 and is_done(shown.json)) or otherwise():
                    return
                if shown.code == 0 and (shown.json["report"] is None or shown.json["halted"]):
                    break  # taken back, or it waits for a person: asked again
                time.sleep(POLL_S)
            assert time.monotonic() < deadline_s, f"{' '.join(command)}: not done in time\n{told}"

    # --- kills ---

    @contextmanager
    def _killed(self, actor: Machine, kill: Kill | None) -> Iterator[None]:
        """While something is done; returns when whoever was killed runs again."""
        if kill is None:
            yield
            return
        over = threading.Event()
        failed: list[BaseException] = []

        def watch() -> None:
            try:
                while not over.is_set():
                    if _has_begun(actor, kill.step):
                        time.sleep(self._chance.uniform(0, WITHIN_S))
                        self._kill(kill.victim)
                        return
                    time.sleep(LOOK_S)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        for error in failed:
            raise error

    def _kill(self, victim: Machine) -> None:
        victim.agent.kill()
        self.kills += 1
        time.sleep(self._chance.uniform(0, DOWN_S))
        victim.agent.start()

    # --- what must hold in the end ---

    def check(self) -> None:
        """The source owns the group and has its address, alone; it is protected, and both trees are equal."""
        lab = self.lab
        view = lab.phase_becomes(Phase.WATCHING)
        lab.only_holder_becomes(lab.source.name)
        guard = until(lambda: (found := self._guard())["is_open"] and found, 30, POLL_S)
        assert guard["epoch"] == view["epoch"]
        (lab.source.root / f"after-{self._number}").write_bytes(self._chance.randbytes(5000))
        until(lab.is_exact, 60, POLL_S)
        lab.assert_equal()
        assert (lab.source.root / f"at-target-{self._number}").read_bytes() == self._written
        for machine in (lab.source, lab.target):
            until(lambda machine=machine: not _left(machine), 40, POLL_S)

    def _guard(self) -> dict[str, Any]:
        """What the source says of the group; not open if it does not know of it."""
        found = self.lab.source.agent.json("failover", "guards")
        return dict(found[0]) if found else {"is_open": False}


def _has_begun(actor: Machine, step: str) -> bool:
    for path in (actor.agent.home / "failover" / "procedures").glob("*.plan"):
        with suppress(FileNotFoundError):
            if f'"type":"doing","step":"{step}"' in path.read_text():
                return True
    return False


def _left(machine: Machine) -> list[str]:
    """What is still to be done there of what is over."""
    failover = machine.agent.home / "failover"
    left = [path.name for path in (failover / "procedures").glob("*.plan")]
    errands = failover / "errands.json"
    if errands.exists() and '"attempt"' in errands.read_text():
        left.append(errands.read_text())
    return left


def scripts_of(lab: FailoverLab) -> list[str]:
    """Options of a monitor: a script of each kind that notes its run."""
    path = lab.directory / "note-script"
    path.write_text(f'#!/bin/sh\necho "$REPLICATOR_SCRIPT $REPLICATOR_EPOCH" >>{noted(lab)}\n')
    path.chmod(0o755)
    kinds = [kind for kind in ScriptKind if kind is not ScriptKind.QUESTION]
    return [word for kind in kinds for word in ("--script", f"{kind}={path}")]


def noted(lab: FailoverLab) -> Path:
    """What ran: a kind and an epoch a line."""
    return lab.directory / "scripts.log"
