"""The agents' heartbeat: a question and an answer, one datagram each, authenticated.

The key of a group is made by whoever watches and handed over on an encrypted call. A question has a time
that only grows, so a recorded one is good for nothing; an answer repeats the question's nonce. Both have the
same size: nobody can be flooded with answers. What does not fit is dropped without a word.

    magic (4) | kind (1) | zero (3) | group (16) | time, ns (8) | nonce (16) | HMAC-SHA256 of all that (32)
"""

import hmac
import struct
import uuid
from enum import IntEnum
from typing import NamedTuple

_HEAD = struct.Struct("<4sB3x16sQ16s")
_MAGIC = b"rhb1"
_MAC_BYTES = 32
NONCE_BYTES = 16
KEY_BYTES = 32
DATAGRAM_BYTES = _HEAD.size + _MAC_BYTES


class Kind(IntEnum):
    """0 is invalid."""

    QUESTION = 1
    ANSWER = 2


class Beat(NamedTuple):
    """One datagram. `group`: a uuid. `sent_ns`: since the epoch, by the clock of whoever asks."""

    kind: Kind
    group: str
    sent_ns: int
    nonce: bytes


def encode(beat: Beat, key: bytes) -> bytes:
    head = _HEAD.pack(_MAGIC, beat.kind, uuid.UUID(beat.group).bytes, beat.sent_ns, beat.nonce)
    return head + hmac.digest(key, head, "sha256")


def group_of(data: bytes) -> str | None:
    """Whose key it needs; None: it is no heartbeat."""
    if len(data) != DATAGRAM_BYTES or not data.startswith(_MAGIC):
        return None
    return str(uuid.UUID(bytes=_HEAD.unpack_from(data)[2]))


def decode(data: bytes, key: bytes) -> Beat | None:
    """None: it was not made with this key."""
    group = group_of(data)
    head = data[: _HEAD.size]
    if group is None or not hmac.compare_digest(data[_HEAD.size :], hmac.digest(key, head, "sha256")):
        return None
    _, kind, _, sent_ns, nonce = _HEAD.unpack(head)
    try:
        return Beat(Kind(kind), group, sent_ns, nonce)
    except ValueError:
        return None


class _Watcher:
    def __init__(self, key: bytes) -> None:
        self.key = key
        self.sent_ns = 0  # of its last question


class Answerer:
    """On the source: the keys of those that watch it, the newest `kept` of them. Pure.

    One thread may `answer` while another changes who watches.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._watchers: dict[str, _Watcher] = {}

    def watch(self, group: str, key: bytes) -> None:
        """From here on questions about this group, with this key, are answered."""
        self._watchers.pop(group, None)
        while len(self._watchers) >= self._kept:
            self.unwatch(next(iter(self._watchers)))
        self._watchers[group] = _Watcher(key)

    def unwatch(self, group: str) -> None:
        self._watchers.pop(group, None)

    def answer(self, data: bytes) -> bytes | None:
        """None: say nothing."""
        watcher = self._watchers.get(group_of(data) or "")
        beat = decode(data, watcher.key) if watcher is not None else None
        if watcher is None or beat is None or beat.kind is not Kind.QUESTION:
            return None
        if beat.sent_ns <= watcher.sent_ns:
            return None  # heard before
        watcher.sent_ns = beat.sent_ns
        return encode(beat._replace(kind=Kind.ANSWER), watcher.key)
