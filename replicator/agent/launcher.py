"""Starts children: forked by the agent's fork server if there is one that is fit, otherwise anew.

The server (`fork_server.py`) is an optimisation and never a condition: whoever finds none, or one of code
that is no longer what is on disk, starts a process as if there were no such thing. It is made once, when the
agent starts: an agent of old code is to be restarted anyway, and one whose server was killed only takes
longer to start children.
"""

import os
import signal
import sys

import trio

import replicator
from replicator import limits
from replicator.agent.fork_server import ForkServer
from replicator.agent.process import Launch, Process, child_environment, program, spawn
from replicator.errors import ReplicatorError
from replicator.paths import Role


class Launcher:
    """Starts the processes of one agent. `run` runs as long as the agent."""

    def __init__(self, server: ForkServer | None = None, code: object = None) -> None:
        """`code`: the `code_version` of what the server has imported."""
        self._server = server
        self._code = code
        self._lock = trio.Lock()

    async def run(self) -> None:
        """Until the server has ended: nobody else waits for it."""
        server = self._server
        if server is not None:
            await server.process.ended()
            async with self._lock:  # nobody talks to it
                self._server = None
                server.close()

    async def start(self, launch: Launch) -> tuple[Process, int]:
        """Start a process in a session of its own, its output appended to a log. Raises OSError.

        Also returns a descriptor, readable once the process answers on its control socket or has ended.
        """
        ready, its_ready = os.pipe2(os.O_CLOEXEC)
        try:
            return await self._fork(launch, its_ready) or spawn(launch, its_ready), ready
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(its_ready)

    async def _fork(self, launch: Launch, ready: int) -> Process | None:
        async with self._lock:
            if self._server is None:
                return None
            if code_version() != self._code:
                self._server.process.send(signal.SIGKILL)
                return None
            return await self._server.fork(launch, ready)


async def answer(role: Role, option: str) -> str:
    """What the program of a child, as it is on disk now, prints for an option. Raises ReplicatorError."""
    command = [sys.executable, "-m", program(role), option]
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
