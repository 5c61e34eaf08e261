"""dtctl against a small HTTP server on a Unix socket: what it sends, what it prints, how it fails."""

import http.server
import json
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from replicator.agent.service import AgentView
from replicator.agent.transmissions import ConnectionTransmission, TransmissionView
from replicator.cli import render, render_schedule, render_transmission, units
from replicator.cli.client import Client
from replicator.cli.console import Shell
from replicator.cli.main import command
from replicator.cli.monitor import View
from replicator.cli.run import run
from replicator.errors import NotPermittedError, UnreachableError
from replicator.shares import Priority
from replicator.status import (
    ConnectionState,
    ConnectionStatus,
    Lag,
    LagSample,
    MirrorProgress,
    MirrorStatus,
    PathConnection,
    PathOperation,
    PathReport,
    Problem,
    QueueView,
    RecoveryStatus,
    ScheduleStatus,
    StageLag,
    TargetDataState,
)
from replicator.transmission import (
    LINKS_BIT_PER_S,
    ZSTD_LEVELS,
    TransmissionSettings,
    TransmissionStatus,
)
from replicator.transmission_schedule import StartCriteria, StopCriteria, TransmissionSchedule

STATUS = ConnectionStatus(
    id=1,
    uuid="b1c4",
    repset="web",
    target="backup:1500",
    target_address="10.0.0.9",
    state=ConnectionState.STARTED,
    target_data_state=TargetDataState.MIRRORING,
    mirror_status=MirrorStatus.MIRRORING,
    queued_ops=12345,
    queued_bytes=1536,
    lag_seconds=0.0042,
    mirror=MirrorProgress(
        kind="full",
        percent=42.4,
        total_files=1000,
        total_known=True,
        done_files=424,
        done_bytes=10 << 20,
        remaining_bytes=20 << 20,
        rate_bytes_per_s=1 << 20,
        problem_count=1,
        problems=(Problem("a/b", "Permission denied"),),
    ),
)


DTCTL = command()


class FakeAgent(socketserver.ThreadingUnixStreamServer):
    """Answers with prepared documents, and remembers what was asked."""

    daemon_threads = True

    def __init__(self, home: Path) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.answers: dict[tuple[str, str], tuple[int, object]] = {("GET", "failover/monitors"): (200, [])}
        super().__init__(str(home / "api.sock"), _Handler)

    def answer(self, method: str, path: str, document: object, status: int = 200) -> None:
        self.answers[method, path] = (status, document)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that leave early are part of the tests


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeAgent

    def setup(self) -> None:
        super().setup()
        self.client_address = ("local", 0)

    def respond(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.requests.append((self.command, self.path, body))
        path = self.path.split("?")[0].removeprefix("/v1/")
        missing = (404, {"error": f"no answer for\n{path}", "exit_code": 2})
        status, document = self.server.answers.get((self.command, path), missing)
        data = document if isinstance(document, bytes) else msgspec.json.encode(document)
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = respond

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def fake(home: Path) -> Iterator[FakeAgent]:
    with FakeAgent(home) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def dtctl(home: Path, *arguments: str) -> int:
    return run(DTCTL, ["--home", str(home), *arguments])


# --- what is asked ---

MOUNT = {"path": "/d", "mountpoint": "/d", "binding": "auto", "pid": 7, "state": "serving", "problem": ""}
REPSET = {"name": "web", "generation": 2, "rules": [], "connections": [], "advice": ""}
TRANSMISSION = msgspec.to_builtins(
    TransmissionView(
        targets={"backup": TransmissionSettings(compression="auto", bandwidth="10 % of T1")},
        calendars={"other": ("office",)},
        connections=(
            ConnectionTransmission(
                id=1,
                repset="web",
                target="backup",
                settings=TransmissionSettings(bandwidth="19300, 5", limiting=False),
                calendar=(),
                now=TransmissionStatus(compression="auto", level=2, ratio=3.1, peer_understands=True),
            ),
        ),
        zstd_levels=ZSTD_LEVELS,
        links_bit_per_s=LINKS_BIT_PER_S,
    )
)
RECOVERY = {"speed": "low", "busy": True, "priorities": {"web": "critical"}}
HERE = os.getcwd()


@pytest.mark.parametrize(
    ("line", "method", "path", "body", "answer"),
    [
        (
            "mount add data",
            "POST",
            "mounts",
            {"path": f"{HERE}/data", "mountpoint": None, "binding": "auto"},
            MOUNT,
        ),
        (
            "mount add /d --at /m --binding pyfuse3",
            "POST",
            "mounts",
            {"path": "/d", "mountpoint": "/m", "binding": "pyfuse3"},
            MOUNT,
        ),
        (
            "mount add /d -o writes=direct,idle=poll --option reads=passthrough",
            "POST",
            "mounts",
            {
                "path": "/d",
                "mountpoint": None,
                "binding": "auto",
                "options": {"writes": "direct", "idle": "poll", "reads": "passthrough"},
            },
            MOUNT,
        ),
        (
            "mount set /d writes=default disk_threads=4",
            "POST",
            "mounts/options",
            {"path": "/d", "options": {"writes": "default", "disk_threads": "4"}},
            MOUNT | {"options": {"disk_threads": "4"}},
        ),
        ("mount list", "GET", "mounts", None, [MOUNT]),
        ("mount reload /d", "POST", "mounts/reload", {"path": "/d"}, MOUNT),
        ("mount remove /d --force", "DELETE", "mounts", {"path": "/d", "force": True}, {}),
        ("repset create web", "POST", "repsets", {"name": "web"}, REPSET),
        (
            "repset rule web add /srv/*.tmp --exclude --no-recurse",
            "POST",
            "repsets/web/rules",
            {"path": "/srv/*.tmp", "include": False, "recursive": False},
            REPSET,
        ),
        (
            "repset rule remove web /srv --generation 3",
            "DELETE",
            "repsets/web/rules",
            {"path": "/srv", "include": True, "recursive": True, "generation": 3},
            REPSET,
        ),
        ("repset show web", "GET", "repsets/web", None, REPSET),
        (
            "repset size web",
            "POST",
            "repsets/web/size",
            {},
            {"name": "web", "files": 7, "bytes": 4096, "counted": 1.0, "elapsed_s": 0.4},
        ),
        ("repset delete web", "DELETE", "repsets/web", {}, {}),
        ("repset rename web w2", "POST", "repsets/web/rename", {"new_name": "w2"}, REPSET),
        ("compression set 1 auto", "POST", "connections/1/transmission", {"compression": "auto"}, STATUS),
        ("compression set 1 default", "POST", "connections/1/transmission", {"compression": ""}, STATUS),
        (
            "compression set --target backup 3",
            "POST",
            "transmission",
            {"compression": "3", "target": "backup"},
            TRANSMISSION,
        ),
        ("limit bandwidth 1 1MB/s", "POST", "connections/1/transmission", {"bandwidth": "1MB/s"}, STATUS),
        ("limit off 1", "POST", "connections/1/transmission", {"limiting": False}, STATUS),
        (
            "limit on --target backup",
            "POST",
            "transmission",
            {"limiting": True, "target": "backup"},
            TRANSMISSION,
        ),
        ("limit", "GET", "transmission", None, TRANSMISSION),
        ("compression", "GET", "transmission", None, TRANSMISSION),
        ("recovery speed low", "POST", "recovery", {"speed": "low"}, RECOVERY),
        ("recovery speed", "GET", "recovery", None, RECOVERY),
        (
            "recovery priority web critical",
            "POST",
            "repsets/web/priority",
            {"priority": "critical"},
            RECOVERY,
        ),
        ("recovery auto 1 off", "POST", "connections/1/recovery", {"action": "manual"}, STATUS),
        ("recovery auto 1 on", "POST", "connections/1/recovery", {"action": "automatic"}, STATUS),
        (
            "recovery force 1 source --confirm web",
            "POST",
            "connections/1/force",
            {"survivor": "source", "confirm": "web"},
            STATUS,
        ),
        ("target use u", "POST", "targets", {"action": "use", "uuid": "u"}, {"count": 1}),
        ("recovery pause 1", "POST", "connections/1/recovery", {"action": "pause"}, STATUS),
        ("recovery resume 1", "POST", "connections/1/recovery", {"action": "resume"}, STATUS),
        ("repset copy web w2", "POST", "repsets/web/copy", {"new_name": "w2"}, REPSET),
        (
            "connect web backup:1500 --map /a=/b --map /c=/d --mirror difference --newer",
            "POST",
            "connections",
            {
                "repset": "web",
                "target": "backup:1500",
                "maps": [{"source": "/a", "target": "/b"}, {"source": "/c", "target": "/d"}],
                "one_to_one": False,
                "mirror": "difference",
                "replicate": True,
                "newer": True,
                "checksum": False,
            },
            STATUS,
        ),
        (
            "connect web backup --compression auto --limit 1MB/s",
            "POST",
            "connections",
            {
                "repset": "web",
                "target": "backup",
                "maps": [],
                "one_to_one": False,
                "replicate": True,
                "newer": False,
                "checksum": False,
                "compression": "auto",
                "bandwidth": "1MB/s",
            },
            STATUS,
        ),
        (
            "connect web backup:1500 --one-to-one --no-mirror --no-replicate",
            "POST",
            "connections",
            {
                "repset": "web",
                "target": "backup:1500",
                "maps": [],
                "one_to_one": True,
                "mirror": None,
                "replicate": False,
                "newer": False,
                "checksum": False,
            },
            STATUS,
        ),
        ("disconnect 1 --json", "POST", "connections/1/disconnect", {}, STATUS),
        (
            "mirror start 1",
            "POST",
            "connections/1/mirror",
            {"action": "start", "newer": False, "checksum": False},
            {},
        ),
        (
            "mirror start 1 --kind difference --checksum",
            "POST",
            "connections/1/mirror",
            {"action": "start", "kind": "difference", "newer": False, "checksum": True},
            {},
        ),
        ("mirror pause 1", "POST", "connections/1/mirror", {"action": "pause"}, {}),
        ("replicate stop 1", "POST", "connections/1/replicate", {"action": "stop"}, {}),
        ("transmit resume 1", "POST", "connections/1/transmit", {"action": "resume"}, {}),
        ("target pause 1", "POST", "connections/1/target", {"action": "pause"}, {}),
        ("target list", "GET", "targets", None, []),
        ("target forget b1c4", "POST", "targets", {"action": "forget", "uuid": "b1c4"}, {"count": 1}),
        (
            "protect data backup:/d",
            "POST",
            "protect",
            {"source": f"{HERE}/data", "destination": "backup:/d"},
            STATUS,
        ),
        ("protect /d ./copy", "POST", "protect", {"source": "/d", "destination": f"{HERE}/copy"}, STATUS),
        ("protect /d copy", "POST", "protect", {"source": "/d", "destination": "copy"}, STATUS),
        (
            "protect /d /c --compression 3 --limit 19300,5",
            "POST",
            "protect",
            {"source": "/d", "destination": "/c", "compression": "3", "bandwidth": "19300,5"},
            STATUS,
        ),
        (
            "protect /d backup:/c --route 10.9.0.7",
            "POST",
            "protect",
            {"source": "/d", "destination": "backup:/c", "route": "10.9.0.7"},
            STATUS,
        ),
        (
            "protect /d [::1]:1500:/d",
            "POST",
            "protect",
            {"source": "/d", "destination": "[::1]:1500:/d"},
            STATUS,
        ),
    ],
)
def test_request(
    fake: FakeAgent, home: Path, line: str, method: str, path: str, body: object, answer: object
) -> None:
    fake.answer(method, path, answer)
    assert dtctl(home, *line.split()) == 0
    assert fake.requests == [(method, f"/v1/{path}", body)]


def test_names_are_quoted(fake: FakeAgent, home: Path) -> None:
    fake.answer("GET", "repsets/a%2Fb%20c", REPSET)
    assert dtctl(home, "repset", "show", "a/b c") == 0


def test_wait_asks_once_and_passes_the_limit(fake: FakeAgent, home: Path) -> None:
    fake.answer("POST", "connections/web/wait", {"done": True})
    fake.answer("GET", "connections/web", STATUS)
    assert dtctl(home, "wait", "web", "--timeout", "2.5") == 0
    assert fake.requests[0] == ("POST", "/v1/connections/web/wait", {"timeout_s": 2.5})


def test_wait_that_times_out_fails(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("POST", "connections/1/wait", {"error": "not done within 1 s", "exit_code": 1}, 409)
    assert dtctl(home, "wait", "1", "--timeout", "1") == 1
    assert capsys.readouterr().err == "dtctl: not done within 1 s\n"


def test_protect_and_wait(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("POST", "protect", STATUS)
    fake.answer("POST", "connections/b1c4/wait", {"done": True})
    fake.answer("GET", "connections/b1c4", STATUS)
    assert dtctl(home, "protect", "/d", "/e", "--wait") == 0
    assert "connection 1: web → backup:1500 (10.0.0.9)" in capsys.readouterr().out


# --- what is printed ---


def test_json_is_one_document(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("GET", "connections", [STATUS])
    assert dtctl(home, "status", "--json") == 0
    (status,) = json.loads(capsys.readouterr().out)
    assert status["target_data_state"] == "Mirroring"
    assert status["queued_ops"] == 12345


def test_status_of_one_is_a_list_too(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("GET", "connections/1", STATUS)
    assert dtctl(home, "status", "1", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_all_mounts_are_reloaded_as_far_as_they_can(
    fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer("GET", "mounts", [MOUNT, MOUNT])
    fake.answer("POST", "mounts/reload", MOUNT)
    assert dtctl(home, "mount", "reload", "--all") == 0
    assert capsys.readouterr().out == "/d is served by process 7\n" * 2
    assert dtctl(home, "mount", "reload", "--all", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [MOUNT, MOUNT]
    fake.answer("POST", "mounts/reload", {"error": "/d cannot be reloaded", "exit_code": 1}, 409)
    assert dtctl(home, "mount", "reload", "--all") == 1
    assert capsys.readouterr().err == "dtctl: /d cannot be reloaded; /d cannot be reloaded\n"


@pytest.mark.parametrize("line", ["mount reload", "mount reload /d --all"])
def test_what_is_to_be_reloaded_must_be_said(
    home: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dtctl(home, *line.split()) == 2
    assert "name one captured directory, or --all" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["disconnect 1", "mirror stop 1", "repset delete x", "mount remove /d"])
def test_actions_print_json_if_asked(
    fake: FakeAgent, home: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, path in (
        ("POST", "connections/1/disconnect"),
        ("POST", "connections/1/mirror"),
        ("DELETE", "repsets/x"),
        ("DELETE", "mounts"),
    ):
        fake.answer(method, path, {})
    assert dtctl(home, *line.split(), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {}


def test_status_table(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("GET", "connections", [STATUS])
    assert dtctl(home, "status") == 0
    text = capsys.readouterr().out
    for part in ("web", "backup:1500", "Started", "42 %", "12 345 ops, 1.5 KiB", "4 ms", "1 problems"):
        assert part in text


def test_status_of_one_shows_problems(
    fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer("GET", "connections/web", STATUS)
    assert dtctl(home, "status", "web") == 0
    assert "a/b: Permission denied" in capsys.readouterr().out


def test_markup_in_names_is_text(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("GET", "mounts", [MOUNT | {"path": "/[red]x[/]", "mountpoint": "/y[/z]"}])
    assert dtctl(home, "mount", "list") == 0
    out = capsys.readouterr().out
    assert "/[red]x[/]" in out
    assert "/y[/z]" in out


def test_rules_and_advice(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = [
        {"path": "/srv", "include": True, "recursive": True},
        {"path": "/srv/t", "include": False, "recursive": False},
    ]
    fake.answer("GET", "repsets/web", REPSET | {"rules": rules, "advice": "mirror again"})
    assert dtctl(home, "repset", "show", "web") == 0
    out = capsys.readouterr().out
    for part in ("web (generation 2)", "recursive", "exclude", "this level only", "mirror again"):
        assert part in out


def test_events(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("GET", "events", [{"sequence": 1, "time": 1e9, "severity": "error", "text": "disk full"}])
    assert dtctl(home, "events", "--limit", "5") == 0
    assert fake.requests[0][1] == "/v1/events?limit=5"
    assert "disk full" in capsys.readouterr().out


def test_a_story_reads_as_one(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = {"sequence": 7, "time": 1e9, "dimension": "connection", "before": "Started", "after": "Error"}
    lost = {**step, "event": "connection lost", "reason": "no [bold]route", "lasted_s": 7380.0}
    again = {**lost, "before": "Error", "reason": "refused", "event": "cannot connect"}
    first = {**step, "before": "", "after": "Started", "event": "connected", "reason": "", "lasted_s": None}
    fake.answer("GET", "connections/1/story", [first, lost, again])
    assert dtctl(home, "story", "1", "--limit", "3") == 0
    assert fake.requests[0][1] == "/v1/connections/1/story?limit=3"
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line[10:].rstrip() for line in lines] == [
        "connected  (connection Started)",
        "connection lost: no [bold]route  (connection Started → Error, after 2 h 3 min)",
        "cannot connect: refused  (connection still Error, after 2 h 3 min)",
    ]


LAG = Lag(
    stages=(
        *(StageLag(name, 0.0, 0) for name in ("journaled", "sent")),
        StageLag("received", 0.25, 2048),
        *(StageLag(name, 0.0, 0) for name in ("applied", "durable")),
    ),
    seconds=0.25,
    bytes=2048,
    recovery_point_seconds=75.0,
    recovery_point_bytes=2048,
    level="warning",
    held_bytes=1 << 20,
    growth_bytes_per_s=1024.0,
    queue_full_in_s=840.0,
    last_minute=tuple(LagSample(1e9 + s, (0.0, 0.0, 0.25, 0.0, 0.0), 2048, 4096) for s in range(60)),
)


def test_lag(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("GET", "connections/1/lag", LAG)
    assert dtctl(home, "lag", "1") == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("sent → received"))
    assert row.split()[3:7] == ["250", "ms", "2.0", "KiB"] and "▄" * 30 in row
    assert "full in 14 min 0 s at this rate" in out
    assert "recovery point: 1 min 15 s, 2.0 KiB" in out
    assert dtctl(home, "lag", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["stages"][2]["seconds"] == 0.25


def test_status_says_where_time_is_spent(
    fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer("GET", "connections/1", msgspec.structs.replace(STATUS, lag=LAG, lag_seconds=0.25))
    assert dtctl(home, "status", "1") == 0
    out = capsys.readouterr().out
    assert "250 ms  (received 250 ms; see 'dtctl lag 1')" in out


QUEUE = QueueView(
    id="6f0e",
    role="source",
    name="/srv/data",
    memory_directory="/dev/shm/r",
    memory_bytes=128 << 20,
    memory_max_bytes=128 << 20,
    memory_free_bytes=1 << 30,
    disk_directory="/var/spool/r",
    disk_bytes=3 << 30,
    disk_max_bytes=None,
    disk_free_min_bytes=50 << 20,
    disk_free_bytes=2 << 30,
    room_bytes=1 << 30,
    percent=75.4,
    alert_percent=50,
    alert=True,
    full=False,
    segments=7,
    lost_ops=0,
    problem="",
)


def test_queues(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = msgspec.structs.replace(
        QUEUE, role="target", name="/copy", full=True, disk_max_bytes=0, problem="/d: Input/output error"
    )
    fake.answer("GET", "queues", [QUEUE, broken])
    assert dtctl(home, "queue") == 0
    out = capsys.readouterr().out
    row, other = (line for line in out.splitlines() if "128 MiB of 128 MiB" in line)
    assert "of /srv/data" in row and "3.0 GiB of unlimited" in row and "75 %" in row and "1.0 GiB" in row
    assert "/var/spool/r" in row and "2.0 GiB, 50.0 MiB kept for others" in row
    assert "of the copy in /copy" in other and "3.0 GiB of none" in other
    assert "/copy: full: its source has to wait" in out
    assert "/copy: cannot be written: /d: Input/output error" in out
    fake.answer("GET", "queues", [])
    assert dtctl(home, "queue") == 0
    assert "no queues" in capsys.readouterr().out
    assert dtctl(home, "queue", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_why(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = PathOperation(
        sequence=7,
        time=1e9,
        operation="rename",
        path="a",
        path2="b",
        stage="received",
        waits_for="the target",
    )
    one = PathConnection(
        id=1,
        repset="web",
        target="backup:1500",
        included=True,
        rule="/d inc, rec",
        operations=(step,),
        mirror_pending=True,
    )
    two = PathConnection(id=2, repset="other", target="far:1500", included=False)
    fake.answer("GET", "why", PathReport(path="/d/a", mount="/d", connections=(one, two)))
    assert dtctl(home, "why", "/d/a") == 0
    assert fake.requests[0][1] == "/v1/why?path=%2Fd%2Fa"
    out = capsys.readouterr().out
    for part in (
        "rule /d inc, rec",
        "a → b",
        "received",
        "the target",
        "still to bring",
        "not in the set: no",
    ):
        assert part in out


def test_every_state_has_a_style() -> None:
    from replicator import status

    named = {
        state.value
        for enumeration in vars(status).values()
        if isinstance(enumeration, type) and issubclass(enumeration, status.StrEnum)
        # Names of things, not their states; and a verification has the style of its result.
        if enumeration not in (status.Dimension, status.TargetLock, status.VerifyPhase)
        for state in enumeration
    }
    assert named <= set(render._STYLES)


def test_recovery_overview(home: Path, fake: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    running = msgspec.structs.replace(
        STATUS,
        mirror=msgspec.structs.replace(STATUS.mirror, remaining_s=300.0),
        recovery=RecoveryStatus(text="Log recovery running, recovery enabled", priority=Priority.CRITICAL),
    )
    paused = msgspec.structs.replace(
        STATUS,
        id=2,
        mirror_status=MirrorStatus.PAUSED,
        recovery=RecoveryStatus(text="Full recovery paused", automatic=False),
    )
    idle = msgspec.structs.replace(STATUS, id=3, mirror_status=MirrorStatus.IDLE)
    fake.answer("GET", "recovery", RECOVERY)
    fake.answer("GET", "connections", [running, paused, idle])
    assert dtctl(home, "recovery") == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("speed: low") and "rest in between" in first
    rows = {line.split()[0]: " ".join(line.split()) for line in lines[2:]}
    assert "web critical on Log recovery running, recovery enabled" in rows["1"]
    assert "42.4 %" in rows["1"] and "20.0 MiB" in rows["1"] and "in 5" in rows["1"]
    assert "web regular off Full recovery paused" in rows["2"] and "in 5" not in rows["2"]
    assert rows["3"] == "3 web regular on –"
    assert dtctl(home, "recovery", "--json") == 0
    assert json.loads(capsys.readouterr().out)["connections"][1]["recovery"]["automatic"] is False


@pytest.mark.parametrize("percent", [None, 0.0, 100.0])
def test_mirror_bar(percent: float | None) -> None:
    status = msgspec.to_builtins(STATUS)
    status["mirror"]["percent"] = percent
    status["mirror"]["applied_percent"] = None if percent is None else percent * 0.7
    console = Console(width=120)
    with console.capture() as capture:
        console.print(render.mirror_bar(status))
    assert "424 of 1 000 files" in capture.get()
    assert ("%" in capture.get()) == (percent is not None)
    if percent:
        assert "sent, 70.0 % applied" in capture.get()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (1 << 40, "1.0 TiB"), (1 << 70, "1048576 PiB")],
)
def test_bytes(count: int, text: str) -> None:
    assert units.bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0042, "4 ms"),
        (1.25, "1.2 s"),
        (75, "1 min 15 s"),
        (8000, "2 h 13 min"),
        (1e6, "11 d 13 h"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert units.seconds_text(seconds) == text


# --- how it fails ---


@pytest.mark.parametrize(
    ("status", "exit_code"),
    [(409, 1), (404, 2), (503, 3), (403, 4)],
)
def test_errors_of_the_agent(
    fake: FakeAgent, home: Path, status: int, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer(
        "GET", "connections/9", {"error": "no such\nconnection; do this", "exit_code": exit_code}, status
    )
    assert dtctl(home, "status", "9") == exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "dtctl: no such connection; do this\n"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "status --nonsense",
        "wait",
        "wait 1 --timeout x",
        "wait 1 --timeout -1",
        "mirror",
        "mirror begin 1",
        "repset rule web append /x",
        "connect web b:1 --map /x",
        "connect web b:1 --map /x=/y --one-to-one",
        "connect web b:1 --no-mirror --newer",
        "monitor",
        "story 1 --follow --json",
        "lag 1 --watch",
    ],
)
def test_usage_errors(home: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dtctl(home, *line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dtctl: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("limit", "bandwidth", "1", ""),
        ("limit", "bandwidth", "--target", "backup", " "),
        ("compression", "set", "1", ""),
        ("protect", "/d", "backup:/c", "--limit", ""),
        ("connect", "web", "backup:1500", "--compression", ""),
        ("schedule", "start", "1", "--queue-percent", "nan"),
        ("schedule", "start", "1", "--queue-percent", "inf"),
    ],
)
def test_what_says_nothing_changes_nothing(
    home: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """A script's variable that nobody has set must not take a limit away."""
    assert dtctl(home, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dtctl: ") and captured.err.count("\n") == 1


def test_a_limit_is_told_in_the_bytes_that_act(
    fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer("POST", "connections/1/transmission", STATUS)
    for limit, shown in (
        ("10 % of T1", "10 % of T1 (19 300 bytes per second)"),
        ("19300, 5", "19300, 5 (3 860 bytes per second on average)"),
        ("19300", "19300"),
        ("unlimited", "unlimited"),
    ):
        assert dtctl(home, "limit", "bandwidth", "1", limit) == 0
        assert capsys.readouterr().out == f"connection 1: bandwidth {shown}\n"


def test_no_agent(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for missing in (home, home / "nowhere"):
        assert dtctl(missing, "status") == 3
        err = capsys.readouterr().err
        assert f"dtd --home {missing}" in err
        assert err.count("\n") == 1


def test_agent_that_is_gone_leaves_a_socket(home: Path) -> None:
    FakeAgent(home).server_close()
    with pytest.raises(UnreachableError, match="no agent answers"):
        Client(str(home)).get("agent")


def test_agent_that_breaks_off(fake: FakeAgent, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Handler, "respond", lambda self: self.connection.close())
    monkeypatch.setattr(_Handler, "do_GET", lambda self: self.connection.close())
    with pytest.raises(UnreachableError, match="broke off"):
        Client(str(home)).get("agent")


def test_agent_that_hangs(fake: FakeAgent, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Handler, "do_POST", lambda self: time.sleep(0.5))
    with pytest.raises(UnreachableError, match="did not answer"):
        Client(str(home)).post("protect", timeout_s=0.05)


def test_answer_that_is_no_document(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("GET", "mounts", b"<html>", 500)
    assert dtctl(home, "mount", "list") == 1
    assert "HTTP status 500" in capsys.readouterr().err


def test_no_permission(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(NotPermittedError, match="run as root"):
        Client(str(home)).get("agent")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", "without an answer"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "without an answer"),
        (b"HTTP/1.1 twohundred\r\n\r\n", "without an answer"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"a": ', "incomplete"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "incomplete"),
    ],
)
def test_an_answer_that_is_none(
    fake: FakeAgent, home: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, reason: str
) -> None:
    monkeypatch.setattr(_Handler, "do_GET", lambda handler: handler.wfile.write(answer))
    with pytest.raises(UnreachableError, match=f"broke off the conversation .*{reason}"):
        Client(str(home)).get("agent")


def test_deep_home(tmp_path: Path) -> None:
    """A socket address holds 107 bytes only."""
    home = tmp_path.joinpath(*["directory" * 5] * 4)
    home.mkdir(parents=True)
    before = os.getcwd()
    os.chdir(home)
    try:
        server = FakeAgent(Path("."))
    finally:
        os.chdir(before)
    with server:
        server.answer("GET", "agent", {"name": "deep"})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            assert Client(str(home)).get("agent") == {"name": "deep"}
        finally:
            server.shutdown()
            thread.join()


# --- monitor, console, completion ---


def shown(renderable: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_monitor_keeps_values_of_a_lost_agent(fake: FakeAgent, home: Path) -> None:
    fake.answer("GET", "agent", {"name": "alpha"})
    fake.answer("GET", "connections", [STATUS])
    view = View(Client(str(home)))
    view.update()
    text = shown(view.render())
    assert "alpha" in text
    assert "42.4 %" in text
    view.lost("no agent answers")
    text = shown(view.render())
    assert "no agent answers" in text
    assert "web" in text


def test_console_runs_commands(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer("GET", "connections", [STATUS])
    shell = Shell(Client(str(home)), DTCTL)
    assert shell.execute("status") == 0
    assert shell.execute("dtctl status --json  # pasted") == 0
    assert "backup:1500" in capsys.readouterr().out
    assert shell.execute("") == 0
    assert shell.execute("nonsense") == 2
    assert shell.execute("status 'open") == 2
    assert shell.execute("console") == 2
    assert capsys.readouterr().err.count("\n") == 3
    assert shell.execute("help mirror") == 0
    assert "pause" in capsys.readouterr().out
    assert shell.execute("exit") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sta", {"status"}),
        ("mirror ", {"start", "stop", "pause", "resume"}),
        ("mirror pause ", {"1", "web"}),
        ("mirror pause w", {"web"}),
        ("status 1 --j", {"--json"}),
        ("connect ", {"web", "db"}),
        ("repset rule web ", {"add", "remove"}),
        ("mount remove /", {"/d"}),
        ("mirror start 1 d", {"difference"}),
        ("help mon", {"monitor"}),
        ("status 'op", set()),
    ],
)
def test_console_completes(fake: FakeAgent, home: Path, text: str, expected: set[str]) -> None:
    fake.answer("GET", "connections", [STATUS])
    fake.answer("GET", "repsets", [REPSET, REPSET | {"name": "db"}])
    fake.answer("GET", "mounts", [MOUNT])
    assert {word for word, _, _ in Shell(Client(str(home)), DTCTL).candidates(text)} == expected


def test_completion_without_an_agent(home: Path) -> None:
    assert list(Shell(Client(str(home)), DTCTL).candidates("mirror pause ")) == []


def run_dtctl(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from replicator.cli.main import main; main()",
        "--home",
        str(home),
        *arguments,
    ]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, env={**os.environ, **environment}
    )


def test_shell_completion(fake: FakeAgent, home: Path) -> None:
    fake.answer("GET", "connections", [STATUS])
    result = run_dtctl(
        home, _DTCTL_COMPLETE="complete_bash", COMP_WORDS=f"dtctl --home {home} wait w", COMP_CWORD="4"
    )
    assert result.stdout.split() == ["web"]


def test_console_runs_a_script(fake: FakeAgent, home: Path) -> None:
    fake.answer("GET", "agent", {"name": "alpha"})
    fake.answer("GET", "mounts", [MOUNT])
    command = [sys.executable, "-c", "from replicator.cli.main import main; main()", "console"]
    result = subprocess.run(
        command,
        input="mount list\nnonsense\nmount list\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "REPLICATOR_HOME": str(home)},
    )
    assert result.returncode == 2
    assert result.stdout.count("/d") == 2  # path and mountpoint, once: the script ends at the first error


def test_start_needs_no_heavy_import(fake: FakeAgent, home: Path) -> None:
    """`dtctl status --json` in a script's loop must not pay for tables, prompts or trio."""
    code = (
        "import sys; from replicator.cli.main import main\n"
        f"sys.argv[1:] = ['--home', {str(home)!r}, 'status', '--json']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = ('rich.table', 'prompt_toolkit', 'trio', 'starlette', 'pydantic', 'ssl')\n"
        "print([module for module in heavy if module in sys.modules])"
    )
    fake.answer("GET", "connections", [])
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert result.stdout.split("\n")[-2] == "[]"


def test_version_and_help(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(DTCTL, []) == 0
    assert "protect" in capsys.readouterr().out
    assert run(DTCTL, ["--version"]) == 0
    assert capsys.readouterr().out.startswith("dtctl ")


def test_an_agent_says_what_it_is(fake: FakeAgent, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view = AgentView(
        uuid="5a2c",
        name="alpha",
        version="0.1.0",
        pid=4711,
        home="/h",
        listen="0.0.0.0:1500",
        insecure=True,
        started=1.0,
        mounts=1,
        repsets=2,
        connections=3,
        receivers=4,
        logins=5,
        failed_logins=6,
    )
    fake.answer("GET", "agent", msgspec.to_builtins(view))
    assert dtctl(home, "info") == 0
    shown = capsys.readouterr().out
    assert "5 since it started, 6 failed" in shown and "plain text is allowed" in shown  # SC-04
    assert dtctl(home, "info", "--json") == 0
    assert json.loads(capsys.readouterr().out)["failed_logins"] == 6


def test_a_schedule_shows_sizes_as_they_were_written() -> None:
    settings = TransmissionSchedule(
        start=StartCriteria(queue_bytes="10 MB"), stop=StopCriteria(sent_bytes="1000")
    )
    found = shown(render_schedule.schedule(msgspec.to_builtins(ScheduleStatus(settings=settings))))
    assert "when 10 MB are queued" in found and "when 1000 bytes are sent, when the queue is empty" in found


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("schedule start 1", "--at, --every, --queue-percent, --queue-bytes"),
        ("schedule stop 1", "--after, --bytes"),
    ],
)
def test_criteria_are_named_as_options(
    home: Path, line: str, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dtctl(home, *line.split()) == 2
    assert capsys.readouterr().err.strip().endswith(options)


def test_a_calendar_that_is_switched_off_says_so() -> None:
    def row(**more: Any) -> str:
        (connection,) = TRANSMISSION["connections"]
        found = {**TRANSMISSION, "targets": {}, "calendars": {}, "connections": [{**connection, **more}]}
        return shown(render_transmission.transmission(found)).splitlines()[1]

    settings = {"compression": "", "bandwidth": "", "limiting": False}
    assert "unlimited, calendar: night, day" in row(settings=settings, calendar=["night", "day"])
    assert " off " in row(settings=settings, calendar=["night"])
    assert " on " in row(settings={**settings, "limiting": True}, calendar=["night"])
    assert " off " not in row(settings=settings)  # there is nothing that could act
    assert "calendar: office" in shown(render_transmission.transmission(TRANSMISSION)).splitlines()[2]

    entry = {"label": "night", "days": [], "start": "22:00", "end": "", "limit": "1 MB/s"}
    calendar = {"entries": [entry], "label": "night", "until": None, "zone": "UTC"}
    assert "now: night" in shown(render_schedule.calendar({**calendar, "limiting": True}))
    assert "now: none of them, for limiting is off" in shown(
        render_schedule.calendar({**calendar, "limiting": False})
    )


def test_how_a_connection_transmits_is_told_in_words() -> None:
    def words(**more: Any) -> str:
        return render_transmission.now(msgspec.to_builtins(TransmissionStatus(**more)))

    assert words() == "not compressed"
    assert words(compression="3", level=3, ratio=4.25, peer_understands=True) == "compression 3, 4.2 : 1"
    assert words(compression="auto", level=2, ratio=3) == "compression auto, level 2, 3.0 : 1"
    assert words(compression="auto", peer_understands=True) == "compression auto, none now"
    assert "too old" in words(compression="3", peer_understands=False)
    assert words(limit="10 % of T1", limit_bytes_per_s=19_300) == (
        "not compressed, at most 18.8 KiB/s (10 % of T1)"
    )
