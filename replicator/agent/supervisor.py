"""The agent's children: started, adopted, watched, restarted, stopped.

Children outlive the agent. So nothing here depends on having started one: a child is known by its control
socket in home/run, its process by the credentials of that socket, and its end by a pidfd, whoever its parent
is.
"""

import os
import re
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import trio

from replicator import events, limits
from replicator.agent.launcher import Launcher
from replicator.agent.process import Launch, Process, serving_process
from replicator.child.control import Control
from replicator.errors import ExitCode, ReplicatorError, UnreachableError
from replicator.events import EventRing
from replicator.paths import Home, Role

_LOG_PREFIX = re.compile(r"^[-0-9]+ [:,.0-9]+ [A-Z]+ ")  # of logging: time and level
# Ends of a child that say more than that it failed: what it was asked for cannot be.
_REFUSALS = {f"exit code {code:d}": code for code in (ExitCode.USAGE, ExitCode.NOT_PERMITTED)}


class ChildError(ReplicatorError):
    """A child did not start, answer or stop. `exit_code`: what it ended with, if that says more."""

    def __init__(self, text: str, exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.exit_code = exit_code


async def call(
    path: str,
    name: str,
    timeout_s: float = limits.CONTROL_TIMEOUT_S,
    descriptors: Sequence[int] = (),
    /,
    **arguments: Any,
) -> tuple[Any, list[int]]:
    """One control call: its result, and descriptors that are the caller's to close.

    Raises UnreachableError if nobody answers, ReplicatorError if the child refuses.
    """
    try:
        with trio.fail_after(timeout_s):
            async with Control(path) as control:
                return await control.call_with_descriptors(name, timeout_s, descriptors, **arguments)
    except trio.TooSlowError:
        raise UnreachableError(f"did not answer '{name}' within {timeout_s:g} s") from None
    except OSError as error:
        raise UnreachableError(f"does not answer '{name}': {_one_line(error)}") from error


def stop_timeout_s(role: Role) -> float:
    """How long a child may take to end after it was told to."""
    return limits.CAPTURE_STOP_TIMEOUT_S if role == "capture" else limits.CHILD_STOP_TIMEOUT_S


async def stop_serving(home: Home, role: Role, identifier: str, **arguments: Any) -> None:
    """Stop a child that is nobody's, by its control socket. Raises ReplicatorError if it refuses or stays."""
    path = home.socket(role, identifier)
    process = serving_process(path)
    if process is None:
        return
    timeout_s = stop_timeout_s(role)
    try:
        with trio.move_on_after(timeout_s):
            try:
                await call(path, "stop", timeout_s, **arguments)
            except UnreachableError:
                pass  # it ended before it could answer
            await process.ended()
            return
        for number in (signal.SIGTERM, signal.SIGKILL) if role != "capture" else ():
            process.send(number)
            with trio.move_on_after(limits.CHILD_KILL_TIMEOUT_S):
                await process.ended()
                return
        log = home.child_log(role, identifier)
        raise ChildError(f"{role} {identifier} (pid {process.pid}) does not stop; see {log}")
    finally:
        process.close()


# --- children ---


@dataclass(frozen=True)
class Plan:
    """What a child is started with. `prepare` runs before every start.

    `give_up` is told why when none could be started for `limits.CAPTURE_GIVE_UP_S`; starting is tried on.
    `may_end` is asked when it ended by itself: a receiver does so when its source disconnected.
    """

    role: Role
    id: str
    arguments: Callable[[], msgspec.Struct]  # asked before every start
    prepare: Callable[[], Awaitable[None]] | None = None
    greet: "Callable[[Child], Awaitable[None]] | None" = None  # before anybody else may use it
    give_up: Callable[[str], Awaitable[None]] | None = None
    may_end: Callable[[], bool] = lambda: False


class Child:
    """One child that should run: `run` keeps it running until `stop`."""

    def __init__(self, plan: Plan, home: Home, ring: EventRing, launcher: Launcher) -> None:
        self.plan = plan
        self.log = home.child_log(plan.role, plan.id)
        self.problem = ""  # why it does not run now
        self._socket = home.socket(plan.role, plan.id)
        self._arguments_file = home.arguments(plan.role, plan.id)
        self._ring = ring
        self._launcher = launcher
        self._process: Process | None = None  # only while it answers
        self._running = trio.Event()  # replaced when it ends
        self._ended = trio.Event()  # likewise
        self._idle = trio.CancelScope()  # starting, or pausing before the next start
        self._stopping = False
        self._reloading = False
        self._done = trio.Event()

    def __str__(self) -> str:
        return f"{self.plan.role} {self.plan.id}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None else None

    async def call(self, name: str, timeout_s: float = limits.CONTROL_TIMEOUT_S, /, **arguments: Any) -> Any:
        """A control call. Raises ChildError if it does not run or answer, ReplicatorError if it refuses."""
        return (await self.call_with_descriptors(name, timeout_s, [], **arguments))[0]

    async def call_with_descriptors(
        self, name: str, timeout_s: float, descriptors: Sequence[int], /, **arguments: Any
    ) -> tuple[Any, list[int]]:
        """A control call that passes and returns descriptors; those returned are the caller's to close."""
        if self._process is None:
            raise self._not_running()
        try:
            return await call(self._socket, name, timeout_s, descriptors, **arguments)
        except UnreachableError as error:
            raise ChildError(f"{self} {error}; see {self.log}") from error

    async def wait_running(self, timeout_s: float = limits.CHILD_START_TIMEOUT_S) -> None:
        """Wait until it answers. Raises ChildError after `timeout_s`, or if it was stopped."""
        with trio.move_on_after(timeout_s):
            while self._process is None and not self._done.is_set():
                await self._running.wait()
        if self._process is None:
            raise self._not_running()

    async def run(
        self, *, patient: bool, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Adopt or start it and keep it running until `stop`. Started when it answers; ChildError if it does
        not.

        `patient`: started at once, and what fails is tried again. Cancellation leaves the process as it is.
        """
        if patient:
            task_status.started()
        first = not patient
        delays = _back_off(self.plan.role)
        in_vain_since_s: float | None = None
        try:
            while not self._stopping:
                began_s = trio.current_time()
                try:
                    process = await self._adopt_or_start()
                except (ReplicatorError, OSError) as error:
                    how = _one_line(error)
                    if first:
                        self.problem = how
                        self._discard_arguments()
                        code = error.exit_code if isinstance(error, ReplicatorError) else ExitCode.FAILED
                        raise ChildError(f"{self.plan.role} cannot be started: {how}", code) from error
                    if in_vain_since_s is None:
                        in_vain_since_s = began_s
                    if trio.current_time() - in_vain_since_s >= limits.CAPTURE_GIVE_UP_S:
                        await self._give_up(how)
                else:
                    if process is None:
                        break  # stopped meanwhile
                    answered_s = trio.current_time()
                    how = await self._watch(process, task_status.started if first else _nobody)
                    first, in_vain_since_s = False, None
                    if self._stopping or self.plan.may_end():
                        break
                    if self._reloading:
                        self._reloading = False
                        continue
                    if trio.current_time() - answered_s >= _stable_s(self.plan.role):
                        delays = _back_off(self.plan.role)
                await self._pause(how, next(delays))
            self._discard_arguments()
        finally:
            self._stopping = True
            self._done.set()
            self._running.set()  # whoever waits for it looks again

    def _discard_arguments(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._arguments_file)

    async def stop(self, timeout_s: float | None = None, /, **arguments: Any) -> None:
        """Ask it to stop, wait (by default `stop_timeout_s`), and insist: SIGTERM, then SIGKILL.

        Raises what it answers if it refuses; it then goes on.
        """
        self._stopping = True
        while not self._done.is_set():
            self._idle.cancel()
            if self._process is None:
                await self._running.wait()  # also set when it is done
            else:
                role = self.plan.role
                await self._end(self._process, timeout_s or stop_timeout_s(role), arguments)

    async def reload(self, how: str, /, **arguments: Any) -> None:
        """Have it end by this control call, and start its successor at once.

        Raises what it answers if it refuses, ChildError if no successor answers; one is tried again then.
        """
        former = self._process
        if former is None:
            raise self._not_running()
        ended = self._ended
        self._reloading = True
        try:
            await self.call(how, limits.RELOAD_TIMEOUT_S, **arguments)
        except ReplicatorError:
            if self._process is former and not former.has_ended():
                self._reloading = False
                raise
        if self._process is former:
            await ended.wait()
        await self.wait_running()

    async def _end(self, process: Process, timeout_s: float, arguments: dict[str, Any]) -> None:
        with trio.move_on_after(timeout_s):
            try:
                await self.call("stop", timeout_s, **arguments)
            except ChildError:
                pass  # it does not answer, or ended before it could
            except ReplicatorError:
                if self._process is process:
                    self._stopping = False
                    raise
            await self._done.wait()
        if self.plan.role == "capture" and not self._done.is_set():
            self._stopping = False  # ended by force it would take the files from under its applications
            raise ChildError(f"{self} (pid {process.pid}) does not stop; see {self.log}")
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self._done.is_set():
                process.send(number)
                with trio.move_on_after(limits.CHILD_KILL_TIMEOUT_S):
                    await self._done.wait()

    def _not_running(self) -> ChildError:
        return ChildError(f"{self} does not run" + (f": {self.problem}" if self.problem else ""))

    async def _adopt_or_start(self) -> Process | None:
        """A process that answers; None if it was stopped before it did."""
        process = await self._adopt()
        if process is not None:
            return process
        self._idle = trio.CancelScope()
        with self._idle:
            if not self._stopping:
                return await self._start()
        return None

    async def _watch(self, process: Process, started: Callable[[], None]) -> str:
        """Until the process has ended. Returns how. `started` is called when it may be used."""
        self.problem = ""
        self._process = process
        try:
            if self.plan.greet is not None:
                await self._greet(process)
            self._running.set()
            started()
            how = await process.ended()
        finally:
            self._process = None
            self._running = trio.Event()
            self._ended.set()
            self._ended = trio.Event()
            process.close()
        self.problem = how
        return how

    async def _greet(self, process: Process) -> None:
        assert self.plan.greet is not None
        try:
            await _unless_ended(process, partial(self.plan.greet, self))
        except ReplicatorError as error:
            role, identifier = self.plan.role, self.plan.id
            self._ring.add(
                events.CHILD_SILENT, role=role, id=identifier, reason=_one_line(error), log=self.log
            )

    async def _give_up(self, how: str) -> None:
        if self.plan.give_up is not None:
            await self.plan.give_up(how)

    async def _pause(self, how: str, delay_s: float) -> None:
        role, identifier = self.plan.role, self.plan.id
        self.problem = how
        self._ring.add(events.CHILD_ENDED, role=role, id=identifier, how=how, delay_s=delay_s, log=self.log)
        self._idle = trio.CancelScope()
        with self._idle:
            if not self._stopping:
                await trio.sleep(delay_s)

    async def _adopt(self) -> Process | None:
        """A process of an earlier agent that still serves; None if there is none."""
        process = serving_process(self._socket)
        if process is None:
            return None
        role, identifier = self.plan.role, self.plan.id
        try:
            await _unless_ended(process, partial(call, self._socket, "status"))
        except ReplicatorError as error:
            if not process.has_ended():
                self._ring.add(
                    events.CHILD_SILENT, role=role, id=identifier, reason=_one_line(error), log=self.log
                )
                if role == "capture":
                    # Ending it would make its mount fail for applications: that is for a person to decide.
                    return process
                process.send(signal.SIGKILL)  # what it had is in journals and spools
                await process.ended()
            process.close()
            return None
        if process.has_ended():
            process.close()
            return None
        self._ring.add(events.CHILD_ADOPTED, role=role, id=identifier, pid=process.pid)
        return process

    async def _start(self) -> Process:
        """Start it and wait until it answers. Raises ChildError with the reason it left in its log."""
        if self.plan.prepare is not None:
            await self.plan.prepare()
        write_arguments(self._arguments_file, self.plan.arguments())
        log_bytes = _size(self.log)
        process, ready = await self._launcher.start(Launch(self.plan.role, self._arguments_file, self.log))
        try:
            how = await self._wait_for_answer(process, ready)
        except trio.Cancelled:
            if self._stopping:
                with trio.CancelScope(shield=True):
                    await process.put_down()
            else:
                process.close()  # the agent ends: its successor finds it
            raise
        finally:
            os.close(ready)
        if how:
            await process.put_down()
            why = _last_line(self.log, log_bytes) or f"{how}; see {self.log}"
            raise ChildError(why, _REFUSALS.get(how, ExitCode.FAILED))
        self._ring.add(events.CHILD_STARTED, role=self.plan.role, id=self.plan.id, pid=process.pid)
        return process

    async def _wait_for_answer(self, process: Process, ready: int) -> str:
        """Empty once the control socket answers, otherwise what happened instead."""
        with trio.move_on_after(limits.CHILD_START_TIMEOUT_S):
            await trio.lowlevel.wait_readable(ready)
            if not process.has_ended():
                try:
                    await _unless_ended(process, partial(call, self._socket, "status"))
                except ReplicatorError:
                    pass  # it is going down
                else:
                    if not process.has_ended():
                        return ""
            return await process.ended()
        return f"no answer within {limits.CHILD_START_TIMEOUT_S:.0f} s"


async def _unless_ended(process: Process, talk: Callable[[], Awaitable[object]]) -> None:
    """Talk with a process, or until it has ended. Raises what `talk` does.

    Who holds a killed capture's descriptors has its sockets, too: nothing says that nobody will answer.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await trio.lowlevel.wait_readable(process.descriptor)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            await talk()
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def write_arguments(path: str, arguments: msgspec.Struct) -> None:
    """Write the arguments file of a child, readable for its owner only."""
    data = msgspec.json.format(msgspec.json.encode(arguments), indent=2)
    descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
    os.replace(f"{path}.new", path)


class Supervisor:
    """All children of one agent. Cancelling its nursery leaves the processes as they are."""

    def __init__(self, home: Home, ring: EventRing, launcher: Launcher, nursery: trio.Nursery) -> None:
        self._home = home
        self._ring = ring
        self._launcher = launcher
        self._nursery = nursery
        self._children: dict[tuple[Role, str], Child] = {}

    def get(self, role: Role, identifier: str) -> Child | None:
        return self._children.get((role, identifier))

    def all(self, role: Role) -> list[Child]:
        return [child for (of_role, _), child in self._children.items() if of_role == role]

    def everyone(self) -> list[Child]:
        return list(self._children.values())

    async def start(self, plan: Plan, *, patient: bool = False) -> Child:
        """Adopt or start a child and keep it running. Returns when it answers, `patient` or not at all at
        once.

        Raises ChildError if it does not start and is not `patient`.
        """
        known = self._children.get((plan.role, plan.id))
        if known is not None:
            if not patient:
                await known.wait_running()
            return known
        child = Child(plan, self._home, self._ring, self._launcher)
        self._children[plan.role, plan.id] = child
        await self._nursery.start(self._keep, child, patient)
        return child

    async def stop(self, role: Role, identifier: str, **arguments: Any) -> None:
        """Stop a child for good; nothing happens if there is none. Raises what it answers if it refuses."""
        child = self._children.get((role, identifier))
        if child is not None:
            await child.stop(**arguments)
            self._ring.add(events.CHILD_STOPPED, role=role, id=identifier)

    async def _keep(
        self, child: Child, patient: bool, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await child.run(patient=patient, task_status=task_status)
        finally:
            del self._children[child.plan.role, child.plan.id]


def _nobody() -> None:
    pass


def _back_off(role: Role) -> Iterator[float]:
    delay_s, longest_s = limits.RESTART_FIRST_S, limits.RESTART_MAX_S
    if role == "capture":
        delay_s, longest_s = limits.CAPTURE_RESTART_FIRST_S, limits.CAPTURE_RESTART_MAX_S
    while True:
        yield delay_s
        delay_s = min(delay_s * 2, longest_s)


def _stable_s(role: Role) -> float:
    return limits.CAPTURE_STABLE_S if role == "capture" else limits.CHILD_STABLE_S


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _last_line(path: str, offset: int) -> str:
    """The last line a child left in its log after `offset`; "" if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(offset, os.path.getsize(path) - limits.LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return _LOG_PREFIX.sub("", last)


def _one_line(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
    return " ".join(text.split())
