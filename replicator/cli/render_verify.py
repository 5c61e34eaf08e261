"""Verifications and reports of runs, as people read them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replicator.cli.units import bytes_text, count_text, seconds_text

_SHOWN = 50
_REASONS = 3  # of one run, in a list of many
_COUNTS = ("missing_files", "missing_directories", "different_files", "different_directories", "extra")


def verification(report: Mapping[str, Any]) -> RenderableType:
    """The running, or the last, one."""
    lines: list[RenderableType] = []
    if not report["phase"]:
        lines.append(Text("nothing was verified yet: dtctl verify CON compares both sides"))
    else:
        lines += _found(report)
    if report["waits_for"]:
        lines.append(Text(f"waits: {report['waits_for']}", style="yellow"))
    if text := next_run(report):
        lines.append(Text(f"next: {text}"))
    if report["background_bytes_per_s"]:
        lines.append(Text(_background(report)))
    return Group(*lines)


def verified(report: Mapping[str, Any]) -> str:
    """One line: the last verification, and what is to come."""
    parts: list[str] = []
    if report.get("phase"):
        count = sum(report[name] for name in _COUNTS)
        result = f"{count_text(count)} paths differ" if count else "equal"
        when = _when(report["finished"]) if report["finished"] else f"since {_when(report['started'])}"
        parts.append(f"{report['phase']} {when}: {result}")
    if text := next_run(report):
        parts.append(f"next {text}")
    if report.get("background_bytes_per_s"):
        parts.append(_background(report))
    return "; ".join(parts) or "–"


def _background(report: Mapping[str, Any]) -> str:
    oldest_s = report["oldest_seconds"]
    age = "not everything yet" if oldest_s is None else f"oldest look {seconds_text(oldest_s)} ago"
    return f"in the background {bytes_text(report['background_bytes_per_s'])}/s, {age}"


def _found(report: Mapping[str, Any]) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for difference in report["differences"][:_SHOWN]:
        size = f" ({bytes_text(difference['bytes'])})" if difference["bytes"] else ""
        aspects = ", ".join(difference["aspects"])
        lines.append(Text(f"{difference['path'] or '/'}: {aspects}{size}", style="red"))
    for problem in report["problems"][:_SHOWN]:
        lines.append(Text(f"{problem['path']}: {problem['reason']}", style="yellow"))
    count = sum(report[name] for name in _COUNTS)
    left_out = count - len(report["differences"][:_SHOWN])
    if left_out > 0:
        lines.append(Text(f"… and {count_text(left_out)} more: see the verification log"))
    compared = (
        f"{count_text(report['files'])} files ({bytes_text(report['bytes'])}) and"
        f" {count_text(report['directories'])} directories compared in {seconds_text(report['elapsed_s'])}"
    )
    result = "equal" if not count else f"{count_text(count)} paths differ"
    if count and report["bytes_out_of_sync"]:
        result += f", {bytes_text(report['bytes_out_of_sync'])} out of sync"
    for name, text in (("remirrored", "brought"), ("left", "left"), ("changing", "changing, not compared")):
        if report[name]:
            result += f", {count_text(report[name])} {text}"
    lines.append(Text(f"{report['phase']}: {result}", style="red" if count else "green"))
    lines.append(Text(compared + (", with checksums" if report["checksum"] else "")))
    return lines


def runs(reports: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A table, the newest last."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in (
        "con",
        "ended",
        "kind",
        "result",
        "files",
        "bytes",
        "sent",
        "matched",
        "skipped",
        "problems",
        "took",
        "rate",
    ):
        table.add_column(heading, justify="left" if heading in ("ended", "kind", "result") else "right")
    for report in reports:
        kind = report["kind"] + (f" ({report['options']})" if report["options"] else "")
        table.add_row(
            str(report.get("connection", "")),
            _when(report["finished"]),
            kind,
            report["result"],
            count_text(report["files"]),
            bytes_text(report["bytes"]),
            bytes_text(report["sent_bytes"]),
            bytes_text(report["matched_bytes"]),
            count_text(report["skipped"]),
            count_text(report["problem_count"]),
            seconds_text(report["elapsed_s"]),
            f"{bytes_text(report['rate_bytes_per_s'])}/s",
        )
    if not reports:
        return Text("no run has ended yet")
    return Group(table, *(line for report in reports for line in _problems(report)))


def _problems(report: Mapping[str, Any]) -> list[RenderableType]:
    """What a run could not do, and why: the first of it."""
    shown = report["problems"][:_REASONS]
    when = f"{_when(report['finished'])} {report['kind']}"
    lines = [f"{when}: {problem['path']}: {problem['reason']}" for problem in shown]
    if shown and report["problem_count"] > len(shown):
        lines.append(f"{when}: … and {count_text(report['problem_count'] - len(shown))} more")
    return [Text(line, style="yellow") for line in lines]


def verifications(reports: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A table, the newest last, and the trend."""
    if not reports:
        return Text("nothing was verified yet: dtctl verify CON compares both sides")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in (
        "ended",
        "options",
        "result",
        "differ",
        "trend",
        "out of sync",
        "files",
        "problems",
        "took",
    ):
        table.add_column(heading, justify="left" if heading in ("ended", "options", "result") else "right")
    before: int | None = None
    for report in reports:
        now = report["different"]
        trend = "" if before is None else "=" if now == before else f"{now - before:+d}"
        before = now
        table.add_row(
            _when(report["finished"]),
            report["options"],
            report["result"],
            count_text(now),
            trend,
            bytes_text(report["bytes_out_of_sync"]) if report["bytes_out_of_sync"] else "–",
            count_text(report["files"]),
            count_text(report["problem_count"]),
            seconds_text(report["elapsed_s"]),
        )
    return table


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")


def next_run(report: Mapping[str, Any]) -> str:
    """When it begins by schedule, and how often; "": none is scheduled."""
    when = report.get("next_run")
    return f"{_when(when)}, {report['schedule']}" if when is not None else ""
