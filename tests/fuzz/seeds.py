"""Inputs to begin with: what honest peers say, made by the product's own encoders."""

import stat
from typing import Any

import msgspec

from replicator.mirror import checks, pieces
from replicator.net import frames
from replicator.net.engine import encode_frame, encode_greeting
from replicator.ops import Attributes, Identity, Kind, Position, Record
from replicator.queue import dirty_codec
from replicator.queue import record as codec
from replicator.repset import ReplicationSet, Rule

UUID = "6f0e3c52-9d1b-4c55-a8f1-3f6b9c1d2e77"
FILE = Attributes(31, stat.S_IFREG | 0o644, 1000, 1000, 0, 5, 10**18)
DIRECTORY = FILE._replace(mode=stat.S_IFDIR | 0o755)
DEVICE = FILE._replace(mask=63, mode=stat.S_IFCHR | 0o600, rdev=0x103)
ID = Identity(7, 1)
SET = ReplicationSet("web", 1, (Rule("/srv/data"), Rule("/srv/data/*.tmp", include=False)))


def record(sequence: int, previous: int, kind: int, path: bytes, **more: Any) -> tuple[bytes, int]:
    buffers, _, chain = codec.encode(kind, sequence, previous, 1, 2, 3, path, **more)
    return b"".join(bytes(b) for b in buffers), chain


def records() -> list[bytes]:
    rows: list[tuple[int, bytes, dict[str, Any]]] = [
        (Kind.CREATE, b"a/f", {"payload": FILE.encode(), "inode": 7}),
        (Kind.WRITE, b"a/f", {"payload": b"content", "arg0": 4096}),
        (Kind.TRUNCATE, b"a/f", {"arg0": 5}),
        (Kind.FALLOCATE, b"a/f", {"arg0": 0, "arg1": 4096, "payload": bytes(4)}),
        (Kind.MKDIR, b"a", {"payload": DIRECTORY.encode()}),
        (Kind.MKNOD, b"d", {"payload": DEVICE.encode()}),
        (Kind.SYMLINK, b"s", {"path2": b"/etc/passwd", "payload": FILE.encode()}),
        (Kind.LINK, b"a/f", {"path2": b"b/f"}),
        (Kind.RENAME, b"a", {"path2": b"b", "arg0": 2}),
        (Kind.SETATTR, b"", {"payload": DIRECTORY.encode()}),
        (Kind.SETXATTR, b"a/f", {"path2": b"user.x", "payload": b"y"}),
        (Kind.UNLINK, b"a/f", {}),
        (Kind.REMOVE_TREE, b"a", {}),
        (Kind.HOLE, b"", {"payload": dirty_map(), "arg0": 3}),
    ]
    single = []
    chain, run = 0, b""
    for number, (kind, path, more) in enumerate(rows):
        encoded, chain = record(number + 1, chain, kind, path, **more)
        run += encoded
        single.append(record(1, 0, kind, path, **more)[0])
    return [*single, run]


def dirty_map() -> bytes:
    from array import array

    items: list[dirty_codec.Item] = [(b"a", 1, 0, None), (b"a/f", 0, 7, array("Q", [0, 4096]))]
    return dirty_codec.encode(items)


def entries() -> list[pieces.AnyEntry]:
    content = pieces.Content(b"abc")
    states = b"".join(
        number.to_bytes(8, "little") for number in (1 | 1000 << 32, 1000 | FILE.mode << 32, 3, 10**9, 5)
    )
    return [
        pieces.Listing(b"a", DIRECTORY, {}, (b"b",), True, (b"b", b"f"), True),
        pieces.Object(b"a/s", ID, 1, FILE._replace(mode=stat.S_IFLNK | 0o777), {}, b"../f"),
        pieces.File(b"a/f", ID, 2, FILE, {b"user.a": b"b"}, 3, ((0, 3),), content),
        pieces.Part(b"a/g", ID, 1, True, ((0, 3),), content),
        pieces.Finish(b"a/g", ID, 1, 1, FILE, {}, 3),
        pieces.Abandon(b"a/g", 1),
        pieces.Same(b"a/f", ID, 1, FILE, {}, 3, blocks=True, digest=bytes(8)),
        pieces.LinkTo(b"a/h", ID, 2),
        pieces.Times(b"a", 5),
        pieces.Names(b"a", DIRECTORY, {}, b"", b"", (b"b", b"f"), b"df", (b"k",)),
        pieces.Patch(b"a/f", ID, 1, 9, ((0, 3),), ((4, 5),), content),
        pieces.Patched(b"a/f", ID, 1, FILE, {}, 9),
        pieces.Digests(b"a/f", ID, 1, 9, 0, 9, 4096, ((0, 9),), bytes(8), bytes(32), True, ((0, 3),)),
        pieces.Alike(b"a", (b"f",), states),
        pieces.Files(b"a", (b"f",), states, content),
        pieces.Part(b"a/l", ID, 2, True, ((0, 3),), content, 5),
        pieces.Begun(b"a/l", ID, 1, 3, 5),
    ]


def batch(*row: pieces.AnyEntry) -> bytes:
    return b"".join(bytes(b) for b in pieces.encode_batch(pieces.Batch(1, 0, row)))


def batches() -> list[bytes]:
    return [*(batch(entry) for entry in entries()), batch(*entries())]


def check_batches() -> list[bytes]:
    content = checks.Content(0, 9, 4096, ((0, 9),), bytes(8))
    one = checks.Check(b"a/f", ID, FILE, {b"user.a": b"b"}, 9, 2, b"", content, b"a/g")
    names = checks.CheckNames(b"a", b"", b"", (b"f", b"g"), (b"k",))
    return [checks.encode_checks(checks.CheckBatch(1, 0, row)) for row in ((one,), (names,), (one, names))]


def findings() -> list[bytes]:
    there = checks.There(FILE.mode, 0, 0, 0, 9, 5, 1, b"")
    found = checks.Finding(0, (checks.Aspect.SIZE,), there, ((0, 9),), ((b"x", there),), 1, b"p", "why")
    return [checks.encode_findings([found])]


def refusals() -> list[bytes]:
    refused = pieces.Refused(0, b"a", ID, "why", True, (b"f",), 2, 1, ((0, 9, bytes(8)),), 9)
    return [pieces.encode_refused([refused])]


def connect() -> frames.Connect:
    journal = frames.JournalInfo("j0", b"/srv/data")
    definition = msgspec.json.encode(SET).decode()
    maps = (frames.PathMap(0, b"", b"/srv/copy"),)
    return frames.Connect(UUID, "web", 1, definition, (journal,), maps, True)


def conversation() -> list[tuple[frames.Frame, bytes | None]]:
    """Of all types, both sides."""
    mark = frames.Mark(0, 0)
    run = records()[-1]
    last, position = Position(0, 0), 0
    while position < len(run):
        decoded, length = codec.decode(run, position)
        last, position = Position(decoded.sequence, decoded.chain), position + length
    return [
        (frames.Hello(1, UUID, "alpha", ("drift",)), None),
        (connect(), None),
        (frames.Connected((mark, None), (None,), (None,), "OK", False, 0, "", 7), None),
        (frames.RefusedConnection("no", True), None),
        (frames.Records(0, mark, frames.Mark(*last)), run),
        (frames.Derived(0, mark, frames.Mark(3, 5)), records()[0]),
        (frames.Derived(0, mark, frames.Mark(3, 5)), b""),
        (frames.MirrorBegin("m", "full"), None),
        (frames.PieceBatch(1), batches()[-1]),
        (frames.MirrorEnd("m", True), None),
        (frames.Checks(1), check_batches()[-1]),
        (frames.Acknowledge((1,), (1,), (1,), 0, 0), None),
        (frames.TargetState("OK", "OK", "", 5), None),
        (frames.PiecesRefused(refusals()[0]), None),
        (frames.Checked(1, findings()[0]), None),
        (frames.Drift(1, 0, dirty_map(), 1, b"a", True), None),
        (frames.Orphans(True, b"", 0, ("a",)), None),
        (frames.OrphanTask("pause"), None),
        (frames.Disconnect(UUID), None),
        (frames.Ping(), None),
        (frames.Bye("end"), None),
    ]


def streams() -> list[bytes]:
    greeting = encode_greeting(UUID)
    encoded = [b"".join(bytes(b) for b in encode_frame(*item)) for item in conversation()]
    return [greeting, greeting + encoded[0] + encoded[1], *encoded, b"".join(encoded)]


def decoded_record(data: bytes) -> Record:
    return codec.decode(data)[0]
