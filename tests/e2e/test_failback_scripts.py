"""Scripts of a real failover and failback that hang, fail, print megabytes, vanish or kill themselves: what
is under way goes on, stops, or does not wait, as it is configured; people are told.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import machine
from kit.failover_lab import MONITOR, FailoverLab, Machine, failover_lab
from kit.patience import until

from replicator.failovers import Phase, ScriptKind

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout_s(400),
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]

PRE_OVER, POST_OVER = ScriptKind.PRE_FAILOVER, ScriptKind.POST_FAILOVER
PRE_BACK, POST_BACK = ScriptKind.PRE_FAILBACK, ScriptKind.POST_FAILBACK
AT_HOME = ScriptKind.SOURCE_POST_FAILBACK
KINDS = (PRE_OVER, POST_OVER, PRE_BACK, POST_BACK, AT_HOME)
MEGABYTES = 4_000_000


def _text(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    return write


def _not_executable(path: Path) -> None:
    _text("true")(path)
    path.chmod(0o644)


GOOD = _text("echo well")
MISBEHAVIOURS: dict[str, tuple[Callable[[Path], None], str]] = {
    # What is done to its file, and what people are told.
    "hangs": (_text("echo waiting; sleep 1000"), "timed out"),
    "fails": (_text("echo reason >&2; exit 3"), "exit code 3"),
    "prints megabytes": (_text(f"yes | head -c {MEGABYTES}; exit 4"), "exit code 4"),
    "is deleted": (os.unlink, "No such file or directory"),
    "is not executable": (_not_executable, "ot executable|Permission denied"),
    "kills itself": (_text("kill -9 $$"), "killed by signal 9"),
}


class Stage:
    """Two hosts, and a script of each kind. `misbehave` chooses what is wrong with one of them."""

    def __init__(self, lab: FailoverLab) -> None:
        self.lab = lab
        for kind in KINDS:
            self.choose(kind)

    def path(self, kind: ScriptKind) -> Path:
        return self.lab.directory / f"script-{kind}"

    def choose(self, kind: ScriptKind, how: str = "", *options: str) -> None:
        GOOD(self.path(kind))
        options = options or ("--go-on", "--wait")
        self.lab.target.agent.json(
            *("failover", "scripts", "set", MONITOR, kind, self.path(kind), "--timeout", "1", *options)
        )
        if how:
            MISBEHAVIOURS[how][0](self.path(kind))

    def repair(self, kind: ScriptKind) -> None:
        GOOD(self.path(kind))

    def is_told(self, kind: ScriptKind, how: str, *places: Machine) -> None:
        """By an event of each of these, and in the history of the monitor."""
        wanted = MISBEHAVIOURS[how][1].split("|")

        def tells(text: str) -> bool:
            return str(self.path(kind)) in text and any(words in text for words in wanted)

        for place in places or (self.lab.target,):
            until(lambda place=place: any(tells(e["text"]) for e in place.agent.json("events")), 40, 0.3)
        agent = self.lab.target.agent
        until(lambda: any(tells(e["text"]) for e in agent.json("failover", "history", MONITOR)), 40, 0.3)

    # --- what a person does ---

    def fail_over(self) -> dict[str, Any]:
        self.lab.target.agent.dtctl("failover", "now", MONITOR, "--force")
        return self.lab.group

    def follow(self) -> None:
        def is_ready() -> bool:
            self.lab.source.agent.dtctl("failover", "follow", MONITOR)
            return self.lab.target.agent.dtctl("failback", MONITOR, "--dry-run").code == 0

        until(is_ready, 90, 0.5)

    def fail_back(self) -> dict[str, Any]:
        self.lab.target.agent.dtctl("failback", MONITOR, "--yes")
        return self.lab.group


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    with failover_lab(tmp_path) as lab:
        lab.protect()
        lab.monitor(automatic=False, serve=False)
        until(lambda: lab.source.agent.json("failover", "guards"), 30, 0.2)
        yield Stage(lab)


def goes_on(stage: Stage, hows: dict[ScriptKind, str]) -> None:
    """Nothing is stopped by scripts that are not to stop it."""
    for kind, how in hows.items():
        stage.choose(kind, how)
    assert stage.fail_over()["phase"] == Phase.ACTIVE
    for kind in (PRE_OVER, POST_OVER):
        stage.is_told(kind, hows[kind])
    (stage.lab.target.root / "new").write_bytes(b"of the owner")
    stage.follow()
    assert stage.fail_back()["phase"] == Phase.WATCHING
    for kind in (PRE_BACK, POST_BACK):
        stage.is_told(kind, hows[kind])
    home_only = hows[AT_HOME] not in ("is deleted", "is not executable")
    stage.is_told(AT_HOME, hows[AT_HOME], *((stage.lab.source, stage.lab.target) if home_only else ()))
    if not home_only:  # it is asked for until it can be started
        stage.repair(AT_HOME)
        text = f"{stage.path(AT_HOME)}: done"
        until(lambda: any(text in e["text"] for e in stage.lab.source.agent.json("events")), 40, 0.3)
    is_home(stage)


def is_home(stage: Stage) -> None:
    lab = stage.lab
    lab.only_holder_becomes("source")
    (lab.source.root / "again").write_bytes(b"at home")
    until(lab.is_exact, 60, 0.3)
    lab.assert_equal()


def test_scripts_that_misbehave_and_are_not_to_stop_anything(stage: Stage) -> None:
    goes_on(stage, dict(zip(KINDS, MISBEHAVIOURS, strict=False)))
    assert "characters left out" in stage.lab.target.agent.dtctl("events").out


@pytest.mark.soak
@pytest.mark.parametrize("turn", range(1, len(MISBEHAVIOURS)))
def test_each_kind_in_each_way_not_to_stop(stage: Stage, turn: int) -> None:
    ways = list(MISBEHAVIOURS)
    goes_on(stage, {kind: ways[(turn + number) % len(ways)] for number, kind in enumerate(KINDS)})


@pytest.mark.soak
@pytest.mark.parametrize("how", MISBEHAVIOURS)
def test_scripts_that_are_to_stop_it(stage: Stage, how: str) -> None:
    """Before anything is final it is taken back, later it waits for a person, who has repaired the script."""
    lab = stage.lab
    for kind in KINDS:
        stage.choose(kind, how, "--stop", "--wait")
    # Before the failover: the source goes on.
    view = stage.fail_over()
    assert view["phase"] in (Phase.ASKING, Phase.WATCHING) and "taken-back" in lab.history()
    stage.is_told(PRE_OVER, how)
    (lab.source.root / "goes on").write_text(how)
    lab.only_holder_becomes("source")
    stage.repair(PRE_OVER)
    # After it: everything is there but the service.
    view = stage.fail_over()
    assert view["phase"] == Phase.TAKING_OVER and str(stage.path(POST_OVER)) in view["halted"], view
    stage.is_told(POST_OVER, how)
    assert "waits-for-a-person" in lab.history()
    lab.only_holder_becomes("target")
    (lab.target.root / "new").write_text(how)
    stage.repair(POST_OVER)
    assert stage.fail_over()["phase"] == Phase.ACTIVE
    # Before the failback: the target goes on.
    stage.follow()
    assert stage.fail_back()["phase"] == Phase.ACTIVE
    stage.is_told(PRE_BACK, how)
    (lab.target.root / "goes on as well").write_text(how)
    lab.only_holder_becomes("target")
    stage.repair(PRE_BACK)
    # After it: home owns and serves, the target has its copy.
    view = stage.fail_back()
    assert view["phase"] == Phase.HANDING_BACK and str(stage.path(POST_BACK)) in view["halted"], view
    stage.is_told(POST_BACK, how)
    lab.only_holder_becomes("source")
    (lab.source.root / "served").write_text(how)
    stage.repair(POST_BACK)
    assert stage.fail_back()["phase"] == Phase.WATCHING
    stage.is_told(AT_HOME, how)
    stage.repair(AT_HOME)
    is_home(stage)


@pytest.mark.soak
def test_scripts_that_nobody_waits_for(stage: Stage) -> None:
    for kind in KINDS:
        stage.choose(kind, "hangs", "--no-wait", "--go-on")
    assert stage.fail_over()["phase"] == Phase.ACTIVE
    stage.follow()
    assert stage.fail_back()["phase"] == Phase.WATCHING
    for kind in (PRE_OVER, POST_OVER, PRE_BACK, POST_BACK):
        events_tell = f"{stage.path(kind)} failed: timed out"
        until(lambda text=events_tell: text in stage.lab.target.agent.dtctl("events").out, 40, 0.3)
    is_home(stage)
