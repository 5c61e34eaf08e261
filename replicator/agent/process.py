"""Processes that need not be ours: started, known by id and pidfd, found by the socket they serve."""

import os
import select
import signal
import socket
import sys
from dataclasses import dataclass

import msgspec
import trio

import replicator
from replicator import limits
from replicator.child.control import READY_VARIABLE
from replicator.paths import Role
from replicator.unix_sockets import peer_credentials, socket_address

NOTIFY_VARIABLE = "NOTIFY_SOCKET"  # of systemd, which listens to the agent only


class Launch(msgspec.Struct, frozen=True):
    """What is to be started."""

    role: Role
    arguments_file: str
    log: str

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", program(self.role), "--arguments", self.arguments_file]


def program(role: Role) -> str:
    """The main program of a child: a module whose `run` is called with the name of its arguments file."""
    return f"replicator.{role}.process"


@dataclass(eq=False)
class Process:
    """A process by id and pidfd: the id cannot come to mean another process while the pidfd is open."""

    pid: int
    descriptor: int

    @classmethod
    def open(cls, pid: int) -> "Process | None":
        """The process `pid`, None if there is none."""
        try:
            return cls(pid, os.pidfd_open(pid))
        except ProcessLookupError:
            return None

    def has_ended(self) -> bool:
        return self.wait(0)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within that time. Blocks."""
        return bool(select.select([self.descriptor], [], [], timeout_s)[0])

    async def ended(self) -> str:
        """Wait for the end. Returns how it ended, in words; "ended" if that is not ours to know."""
        await trio.lowlevel.wait_readable(self.descriptor)
        return _reap(self.descriptor)

    def send(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self.descriptor, number)
        except ProcessLookupError:
            pass  # it ended by itself

    async def put_down(self) -> None:
        """End it by force, and forget it."""
        self.send(signal.SIGKILL)
        await self.ended()
        self.close()

    def close(self) -> None:
        os.close(self.descriptor)


def _reap(descriptor: int) -> str:
    """How an ended process ended, in words."""
    try:
        result = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        result = None  # another agent started it: how it ended is not ours to know
    if result is None:
        return "ended"
    if result.si_code == os.CLD_EXITED:
        return f"exit code {result.si_status}"
    return f"killed by {signal.Signals(result.si_status).name}"


def spawn(launch: Launch, ready: int) -> Process:
    """Start a child in a session of its own, with nothing of ours open but its log and `ready`, which it
    closes once it answers on its control socket. Raises OSError.
    """
    environment = child_environment(3)
    _keep_descriptors()
    command = launch.command
    pid = os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, launch.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, ready, 3),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
    )
    # Not reaped yet, so the id is still its own.
    return Process(pid, os.pidfd_open(pid))


def child_environment(ready: int | None = None) -> dict[str, str]:
    """`ready`: the number of the descriptor that a child closes once it answers."""
    environment = dict(os.environ)
    # The very code that runs here, wherever the agent was started from.
    package = os.path.dirname(os.path.dirname(os.path.abspath(replicator.__file__)))
    environment["PYTHONPATH"] = os.pathsep.join(
        [package, *(p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p and p != package)]
    )
    environment.pop(NOTIFY_VARIABLE, None)
    if ready is not None:
        environment[READY_VARIABLE] = str(ready)
    return environment


def _keep_descriptors() -> None:
    """Let no child inherit anything: neither what a library has made inheritable nor what our own parent left
    open.

    A child outlives us. A listening socket of ours in its hands would accept clients that nobody ever
    answers.
    """
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                pass  # the listing's own descriptor


def serving_process(path: str) -> Process | None:
    """The process that listens on the Unix socket `path`; None if nobody does (the file may be there)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(limits.CONTROL_TIMEOUT_S)  # only passes while its backlog is full
        try:
            with socket_address(path) as address:
                probe.connect(address)
            pid = peer_credentials(probe).pid
        except OSError:
            return None
    return Process.open(pid) if pid > 0 else None
