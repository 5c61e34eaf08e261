"""`dtctl failover`: what is sent, and what people see."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_cli import FakeAgent, dtctl, fake, home

from replicator.agent.failover.monitors import MonitorView
from replicator.failover.monitor import SourceMonitor
from replicator.failover_reports import Report, StepOutcome, StepReport
from replicator.failovers import (
    Check,
    CheckKind,
    MonitorSettings,
    Phase,
    Script,
    ScriptKind,
    Take,
    WatchedAddress,
)

__all__ = ["fake", "home"]

SETTINGS = MonitorSettings(
    source_host="alpha",
    addresses=(
        WatchedAddress(address="10.0.0.5/24", interface="eth0"),
        WatchedAddress(address="10.0.0.6/24", monitored=False),
    ),
    take=Take.ALL,
    witness="gamma",
    scripts={ScriptKind.POST_FAILOVER: Script(path="/srv/start")},
)


def view(phase: Phase = Phase.WATCHING, **fields: Any) -> MonitorView:
    known = {
        "uuid": "0b6c", "name": "web", "source": "alpha:1500", "source_name": "alpha", "source_uuid": "5e1f",
        "phase": phase, "since": 1.5, "epoch": 3, "doing": f"doing: {phase}", "failed": False, "armed": False,
        "question": "", "halted": "", "addresses": tuple(SourceMonitor(SETTINGS, 0.0).views()),
        "settings": SETTINGS, "report": None,
    }  # fmt: skip
    return MonitorView(**{**known, **fields})


def sent(fake: FakeAgent, method: str) -> Any:
    return [body for given, _, body in fake.requests if given == method][-1]


def settings_sent(fake: FakeAgent, method: str) -> MonitorSettings:
    return msgspec.convert(sent(fake, method)["settings"], MonitorSettings)


def test_add(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("POST", "failover/monitors", view())
    line = (
        "failover add alpha:1600 --name web --address 10.0.0.5/24@eth0 --also 10.0.0.6/24 --interval 1"
        " --misses 3 --check ping --check 9*http:/health --fail-when any --automatic --witness gamma"
        " --lapse read-only --drain 5 --max-lag 60 --policy prefer-node --prefer-node beta --host-name alpha"
        " --copy 93d1 --even-if-silent --json"
    )
    assert dtctl(home, *line.split(), "--script", "post-failover=/srv/start 'a b'") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "web"
    checks = (Check(CheckKind.PING), Check(CheckKind.HTTP, "/health", 9))
    wanted = msgspec.convert(
        {
            "source_host": "alpha", "source_port": 1600, "fail_when": "any", "take": "all",
            "automatic": True, "witness": "gamma", "lapse": "read-only", "drain_s": 5.0, "lag_max_s": 60.0,
            "policy": "prefer-node", "prefer_node": "beta", "host_name": "alpha", "copies": ["93d1"],
            "scripts": {"post-failover": {"path": "/srv/start", "arguments": ["a b"]}},
        },
        MonitorSettings,
    )  # fmt: skip
    watched = WatchedAddress(address="10.0.0.5/24", interface="eth0", interval_s=1.0, misses=3, checks=checks)
    other = WatchedAddress(address="10.0.0.6/24", monitored=False)
    assert settings_sent(fake, "POST") == msgspec.structs.replace(wanted, addresses=(watched, other))
    assert (sent(fake, "POST")["name"], sent(fake, "POST")["even_if_silent"]) == ("web", True)


OWN = [{"address": "10.0.0.5/24", "interface": "eth0"}, {"address": "fd00::5/64", "interface": "eth0"}]


def test_the_addresses_of_a_source(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("GET", "failover/addresses", OWN)
    assert dtctl(home, "failover", "addresses", "alpha") == 0
    assert "10.0.0.5/24" in capsys.readouterr().out
    assert dtctl(home, "failover", "add", "alpha") == 2
    assert "--address is missing" in (line := capsys.readouterr().err) and "10.0.0.5/24 (eth0)" in line
    fake.answer("POST", "failover/monitors", view())
    options = "--address 10.0.0.5@eth1 --address fd00::5 --address 10.0.0.9 --also 10.0.0.7/16 --json"
    assert dtctl(home, "failover", "add", "alpha", *options.split()) == 0
    found = [(each.address, each.interface) for each in settings_sent(fake, "POST").addresses]
    assert found == [
        ("10.0.0.5/24", "eth1"), ("fd00::5/64", ""), ("10.0.0.9/32", ""), ("10.0.0.7/16", ""),
    ]  # fmt: skip


def test_a_new_monitor_that_could_not_take_over(
    fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [
        {"name": name, "result": result, "text": f"about {name}"}
        for name, result in (
            ("takes 10.0.0.5/24", "failed"), ("permission", "failed"), ("last drill", "warning"),
            ("post-failover script", "warning"), ("witness", "ok"),
        )
    ]  # fmt: skip
    fake.answer("POST", "failover/monitors", view())
    fake.answer("POST", "failover/monitors/0b6c/test", {"checks": checks})
    assert dtctl(home, "failover", "add", "alpha", "--address", "10.0.0.5/24") == 0
    careful = [line for line in capsys.readouterr().out.splitlines() if line.startswith("careful:")]
    assert careful == [
        "careful: takes 10.0.0.5/24: about takes 10.0.0.5/24",
        "careful: post-failover script: about post-failover script",
    ]


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ("--interval 2", {"interval_s": 2.0}),
        ("--for 10.0.0.5 --misses 9 --check ping", {"misses": 9, "checks": (Check(CheckKind.PING),)}),
        ("--witness= --manual", {}),
        ("--address 10.0.0.5/16@eth1", {"address": "10.0.0.5/16", "interface": "eth1"}),
    ],
)
def test_an_edit_changes_what_is_named(
    fake: FakeAgent, home: Path, options: str, changed: dict[str, Any]
) -> None:
    fake.answer("GET", "failover/monitors/web", view())
    fake.answer("PUT", "failover/monitors/0b6c", view())
    assert dtctl(home, "failover", "edit", "web", *options.split(), "--json") == 0
    first, other = SETTINGS.addresses
    wanted = msgspec.structs.replace(
        SETTINGS,
        addresses=(msgspec.structs.replace(first, **changed), other),
        witness="" if "witness" in options else "gamma",
    )
    assert settings_sent(fake, "PUT") == wanted


def test_what_makes_no_sense_is_not_sent(
    fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer("GET", "failover/monitors/web", view())
    for line in (
        "failover add alpha",
        "failover add alpha --address x",
        "failover add alpha --address 10.0.0.5/24 --check tcp",
        "failover add alpha --address 10.0.0.5/24 --policy none",
        "failover add alpha --address 10.0.0.5/24 --take some",
        "failover add alpha --address 10.0.0.5/24 --misses 0",
        "failover add alpha --address 10.0.0.5/24 --script post-failover='unbalanced",
        "failover edit web --for 10.0.0.9 --misses 3",
        "failover answer web perhaps",
    ):
        assert dtctl(home, *line.split()) == 2, line
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not any(method in ("POST", "PUT") for method, _, _ in fake.requests)


def test_lists_show_what_is_asked_and_how_to_answer(
    fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asking = view(Phase.ASKING, question="alpha has failed (ping: no answer): shall this host take over?")
    halted = view(Phase.TAKING_OVER, name="db", halted="10.0.0.5 is in use")
    fake.answer("GET", "connections", [])
    fake.answer("GET", "failover/monitors", [asking, halted, view(Phase.DECLINED, name="old")])
    for line in ("failover list", "status"):
        assert dtctl(home, *line.split()) == 0
        text = capsys.readouterr().out
        for part in (
            "ping: no answer", "dtctl failover answer web yes", "10.0.0.5 is in use",
            "dtctl failover now db --force", "answer old yes",
        ):  # fmt: skip
            assert part in text, line


def test_a_failback_that_waits_for_home_says_so(
    fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = StepReport(name="promote", outcome=StepOutcome.RUNNING, said=("only home can say",))
    report = Report(uuid="7c1d", kind="failback", group="0b6c", began=1.0, steps=(step,))
    doubt = view(Phase.HANDING_BACK, report=report)
    quick = view(Phase.HANDING_BACK, report=msgspec.structs.replace(report, steps=()), name="db")
    halted = view(Phase.HANDING_BACK, name="files", halted="open at home: no route")
    fake.answer("GET", "connections", [])
    fake.answer("GET", "failover/monitors", [doubt, quick, halted])
    for line in ("failover list", "status"):
        assert dtctl(home, *line.split()) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "web: only alpha can say whether it owns the group now" in text
        assert "lost for good: dtctl failover now web --source-is-off" in text
        assert "files: the failback waits for a person: open at home: no route dtctl failback files" in text
        assert "db:" not in text


def test_a_connection_that_ends_leaves_a_monitor(
    fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guards = [
        {"name": "web", "target": "beta (10.0.0.6:1500)", "copies": ["uuid-1"]},
        {"name": "db", "target": "gamma (10.0.0.7:1500)", "copies": ["uuid-2"]},
    ]
    fake.answer("POST", "connections/1/disconnect", {"uuid": "uuid-1", "target": "beta"})
    fake.answer("GET", "failover/guards", guards)
    assert dtctl(home, "disconnect", "1") == 0
    text = capsys.readouterr().out
    assert "beta (10.0.0.6:1500) watches this host still: dtctl failover remove web there" in text
    assert "gamma" not in text


def test_show(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("GET", "failover/monitors/web", view())
    assert dtctl(home, "failover", "show", "web") == 0
    text = capsys.readouterr().out
    for part in (
        "alpha:1500, agent alpha", "doing: watching since", "10.0.0.5/24 → eth0", "25.0 s of 25 s",
        "not monitored",
        "every 5.0 s, 5 may be missing", "all addresses", "a person is asked", "gamma", "/srv/start",
    ):  # fmt: skip
        assert part in text, part


def test_what_a_failover_waits_for_is_told(
    fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = (
        StepReport(name="check", outcome=StepOutcome.DONE),
        StepReport(name="vote", outcome=StepOutcome.RUNNING, said=("the witness does not answer: no route",)),
        StepReport(name="drain"),
    )
    report = Report(uuid="7c1d", kind="failover", group="0b6c", began=1.0, steps=steps)
    fake.answer("POST", "failover/monitors/web", view(Phase.TAKING_OVER))
    fake.answer("GET", "failover/monitors/0b6c", view(Phase.TAKING_OVER, report=report, halted="x"))
    assert dtctl(home, "failover", "now", "web") == 1
    assert "  vote: the witness does not answer: no route\n" in capsys.readouterr().out
    fake.answer("GET", "failover/monitors/web", view(Phase.TAKING_OVER, report=report))
    assert dtctl(home, "failover", "show", "web") == 0
    assert "vote: running (the witness does not answer: no route)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_whoever_begins_waits_for_the_end(
    fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer("POST", "failover/monitors/web", view(Phase.TAKING_OVER))
    fake.answer("GET", "failover/monitors/0b6c", view(Phase.ACTIVE))
    assert dtctl(home, "failover", "answer", "web", "yes") == 0
    assert sent(fake, "POST") == {"action": "yes", "forced": False, "source_is_off": False}
    assert dtctl(home, "failover", "now", "web", "--force") == 0
    assert sent(fake, "POST") == {"action": "now", "forced": True, "source_is_off": False}
    for over in (view(Phase.TAKING_OVER, halted="why"), view(Phase.ASKING)):
        fake.answer("GET", "failover/monitors/0b6c", over)
        assert dtctl(home, "failover", "now", "web") == 1
    assert dtctl(home, "failover", "now", "web", "--no-wait") == 0
    fake.answer("POST", "failover/monitors/web", view(Phase.DECLINED))
    assert dtctl(home, "failover", "answer", "web", "no") == 0
    assert "has not taken over" in capsys.readouterr().err
