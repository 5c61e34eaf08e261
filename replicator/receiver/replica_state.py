"""What a receiver remembers: for power loss in `state.json`, for a killed process in shared memory.

`state.json` says what kind of target this is, and is good for any boot, as is the durable position in a file
of its own (`position_file.py`).
`Received` and `Applied` are exact to the operation, and good for the boot in which they were written, like
the spool they belong to.
"""

import os
from typing import TypeVar

import msgspec
import xxhash

from replicator.bounds import MALFORMED
from replicator.errors import ReplicatorError
from replicator.failovers import Promotion
from replicator.net.frames import Connect
from replicator.ops import Position
from replicator.queue.durable_file import read_if_there, replace_durably
from replicator.status import TargetDataState
from replicator.world import World

VERSION = 1

Marks = dict[str, Position]
"""Positions by journal id."""

_T = TypeVar("_T", bound=msgspec.Struct)


class ReplicaState(msgspec.Struct, frozen=True, kw_only=True):
    """home/target/<connection>/state.json."""

    version: int = VERSION
    connection_uuid: str
    boot_id: str = ""  # of the host when this was written
    clean: bool = (
        False  # stopped with all that was applied durable: its position is exact even in a later boot
    )
    source_uuid: str = ""
    source_name: str = ""
    connect: Connect | None = None  # as the stream last said: journals, maps, and the set (RS-01)
    data_state: TargetDataState = TargetDataState.MIRROR_REQUIRED
    mirroring: bool = False  # between MIRROR_BEGIN and MIRROR_END: the target is tolerant
    mirror_id: str = ""
    mirror_since_ns: int | None = None  # a full mirror: what was made after that (btime here) it has brought
    suspect_since_ns: int | None = None  # power was lost: files changed since may hold anything (ctime here)
    drifted: bool = False  # exact, but for what others have changed since
    lacking_since_ns: int | None = None  # exact, but for paths that it has given up since then (ctime here)
    epoch: int = 0  # of the set, see `Connect.epoch`
    source_epoch: int = 0  # the latest of a source that was let in
    fork: Marks = {}  # what of each journal the copy had when the last restore or promotion raised it
    promotion: Promotion | None = None  # who owns the data instead of its source, since when
    owned: bool = False  # by this host, through `promotion`
    closed: str = ""  # uuid of the group that is being taken over: no source is let in
    restoring: str = ""  # uuid of the restore that reads the copy: nothing is applied meanwhile
    power_lost: bool = False  # from a copy that was complete or becoming so, and no mirror has begun since


class Received(msgspec.Struct, array_like=True):
    """What is in the spool."""

    spool: Position  # the last spooled frame
    marks: Marks
    connect: int = 0  # `fingerprint` of the last Connect in the stream
    journals: tuple[str, ...] = ()  # its journals: what an index means from here on
    mirroring: bool = False
    mirror_id: str = ""
    batches: int = 0  # number of the last batch since MIRROR_BEGIN


class Applied(msgspec.Struct, array_like=True):
    """What is in the target's tree."""

    spool: Position  # the last frame that is applied completely
    done: int  # operations of the next frame that are applied
    marks: Marks
    batches: int = 0  # number of the last batch applied since MIRROR_BEGIN
    intent: bytes = b""  # of the operation that was begun, if it needs one to be recognised after a kill
    wall_ns: int = 0  # when the source did the last operation that is applied; 0: not known


class RefusedBatch(msgspec.Struct, frozen=True, array_like=True):
    """Pieces (mirror.pieces.Refused, encoded) that could not be placed, and how many batches were applied
    before. `batch`: which they were of; 0: it was a record that could not be applied.
    """

    batches: int
    refused: bytes
    batch: int = 0


def journal_ids(connect: Connect) -> tuple[str, ...]:
    return tuple(journal.journal_id for journal in connect.journals)


def fingerprint(connect: Connect) -> int:
    value: int = xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(connect))
    return value


def encode(value: Received | Applied) -> bytes:
    return _encoder.encode(value)


def decode(data: bytes, kind: type[_T]) -> _T:
    return msgspec.msgpack.decode(data, type=kind)


_encoder = msgspec.msgpack.Encoder()


class StateFile:
    """state.json of one connection."""

    def __init__(self, world: World, directory: str) -> None:
        self._disk = world.disk
        self._directory = directory
        self._path = os.path.join(directory, "state.json")

    def load(self) -> ReplicaState | None:
        """None if there is none. Raises ReplicatorError if it is damaged: nothing may be guessed about a
        target.
        """
        data = read_if_there(self._disk, self._path)
        if data is None:
            return None
        try:
            state = msgspec.json.decode(data, type=ReplicaState)
        except MALFORMED as error:
            raise ReplicatorError(
                f"{self._path} is damaged ({error}): move {self._directory} away and mirror again"
            ) from None
        if state.version != VERSION:
            raise ReplicatorError(f"{self._path} was written by another version ({state.version})")
        return state

    def save(self, state: ReplicaState) -> None:
        """Replace it: a crash or power loss leaves the old or the new one. Blocks. OSError."""
        replace_durably(self._disk, self._path, [msgspec.json.encode(state)])

    def remove(self) -> None:
        if self._disk.exists(self._path):
            self._disk.unlink(self._path)
