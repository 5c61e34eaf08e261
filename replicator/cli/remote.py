"""The control API of an agent on another host: the same requests, by TLS.

The server is known by its certificate: signed by a CA that the user names, or the one it had when the user
said that it is right. Nothing is sent to any other. Who the user is says a client certificate, or a login.
"""

import getpass
import hashlib
import os
import re
import socket
import ssl
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from replicator import limits
from replicator.access import LoginRequiredError
from replicator.addresses import Address, parse_host_port
from replicator.cli.client import ANSWER_TIMEOUT_S, Client, body_of, document_of, encode, parse
from replicator.cli.known_servers import KnownServers, Logins
from replicator.errors import NotPermittedError, ReplicatorError, UnreachableError, UsageError

_LOGIN_REQUIRED = 401


class UnknownServerError(NotPermittedError):
    """The certificate is not one that the user trusts."""


def client_for(given: Mapping[str, Any], *, may_ask: bool) -> "RemoteClient":
    """The client that options of the command line describe: `server user ca cert`. Raises UsageError."""
    server = parse_host_port(str(given["server"]), default_port=limits.CONTROL_PORT)
    options = {name: str(given.get(name) or "") for name in ("user", "ca", "cert")}
    return RemoteClient(server, **options, may_ask=may_ask)


class RemoteClient(Client):
    """Requests to the agent that `server` names. `may_ask`: somebody sits at a terminal."""

    def __init__(
        self, server: Address, user: str = "", ca: str = "", cert: str = "", *, may_ask: bool = False
    ) -> None:
        super().__init__("")
        self.server = server
        self.user = user or getpass.getuser()
        self._ca = ca
        self._cert = cert
        self._may_ask = may_ask
        self._known = KnownServers()
        self._logins = Logins()
        self._context: ssl.SSLContext | None = None

    @property
    def arguments(self) -> list[str]:
        options = {"--user": self.user, "--ca": self._ca, "--cert": self._cert}
        return ["--server", str(self.server), *(w for o in options.items() if o[1] for w in o)]

    @property
    def command(self) -> str:
        """What to type to do more with this server."""
        return " ".join(["dtctl", *self.arguments])

    # --- logins ---

    def log_in(self, password: str, fingerprint: str = "") -> dict[str, Any]:
        """Returns who the user is there, and keeps the token. `fingerprint`: what the server is known by."""
        body = {"user": self.user, "password": password}
        timeout_s = limits.LOGIN_TIMEOUT_S + limits.ACCOUNT_TIMEOUT_S
        status, answer = self._exchange("POST", "/v1/login", body, timeout_s, None, fingerprint)
        document: dict[str, Any] = document_of(status, answer)
        try:
            self._logins.keep(self.server, self.user, document.pop("token"))
        except OSError as error:
            raise ReplicatorError(f"the login cannot be kept: {error}") from None
        return document

    def look(self, fingerprint: str = "") -> None:
        """Make sure that the server is the one that is known, or ask. Raises UnknownServerError."""
        document_of(*self._exchange("GET", "/v1/ping", None, ANSWER_TIMEOUT_S, None, fingerprint))

    def log_out(self) -> None:
        token = self._logins.token(self.server, self.user)
        self._logins.forget(self.server, self.user)
        if token is not None:
            document_of(*self._exchange("POST", "/v1/logout", {}, ANSWER_TIMEOUT_S, token))

    def _request(
        self,
        method: str,
        path: tuple[str, ...],
        query: str,
        body: Mapping[str, object] | None = None,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> Any:
        target = "/v1/" + "/".join(quote(part, safe="") for part in path) + query
        token = None if self._cert else self._logins.token(self.server, self.user)
        status, answer = self._exchange(method, target, body, timeout_s, token)
        if status == _LOGIN_REQUIRED and not self._cert:
            if not self._may_ask:
                raise LoginRequiredError(f"{self.server}: log in first: {self.command} login")
            self.log_in(getpass.getpass(f"Password of {self.user} on {self.server.host}: "))
            token = self._logins.token(self.server, self.user)
            status, answer = self._exchange(method, target, body, timeout_s, token)
        return document_of(status, answer)

    # --- the line ---

    def _exchange(
        self,
        method: str,
        target: str,
        body: Mapping[str, object] | None,
        timeout_s: float | None,
        token: str | None,
        fingerprint: str = "",
    ) -> tuple[int, bytes]:
        """One request on a connection of its own. Raises UnreachableError, UnknownServerError."""
        data = None if body is None else body_of(body)
        more = [] if token is None else [f"Authorization: Bearer {token}"]
        try:
            with self._connect(fingerprint) as connection:
                connection.settimeout(timeout_s)
                connection.sendall(encode(method, target, data, *more))
                received = bytearray()
                while chunk := connection.recv(65536):
                    received += chunk
            return parse(bytes(received))
        except socket.gaierror as error:
            raise UnreachableError(f"{self.server}: {error.strerror}") from None
        except TimeoutError:
            raise UnreachableError(f"{self.server}: no answer in time") from None
        except ConnectionRefusedError:
            raise UnreachableError(
                f"{self.server}: nobody listens there; remote control is off until the agent's access.listen"
                " turns it on"
            ) from None
        except ssl.SSLError as error:
            raise UnreachableError(f"{self.server}: TLS: {_tls_reason(error)}") from None
        except OSError as error:
            raise UnreachableError(f"{self.server}: {error}") from None

    def _connect(self, fingerprint: str) -> ssl.SSLSocket:
        if self._context is None:
            self._context = self._make_context()
        plain = socket.create_connection(self.server, limits.CONNECT_TIMEOUT_S)
        try:
            encrypted = self._context.wrap_socket(plain, server_hostname=self.server.host)
        except BaseException:
            plain.close()
            raise
        try:
            if not self._ca:
                self._check_pinned(encrypted, fingerprint)
        except BaseException:
            encrypted.close()
            raise
        return encrypted

    def _make_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["http/1.1"])
        if self._ca:
            _load(self._ca, lambda: context.load_verify_locations(self._ca))
        else:  # the certificate itself is what is known: see _check_pinned
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self._cert:
            _load(self._cert, lambda: context.load_cert_chain(self._cert))
        return context

    def _check_pinned(self, connection: ssl.SSLSocket, given: str) -> None:
        """Raises UnknownServerError. `given` by the user is believed, and remembered."""
        certificate = connection.getpeercert(binary_form=True)
        assert certificate is not None
        shown = fingerprint_of(certificate)
        known = self._known.fingerprint(self.server)
        if given:
            if normal_fingerprint(given) != shown:
                raise UnknownServerError(f"{self.server}: its fingerprint is {shown}, and not what you gave")
        elif known == shown:
            return
        elif known:
            changed = "its certificate has changed: somebody may be listening in"
            raise UnknownServerError(f"{self.server}: {changed}. {self._trust(shown)}")
        elif not self._may_ask:
            raise UnknownServerError(f"{self.server} is not known yet. {self._trust(shown)}")
        elif not _ask(self.server, shown):
            raise UnknownServerError(f"{self.server}: not trusted, nothing was sent")
        self._known.remember(self.server, shown)

    def _trust(self, shown: str) -> str:
        return (
            f"Its fingerprint is {shown}; if 'dtctl ping' on its host shows the same, run:"
            f" {self.command} login --fingerprint {shown}"
        )


def _ask(server: Address, shown: str) -> bool:
    sys.stderr.write(
        f"{server} is not known yet. Its fingerprint is\n  {shown}\n"
        "On its host, 'dtctl ping' shows the right one. Are they the same? (yes/no) "
    )
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() == "yes"


def fingerprint_of(certificate: bytes) -> str:
    """SHA-256 of a certificate (DER), as `openssl x509 -fingerprint -sha256` shows it."""
    return ":".join(f"{byte:02X}" for byte in hashlib.sha256(certificate).digest())


def normal_fingerprint(text: str) -> str:
    """The same, as users may write it: in small letters, without colons, with what openssl puts before it."""
    digits = re.sub(r"[^0-9A-F]", "", text.upper().rpartition("=")[2])
    return ":".join(digits[place : place + 2] for place in range(0, len(digits), 2))


def read_password(path: str) -> str:
    """The first line of a file, or of a descriptor (`/dev/fd/3`). Raises UsageError."""
    try:
        with open(path, errors="surrogateescape") as file:
            state = os.fstat(file.fileno())
            if os.path.isfile(path) and state.st_mode & 0o077 and not path.startswith(("/dev/", "/proc/")):
                raise UsageError(f"{path}: others can read this file; chmod 600 {path}")
            return file.readline().rstrip("\r\n")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _load(path: str, load: Any) -> None:
    try:
        load()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be used: {getattr(error, 'strerror', None) or error}") from None


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate: {error.verify_message}"
    return (error.reason or "closed").lower().replace("_", " ")
