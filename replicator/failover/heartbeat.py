"""The agents' heartbeat: a question and an answer, one datagram each, authenticated.

The key of a group is made by whoever watches, and handed over on an encrypted call. An answer repeats the
nonce of its question, so a recorded one is good for nothing; a recorded question gets nothing but that. Both
have the same size: nobody can be flooded with answers. What does not fit is dropped without a word.

    magic (4) | kind (1) | zero (3) | group (16) | nonce (16) | HMAC-SHA256 of all that (32)
"""

import hmac
import struct
import uuid
from enum import IntEnum
from typing import NamedTuple

_HEAD = struct.Struct("<4sB3x16s16s")
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
    """One datagram. `group`: a uuid."""

    kind: Kind
    group: str
    nonce: bytes


def encode(beat: Beat, key: bytes) -> bytes:
    head = _HEAD.pack(_MAGIC, beat.kind, uuid.UUID(beat.group).bytes, beat.nonce)
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
    _, kind, _, nonce = _HEAD.unpack(head)
    try:
        return Beat(Kind(kind), group, nonce)
    except ValueError:
        return None


class Answerer:
    """On the source: the keys of those that watch it, the newest `kept` of them. Pure.

    One thread may `answer` while another changes who watches.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._keys: dict[str, bytes] = {}

    def watch(self, group: str, key: bytes) -> bool:
        """From here on questions about this group, with this key, are answered. Whether that is new."""
        known = self._keys.pop(group, None)
        while len(self._keys) >= self._kept:
            self.unwatch(next(iter(self._keys)))
        self._keys[group] = key
        return known is None

    def unwatch(self, group: str) -> None:
        self._keys.pop(group, None)

    def answer(self, data: bytes) -> bytes | None:
        """None: say nothing."""
        key = self._keys.get(group_of(data) or "")
        beat = decode(data, key) if key is not None else None
        if key is None or beat is None or beat.kind is not Kind.QUESTION:
            return None
        return encode(beat._replace(kind=Kind.ANSWER), key)
