"""`dtctl runs`: reports of all connections and of restores in one list, and what they could not do."""

import json
from typing import Any

import msgspec
import pytest
from rich.console import Console

from replicator.cli import render_verify, runs
from replicator.restores import Phase, RestoreView
from replicator.status import Problem, RunReport

MIRROR = RunReport(
    run="m",
    kind="difference",
    started=100.0,
    finished=110.0,
    elapsed_s=10.0,
    result="complete",
    files=7,
    skipped=5,
    problem_count=5,
    problems=tuple(Problem(f"a/{n}", "Permission denied") for n in range(5)),
)
RESTORE = RestoreView(
    id=3,
    uuid="r",
    phase=Phase.FAILED,
    reason="2 files could not be restored",
    repset="web",
    source="backup:1500",
    roots=(),
    paths=(),
    started=90.0,
    finished=105.0,
    done_files=40,
    done_bytes=4000,
    sent_bytes=1000,
    skipped_bytes=3000,
    problem_count=2,
    problems=("b/x: No space left on device", "b/y: it is a: b"),
)
RUNNING = msgspec.structs.replace(RESTORE, id=4, uuid="q", phase=Phase.RUNNING, finished=0.0)


class Client:
    def get(self, *path: str, **query: object) -> Any:
        values: dict[tuple[str, ...], object] = {
            ("connections",): [{"id": 1}],
            ("connections", "1", "runs"): [MIRROR],
            ("restores",): [RESTORE, RUNNING],
        }
        return msgspec.to_builtins(values[path])


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "agent", lambda context: Client())


def asked(capsys: pytest.CaptureFixture[str], *values: str) -> list[Any]:
    runs.runs(None, *values, json=True)  # type: ignore[arg-type]
    found: list[Any] = json.loads(capsys.readouterr().out)
    return found


def test_restores_that_have_ended_are_among_them(capsys: pytest.CaptureFixture[str]) -> None:
    restore, mirror = asked(capsys)
    assert mirror == {"connection": "1", **json.loads(msgspec.json.encode(MIRROR))}
    assert restore.keys() == mirror.keys()
    assert msgspec.convert({k: v for k, v in restore.items() if k != "connection"}, RunReport) == RunReport(
        run="r",
        kind="restore",
        started=90.0,
        finished=105.0,
        elapsed_s=15.0,
        result="failed",
        options="3",
        files=40,
        bytes=4000,
        matched_bytes=3000,
        sent_bytes=1000,
        skipped=2,
        problem_count=2,
        problems=(Problem("b/x", "No space left on device"), Problem("b/y", "it is a: b")),
        text="2 files could not be restored",
    )


def test_of_one_connection(capsys: pytest.CaptureFixture[str]) -> None:
    assert [report["kind"] for report in asked(capsys, "1")] == ["difference"]


def test_reasons_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=200)
    console.print(render_verify.runs(asked(capsys)))
    text = capsys.readouterr().out
    assert "b/x: No space left on device" in text and "restore (3)" in text
    assert text.count("Permission denied") == 3 and "difference: … and 2 more" in text
