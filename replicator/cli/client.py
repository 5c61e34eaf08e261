"""The agent's control API from the client's side: HTTP and JSON over the Unix socket in the agent's home.

`docs/developers/api.md` describes the API. Only a little of the standard library is used, so that `dtctl`
starts at once: http.client alone would take a fifth of that time, most of it for TLS and MIME.
"""

import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from replicator.errors import (
    ExitCode,
    NotPermittedError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.paths import Home, socket_address

ANSWER_TIMEOUT_S = 60.0  # mounting, or a peer that has to be asked, may take a while

_ERRORS: dict[int, type[ReplicatorError]] = {
    ExitCode.USAGE: UsageError,
    ExitCode.UNREACHABLE: UnreachableError,
    ExitCode.NOT_PERMITTED: NotPermittedError,
}


class Client:
    """Requests to the agent of one home. Every failure is a `ReplicatorError` that says what to do."""

    def __init__(self, home: str) -> None:
        self.home = home
        self._log = Home(home).event_log

    @property
    def arguments(self) -> list[str]:
        """What makes another `dtctl` talk to the same agent."""
        return ["--home", self.home]

    def get(self, *path: str, **query: str | int | float | None) -> Any:
        """GET /v1/<path>, quoted, and `query` without its None members. Returns the document."""
        text = urlencode({name: value for name, value in query.items() if value is not None})
        return self._request("GET", path, f"?{text}" if text else "")

    def post(
        self,
        *path: str,
        body: Mapping[str, object] | None = None,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> Any:
        """POST /v1/<path> with a JSON object. `timeout_s` None: wait as long as it takes."""
        return self._request("POST", path, "", body or {}, timeout_s)

    def put(self, *path: str, body: Mapping[str, object]) -> Any:
        return self._request("PUT", path, "", body)

    def delete(self, *path: str, body: Mapping[str, object] | None = None) -> Any:
        return self._request("DELETE", path, "", body or {})

    def _request(
        self,
        method: str,
        path: tuple[str, ...],
        query: str,
        body: Mapping[str, object] | None = None,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> Any:
        target = "/v1/" + "/".join(quote(part, safe="") for part in path) + query
        data = None if body is None else body_of(body)
        try:
            status, answer = _exchange(Home(self.home).api_socket, method, target, data, timeout_s)
        except PermissionError:
            raise NotPermittedError(
                f"{self.home}: no permission to reach the agent's socket there; run as root, or let others"
                " pass through the directories above it (chmod o+x)"
            ) from None
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            raise UnreachableError(
                f"no agent answers for {self.home}; start it with 'dtd --home {self.home}', or name another"
                " home with --home"
            ) from None
        except TimeoutError:
            raise UnreachableError(
                f"the agent of {self.home} did not answer within {timeout_s:.0f} s; see {self._log}"
            ) from None
        except OSError as error:
            reason = str(error) or type(error).__name__
            raise UnreachableError(
                f"the agent of {self.home} broke off the conversation ({reason}); see {self._log}"
            ) from None
        return document_of(status, answer)


def _exchange(
    path: str, method: str, target: str, body: bytes | None, timeout_s: float | None
) -> tuple[int, bytes]:
    """One request on a connection of its own: status and body of the answer. OSError."""
    request = encode(method, target, body)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, socket_address(path) as address:
        connection.settimeout(timeout_s)
        connection.connect(address)
        connection.sendall(request)
        received = bytearray()
        while data := connection.recv(65536):
            received += data
    return parse(bytes(received))


def body_of(document: Mapping[str, object]) -> bytes:
    """Of a request. Raises UsageError for numbers that JSON has no word for."""
    try:
        return json.dumps(document, allow_nan=False).encode()
    except ValueError:
        raise UsageError("nan and inf are no numbers here: write digits") from None


def encode(method: str, target: str, body: bytes | None, *more: str) -> bytes:
    """A request; `more`: header lines."""
    head = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *more]
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + (body or b"")


def parse(answer: bytes) -> tuple[int, bytes]:
    """Status and body of a whole answer. OSError if it is not one."""
    head, end, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, status = first.partition(" ")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if not end or not version.startswith("HTTP/1.") or not status[:3].isdecimal():
        raise OSError("it closed the connection without an answer")
    if fields.get("content-length") != str(len(body)):
        raise OSError("the answer is incomplete")
    return int(status[:3]), body


def document_of(status: int, data: bytes) -> Any:
    """The document of an answer, or the error it stands for."""
    try:
        document = json.loads(data) if data else None
    except ValueError:
        document = None
    if status < 400:
        return document
    if not isinstance(document, dict) or "error" not in document:
        raise ReplicatorError(
            f"the agent answered with HTTP status {status} and no explanation; are versions equal?"
        )
    # One line, whatever the agent wrapped into it.
    text = " ".join(str(document["error"]).split())
    raise _ERRORS.get(document.get("exit_code", ExitCode.FAILED), ReplicatorError)(text)
