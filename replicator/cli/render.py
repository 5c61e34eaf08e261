"""Documents of the API as rich renderables. Pure: a document in, something to show out."""

import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from replicator.cli import render_transmission
from replicator.cli.render_guards import fence
from replicator.cli.render_recovery import ends_text
from replicator.cli.render_verify import verified
from replicator.cli.units import bytes_text, count_text, seconds_text, target_text
from replicator.diagnostics import is_nowhere

_PIPE_COLUMNS = 240  # nobody wraps a pipe: cells are never cut there

# Colours: what is well, what waits for something, what a person should look at. Everything else stays plain.
_STYLES = {
    "OK": "green",
    "Started": "green",
    "Replicating": "green",
    "Mirroring": "cyan",
    "Waiting": "cyan",
    "Restoring": "cyan",
    "Verifying": "cyan",
    "Removing Orphans": "cyan",
    "Ready": "",
    "Idle": "",
    "Paused": "yellow",
    "Pause Pending": "yellow",
    "Scheduled": "yellow",
    "Stopped": "yellow",
    "Pending": "yellow",
    "Out of Memory": "bold red",
    "Retrying": "bold red",
    "Not Loaded": "bold red",
    "Mirror Required": "bold red",
    "Restore Required": "bold red",
    "Error": "bold red",
}


def show(renderable: RenderableType) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_COLUMNS)
    console.print(renderable)


def _table(*headings: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return table


def _state(name: Any) -> Text:
    return Text(str(name), style=_STYLES.get(str(name), ""))


# --- connections ---


def connections(statuses: Sequence[Mapping[str, Any]]) -> RenderableType:
    """All connections: states, and what is on its way."""
    if not statuses:
        return Text(
            "no connections; make one with 'dtctl protect SRC DEST' or 'dtctl connect REPSET HOST:PORT'"
        )
    table = _table(
        "id",
        "set",
        "target",
        "state",
        "target data",
        "target",
        "transmit",
        "mirror",
        "replication",
        "queued",
        "lag",
        right=("id", "queued", "lag"),
    )
    for status in statuses:
        table.add_row(
            str(status["id"]),
            Text(str(status["repset"])),
            Text(str(status["target"])),
            _state(status["state"]),
            _state(status["target_data_state"]),
            _state(status["target_status"]),
            _state(status["transmit_mode"]),
            mirror_text(status),
            _state(status["replication_status"]),
            _queued(status),
            seconds_text(status.get("lag_seconds") or 0.0),
        )
    notes = [line for status in statuses for line in _notes(status)]
    return Group(table, *notes) if notes else table


def synchrony_text(status: Mapping[str, Any]) -> str:
    """Whether programs wait for this target."""
    state, reason = str(status.get("synchrony") or "Asynchronous"), str(status.get("synchrony_reason") or "")
    since = status.get("synchrony_since")
    when = f" since {datetime.fromtimestamp(float(since)):%Y-%m-%d %H:%M:%S}" if since and reason else ""
    return state + when + (f": {reason}" if reason else "")


def connection(status: Mapping[str, Any]) -> RenderableType:
    """Everything about one connection."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    rows: list[tuple[str, RenderableType]] = [
        ("connection", Text(f"{status['id']}  ({status['uuid']})")),
        ("replication set", Text(str(status["repset"]))),
        ("target", Text(target_text(status))),
        ("state", _state(status["state"])),
        ("target data state", _state(status["target_data_state"])),
        ("target status", _state(status["target_status"])),
        ("lock of the copy", Text(str(status.get("target_lock", "none")))),
        ("programs", Text(synchrony_text(status))),
        ("transmit mode", _state(status["transmit_mode"])),
        ("mirror status", mirror_text(status)),
        ("replication status", _state(status["replication_status"])),
        ("queued", Text(_queued(status))),
        (
            "queue",
            Text(
                f"{_bytes(status, 'memory_queue_bytes')} in memory, "
                f"{_bytes(status, 'disk_queue_bytes')} on disk"
            ),
        ),
        (
            "sent",
            Text(
                f"{_bytes(status, 'sent_bytes')} ({_bytes(status, 'sent_compressed_bytes')} on the wire), "
                f"{count_text(status.get('sent_ops') or 0)} operations"
            ),
        ),
        ("transmission", Text(render_transmission.now(status.get("transmission") or {}))),
        (
            "mirror",
            Text(
                f"{_bytes(status, 'sent_mirror_bytes')} sent, "
                f"{_bytes(status, 'skipped_mirror_bytes')} skipped, "
                f"{_bytes(status, 'remaining_mirror_bytes')} remaining"
                + (
                    ": waits, the target puts nothing in place"
                    if (status.get("mirror") or {}).get("held")
                    else ""
                )
            ),
        ),
        ("tracked", Text(_tracked(status))),
        ("recovery", _recovery_text(status)),
        ("verified", Text(verified(status.get("verify") or {}))),
        ("lag", _lag_text(status)),
        ("recovery point", _recovery_point(status.get("lag") or {})),
        ("last file", Text(str(status.get("last_file") or "–"))),
        ("connected since", Text(_clock(status.get("connected_since")))),
    ]
    for label, value in rows:
        grid.add_row(label, value)
    mirror = status.get("mirror") or {}
    problems = [
        Text(f"  {problem['path']}: {problem['reason']}", style="red")
        for problem in mirror.get("problems") or []
    ]
    if problems:
        problems.insert(0, Text(f"{mirror.get('problem_count', len(problems))} problems of the last mirror:"))
    return Group(grid, *_notes(status), *problems)


def _recovery_text(status: Mapping[str, Any]) -> Text:
    """What recovers, how far it is, when it ends; and what holds for the next one."""
    known, mirror = status.get("recovery") or {}, status.get("mirror") or {}
    text = Text(str(known.get("text") or "–"))
    if is_mirroring(status) and mirror.get("percent") is not None:
        text.append(f"  {mirror['percent']:.1f} %, {bytes_text(mirror.get('remaining_bytes') or 0)} left")
        if ends := ends_text(mirror):
            text.append(f", ends {ends}")
    automatic = "automatic" if known.get("automatic", True) else "by hand only"
    text.append(f"  ({automatic}, priority {known.get('priority')}, speed {known.get('speed')})", style="dim")
    return text


def _tracked(status: Mapping[str, Any]) -> str:
    """What is to be brought because the queue could not keep it."""
    since = status.get("tracked_since")
    if since is None:
        return "–"
    if not status.get("tracked_enough", True):
        return f"since {_clock(since)}: everything has to be compared"
    parts = [f"{count_text(status.get('tracked_files') or 0)} files"]
    if status.get("tracked_bytes"):
        parts[0] += f" ({_bytes(status, 'tracked_bytes')} in place)"
    for member, what in (("tracked_directories", "directories"), ("tracked_trees", "trees")):
        if status.get(member):
            parts.append(f"{count_text(status[member])} {what}")
    return f"since {_clock(since)}: {', '.join(parts)}"


def _lag_text(status: Mapping[str, Any]) -> Text:
    text = Text(seconds_text(status.get("lag_seconds") or 0.0))
    slow = [s for s in (status.get("lag") or {}).get("stages") or [] if s["seconds"] or s["bytes"]]
    if slow:
        parts = (f"{s['stage']} {seconds_text(s['seconds'])}" for s in slow)
        text.append(f"  ({', '.join(parts)}; see 'dtctl lag {status['id']}')")
    return text


_LEVEL_STYLES = {"": "", "warning": "yellow", "error": "bold red"}


def _recovery_point(lag: Mapping[str, Any]) -> Text:
    seconds, count = lag.get("recovery_point_seconds") or 0.0, lag.get("recovery_point_bytes") or 0
    text = f"{seconds_text(seconds)}, {bytes_text(count)}" if seconds or count else "nothing would be lost"
    return Text(text, style=_LEVEL_STYLES.get(str(lag.get("level") or ""), ""))


_STAGES = {
    "journaled": "captured → journaled",
    "sent": "journaled → sent",
    "received": "sent → received",
    "applied": "received → applied",
    "durable": "applied → durable",
}
_BARS = " ▁▂▃▄▅▆▇█"


def lag(found: Mapping[str, Any]) -> RenderableType:
    """The meter: each stage now and within the last minute and hour."""
    table = _table(
        "stage", "now", "waiting", "last minute", "worst", "last hour", "worst", right=("now", "waiting")
    )
    minute, hour = found.get("last_minute") or [], found.get("last_hour") or []
    for index, stage in enumerate(found["stages"]):
        row: list[RenderableType] = [
            Text(_STAGES.get(stage["stage"], stage["stage"])),
            Text(seconds_text(stage["seconds"])),
            Text(bytes_text(stage["bytes"]) if stage["bytes"] else "–"),
        ]
        for samples, step_s in ((minute, 1), (hour, 60)):
            values = [(s["time"], s["seconds"][index]) for s in samples]
            worst = max((value for _, value in values), default=0.0)
            row += [Text(_bars(values, step_s)), Text(seconds_text(worst))]
        table.add_row(*row)
    growth, full_s = found["growth_bytes_per_s"], found["queue_full_in_s"]
    queue = f"queue: {bytes_text(found['held_bytes'])} kept for this connection"
    if growth > 0:
        queue += f", grows by {bytes_text(growth)}/s"
        if full_s is not None:
            queue += f": full in {seconds_text(full_s)} at this rate"
    elif growth < 0:
        queue += f", drains by {bytes_text(-growth)}/s"
    behind = f"lag: {seconds_text(found['seconds'])}, {bytes_text(found['bytes'])} not applied"
    point = Text("recovery point: ").append_text(_recovery_point(found))
    waits = [Text(found["waits_for"], style="yellow")] if found.get("waits_for") else []
    return Group(table, Text(behind), point, Text(queue), *waits)


def _bars(values: Sequence[tuple[float, float]], step_s: int) -> str:
    """30 characters, the newest last; each the worst of its part, by its logarithm: 1 ms is the lowest,
    1000 s the highest.
    """
    if not values:
        return " " * 30
    newest, parts = values[-1][0], [0.0] * 30
    for at, seconds in values:
        part = 29 - int((newest - at) / (2 * step_s))
        if 0 <= part < 30:
            parts[part] = max(parts[part], seconds)
    return "".join(
        _BARS[min(8, max(1, round(math.log10(p * 1000) * 7 / 6) + 1))] if p >= 0.001 else " " for p in parts
    )


def mirror_text(status: Mapping[str, Any]) -> Text:
    """CS-06: while the size is known, the percentage stands in place of "Mirroring"."""
    name = str(status["mirror_status"])
    percent = (status.get("mirror") or {}).get("percent")
    if name == "Mirroring" and percent is not None:
        return Text(f"{percent:.0f} %", style=_STYLES[name])
    applied = (status.get("mirror") or {}).get("applied_percent")
    if name == "Waiting" and applied is not None:  # MR-10: all is sent
        return Text(f"{name} ({applied:.0f} % applied)", style=_STYLES[name])
    return _state(name)


def is_mirroring(status: Mapping[str, Any]) -> bool:
    return status["mirror_status"] in ("Mirroring", "Waiting", "Paused")


def mirror_bar(status: Mapping[str, Any]) -> RenderableType:
    """One line: how far a mirror is."""
    mirror = status.get("mirror") or {}
    percent = mirror.get("percent")
    total = f" of {count_text(mirror.get('total_files') or 0)}" if mirror.get("total_known") else ""
    rate = mirror.get("rate_bytes_per_s") or 0.0
    done_files, done_bytes = mirror.get("done_files") or 0, mirror.get("done_bytes") or 0
    figures = f"{count_text(done_files)}{total} files, {bytes_text(done_bytes)}"
    applied = mirror.get("applied_percent")
    if percent is not None and applied is not None:
        figures += f" sent, {applied:.1f} % applied"
    if rate:
        figures += f", {bytes_text(rate)}/s"
        if ends := ends_text(mirror):
            figures += f", ends {ends}"
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(width=30)
    grid.add_column()
    grid.add_row(
        Text(f"{status['id']} {status['repset']}", style="bold"),
        ProgressBar(total=100, completed=percent or 0.0, width=30, pulse=percent is None),
        Text(f"{'' if percent is None else f'{percent:5.1f} %  '}{figures}"),
    )
    return grid


def _notes(status: Mapping[str, Any]) -> list[Text]:
    """Reasons a person should read, one line each."""
    notes = []
    if is_nowhere(str(status["target"])):
        text = f"measures only, there is no copy: dtctl diagnostics report {status['id']}"
        notes.append(Text(f"{status['id']} {status['repset']}: {text}", style="yellow"))
    for member in ("state_reason", "target_status_reason"):
        if status.get(member):
            style = "yellow" if status.get("state") == "Scheduled" else "red"
            notes.append(Text(f"{status['id']} {status['repset']}: {status[member]}", style=style))
    count = (status.get("mirror") or {}).get("problem_count") or 0
    if count:
        where = f"see 'dtctl status {status['id']}'"
        text = f"{status['id']} {status['repset']}: {count} problems in the mirror; {where}"
        notes.append(Text(text, style="yellow"))
    return notes


def _queued(status: Mapping[str, Any]) -> str:
    operations = status.get("queued_ops") or 0
    return f"{count_text(operations)} ops, {_bytes(status, 'queued_bytes')}" if operations else "–"


def _bytes(status: Mapping[str, Any], member: str) -> str:
    return bytes_text(status.get(member) or 0)


def _clock(seconds: Any) -> str:
    """Local date and time of seconds since the epoch."""
    return "–" if not seconds else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(seconds)))


def story(entries: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What happened, a line each; a line with the date where a day begins."""
    if not entries:
        return Text("nothing has happened yet")
    lines: list[RenderableType] = []
    day = ""
    for entry in entries:
        when = time.localtime(float(entry["time"]))
        if (today := time.strftime("%A, %Y-%m-%d", when)) != day:
            day = today
            lines.append(Text(day, style="bold"))
        lines.append(_story_line(entry, time.strftime("%H:%M:%S", when)))
    return Group(*lines)


def _story_line(entry: Mapping[str, Any], clock: str) -> Text:
    before, after = str(entry["before"]), str(entry["after"])
    text = Text(f"{clock}  {entry['event']}")
    if entry["reason"]:
        text.append(f": {entry['reason']}")
    if before == after:
        text.append(f"  ({entry['dimension']} still ")
        text.append(after, style=_STYLES.get(after, ""))
    else:
        text.append(f"  ({entry['dimension']} {before + ' → ' if before else ''}")
        text.append(after, style=_STYLES.get(after, ""))
    lasted_s = entry["lasted_s"]
    text.append(")" if lasted_s is None or not before else f", after {seconds_text(lasted_s)})")
    return text


_STAGE_STYLES = {
    "durable": "green",
    "applied": "green",
    "received": "cyan",
    "sent": "cyan",
    "journaled": "yellow",
}


def why(report: Mapping[str, Any]) -> RenderableType:
    """What becomes of a path, connection by connection."""
    parts: list[RenderableType] = [Text(str(report["path"]), style="bold")]
    if report["mount"]:
        parts.append(Text(f"captured by the mount over {report['mount']}"))
    if report["note"]:
        parts.append(Text(str(report["note"]), style="yellow"))
    for connection in report["connections"]:
        parts += _why_connection(connection)
    return Group(*parts)


def _why_connection(connection: Mapping[str, Any]) -> list[RenderableType]:
    title = f"connection {connection['id']}: {connection['repset']} → {connection['target']}"
    rule = f"rule {connection['rule']}" if connection["rule"] else "no rule names it"
    included = "in the set" if connection["included"] else "not in the set"
    parts: list[RenderableType] = [Text(), Text(title, style="bold"), Text(f"  {included}: {rule}")]
    if connection["mirror_pending"]:
        parts.append(Text("  the mirror has still to bring it", style="yellow"))
    if connection["dirty"]:
        parts.append(Text(f"  dirty: {connection['dirty']}", style="yellow"))
    if connection["quarantined"]:
        parts.append(Text(f"  left as it was: {connection['quarantined']}", style="bold red"))
    if connection["note"]:
        parts.append(Text(f"  {connection['note']}"))
    if not connection["operations"]:
        return parts
    table = _table("", "time", "operation", "path", "is", "waits for")
    for step in connection["operations"]:
        path = f"{step['path']} → {step['path2']}" if step["path2"] else str(step["path"])
        table.add_row(
            "",
            Text(_clock(step["time"])),
            Text(str(step["operation"])),
            Text(path),
            Text(str(step["stage"]), style=_STAGE_STYLES.get(str(step["stage"]), "")),
            Text(str(step["waits_for"])),
        )
    return [*parts, table]


# --- mounts, sets, events ---


def mounts(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not found:
        return Text("nothing is captured; add a directory with 'dtctl mount add PATH'")
    table = _table(
        "path", "mounted at", "binding", "pid", "state", "options", "programs", "fence", right=("pid",)
    )
    for mount in found:
        table.add_row(
            Text(str(mount["path"])),
            Text(str(mount["mountpoint"])),
            Text(str(mount["binding"])),
            "–" if mount.get("pid") is None else str(mount["pid"]),
            Text(str(mount["state"])),
            Text(_options(mount)),
            Text(", ".join(dict.fromkeys(str(view["state"]) for view in mount.get("synchrony") or ()))),
            Text(fence(mount.get("fence"))),
        )
    return table


def _options(mount: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in (mount.get("options") or {}).items())


def mount_options(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table("name", "values", "default", "needs", "what it does")
    for option in found:
        table.add_row(*(Text(str(option[key])) for key in ("name", "values", "default", "needs", "help")))
    return table


def mount_options_set(mount: Mapping[str, Any]) -> RenderableType:
    return Text(f"{mount['mountpoint']} is served with {_options(mount) or 'default options'}")


def mount_added(mount: Mapping[str, Any]) -> RenderableType:
    return Text(f"changes below {mount['mountpoint']} are captured (process {mount['pid']})")


def repsets(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not found:
        return Text("no replication sets; create one with 'dtctl repset create NAME'")
    table = _table("name", "rules", "generation", right=("rules", "generation"))
    for repset in found:
        table.add_row(Text(str(repset["name"])), str(len(repset["rules"])), str(repset["generation"]))
    return table


def repset(found: Mapping[str, Any]) -> RenderableType:
    """One set; rules in the text form administrators know: path, inc/exc, rec/nonrec (RS-02)."""
    title = Text(f"{found['name']} (generation {found['generation']})", style="bold")
    advice = [Text(str(found["advice"]), style="yellow")] if found.get("advice") else []
    if not found["rules"]:
        hint = f"no rules; add one with 'dtctl repset rule {found['name']} add PATH'"
        return Group(title, Text(hint), *advice)
    table = _table("path", "", "")
    for rule in found["rules"]:
        include = Text("include") if rule["include"] else Text("exclude", style="yellow")
        table.add_row(
            Text(str(rule["path"])), include, "recursive" if rule["recursive"] else "this level only"
        )
    return Group(title, table, *advice)


def targets(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Copies kept here for sources elsewhere."""
    if not found:
        return Text("no copies are kept on this host")
    table = _table("connection", "pid", "copy in", "lock", "problem", right=("pid",))
    for target in found:
        pid = "–" if target.get("pid") is None else str(target["pid"])
        status = target.get("status") or {}
        places, lock = "\n".join(status.get("targets") or ()), str(status.get("lock", ""))
        problem = Text(str(target.get("problem") or ""), style="red")
        table.add_row(str(target["uuid"]), pid, Text(places), Text(lock), problem)
    return table


def queues(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Where changes wait, and how many more could."""
    if not found:
        return Text("no queues: nothing is captured here, and no copies are kept")
    table = _table(
        "queue", "memory", "disk", "used", "room", "disk directory", "free there", right=("used", "room")
    )
    notes = []
    for queue in found:
        disk_max, free = queue["disk_max_bytes"], queue["disk_free_bytes"]
        limit = "unlimited" if disk_max is None else bytes_text(disk_max) if disk_max else "none"
        table.add_row(
            Text(f"{'of' if queue['role'] == 'source' else 'of the copy in'} {queue['name']}"),
            Text(f"{bytes_text(queue['memory_bytes'])} of {bytes_text(queue['memory_max_bytes'])}"),
            Text(f"{bytes_text(queue['disk_bytes'])} of {limit}"),
            Text(f"{queue['percent']:.0f} %", style="yellow" if queue["alert"] else ""),
            Text(bytes_text(queue["room_bytes"])),
            Text(str(queue["disk_directory"])),
            Text(
                f"{'unknown' if free is None else bytes_text(free)},"
                f" {bytes_text(queue['disk_free_min_bytes'])} kept for others"
            ),
        )
        if queue["full"]:
            what = "its source has to wait" if queue["role"] == "target" else "what happens now is lost"
            notes.append(Text(f"{queue['name']}: full: {what}", style="bold red"))
        if queue["problem"]:
            notes.append(Text(f"{queue['name']}: cannot be written: {queue['problem']}", style="bold red"))
        if queue["lost_ops"] and queue["role"] == "source":
            lost = count_text(queue["lost_ops"])
            notes.append(Text(f"{queue['name']}: {lost} operations did not fit, ever: these are compared"))
    return Group(table, *notes)


def events(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not found:
        return Text("no events")
    table = _table("time", "severity", "event")
    styles = {"error": "bold red", "warning": "yellow"}
    for event in found:
        severity = str(event.get("severity", ""))
        table.add_row(
            _clock(event.get("time")),
            Text(severity, style=styles.get(severity, "")),
            Text(str(event.get("text", ""))),
        )
    return table


def copies(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Copies that an agent keeps."""
    if not found:
        return Text("no copies are kept there")
    table = _table("uuid", "set", "of", "directory", "copy", "data")
    for copy in found:
        roots = copy["roots"]
        table.add_row(
            copy["uuid"],
            copy["repset"]["name"],
            copy["source_name"],
            "\n".join(root["source"] for root in roots),
            "\n".join(root["replica"] for root in roots),
            _state(copy["data_state"]),
        )
    return table


def restore_plan(plan: Mapping[str, Any]) -> RenderableType:
    """What a restore would do, path by path, and how much that is."""
    lines = [
        Text(f"{step['action']:<10} {step['path']}" + (f"  ({step['reason']})" if step["reason"] else ""))
        for step in plan["steps"]
    ]
    if plan["left_out"]:
        lines.append(Text(f"… and {plan['left_out']} more"))
    counts = ", ".join(f"{count} {action}" for action, count in sorted(plan["counts"].items()))
    lines.append(Text(f"{counts or 'nothing differs'}; {plan['bytes']} bytes at most"))
    if plan["refused"]:
        lines.append(Text(f"it would be refused: {plan['refused']}"))
    return Group(*lines)


def restore(found: Mapping[str, Any]) -> RenderableType:
    """One restore, in a line."""
    places = ", ".join(root["replica"] for root in found["roots"])
    text = f"restore {found['id']} of {found['repset']} to {places}: {found['phase']}"
    if found["phase"] == "running":
        percent = found["percent"]
        state = "paused" if found["paused"] else "connected" if found["connected"] else "not connected"
        text += f", {state}" + (f", {percent:.0f} %" if percent is not None else "")
    if found["done_files"] or found["sent_bytes"]:
        text += f", {found['done_files']} files, {found['sent_bytes']} bytes sent"
    if found["orphans"]:
        text += f"; {found['orphans']}"
    for more in (found["reason"], found["resumed"]):
        text += f"; {more}" if more else ""
    return Text(text)


def restores(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """All of them."""
    if not found:
        return Text("nothing was restored to this host")
    return Group(*(restore(one) for one in found))
