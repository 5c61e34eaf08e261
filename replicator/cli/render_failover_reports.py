"""Reports of failovers and failbacks, as people read them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replicator.cli.units import seconds_text

_OUTCOMES = {
    "completed": "green",
    "taken back": "yellow",
    "is taken back": "yellow",
    "waits for a person": "bold red",
    "running": "cyan",
}
_STEPS = {
    "done": "green",
    "failed": "bold red",
    "not taken back": "bold red",
    "taken back": "yellow",
    "taking back": "yellow",
    "running": "cyan",
    "pending": "dim",
}


def failover_reports(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One after the other."""
    if not found:
        return Text("there was no failover yet")
    return Group(*(part for report in found for part in (_report(report), Text(""))))


def _report(report: Mapping[str, Any]) -> RenderableType:
    outcome = report["outcome"]
    head = Text.assemble(
        (f"{report['kind']} of {report['name'] or report['group']}", "bold"),
        f" at {_time(report['began'])}: ",
        (outcome, _OUTCOMES[outcome]),
    )
    if report["ended"]:
        head.append(f" after {seconds_text(report['ended'] - report['began'])}")
    lines = [head]
    if report["reason"]:
        lines.append(Text(f"  because: {report['reason']}{' (forced)' if report['forced'] else ''}"))
    if report["text"]:
        lines.append(Text(f"  {report['text']}", style=_OUTCOMES[outcome]))
    if report["epoch"]:
        lines.append(Text(f"  epoch {report['epoch']}"))
    if report["interruptions"]:
        lines.append(Text(f"  its agent was started again {report['interruptions']} times meanwhile"))
    lines += [_copy(copy) for copy in report["copies"]]
    return Group(*lines, _steps(report["steps"]))


def _copy(copy: Mapping[str, Any]) -> Text:
    """What had come of the source, and what of that is in the copy."""
    until = copy["applied_until"]
    text = f"  {copy['repset'] or copy['connection']}: "
    text += f"as the source was at {_time(until, 3)}" if until is not None else "recovery point not known"
    if copy["left_operations"]:
        text += f"; {copy['left_operations']} operations had arrived and are not applied"
    return Text(text + (f"; {copy['problem']}" if copy["problem"] else ""))


def _steps(steps: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    for step in steps:
        took = seconds_text(step["duration_s"]) if step["duration_s"] else ""
        said = [step["text"], *step["said"]]
        if step["found"]:
            said.insert(0, "was interrupted, and had taken effect")
        table.add_row(
            Text(step["name"]),
            Text(step["outcome"], style=_STEPS[step["outcome"]]),
            Text(took),
            Text("\n".join(filter(None, said))),
        )
    return table


def _time(seconds: float, digits: int = 0) -> str:
    whole = datetime.fromtimestamp(seconds)
    text = whole.strftime("%Y-%m-%d %H:%M:%S")
    return f"{text}.{whole.microsecond // 1000:03d}" if digits else text
