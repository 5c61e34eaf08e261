"""A command that cannot hurt whoever waits for it: bounded in time and in what is kept of its output.

It runs in a session of its own. Blocking, and of the standard library only, because a small process does this
(`script_keeper.py`), which an agent in a hurry has to start.
"""

import ctypes
import errno
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from replicator import limits

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_READ_BYTES = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


class How(StrEnum):
    """How a command ended."""

    EXITED = "exited"
    KILLED = "killed"  # by a signal that is none of ours
    TIMED_OUT = "timed out"
    STOPPED = "stopped"  # somebody asked for it
    NOT_STARTED = "not started"


class Ended(NamedTuple):
    """`code`: exit code, or number of a signal. `reason`: why it was not started, or could not be ended."""

    how: How
    code: int = 0
    duration_s: float = 0.0
    output: str = ""
    output_bytes: int = 0  # printed in all
    reason: str = ""


class Output:
    """The first and the last part of what was printed. `total`: bytes of all of it."""

    def __init__(self, bytes_max: int) -> None:
        self.total = 0
        self._bytes_max = bytes_max
        self._first = bytearray()
        self._last = bytearray()

    def add(self, data: bytes) -> None:
        self.total += len(data)
        half = self._bytes_max // 2
        room = half - len(self._first)
        self._first += data[:room] if room > 0 else b""
        self._last += data[max(room, 0) :]
        if len(self._last) > 2 * half:
            del self._last[:-half]

    def text(self) -> str:
        half = self._bytes_max // 2
        left_out = max(len(self._last) - half, 0) + self.total - len(self._first) - len(self._last)
        middle = f"\n[… {left_out} bytes left out …]\n" if left_out else ""
        last = self._last[-half:] if half else b""
        if not left_out:
            return printable(bytes(self._first + last))
        return printable(bytes(self._first)) + middle + printable(bytes(last))


def printable(data: bytes) -> str:
    """Output as text that does nothing to a terminal."""
    text = data.decode(errors="replace")
    return "".join(c if c in "\n\t" or c.isprintable() else "" if c == "\r" else "\ufffd" for c in text)


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    timeout_s: float,
    output_bytes: int = limits.SCRIPT_OUTPUT_BYTES,
    term_s: float = limits.SCRIPT_TERM_S,
    stop: int = -1,
) -> tuple[Ended, int]:
    """Run it to its end, or to the end of its time: its process group gets SIGTERM, and SIGKILL `term_s`
    later. `stop`: a descriptor; as soon as it can be read the command is ended likewise.

    Background processes that it leaves are left alone. They may hold its output: that is the second value, a
    descriptor to be read until its end, or -1. What they print is not waited for.
    """
    started = time.monotonic()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            cwd="/",
            start_new_session=True,
            preexec_fn=_begin,  # there is one thread
        )
    except OSError as error:
        os.close(reader)
        return Ended(How.NOT_STARTED, reason=why_not_started(command[0], error)), -1
    finally:
        os.close(writer)
    output = Output(output_bytes)
    run = _Run(process, reader, output, stop)
    run.wait(started + timeout_s, term_s)
    return run.ended(time.monotonic() - started), run.reader


class _Run:
    def __init__(self, process: "subprocess.Popen[bytes]", reader: int, output: Output, stop: int) -> None:
        self.reader = reader
        self._process = process
        self._output = output
        self._stop = stop
        self._pidfd = os.pidfd_open(process.pid)
        self._how: How | None = None
        self._reason = ""

    def wait(self, deadline_s: float, term_s: float) -> None:
        try:
            self._how = self._watch(deadline_s, self._stop)
            if self._how is not None:
                self._signal(signal.SIGTERM)
                self._watch(time.monotonic() + term_s)
                self._signal(signal.SIGKILL)  # also what it has left behind in its group
                self._watch(time.monotonic() + term_s)
                if self._process.poll() is None:
                    self._reason = "it cannot be killed: it waits in the kernel"
            # What it printed last may still be in the pipe; what its children print is not waited for.
            grace_s = time.monotonic() + limits.SCRIPT_OUTPUT_GRACE_S
            while self.reader >= 0 and select.select([self.reader], [], [], _left_s(grace_s))[0]:
                self._read()
        finally:
            os.close(self._pidfd)

    def _watch(self, deadline_s: float, stop: int = -1) -> How | None:
        """Until its end: None. Otherwise why its end has to be brought about."""
        while self._process.poll() is None:
            sources = [source for source in (self.reader, self._pidfd, stop) if source >= 0]
            ready = select.select(sources, [], [], _left_s(deadline_s))[0]
            if stop in ready:
                return How.STOPPED
            if self.reader in ready:
                self._read()
            if time.monotonic() >= deadline_s and self._process.poll() is None:
                return How.TIMED_OUT
        return None

    def _read(self) -> None:
        data = os.read(self.reader, _READ_BYTES)
        if data:
            self._output.add(data)
        else:
            os.close(self.reader)
            self.reader = -1

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)  # the group's number is taken as long as one of it lives
        except ProcessLookupError:
            pass

    def ended(self, duration_s: float) -> Ended:
        code = self._process.poll() or 0
        how = self._how or (How.KILLED if code < 0 else How.EXITED)
        return Ended(
            how, abs(code), round(duration_s, 3), self._output.text(), self._output.total, self._reason
        )


def _left_s(deadline_s: float) -> float:
    return max(deadline_s - time.monotonic(), 0.0)


def _begin() -> None:
    """In the new process. Whoever starts it again after its keeper was killed must not have two of them, see
    prctl(2). And the kernel may end the services that it starts, if not their agent, for want of memory.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is signal.SIG_IGN:  # as of an agent that nohup(1) has started
            signal.signal(number, signal.SIG_DFL)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("0")
    except OSError:
        pass  # it stays as it is


def why_not_started(path: str, error: OSError) -> str:
    """In words; the kernel says ENOENT of a script whose interpreter is missing."""
    if error.errno == errno.ENOENT and os.path.exists(path):
        return f"{path}: what its first line names (#!) is not there"
    if error.errno == errno.ENOEXEC:
        return f"{path}: neither a program nor a script: its first line does not begin with #!"
    if error.errno == errno.EACCES and os.path.isfile(path) and not os.access(path, os.X_OK):
        return f"{path} is not executable: chmod +x {path}"
    return f"{path}: {os.strerror(error.errno or 0)}"
