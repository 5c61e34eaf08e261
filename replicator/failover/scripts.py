"""Runs scripts of a failover or failback (FO-10, FO-22).

A script runs under a keeper (`script_keeper.py`), a process that outlives its agent. Each run has a name, its
**attempt**, and a directory of that name. Whoever runs an attempt again gets what is known of it: its result,
or the run under way. Only an attempt of which neither is left, because the host lost power or the keeper was
killed, is started once more. So a script runs exactly once per attempt while the host is up, and at least
once in any case: it has to bear being run again.
"""

import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import trio

from replicator import events, limits
from replicator.config import Failover
from replicator.errors import UsageError
from replicator.events import EventType
from replicator.failover.occasion import Occasion
from replicator.failover.script_attempt import Attempt
from replicator.failover.script_result import Outcome, ScriptResult
from replicator.failover.supervised import How
from replicator.failovers import OnFailure, Script, ScriptKind


def from_command_line(text: str, template: Script) -> Script:
    """A script as users write it: path and arguments in one line, quoted as for a shell; all else is as in
    `template`. Raises UsageError.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no command line: {error}") from None
    if not words:
        raise UsageError("a script is named by its absolute path")
    script = msgspec.structs.replace(template, path=words[0], arguments=tuple(words[1:]))
    check(script)
    return script


def defaults(configured: Failover) -> dict[ScriptKind, Script]:
    """What a new monitor has (FO-10). Raises UsageError."""
    template = Script(
        path="",
        wait=configured.script_wait,
        timeout_s=configured.script_timeout_s,
        on_failure=OnFailure(configured.script_on_failure) if configured.script_wait else OnFailure.GO_ON,
    )
    lines = {kind: getattr(configured, kind.replace("-", "_")) for kind in ScriptKind}
    return {kind: from_command_line(line, template) for kind, line in lines.items() if line}


def check(script: Script) -> None:
    """Raises UsageError for what can never be right; whether the file is there may change: see `problems`."""
    if not script.path.startswith("/") or "\0" in script.path:
        raise UsageError(f"a script is named by its absolute path, not {script.path!r}")
    if len(script.arguments) > limits.SCRIPT_ARGUMENTS or any("\0" in a for a in script.arguments):
        raise UsageError(f"{script.path}: at most {limits.SCRIPT_ARGUMENTS} arguments, without NUL")
    if not 0 < script.timeout_s <= limits.SCRIPT_TIMEOUT_MAX_S:
        raise UsageError(
            f"{script.path}: a timeout is from 0 to {limits.SCRIPT_TIMEOUT_MAX_S:.0f} s, without 0"
        )
    if script.on_failure is OnFailure.STOP and not script.wait:
        raise UsageError(f"{script.path}: its failure can only stop what waits for it")


def obstacle(script: Script) -> str:
    """Why it cannot be started now, as far as one look shows; "": it can. For people."""
    try:
        os.stat(script.path)
    except OSError as error:
        return f"{script.path}: {error.strerror}"
    if not os.path.isfile(script.path):
        return f"{script.path} is no file"
    if not os.access(script.path, os.X_OK):
        return f"{script.path} is not executable: chmod +x {script.path}"
    return ""


def problems(script: Script) -> list[str]:
    """The same, and whether others than root can change it."""
    found = [text] if (text := obstacle(script)) else []
    with suppress(OSError):
        state = os.stat(script.path)
        if os.path.isfile(script.path) and (state.st_uid != 0 or state.st_mode & 0o022):
            found.append(f"{script.path} can be changed by others than root, who runs it")
    return found


class Scripts:
    """Those of one agent. `directory`: where its runs are kept. `add_event`: see `EventRing.add`."""

    def __init__(self, directory: str, add_event: Callable[..., object]) -> None:
        self._directory = Path(directory)
        self._add_event = add_event
        self._unwatched = trio.Event()  # a script runs that nobody waits for
        self._told_of: set[str] = set()  # attempts; a disk may be too full to note it

    async def run(self, script: Script, occasion: Occasion, attempt: str) -> ScriptResult:
        """Run it, or learn how this attempt is doing. Waits for its end if the script says so, and for its
        start otherwise; never raises because of what a script does.

        Cancelled, nothing happens to the script: run the attempt again, or `stop` it.
        """
        run = Attempt(self._directory, attempt)
        if not run.is_known:
            self._tidy()
            try:
                await run.start(script, occasion)
            except OSError as error:
                # Of this agent, not of the script: no memory, no room, no descriptors.
                run.fail(f"{script.path} could not be started here: {error.strerror}")
        if not script.wait:
            end = run.result()
            if end is None or end.how is not How.NOT_STARTED:
                self._unwatched.set()
                return ScriptResult(kind=occasion.kind, path=script.path, outcome=Outcome.STARTED)
        await run.ended()
        return self._told(run)

    def has_begun(self, attempt: str) -> bool:
        """Whether to run this attempt is to learn how it is doing."""
        return Attempt(self._directory, attempt).is_known

    async def stop(self, attempt: str) -> None:
        """End a script that runs: SIGTERM, then SIGKILL, to its process group."""
        Attempt(self._directory, attempt).stop()

    def results(self) -> list[tuple[str, ScriptResult | None]]:
        """(attempt, result) of those that are remembered, the newest first; None: it runs."""
        found: list[tuple[str, ScriptResult | None]] = []
        for run in self._attempts():
            running = run.is_running
            found.append((run.name, None if running else run.judged()))
        return found

    async def serve(self) -> None:
        """Tell how scripts end that nobody waits for (any more), also those of an earlier agent."""
        while True:
            self._unwatched = trio.Event()
            running = False
            for run in self._attempts():
                if run.told:
                    continue
                if run.is_running:
                    running = True
                else:
                    self._told(run)
            with trio.move_on_after(limits.SCRIPT_LOOK_S if running else float("inf")):
                await self._unwatched.wait()

    def _told(self, run: Attempt) -> ScriptResult:
        result = run.judged()
        if not run.told and run.name not in self._told_of:
            self._add_event(_event_of(result), **_fields(result, run.group))
            self._told_of.add(run.name)
            with suppress(OSError):  # then the next agent tells it once more
                run.told = True
        return result

    def _attempts(self) -> list[Attempt]:
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        runs = [Attempt(self._directory, name) for name in names]
        return sorted((run for run in runs if run.was_ordered), key=lambda run: -run.ordered_ns)

    def _tidy(self) -> None:
        for run in self._attempts()[limits.SCRIPT_RUNS_KEPT :]:
            if not run.is_running:
                run.forget()


def _event_of(result: ScriptResult) -> EventType:
    return events.SCRIPT_ENDED if result.succeeded else events.SCRIPT_FAILED


def _fields(result: ScriptResult, group: str) -> dict[str, object]:
    return {
        "group": group,
        "kind": result.kind,
        "path": result.path,
        "how": result.how(),
        "seconds": result.duration_s,
        "output": shortened(result.output, limits.SCRIPT_EVENT_BYTES) or "nothing",
    }


def shortened(text: str, chars: int) -> str:
    """Its first and last part on one line."""
    line = " | ".join(part for part in (line.strip() for line in text.splitlines()) if part)
    if len(line) <= chars:
        return line
    half = chars // 2
    return f"{line[:half]} [… {len(line) - 2 * half} characters left out …] {line[-half:]}"
