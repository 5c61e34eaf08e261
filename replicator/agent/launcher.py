"""Starts children: out of a process that was started ahead if there is one, otherwise anew.

A quarter of a second of processor time passes until an interpreter has imported what a sender or a receiver
needs, and a first mirror waits for two of them in a row. So an agent keeps one *spare*: a process that has
imported all of it and waits for an order (`spare.py`). It is an optimisation and never a condition: whoever
finds none that is fit starts a process as if there were no such thing.
"""

import os
import socket
import sys
from dataclasses import dataclass, field

import msgspec
import trio

import replicator
from replicator import limits
from replicator.agent.process import Process, child_environment, spawn
from replicator.errors import ReplicatorError
from replicator.paths import Home, Role

READY = b"ready"
"""What a spare says once it has imported everything, and all it ever says."""

# A capture needs other modules, FUSE among them, and is started far more rarely.
OF_SPARES: tuple[Role, ...] = ("sender", "receiver")


class Launch(msgspec.Struct, frozen=True):
    """What is to be started: an order to a spare, as JSON in one message."""

    role: Role
    arguments_file: str
    log: str

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", f"replicator.{self.role}.process", "--arguments", self.arguments_file]


@dataclass(eq=False)
class _Spare:
    process: Process
    channel: socket.socket  # SOCK_SEQPACKET; the spare ends with it, and closes its end when it answers
    code: object
    is_ready: bool = False  # has imported everything
    is_taken: bool = False  # process and channel are somebody else's now
    is_promised: bool = False  # somebody waits until it is ready
    settled: trio.Event = field(default_factory=trio.Event)  # it is ready, or gone


class Launcher:
    """Starts the processes of one agent. `keep_spare` runs as long as the agent."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._spare: _Spare | None = None
        self._wanted = trio.Event()
        self._wanted.set()

    async def start(self, launch: Launch) -> tuple[Process, int]:
        """Start a process in a session of its own, its output appended to a log. Raises OSError.

        Also returns a descriptor, readable once the process answers on its control socket or has ended.
        """
        if launch.role in OF_SPARES:
            await self._wait_for_spare()
            self._wanted.set()
            if (taken := self._take(launch)) is not None:
                return taken
        ready, its_ready = os.pipe2(os.O_CLOEXEC)
        try:
            return spawn(launch.command, launch.log, its_ready), ready
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(its_ready)

    async def _wait_for_spare(self) -> None:
        """One that still imports is ready sooner than a process that begins now."""
        spare = self._spare
        if spare is not None and not spare.is_promised:
            spare.is_promised = True
            with trio.move_on_after(limits.SPARE_PATIENCE_S):
                await spare.settled.wait()

    def _take(self, launch: Launch) -> tuple[Process, int] | None:
        spare = self._spare
        if spare is None or not spare.is_ready:
            return None
        self._spare = None
        spare.is_taken = spare.code == code_version() and _order(spare.channel, launch)
        trio.lowlevel.notify_closing(spare.channel)  # `_keep` waits for it no more
        return (spare.process, spare.channel.detach()) if spare.is_taken else None

    async def keep_spare(self, awaited: Role | None = None) -> None:
        """Have a spare ready, until cancelled. `awaited`: the first one is needed at once, as that.

        One that is gone is replaced after the next start of a child, so that one that cannot live is not
        started again and again.
        """
        delay_s = limits.SPARE_FIRST_S if awaited is None else 0.0
        while True:
            await self._wanted.wait()
            await trio.sleep(delay_s)
            delay_s = limits.SPARE_NEXT_S
            self._wanted = trio.Event()
            try:
                spare = self._start_spare(awaited)
            except OSError:
                continue  # a child will meet the same, and say so
            finally:
                awaited = None
            await self._keep(spare)

    def _start_spare(self, role: Role | None) -> _Spare:
        code = code_version()  # before anything is imported
        command = [sys.executable, "-m", "replicator.agent.spare", "--home", self._home.path]
        command += [role] if role is not None else []
        channel, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its_end:
            try:
                return _Spare(spawn(command, self._home.spare_log, its_end.fileno()), channel, code)
            except BaseException:
                channel.close()
                raise

    async def _keep(self, spare: _Spare) -> None:
        """Until it is taken, refused or gone."""
        self._spare = spare
        try:
            await trio.lowlevel.wait_readable(spare.channel)
            spare.is_ready = bool(spare.channel.recv(len(READY)))
            spare.settled.set()
            if spare.is_ready:
                await trio.lowlevel.wait_readable(spare.channel)  # it says nothing more: this is its end
        except (trio.ClosedResourceError, OSError):
            pass
        finally:
            spare.settled.set()
            if not spare.is_taken:
                self._spare = None
                spare.channel.close()
                with trio.CancelScope(shield=True):
                    await spare.process.put_down()


async def answer(role: Role, option: str) -> str:
    """What the program of a child, as it is on disk now, prints for an option. Raises ReplicatorError."""
    command = [sys.executable, "-m", f"replicator.{role}.process", option]
    with trio.move_on_after(limits.CHILD_START_TIMEOUT_S):
        done = await trio.run_process(
            command,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=child_environment(),
            start_new_session=True,
        )
        if done.returncode == 0:
            return done.stdout.decode(errors="replace").strip()
        lines = done.stderr.decode(errors="replace").split("\n")
        why = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {done.returncode}")
        raise ReplicatorError(f"the program of a {role} does not start: {why}")
    raise ReplicatorError(
        f"the program of a {role} did not start within {limits.CHILD_START_TIMEOUT_S:.0f} s"
    )


def _order(channel: socket.socket, launch: Launch) -> bool:
    """Whether the spare at the other end gets it: it may have been killed."""
    try:
        channel.send(msgspec.json.encode(launch), socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True


def code_version() -> object:
    """Differs once code was changed on disk that a process started now would run.

    Of installed packages only that one came or went: their directory changes with each of them.
    """
    package = os.path.dirname(os.path.abspath(replicator.__file__))
    installed = os.path.dirname(os.path.dirname(os.path.abspath(trio.__file__)))
    files = []
    try:
        for directory, _, names in os.walk(package):
            for path in (os.path.join(directory, name) for name in names if name.endswith(".py")):
                status = os.stat(path)
                files.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
        return os.stat(installed).st_mtime_ns, sorted(files)
    except OSError:
        return object()  # it is being changed just now: equal to nothing
