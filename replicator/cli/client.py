"""The agent's control API from the client's side: HTTP and JSON over the Unix socket in the agent's home.

`docs/developers/api.md` describes the API. Only the standard library is used, so that `dtctl` starts at once.
"""

import http.client
import json
import os
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
from replicator.paths import Home

ANSWER_TIMEOUT_S = 60.0  # mounting, or a peer that has to be asked, may take a while

_ERRORS: dict[int, type[ReplicatorError]] = {
    ExitCode.USAGE: UsageError,
    ExitCode.UNREACHABLE: UnreachableError,
    ExitCode.NOT_PERMITTED: NotPermittedError,
}


class _UnixConnection(http.client.HTTPConnection):
    """HTTP to a socket in a directory.

    It is named relative to a descriptor of the directory: a socket address holds 107 bytes, a home may be
    deeper.
    """

    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._directory, self._name = os.path.split(path)

    def connect(self) -> None:
        directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{directory}/{self._name}")
        finally:
            os.close(directory)


class Client:
    """Requests to the agent of one home. Every failure is a `ReplicatorError` that says what to do."""

    def __init__(self, home: str) -> None:
        self.home = home
        self._log = Home(home).event_log

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
        connection = _UnixConnection(Home(self.home).api_socket, timeout_s)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            status, data = answer.status, answer.read()
        except PermissionError:
            raise NotPermittedError(
                f"{self.home}: no permission to use this agent; run as root or as the user who runs it"
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
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise UnreachableError(
                f"the agent of {self.home} broke off the conversation ({reason}); see {self._log}"
            ) from None
        finally:
            connection.close()
        return _document(status, data)


def _document(status: int, data: bytes) -> Any:
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
