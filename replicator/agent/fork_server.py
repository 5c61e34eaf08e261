"""The fork server of an agent: a process that has imported what children need, and forks them.

A fifth of a second of processor time passes until an interpreter has imported what a capture, a sender or a
receiver needs; a fork takes some milliseconds. The server is itself a fork of the agent, made before that has
threads or an event loop; it never has any either, so its forks are whole. It imports what is expected at
once, the rest when it has nothing to do, and ends with its agent.

A child differs in nothing from one that was started anew: it is a child of the agent (CLONE_PARENT of
clone(2)), in a session of its own, has nothing open but its log and descriptor 3, and `ps` shows the command
line that would have started it.
"""

import ctypes
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import NoReturn

import msgspec
import trio

from replicator import limits
from replicator.agent.process import NOTIFY_VARIABLE, Launch, Process, child_environment, program
from replicator.child import title
from replicator.fs import calls
from replicator.paths import ROLES, Home, Role

NO_PROCESS = -1
_KEPT = 3  # the one descriptor of a server, or a child: its channel; what it closes once it answers


@dataclass(eq=False)
class ForkServer:
    """The agent's end. One order at a time."""

    process: Process
    channel: socket.socket  # SOCK_SEQPACKET; the server ends with it

    async def fork(self, launch: Launch, ready: int) -> Process | None:
        """A child that closes its copy of `ready` once it answers; None: it did not become one.

        Not to be cancelled: nobody would know of the child. Bounded by `limits.FORK_TIMEOUT_S`; a server that
        takes longer is of no more use, and ended.
        """
        with trio.CancelScope(shield=True):
            try:
                socket.send_fds(self.channel, [msgspec.json.encode(launch)], [ready], socket.MSG_DONTWAIT)
            except OSError:
                return None
            with trio.move_on_after(limits.FORK_TIMEOUT_S) as patience:
                await trio.lowlevel.wait_readable(self.channel)
            if patience.cancelled_caught:
                self.process.send(signal.SIGKILL)
                await trio.lowlevel.wait_readable(self.channel)
        try:
            pid = int(self.channel.recv(32) or NO_PROCESS)
        except OSError:
            return None
        return Process.open(pid) if pid != NO_PROCESS else None

    def close(self) -> None:
        self.channel.close()
        self.process.close()


def start(home: Home, expected: Sequence[Role]) -> ForkServer | None:
    """Fork the server off the agent of `home`. None: the kernel can not, now.

    The caller has no threads, and no event loop runs in it. `expected`: what will be started at once.
    """
    channel, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its_end:
        try:
            pid = os.fork()
        except OSError:
            channel.close()
            return None
        if pid == 0:
            end_with(lambda: _Server(its_end.fileno(), home).run(expected))
    return ForkServer(Process(pid, os.pidfd_open(pid)), channel)


# --- the server's end ---


class _Server:
    """Replies to each order with the id of a process."""

    def __init__(self, channel: int, home: Home) -> None:
        _detach(home.fork_server_log, channel)
        title.show([sys.executable, "-m", __name__, "--home", home.path])
        self._channel = socket.socket(fileno=_KEPT)

    def run(self, expected: Sequence[Role]) -> None:
        """Until the agent has ended."""
        gc.disable()  # what is imported stays
        others = [role for role in ROLES if role not in expected]
        for roles, pause_s in ((expected, 0.0), (others, limits.FORK_SERVER_IDLE_S)):
            for role in roles:
                while select.select([self._channel], [], [], pause_s)[0]:
                    if not self._answer():
                        return
                _import(role)
        while self._answer():
            pass

    def _answer(self) -> bool:
        """Fork one child. False: no order, but the end of the agent."""
        try:
            order, descriptors, _, _ = socket.recv_fds(self._channel, limits.FORK_ORDER_BYTES, 1)
        except OSError:
            return False
        if not order:
            return False
        launch = msgspec.json.decode(order, type=Launch)
        (ready,) = descriptors
        _import(launch.role)
        gc.freeze()  # a child does not look through, and so copy, what it shares with all others
        try:
            pid = _fork_sibling()
        except OSError:
            pid = NO_PROCESS
        if pid == 0:
            end_with(partial(_become, launch, ready))
        os.close(ready)
        try:
            self._channel.send(str(pid).encode())
        except OSError:
            return False
        return True


def _import(role: Role) -> None:
    with suppress(Exception):  # a child meets the same, and says so in its log
        module = import_module(program(role))
        module.preload()


def _fork_sibling() -> int:
    """os.fork of a child that is not ours but our parent's. Raises OSError."""
    python = ctypes.pythonapi  # keeps the interpreter lock
    python.PyOS_BeforeFork()
    try:
        pid = calls.clone(calls.CLONE_PARENT)
    except OSError:
        python.PyOS_AfterFork_Parent()
        raise
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    return pid


def _become(launch: Launch, ready: int) -> None:
    """In the child: be what was ordered, as if started as that."""
    gc.enable()
    _detach(launch.log, ready)
    title.show(launch.command)
    os.environ.update(child_environment(_KEPT))
    os.environ.pop(NOTIFY_VARIABLE, None)
    sys.exit(import_module(program(launch.role)).run(launch.arguments_file))


def _detach(log: str, kept: int) -> None:
    """As after a start of the interpreter: a session and signals of its own, nothing open but a log and
    `kept`, which becomes `_KEPT`.

    A listening socket or a lock of the agent must not live on here.
    """
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags | os.O_CLOEXEC, 0o600)
        os.dup2(opened, number)
    os.dup2(1, 2)
    # What the agent has not written yet is the agent's to write.
    sys.stdout, sys.stderr = (
        open(number, "w", buffering=1, errors="backslashreplace", closefd=False) for number in (1, 2)
    )
    os.dup2(kept, _KEPT, inheritable=False)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > _KEPT:
            with suppress(OSError):  # the listing's own
                os.close(int(name))


def end_with(run: Callable[[], None]) -> NoReturn:
    """Run a program in a process that was forked, and end it: nothing of who forked it is run or undone."""
    code: object = 1
    try:
        run()
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
