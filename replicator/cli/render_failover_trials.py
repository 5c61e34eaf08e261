"""Scripts, tests and drills of a failover as rich renderables."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replicator.cli.units import bytes_text, count_text, seconds_text

_DRILL_STYLES = {
    "running": "cyan",
    "kept": "cyan",
    "passed": "green",
    "failed": "bold red",
    "impossible": "yellow",
    "ended": "yellow",
    "interrupted": "yellow",
}
_CHECK_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "unknown": "yellow"}


def failover_scripts(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table("monitor", "kind", "command", "waits", "timeout", "if it fails", "problems")
    for view in found:
        script = view["script"]
        table.add_row(
            view["group"] or "(new ones)",
            view["kind"],
            shlex.join([script["path"], *script["arguments"]]),
            "yes" if script["wait"] else "no",
            seconds_text(script["timeout_s"]),
            script["on_failure"],
            Text("; ".join(view["problems"]), style="yellow"),
        )
    return table if found else Text("no scripts: dtctl failover scripts set NAME KIND COMMAND")


def script_result(found: Mapping[str, Any]) -> RenderableType:
    well = found["outcome"] == "done"
    how = found["outcome"]
    if found["exit_code"] is not None:
        how = f"exit code {found['exit_code']}"
    elif found["signal"] is not None:
        how = f"killed by signal {found['signal']}"
    lines: list[RenderableType] = []
    if found["output"]:
        lines.append(Text(found["output"].rstrip("\n")))
    reason = f": {found['reason']}" if found["reason"] else ""
    lines.append(
        Text(
            f"{found['path']}: {how}{reason} after {seconds_text(found['duration_s'])},"
            f" {bytes_text(found['output_bytes'])} printed",
            style="green" if well else "bold red",
        )
    )
    if found["stop"]:
        lines.append(Text("a failover would stop here"))
    return Group(*lines)


def drill(found: Mapping[str, Any]) -> RenderableType:
    """One, with what its commands have printed."""
    lines: list[RenderableType] = []
    for command in found["commands"]:
        if command["output"]:
            lines.append(Text(command["output"].rstrip("\n")))
        lines.append(
            Text(
                f"{command['name']}: {command['result']} after {seconds_text(command['duration_s'])}",
                style="green" if command["succeeded"] else "bold red",
            )
        )
    for point in found["points"]:
        when = f" ({_when(point['time'])} on the source)" if point["time"] else ""
        marks = ", ".join(str(sequence) for sequence in point["applied"].values())
        lines.append(Text(f"{point['repset'] or point['connection']}: as of operation {marks or '–'}{when}"))
    if found["changed_files"] or found["removed"]:
        lines.append(
            Text(
                f"written over the view: {count_text(found['changed_files'])} files,"
                f" {bytes_text(found['changed_bytes'])}; {count_text(found['removed'])} removed"
            )
        )
    reason = f": {found['reason']}" if found["reason"] else ""
    lines.append(Text(f"drill {found['state']}{reason}", style=_DRILL_STYLES.get(found["state"], "")))
    if found["state"] == "kept":
        lines.append(Text(f"look around: nsenter --all --target {found['pid']} /bin/bash"))
        lines.append(Text(f"end it: dtctl failover drill {found['name']} --end"))
    elif found["still_s"]:
        lines.append(Text(f"nothing was applied to the copies for {seconds_text(found['still_s'])}"))
    return Group(*lines)


def drills(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table("began", "state", "commands", "changed", "stood still", "reason")
    for one in found:
        table.add_row(
            _when(one["began"]),
            Text(one["state"], style=_DRILL_STYLES.get(one["state"], "")),
            "; ".join(f"{c['name']}: {c['result']}" for c in one["commands"]),
            f"{count_text(one['changed_files'])} files",
            seconds_text(one["still_s"]),
            one["reason"],
        )
    return table if found else Text("no drills yet: dtctl failover drill NAME --check COMMAND")


def failover_test(found: Mapping[str, Any]) -> RenderableType:
    """What a failover would find, and what it would do."""
    checks = _table("check", "", "found")
    for check in found["checks"]:
        result = Text(check["result"], style=_CHECK_STYLES.get(check["result"], ""))
        checks.add_row(check["name"], result, check["text"])
    steps = _table("", "step", "what it would do")
    for number, step in enumerate(found["steps"], 1):
        steps.add_row(str(number), step["name"], step["text"])
    return Group(checks, Text(""), steps, Text(""), Text(found["verdict"]))


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
