"""Control sockets of children: small requests and answers as lines of JSON, with file descriptors beside
them.

A child listens on `home/run/<role>-<id>.sock`, readable by root alone, and outlives its agent; any later
agent connects again. A request is `{"call": name, "arguments": {…}, "descriptors": n}`, the answer `{"ok":
result, "descriptors": n}` or `{"error": text, "exit_code": m}`; the n descriptors travel by SCM_RIGHTS with
the first byte of the line (unix(7)).
"""

import array
import errno
import fcntl
import os
import resource
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import msgspec
import trio

from replicator import limits
from replicator.bounds import MALFORMED
from replicator.errors import ExitCode, NotPermittedError, ReplicatorError, UnreachableError, UsageError

Handler = Callable[..., Awaitable[object]]

READY_VARIABLE = "REPLICATOR_READY_FD"
"""Environment of a child: number of a descriptor that it closes once its control socket answers."""

# That nobody can be reached is said of the child itself, never of what it wanted to reach.
_REFUSALS: dict[int, type[ReplicatorError]] = {
    ExitCode.USAGE: UsageError,
    ExitCode.NOT_PERMITTED: NotPermittedError,
}


class WithDescriptors(NamedTuple):
    """An answer with descriptors.

    They are closed here once they are sent.
    """

    value: object
    descriptors: list[int]


class _Request(msgspec.Struct):
    call: str
    arguments: dict[str, Any] = {}
    descriptors: int = 0


class _Answer(msgspec.Struct, omit_defaults=True):
    ok: Any = None
    error: str | None = None
    exit_code: int = ExitCode.FAILED  # that the error stands for
    descriptors: int = 0


class _Line:
    """Lines and descriptors over one Unix socket.

    One reader and one writer at a time.
    """

    def __init__(self, connection: trio.socket.SocketType) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self._descriptors: list[int] = []

    def close(self) -> None:
        self._socket.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    async def send(self, line: bytes, descriptors: Sequence[int] = ()) -> None:
        data = memoryview(line + b"\n")
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        sent = await self._socket.sendmsg([data], ancillary)
        while sent < len(data):
            sent += await self._socket.send(data[sent:])

    async def receive(self) -> bytes | None:
        """The next line; None when the peer is gone.

        OSError EMSGSIZE: longer than any call.
        """
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > limits.CONTROL_LINE_BYTES:
                raise OSError(errno.EMSGSIZE, "a control message is too long")
            space = socket.CMSG_SPACE(limits.CONTROL_DESCRIPTORS * array.array("i").itemsize)
            data, ancillary, _, _ = await self._socket.recvmsg(65536, space, socket.MSG_CMSG_CLOEXEC)
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers = array.array("i")
                    numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                    self._descriptors.extend(numbers)
            if not data:
                return None
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def take(self, count: int) -> list[int]:
        """Descriptors that came with the last line; the caller's from here on."""
        taken, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return taken


class Control:
    """A client of one control socket.

    `async with Control(path) as control` keeps one connection, and calls come one after the other. Without
    it every call has a connection of its own.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._line: _Line | None = None
        self._lock = trio.Lock()

    async def __aenter__(self) -> Self:
        """Connect.

        OSError: nobody listens there.
        """
        connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short_path(self._path) as path:
                await connection.connect(path)
        except BaseException:
            connection.close()
            raise
        self._line = _Line(connection)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._line is not None:
            self._line.close()

    async def call(self, name: str, timeout_s: float = limits.CONTROL_TIMEOUT_S, /, **arguments: Any) -> Any:
        """The result, as plain JSON values.

        ReplicatorError: the child refuses, in its words and with its exit code. UnreachableError: it is gone,
        or silent for `timeout_s`; a kept connection is of no more use then.
        """
        result, descriptors = await self.call_with_descriptors(name, timeout_s, **arguments)
        for descriptor in descriptors:  # nobody asked for them
            os.close(descriptor)
        return result

    async def call_with_descriptors(
        self,
        name: str,
        timeout_s: float = limits.CONTROL_TIMEOUT_S,
        send: Sequence[int] = (),
        /,
        **arguments: Any,
    ) -> tuple[Any, list[int]]:
        """The same, with descriptors both ways: those passed stay the caller's, those returned become so."""
        try:
            with trio.fail_after(timeout_s):
                if self._line is not None:
                    async with self._lock:
                        return await _exchange(self._line, name, send, arguments)
                async with Control(self._path) as connected:
                    assert connected._line is not None
                    return await _exchange(connected._line, name, send, arguments)
        except trio.TooSlowError:
            raise UnreachableError(f"{self._path} did not answer {name!r} within {timeout_s:g} s") from None
        except OSError as error:
            raise UnreachableError(f"nobody answers at {self._path}: {error.strerror or error}") from error


async def _exchange(
    line: _Line, name: str, descriptors: Sequence[int], arguments: dict[str, Any]
) -> tuple[Any, list[int]]:
    request = _Request(name, arguments, len(descriptors))
    await line.send(msgspec.json.encode(request), descriptors)
    data = await line.receive()
    if data is None:
        raise ConnectionResetError(errno.ECONNRESET, "the child ended during the call")
    answer = msgspec.json.decode(data, type=_Answer)
    received = line.take(answer.descriptors)
    if answer.error is not None:
        raise _REFUSALS.get(answer.exit_code, ReplicatorError)(answer.error)
    return answer.ok, received


async def serve(
    path: str,
    handlers: Mapping[str, Handler],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer calls on the Unix socket `path` until cancelled.

    A handler is called with the arguments of the call, and with `descriptors` if any came. A ReplicatorError
    of it is the caller's answer; anything else is a bug: traceback here, one line there. ReplicatorError:
    another process serves this path.
    """
    listener = await _listen(path)
    try:
        _tell_parent()
        task_status.started()
        async with trio.open_nursery() as nursery:
            while True:
                connection, _ = await listener.accept()
                nursery.start_soon(_serve_one, connection, handlers)
    finally:
        listener.close()
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def move_ready_descriptor() -> None:
    """Give its number free: to the successor of a capture any low number may be a handle of the kernel."""
    descriptor = os.environ.get(READY_VARIABLE)
    if descriptor is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        moved = fcntl.fcntl(int(descriptor), fcntl.F_DUPFD_CLOEXEC, min(1 << 16, soft - 2))
        os.close(int(descriptor))
        os.environ[READY_VARIABLE] = str(moved)


def _tell_parent() -> None:
    """Whoever started this process waits on a pipe for it to serve, or to end."""
    descriptor = os.environ.pop(READY_VARIABLE, None)
    if descriptor is not None:
        os.close(int(descriptor))


async def _listen(path: str) -> trio.socket.SocketType:
    if await _is_served(path):
        raise ReplicatorError(f"another process already serves {path}: stop it first")
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short_path(path) as short:
            # A socket is connectable from bind on; its directory is root's, and nobody else's umask counts.
            await listener.bind(short)
        os.chmod(path, 0o600)
        listener.listen(limits.CONTROL_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


async def _is_served(path: str) -> bool:
    try:
        async with Control(path):
            return True
    except (FileNotFoundError, ConnectionRefusedError):
        return False


async def _serve_one(connection: trio.socket.SocketType, handlers: Mapping[str, Handler]) -> None:
    line = _Line(connection)
    try:
        while (request := await line.receive()) is not None:
            answer, descriptors = await _answer(line, request, handlers)
            try:
                # Shielded: the answer to "stop" must still leave while everything else is being cancelled.
                with trio.move_on_after(limits.CONTROL_ANSWER_S, shield=True):
                    await line.send(_encode(answer), descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
    except OSError:
        pass  # the caller is gone; what it asked for has happened or not, and it will ask again
    finally:
        line.close()


async def _answer(line: _Line, data: bytes, handlers: Mapping[str, Handler]) -> tuple[_Answer, list[int]]:
    try:
        request = msgspec.json.decode(data, type=_Request)
    except MALFORMED as error:
        return _Answer(error=f"malformed control message: {error}"), []
    descriptors = line.take(request.descriptors)
    handler = handlers.get(request.call)
    if handler is None:
        for descriptor in descriptors:
            os.close(descriptor)
        return _Answer(error=f"no such control call: {request.call}"), []
    extra = {"descriptors": descriptors} if descriptors else {}
    try:
        result = await handler(**request.arguments, **extra)
    except ReplicatorError as error:
        return _Answer(error=str(error), exit_code=error.exit_code), []
    except Exception as error:  # one bad call must not take the child, and what it carries, down
        traceback.print_exc(file=sys.stderr)
        return _Answer(error=f"{type(error).__name__}: {error}"), []
    if isinstance(result, WithDescriptors):
        return _Answer(ok=result.value, descriptors=len(result.descriptors)), result.descriptors
    return _Answer(ok=result), []


def _encode(answer: _Answer) -> bytes:
    try:
        return msgspec.json.encode(answer)
    except (TypeError, ValueError) as error:  # a bug, too: JSON has no bytes that are not text, for one
        traceback.print_exc(file=sys.stderr)
        return msgspec.json.encode(_Answer(error=f"the answer cannot be sent: {type(error).__name__}"))


class _short_path:
    """A name of `path` that fits into sockaddr_un (108 bytes), however deep the home directory lies."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._directory = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) < 100:
            return self._path
        head, name = os.path.split(self._path)
        self._directory = os.open(head, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._directory}/{name}"

    def __exit__(self, *_: object) -> None:
        if self._directory >= 0:
            os.close(self._directory)
