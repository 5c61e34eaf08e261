"""The verification log of a source (VF-05…VF-08): what a person reads of each verification, and the same as
one JSON value a line.

It shows what differs before anything is brought. English, bounded: when it is full, nothing more is written,
or it is rotated. Neither a full disk nor a bad directory disturbs the verification itself.
"""

import os
import sys
from collections.abc import Iterable
from datetime import datetime

import msgspec

from replicator import limits
from replicator.mirror.checks import SECURITY, Aspect, There
from replicator.ops import shown
from replicator.sender.verify_run import Difference, VerifyRun
from replicator.status import VerifyPhase
from replicator.world import World

BEGIN, END = "BEGIN VERIFICATION", "END VERIFICATION"
_RULE = "-" * 72
_MISSING = 53001  # VF-09
_UNREADABLE = 53003


class VerifyLogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where it is and how large it becomes. `files` 1: when it is full nothing more is written."""

    directory: str = ""  # "": `log` in the agent's home
    name: str = limits.VERIFY_LOG_NAME
    size_max: int = limits.VERIFY_LOG_BYTES
    append: bool = True  # False: each verification begins a new one
    files: int = 1


class VerifyLog:
    """Of one connection; `path` is the text, `path` with .jsonl the JSON lines."""

    def __init__(self, world: World, directory: str, heading: str, repset: str) -> None:
        """`directory`: if the settings name none. `heading`: the connection, as the log names it."""
        self.settings = VerifyLogSettings()
        self._world = world
        self._directory = directory
        self._heading = heading
        self._repset = repset
        self._problem = ""

    @property
    def path(self) -> str:
        name = f"{self._repset.replace('/', '_')} {self.settings.name}"
        return os.path.join(self.settings.directory or self._directory, name)

    @property
    def json_path(self) -> str:
        return self.path.removesuffix(".log") + ".jsonl"

    def begin(self, run: VerifyRun) -> None:
        if not self.settings.append:
            for path in (self.path, self.json_path):
                self._remove(path)
        checksum = "on" if run.options.checksum else "off"
        lines = [
            _RULE,
            f"{BEGIN} {run.run_id}",
            f"{self._heading}, checksum {checksum}",
            f"Options: {run.options.text or 'verify only'}",
            f"Start time: {_moment(run.started_wall_ns)}",
            "",
        ]
        self._write(self.path, lines)
        options = msgspec.to_builtins(run.options)
        self._write_json({"event": "begin", "run": run.run_id, "time": run.started_wall_ns / 1e9, **options})

    def differs(self, run: VerifyRun, differences: Iterable[Difference]) -> None:
        lines: list[str] = []
        values: list[object] = []
        for difference in differences:
            lines += _described(difference)
            values.append(
                {
                    "event": "different",
                    "run": run.run_id,
                    "path": difference.shown,
                    "aspects": sorted(difference.aspects),
                    "source": _value(difference.here),
                    "target": _value(difference.there),
                    "blocks": difference.blocks,
                    "bytes_out_of_sync": difference.bytes,
                }
            )
        if lines:
            self._write(self.path, lines)
            self._write_json(*values)

    def end(self, run: VerifyRun) -> None:
        progress = run.progress(run.finished_ns or 0)
        compared_ns = max((run.finished_ns or run.started_ns) - run.started_ns, 0)
        lines = [f"{p.path}\n    {p.reason}{_code(p.reason)}" for p in run.problems]
        result = "stopped by request" if run.phase is VerifyPhase.STOPPED else "complete"
        lines += [
            f"Completion time: {_moment(run.finished_wall_ns)} ({result})",
            f"Elapsed time: {compared_ns / 1e9:.6f} seconds",
            f"Directories compared: {run.directories}",
            f"Directories missing: {run.missing_directories}",
            f"Directories different: {run.different_directories}",
            f"Directories remirrored: {run.remirrored_directories}",
            f"Files compared: {run.files}",
            f"Files missing: {run.missing_files}",
            f"Files different: {run.different_files}",
            "Files encrypted: 0",
            f"Files remirrored: {run.remirrored - run.remirrored_directories}",
            f"Extra on target: {run.extra}",
            f"Left, not newer: {run.left}",
            f"Not compared, changing: {run.changing}",
            f"Problems: {run.problem_count}",
            f"Bytes compared: {run.file_bytes}",
            f"Bytes read for checksums: {run.read_bytes}",
            f"Bytes out of sync: {run.bytes_out_of_sync}",
            f"{END} {run.run_id}",
            "",
        ]
        self._write(self.path, lines)
        document = msgspec.to_builtins(progress)
        for name in ("problems", "differences", "current", "waits_for", "schedule", "next_run"):
            document.pop(name, None)
        self._write_json({"event": "end", **document})

    # --- the files ---

    def _write_json(self, *values: object) -> None:
        self._write(self.json_path, [msgspec.json.encode(value).decode() for value in values])

    def _write(self, path: str, lines: list[str]) -> None:
        data = b"".join(line.encode("utf-8", "backslashreplace") + b"\n" for line in lines)
        disk = self._world.disk
        try:
            size = disk.size(path) if disk.exists(path) else 0
            if size + len(data) > self.settings.size_max and self.settings.files > 1 and size:
                self._rotate(path)
                size = 0
            room = self.settings.size_max - size
            if len(data) > room:
                data = data[:room][: data[:room].rfind(b"\n") + 1] if room > 0 else b""
            if not data:
                return
            disk.makedirs(os.path.dirname(path))
            handle = disk.open_append(path)
            try:
                disk.append(handle, [data], size)
            finally:
                disk.close(handle)
            self._problem = ""
        except OSError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                print(f"the verification log cannot be written: {error}", file=sys.stderr, flush=True)

    def _rotate(self, path: str) -> None:
        disk = self._world.disk
        for number in range(self.settings.files - 1, 0, -1):
            older = path if number == 1 else f"{path}.{number - 1}"
            if disk.exists(older):
                disk.replace(older, f"{path}.{number}")

    def _remove(self, path: str) -> None:
        try:
            self._world.disk.unlink(path)
        except OSError:
            pass  # there is none, or it is written on


def _described(difference: Difference) -> list[str]:
    """The lines of one path."""
    path, aspects = difference.shown or "/", difference.aspects
    if Aspect.MISSING in aspects:
        first = f"{path} MISSING ON TARGET ({_MISSING})"
    elif aspects == {Aspect.EXTRA}:
        first = f"{path} EXTRA ON TARGET"
    else:
        first = f"{path} DIFFERENT ON TARGET: {', '.join(sorted(aspects))}"
    lines = [first]
    for name, side in (("Source", difference.here), ("Target", difference.there)):
        if side is not None:
            lines.append(
                f"    {name} attributes: Timestamp = {_moment(side.mtime_ns)} Size = {side.size}"
                f" Mask = [0x{side.mode:x}] Owner = {side.uid}:{side.gid}"
            )
    if aspects & SECURITY:
        lines.append(f"    Security differs: {', '.join(sorted(aspects & SECURITY))}")
    lines.append(f"    {difference.bytes} BYTES OUT OF SYNC")
    return lines


def _code(reason: str) -> str:
    return f" ({_UNREADABLE})" if reason.startswith("source:") else ""


def _value(side: There | None) -> object:
    if side is None:
        return None
    value = {name: getattr(side, name) for name in side.__struct_fields__}
    return {**value, "link_text": shown(side.link_text)}


def _moment(wall_ns: int) -> str:
    """Local time, with nanoseconds: mtimes may differ in these only."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    try:
        when = datetime.fromtimestamp(seconds).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{seconds}.{rest:09d}"
    return f"{when:%Y-%m-%d %H:%M:%S}.{rest:09d} {when:%z}"
