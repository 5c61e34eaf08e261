"""An existing etcd as the witness: one key per group holds its `Entry`, changed by compare-and-swap only.

It needs no clock of etcd's, and no etcd lease: those are as long as a leader says, and begin anew when the
cluster elects another. Instead each lease that is given is a change of the key, so its revision says whether
one was given since. A candidate counts by its own clock from the moment at which it has *seen* a revision:
whatever lease that revision stands for was asked for before. Its vote is a swap on that very revision, and
fails if the owner has renewed meanwhile. So a vote takes as long as one of an agent, if the candidate begins
to watch the key at the first sign of life that is missing (`watch`).

Spoken is the JSON gateway of etcd 3.4 and later (etcd.io/docs, "gRPC gateway": /v3/kv/range, /v3/kv/txn and
/v3/auth/authenticate, keys and values in base64), by the standard library: three short requests are no reason
for a client library, and the one that is known best (etcd3) has had no release since 2019.
"""

import base64
import http.client
import json
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec
import trio

from replicator import limits
from replicator.addresses import Address, parse_host_port
from replicator.bounds import MALFORMED, one_line
from replicator.errors import UnreachableError, UsageError
from replicator.failover.lease import Renew, Renewed
from replicator.failover.witness import (
    Ballot,
    Entry,
    Observer,
    Tell,
    Told,
    Voted,
    Withdraw,
    WitnessRefusedError,
    renewed,
    told,
    voted,
    withdrawn,
)

SCHEMES = ("etcd://", "etcds://")
T = TypeVar("T")


class Access(NamedTuple):
    """How this agent comes in: see `config.Failover`. `authorities` "": those that the system trusts."""

    user: str = ""
    password_file: str = ""
    authorities: str = ""


class Etcd(NamedTuple):
    """`etcd://HOST:PORT[,HOST:PORT]/PREFIX`; `etcds`: by TLS."""

    endpoints: tuple[Address, ...]
    prefix: str
    tls: bool


class Kept(NamedTuple):
    """What a key holds. `revision` 0: it is not there."""

    revision: int
    entry: Entry | None


def parse_etcd(text: str) -> Etcd:
    """Raises UsageError."""
    scheme = next((scheme for scheme in SCHEMES if text.startswith(scheme)), "")
    hosts, _, prefix = text.removeprefix(scheme).partition("/")
    if not scheme or not hosts or not prefix.strip("/"):
        raise UsageError(f"witness {text!r}: must be etcd://HOST:PORT[,HOST:PORT]/PREFIX")
    endpoints = tuple(parse_host_port(host, default_port=2379) for host in hosts.split(","))
    return Etcd(endpoints, prefix.strip("/"), scheme == "etcds://")


def boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class EtcdWitness:
    """One etcd. See `witnesses.WitnessClient`."""

    def __init__(
        self, etcd: Etcd, now_s: Callable[[], float] = boot_s, access: Callable[[], Access] = Access
    ) -> None:
        self._etcd = etcd
        self._now_s = now_s
        self._access = access
        self._observer = Observer()
        self._tls: ssl.SSLContext | None = None  # made when it is needed
        self._token = ""  # of the user, until etcd does not know it any more

    async def renew(self, group: str, request: Renew) -> Renewed:
        return await self._change(group, lambda entry: renewed(entry, group, request))

    async def vote(self, group: str, ballot: Ballot) -> Voted:
        def decide(entry: Entry | None) -> tuple[Entry, Voted]:
            now_s = self._now_s()
            wait_s = self._observer.wait_s(group, entry, ballot, now_s)
            return voted(entry, group, ballot, wait_s, self._observer.granted_ago_s(group, now_s), {})

        return await self._change(group, decide)

    async def promoted(self, group: str, tell: Tell) -> Told:
        return await self._change(group, lambda entry: _told(told(entry, group, tell)))

    async def withdraw(self, group: str, withdraw: Withdraw) -> Told:
        def decide(entry: Entry | None) -> tuple[Entry, Told]:
            if entry is None:
                raise WitnessRefusedError("the witness does not know this group")
            return _told(withdrawn(entry, withdraw))

        return await self._change(group, decide)

    async def watch(self, group: str) -> None:
        await self._read(group)

    async def _change(self, group: str, decide: Callable[[Entry | None], tuple[Entry | None, T]]) -> T:
        for _ in range(limits.ETCD_TRIES):
            kept = await self._read(group)
            entry, answer = decide(kept.entry)
            if entry is None or entry == kept.entry or await self._swap(group, kept.revision, entry):
                return answer
        raise UnreachableError("etcd: others change the group all the time")

    async def _read(self, group: str) -> Kept:
        found = await self._post("/v3/kv/range", {"key": self._key(group)})
        pairs = found.get("kvs") or []
        kept = Kept(0, None)
        if pairs:
            try:
                value = base64.b64decode(pairs[0]["value"])
                kept = Kept(int(pairs[0]["mod_revision"]), msgspec.json.decode(value, type=Entry))
            except (KeyError, TypeError, ValueError, *MALFORMED) as error:
                raise UnreachableError(f"etcd: the key of the group is damaged: {error}") from None
        self._observer.see(group, kept.revision, self._now_s())
        return kept

    async def _swap(self, group: str, revision: int, entry: Entry) -> bool:
        """Whether the key was as it was read."""
        key = self._key(group)
        put = {"key": key, "value": base64.b64encode(msgspec.json.encode(entry)).decode()}
        body = {
            "compare": [{"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}],
            "success": [{"request_put": put}],
        }
        return bool((await self._post("/v3/kv/txn", body)).get("succeeded"))

    def _key(self, group: str) -> str:
        return base64.b64encode(f"{self._etcd.prefix}/{group}".encode()).decode()

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Of the first endpoint that answers. A request that was given up may still be carried out: the next
        one finds what it did in the entry.
        """
        problem = ""
        with trio.move_on_after(limits.WITNESS_CALL_S):
            for address in self._etcd.endpoints:
                try:
                    return await trio.to_thread.run_sync(
                        partial(self._as_user, address, path, body), abandon_on_cancel=True
                    )
                except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
                    problem = f"{address}: {error}"
        raise UnreachableError(f"etcd does not answer: {problem or 'it takes too long'}")

    def _as_user(self, address: Address, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """In a thread. OSError, HTTPException, ValueError, RecursionError."""
        access = self._access()
        if not access.user:
            return self._request(address, path, body)
        if self._token:
            try:
                return self._request(address, path, body, self._token)
            except _NotKnownError:
                pass  # tokens are for minutes, and go with a restart of etcd
        try:
            with open(access.password_file, encoding="utf-8") as file:
                password = file.read().strip("\r\n")
        except OSError as error:
            raise OSError(f"{access.password_file} (failover.etcd_password_file): {error.strerror}") from None
        login = {"name": access.user, "password": password}
        self._token = str(self._request(address, "/v3/auth/authenticate", login).get("token", ""))
        return self._request(address, path, body, self._token)

    def _request(self, address: Address, path: str, body: dict[str, Any], token: str = "") -> dict[str, Any]:
        """As `_as_user`."""
        timeout_s = limits.WITNESS_CALL_S / len(self._etcd.endpoints)
        connection: http.client.HTTPConnection
        if self._etcd.tls:
            connection = http.client.HTTPSConnection(*address, timeout=timeout_s, context=self._context())
        else:
            connection = http.client.HTTPConnection(*address, timeout=timeout_s)
        headers = {"Content-Type": "application/json", **({"Authorization": token} if token else {})}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read(limits.ETCD_ANSWER_BYTES)
        finally:
            connection.close()
        if response.status != 200:
            reason = _reason(response.status, data)
            raise _NotKnownError(reason) if response.status == http.client.UNAUTHORIZED else OSError(reason)
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("no answer of etcd")
        return found

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            authorities = self._access().authorities
            try:
                self._tls = ssl.create_default_context(cafile=authorities or None)
            except OSError as error:  # also those of ssl
                what = error.strerror or str(error)
                raise OSError(f"{authorities} (failover.etcd_authorities): {what}") from None
        return self._tls


class _NotKnownError(OSError):
    """etcd does not know this user, or its token (any more)."""


def _reason(status: int, data: bytes) -> str:
    """Of an answer that is none, for people."""
    try:
        found = json.loads(data)
        text = str(found.get("message") or found["error"])
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"HTTP status {status}: {data[:200]!r}"
    if "user name is empty" in text:
        text += ": it wants to know who asks (failover.etcd_user in the configuration)"
    return one_line(text, limits.NAME_CHARS * 2)


def _told(entry: Entry) -> tuple[Entry, Told]:
    return entry, Told(epoch=entry.epoch, promotion=entry.promotion)
