"""Monitors and what they ask, as people read them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from replicator.cli.units import seconds_text

_PHASES = {
    "watching": "green",
    "asking": "bold red",
    "declined": "yellow",
    "taking over": "cyan",
    "failed over": "bold yellow",
    "failing back": "cyan",
    "not watching": "dim",
}
_BULLET = "●"


def monitors(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """All monitors."""
    if not found:
        return Text("no monitors; make one with 'dtctl failover add SOURCE --address IP/PREFIX'")
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("monitor", "source", "status", "how", "addresses", "time to fail"):
        table.add_column(heading, overflow="fold")
    for monitor in found:
        lowest = min((a["remaining_s"] for a in monitor["addresses"] if a["monitored"]), default=None)
        table.add_row(
            Text(monitor["name"]),
            Text(monitor["source"]),
            Text(monitor["doing"], style=_PHASES[monitor["phase"]]),
            "automatic" if monitor["settings"]["automatic"] else "asks",
            Text.assemble(*_between((_address(a) for a in monitor["addresses"]), ", ")),
            f"{lowest:.0f} s" if lowest is not None and is_watched(monitor) else "–",
        )
    return Group(table, *(line for monitor in found for line in question(monitor)))


def is_watched(monitor: Mapping[str, Any]) -> bool:
    return monitor["phase"] in ("watching", "asking", "declined")


def question(monitor: Mapping[str, Any]) -> list[Text]:
    """What a person is asked, and how to answer; nothing if nothing is."""
    name = monitor["name"]
    if monitor["question"]:
        return [
            Text(f"{name}: {monitor['question']}", style="bold red"),
            Text(f"  dtctl failover answer {name} yes    dtctl failover answer {name} no"),
        ]
    if monitor["phase"] == "failing back":
        return _failback(monitor)
    if monitor["halted"]:
        return [
            Text(f"{name}: the failover waits for a person: {monitor['halted']}", style="bold red"),
            Text(f"  dtctl failover now {name}    dtctl failover now {name} --force"),
        ]
    if monitor["phase"] == "declined":
        return [Text(f"{name}: was declined; dtctl failover answer {name} yes still begins it")]
    return []


def _failback(monitor: Mapping[str, Any]) -> list[Text]:
    """Where it waits for a person, or for home, which only a person can know to be lost."""
    name, source = monitor["name"], monitor["source_name"] or monitor["source"]
    lost = Text(f"  only if {source} is lost for good: dtctl failover now {name} --source-is-off")
    if monitor["halted"]:
        return [
            Text(f"{name}: the failback waits for a person: {monitor['halted']}", style="bold red"),
            Text(f"  dtctl failback {name}    dtctl failback {name} --force"),
            lost,
        ]
    steps = monitor["report"]["steps"] if monitor["report"] is not None else []
    doubt = [step for step in steps if step["name"] == "promote" and step["outcome"] == "running"]
    if any(step["said"] for step in doubt):
        text = f"{name}: only {source} can say whether it owns the group now; programs wait until it answers"
        return [Text(text, style="bold red"), lost]
    return []


def _address(address: Mapping[str, Any]) -> Text:
    if not address["monitored"]:
        return Text(address["address"], style="dim")
    return Text.assemble((f"{_BULLET} ", address["colour"]), address["address"])


def _between(parts: Any, separator: str) -> list[Text | str]:
    found: list[Text | str] = []
    for part in parts:
        found += [separator, part] if found else [part]
    return found


def countdowns(monitor: Mapping[str, Any]) -> RenderableType:
    """FO-12, FO-13: of each address."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    watched = is_watched(monitor)
    for address in monitor["addresses"]:
        interface = f" → {address['interface']}" if address["interface"] else ""
        if not address["monitored"]:
            table.add_row("", Text(address["address"] + interface, style="dim"), "", "not monitored", "")
            continue
        colour = address["colour"] if watched else "dim"
        left, whole = address["remaining_s"], address["timeout_s"]
        bar = ProgressBar(total=whole, completed=left, width=20, complete_style=colour, finished_style=colour)
        text = "failed" if address["failed"] else f"{left:.1f} s of {whole:g} s"
        table.add_row(
            Text(_BULLET, style=colour),
            Text(address["address"] + interface),
            bar,
            Text(text if watched else "–", style=colour),
            Text(address["reason"] if watched else "", style="dim"),
        )
    return table


def monitor(found: Mapping[str, Any]) -> RenderableType:
    """Everything about one."""
    settings = found["settings"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    name = f", agent {found['source_name']}" if found["source_name"] else ""
    grid.add_row("monitor", f"{found['name']}  ({found['uuid']})")
    grid.add_row("source", found["source"] + name)
    since = f" since {_time(found['since'])}" if found["since"] else ""
    grid.add_row("status", Text(found["doing"] + since, style=_PHASES[found["phase"]]))
    for step in found["report"]["steps"] if found["report"] is not None else ():
        if step["outcome"] not in ("pending", "done"):
            said = "; ".join(filter(None, (step["text"], *step["said"][-1:])))
            grid.add_row("step", f"{step['name']}: {step['outcome']}{f' ({said})' if said else ''}")
    grid.add_row("epoch", str(found["epoch"]))
    grid.add_row("addresses", countdowns(found))
    for address in found["addresses"]:
        if address["monitored"]:
            given = next(a for a in settings["addresses"] if a["address"] == address["address"])
            checks = ", ".join(_check(check) for check in given["checks"])
            timing = f"every {seconds_text(given['interval_s'])}, {given['misses']} may be missing"
            grid.add_row("", f"{address['address']}: {checks}, {timing}")
    grid.add_row("fails when", f"{settings['fail_when']} of them are silent")
    grid.add_row("takes", f"{settings['take']} addresses")
    how = "by itself" if settings["automatic"] else "a person is asked"
    if settings["automatic"] and settings["lag_max_s"]:
        how += f", if the copies lack no more than {seconds_text(settings['lag_max_s'])}"
    grid.add_row("failover", how)
    grid.add_row("source", "stops by itself without a lease" if found["armed"] else "does not stop by itself")
    for label, field in (
        ("witness", "witness"),
        ("fence command", "fence_command"),
        ("host name", "host_name"),
        ("lapse", "lapse"),
    ):
        if settings[field]:
            grid.add_row(label, str(settings[field]))
    if settings["even_if_partitioned"]:
        grid.add_row("", Text("even if only the line between the hosts is cut", style="yellow"))
    if settings["policy"] != "manual":
        grid.add_row("policy", " ".join(filter(None, (settings["policy"], settings["prefer_node"]))))
    for kind, script in settings["scripts"].items():
        grid.add_row(kind, " ".join((script["path"], *script["arguments"])))
    if settings["copies"]:
        grid.add_row("copies", ", ".join(settings["copies"]))
    for warning in found["warnings"]:
        grid.add_row("careful", Text(warning, style="yellow"))
    return Group(grid, *question(found))


def _check(check: Mapping[str, Any]) -> str:
    """As users type it."""
    count = f"{check['misses']}*" if check["misses"] else ""
    return f"{count}{check['kind']}:{check['argument']}" if check["argument"] else f"{count}{check['kind']}"


def history(entries: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not entries:
        return Text("nothing has happened yet")
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("time", "monitor", "what", ""):
        table.add_column(heading, overflow="fold", no_wrap=heading == "time")
    for entry in entries:
        table.add_row(_time(entry["time"]), Text(entry["name"]), Text(entry["what"]), Text(entry["text"]))
    return table


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def live(found: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """FO-21: for `dtctl monitor --failover`."""
    parts: list[RenderableType] = []
    if not found:
        parts.append(monitors(found))
    for each in found:
        how = "automatic" if each["settings"]["automatic"] else "asks"
        parts += [
            Text.assemble(
                (each["name"], "bold"),
                f"  {each['source']}  ",
                (each["doing"], _PHASES[each["phase"]]),
                f"  ({how})",
            ),
            countdowns(each),
            *question(each),
            Text(),
        ]
    if entries:
        parts += [Text("history", style="bold"), history(entries)]
    return parts
