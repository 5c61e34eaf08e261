"""What is fuzzed: everything that takes bytes from outside. Each target takes any bytes and raises nothing;
what a peer or user may be told (the declared errors) is expected, and caught here.

Checksums would keep a fuzzer out, so inputs are sealed where a hostile peer could seal them as well.
"""

import os
import struct
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import trio
import xxhash
from kit.certificates import Issuer

from fuzz import seeds
from replicator import addresses, config, repset
from replicator.agent import agent_calls, restore_calls, state
from replicator.agent.failover import calls as failover_calls
from replicator.agent.failover import former_owner, guards, heartbeats, home_calls, witness_service
from replicator.agent.failover.monitors import MonitorRequest
from replicator.bounds import MALFORMED
from replicator.child import control
from replicator.errors import JournalError, ReplicatorError, UsageError
from replicator.failover import heartbeat, lease, witness
from replicator.failover_settings import check_settings
from replicator.failovers import Check, CheckKind, Guard, Monitor, MonitorSettings, WatchedAddress
from replicator.fs.whole_file import WholeFile
from replicator.mirror import alike, checks, digests, packed, pieces
from replicator.mirror.inventory import Item
from replicator.net import frames
from replicator.net.engine import BULK_TYPES, FRAME_TYPE, HEADER_BYTES, Engine, Event, Role, State
from replicator.net.session import SessionEnded
from replicator.ops import START, Attributes, Kind, Position, Record
from replicator.queue import dirty_codec
from replicator.queue import record as codec
from replicator.queue.validity import impossible
from replicator.receiver.intake import Intake
from replicator.receiver.replica import takes_long
from replicator.receiver.replica_state import Received
from replicator.security import certificates, pem, revocation
from replicator.security.channel import Introduction
from replicator.security.pairing import PairHello, PairProof
from replicator.security.trust import KnownPeer
from replicator.transmission_schedule import TransmissionSchedule, Window

ReturnsNothing = Callable[[bytes], None]

_FIELDS = struct.Struct("<IBBH")
_SEED = struct.Struct("<Q")
_CHAIN_AT = 16


@dataclass(frozen=True)
class Target:
    """`memory_factor`: bytes that one byte of input may take, besides `FREE_BYTES`."""

    run: ReturnsNothing
    seeds: Callable[[], list[bytes]]
    memory_factor: int = 100


FREE_BYTES = 4 << 20
"""Of memory that any input may take: the first buffer of a large frame, for one."""


def step(work: Coroutine[Any, Any, Any]) -> Any:
    """Run what has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    work.close()
    raise AssertionError("it waits for something")


# --- sessions ---


def engine(data: bytes) -> None:
    """A stream as it comes, cut anywhere, in any state of a session."""
    if len(data) < 3:
        return
    one = Engine(Role.SOURCE if data[0] & 1 else Role.TARGET)
    one.state = list(State)[data[1] % len(State)]
    size = data[2] + 1
    try:
        for start in range(3, len(data), size):
            one.receive(data[start : start + size])
    except ReplicatorError:
        pass


def engine_seeds() -> list[bytes]:
    found = []
    for stream in seeds.streams():
        for number in range(len(State)):
            found += [bytes((side, number, 255)) + stream for side in (0, 1)]
    return found


def sealed(data: bytes) -> list[bytes]:
    """Frames whose checksums are right: each from a type, the length of a head, a length, and bytes."""
    found = []
    position = 0
    types = list(FRAME_TYPE.values())
    while position + 5 <= len(data):
        number, head, length = struct.unpack_from("<BHH", data, position)
        body = data[position + 5 : position + 5 + length]
        position += 5 + length
        kind = types[number % len(types)]
        head = min(head, len(body)) if kind in BULK_TYPES else 0
        fields = _FIELDS.pack(len(body), kind, 0, head)
        checked = body[:head] if kind is frames.FrameType.RECORDS else body
        seed = _SEED.unpack(fields)[0]
        found.append(fields + _SEED.pack(xxhash.xxh3_64_intdigest(checked, seed)) + body)
    return found


def unsealed(stream: bytes) -> bytes:
    """What `sealed` makes such a frame of."""
    length, kind, _, head = _FIELDS.unpack_from(stream)
    number = list(FRAME_TYPE.values()).index(frames.FrameType(kind))
    return struct.pack("<BHH", number, head, length) + stream[HEADER_BYTES : HEADER_BYTES + length]


class FakeSpool:
    head = Position(1, 1)

    def append(self, frame: frames.Frame, data: bytes = b"") -> bool:
        return True


class FakeReplica:
    drained = True

    def wake(self) -> None:
        pass

    def choose_source(self) -> None:
        pass

    async def keeps_up(self) -> bool:
        return False

    def place_now(self, batch: pieces.Batch) -> bool:
        return False


class FakePage:
    def store(self, value: bytes) -> None:
        assert len(value) < 65536


def intake(data: bytes) -> None:
    """What follows CONNECTED, well sealed, up to the spool."""
    fakes: Any = FakeSpool(), FakeReplica(), FakePage()
    received = Received(START, {}, journals=("j0",))
    taker = Intake(fakes[0], fakes[1], received, fakes[2], lambda: None)
    one = Engine(Role.TARGET)
    one.state = State.OPEN
    try:
        for frame in sealed(data):
            for event in one.receive(frame):
                step(taker.take(event))
    except (ReplicatorError, SessionEnded):
        pass


def _frames() -> list[bytes]:
    begin = unsealed(_encoded(frames.MirrorBegin("m", "full"), None))
    found = []
    for frame, content in seeds.conversation():
        found.append(unsealed(_encoded(frame, content)))
        found.append(begin + found[-1])
    return found


def _encoded(frame: frames.Frame, data: bytes | None) -> bytes:
    from replicator.net.engine import encode_frame

    return b"".join(bytes(buffer) for buffer in encode_frame(frame, data))


def reports(data: bytes) -> None:
    """What a target says, as a source takes it in: well sealed, with what is encoded inside."""
    one = Engine(Role.SOURCE)
    one.state = State.OPEN
    try:
        for frame in sealed(data):
            for event in one.receive(frame):
                _understand(event)
    except (ReplicatorError, *MALFORMED):
        pass


def _understand(event: Event) -> None:
    if isinstance(event, frames.PiecesRefused):
        pieces.decode_refused(event.refused)
    elif isinstance(event, frames.Checked):
        checks.decode_findings(event.findings)
    elif isinstance(event, frames.Drift):
        list(dirty_codec.items(event.dirty))
    elif isinstance(event, frames.Orphans):
        from replicator.orphans import OrphanReport

        msgspec.msgpack.decode(event.report, type=OrphanReport)


# --- what frames carry ---


def records(data: bytes) -> None:
    """Records whose chain is right."""
    run = bytearray(data)
    position, sequence, chain = 0, 0, 0
    try:
        while position < len(run):
            _, length = codec.decode(run, position)
            sequence += 1
            _SEED.pack_into(run, position + 8, sequence)
            run[position + _CHAIN_AT : position + _CHAIN_AT + 8] = bytes(8)
            chain = xxhash.xxh3_64_intdigest(run[position : position + length], chain)
            _SEED.pack_into(run, position + _CHAIN_AT, chain)
            position += length
    except JournalError:
        run = run[:position]
    for offset, _, record in codec.iterate(run, START):
        codec.record_length(run, offset)
        if impossible(record):
            continue
        _assert_possible(record)
        if record.kind in (Kind.CREATE, Kind.MKDIR, Kind.SETATTR, Kind.MKNOD, Kind.SYMLINK):
            Attributes.decode(record.payload)
        elif record.kind == Kind.FILE:
            try:
                WholeFile.decode(record.payload)
            except ValueError:
                pass
        elif record.kind == Kind.HOLE:
            dirty(bytes(record.payload))
    try:
        list(codec.iterate(data, START))
    except JournalError:
        pass


def _assert_possible(record: Record) -> None:
    """In other words than the product's: what the system calls behind it can take."""
    for path in (record.path, record.path2 if record.kind in (Kind.LINK, Kind.RENAME) else b""):
        assert not path or {b"", b".", b".."}.isdisjoint(path.split(b"/"))
        assert b"\0" not in path and len(path) < 4096
    if record.kind in (Kind.WRITE, Kind.TRUNCATE, Kind.FALLOCATE):
        assert record.arg0 < 2**63


def batch(data: bytes) -> None:
    try:
        found = pieces.decode_batch(data)
    except MALFORMED:
        return
    takes_long(found)
    for entry in found.entries:
        for offset, length in getattr(entry, "extents", ()):
            assert 0 <= offset < 2**63 and 0 <= length < 2**63
        assert 0 <= getattr(entry, "size", 0) < 2**63
        if isinstance(entry, pieces.Files):
            if packed.kinds_of(entry) is not None:
                packed.unpack(entry)
        elif isinstance(entry, pieces.Alike):
            alike.is_well_formed(entry)
        elif isinstance(entry, pieces.Digests) and entry.block_bytes:
            digests.count_blocks(entry.extents, entry.block_bytes)
            digests.gaps(entry.start, entry.end, entry.extents)


def check_batch(data: bytes) -> None:
    for decode in (checks.decode_checks, checks.decode_findings, pieces.decode_refused):
        try:
            decode(data)
        except MALFORMED:
            pass


def dirty(data: bytes) -> None:
    """A dirty map whose checksum is right."""
    if len(data) >= dirty_codec.HEADER_BYTES:
        start = dirty_codec.HEADER_BYTES
        data = data[: start - 8] + _SEED.pack(xxhash.xxh3_64_intdigest(data[start:])) + data[start:]
    try:
        for path, *_ in dirty_codec.items(data):
            assert b".." not in path.split(b"/") and not path.startswith(b"/")
    except JournalError:
        pass


# --- people, and files of ours ---


def configuration(data: bytes) -> None:
    try:
        config.parse(data, "replicator.toml")
    except ReplicatorError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000


def _configurations() -> list[bytes]:
    sample = Path(__file__).parents[2] / "etc" / "replicator.toml"
    sections = sample.read_bytes().split(b"\n[")
    return [sections[0], *(b"[" + section for section in sections[1:])]


_file = Path(tempfile.gettempdir()) / f"replicator-fuzz-{os.getpid()}"


def states(data: bytes) -> None:
    """state.json, agent.json and the state of a replica."""
    from replicator.receiver.replica_state import StateFile
    from replicator.world import World

    directory = Path("/dev/shm") / f"replicator-fuzz-{os.getpid()}"
    directory.mkdir(exist_ok=True)
    path = directory / "state.json"
    path.write_bytes(data)
    try:
        for load in (
            lambda: state.load_state(str(path)),
            lambda: state.load_document(str(path), state.AgentIdentity),
            StateFile(World(), str(directory)).load,
        ):
            try:
                load()
            except ReplicatorError:
                pass
    finally:
        path.unlink()
        directory.rmdir()


def _states() -> list[bytes]:
    from replicator.receiver.replica_state import ReplicaState

    connection = state.Connection(
        uuid=seeds.UUID,
        id=1,
        repset=seeds.SET,
        target_host="backup",
        target_port=1500,
        maps=(state.Map("/a", "/b"),),
        created=1.5,
    )
    mount = state.Mount(id=seeds.UUID, path="/a", mountpoint="/a")
    group = MonitorSettings(source_host="alpha", addresses=(WatchedAddress(address="10.0.0.5/24"),))
    whole = state.State(
        mounts=(mount,),
        repsets=(seeds.SET,),
        connections=(connection,),
        monitors=(Monitor(uuid=seeds.UUID, name="web", settings=group),),
        guards=(Guard(group=seeds.UUID, name="web", lease_s=3.0, witness="gamma:1500"),),
        schedules={"backup": TransmissionSchedule(window=Window(opens="21:00", closes="04:00"))},
    )
    replica = ReplicaState(connection_uuid=seeds.UUID, connect=seeds.connect())
    return [msgspec.json.encode(value) for value in (whole, replica, state.State())]


def sets(data: bytes) -> None:
    """Rules as users spell them, and sets as other agents send them."""
    text = data.decode("utf-8", "replace")
    parsers: tuple[Callable[[str], object], ...] = (
        repset.parse_rule,
        repset.normalise_rule_path,
        addresses.parse_destination,
        addresses.parse_host_port,
    )
    for parse in parsers:
        try:
            parse(text)
        except ReplicatorError:
            pass
    try:
        found = msgspec.json.decode(data, type=repset.ReplicationSet)
        rules = repset.compile_filter(found, b"/srv")
    except (*MALFORMED, ReplicatorError):
        return
    for path in (b"data/x.tmp", b"", b"\xff/" * 20 + b"x"):
        rules.includes(path)
        rules.may_contain(path)


def _sets() -> list[bytes]:
    return [
        msgspec.json.encode(seeds.SET),
        b"/srv/data inc, rec",
        rb"/srv/[a-c]*\*? exc, nonrec",
        b"[fe80::1%eth0]:1500:/srv/copy",
        b"backup:1500:/srv/copy",
        b"/a=/b",
    ]


def restores(data: bytes) -> None:
    """What agents say to one another about restores; the handlers of both sides catch just these."""
    for type_ in (restore_calls.Call, agent_calls.Answer):
        try:
            msgspec.json.decode(data, type=type_)
        except MALFORMED:
            pass
    try:
        msgspec.msgpack.decode(data, type=list[Item])
    except MALFORMED:
        pass


def _restores() -> list[bytes]:
    call = restore_calls.Call(action="hold", restore=seeds.UUID, repset=seeds.SET, places=("/a",))
    items = [Item(b"a/f", 33188, 0, 0, 5, 9)]
    return [
        msgspec.json.encode(call),
        msgspec.json.encode(agent_calls.Answer(result={"a": [1]})),
        msgspec.msgpack.encode(items),
    ]


_KEY = bytes(heartbeat.KEY_BYTES)
_BODIES = (
    heartbeats.Begin,
    *(guards.Watch, guards.Unwatch, guards.Tell),
    *(home_calls.AboutOrder, home_calls.AboutPromotion, home_calls.AboutEpoch, home_calls.AboutScript),
    *(home_calls.AboutTaking, former_owner.AboutCopy),
    *(lease.Renew, witness.Ballot, witness.Tell, witness.Withdraw, witness_service.Ask),
)


def failover(data: bytes) -> None:
    """What agents say to one another about failover, heartbeats, and monitors as users give them."""
    answerer = heartbeat.Answerer(1)
    answerer.watch(seeds.UUID, _KEY)
    answer = answerer.answer(data)
    assert answer is None or len(answer) == len(data)
    try:
        call = msgspec.json.decode(data, type=failover_calls.Call)
    except MALFORMED:
        pass
    else:
        for type_ in _BODIES:
            try:
                msgspec.json.decode(call.body, type=type_)
            except MALFORMED:
                pass
    try:
        check_settings(msgspec.json.decode(data, type=MonitorRequest).settings)
    except (*MALFORMED, UsageError):
        pass


def _failover() -> list[bytes]:
    beat = heartbeat.Beat(heartbeat.Kind.QUESTION, seeds.UUID, bytes(heartbeat.NONCE_BYTES))
    address = WatchedAddress(address="10.0.0.5/24", interface="eth0", checks=(Check(CheckKind.HTTP, "/a"),))
    request = MonitorRequest(settings=MonitorSettings(source_host="alpha", addresses=(address,)))
    begin = msgspec.json.encode(heartbeats.Begin(key=_KEY.hex()))
    return [
        heartbeat.encode(beat, _KEY),
        msgspec.json.encode(request),
        msgspec.json.encode(failover_calls.Call(action="heartbeat", body=msgspec.Raw(begin))),
        b'{"action":"watch","body":{"name":"web","target_uuid":"u","target_name":"beta","addresses":[]}}',
    ]


def trust(data: bytes) -> None:
    """What strangers and peers say before data flows, and files of an authority."""
    for type_ in (Introduction, PairHello, PairProof, KnownPeer):
        try:
            found = msgspec.json.decode(data, type=type_)
        except MALFORMED:
            continue
        if isinstance(found, PairHello):
            try:
                certificates.check(found.certificate, found.uuid)
            except ReplicatorError:
                pass
    text = data.decode("latin-1")
    try:
        revocation.parse(text, "ca.pem").objection(_leaf())
    except ReplicatorError as error:
        assert "\n" not in str(error)


@cache
def _leaf() -> bytes:
    return pem.der_of(certificates.make(seeds.UUID, "agent").decode())


def _trust() -> list[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        issuer = Issuer(Path(directory), "ca")
        _, certificate = issuer.issue("alpha")
        issuer.revoke(certificate)
        authority = issuer.path.read_bytes()
    shown = pem.certificate_of(certificates.make(seeds.UUID, "agent").decode())
    hello = PairHello(uuid=seeds.UUID, name="alpha", certificate=shown, nonce="00" * 16)
    return [
        authority,
        msgspec.json.encode(hello),
        msgspec.json.encode(Introduction(uuid=seeds.UUID, name="a")),
    ]


class FakeLine:
    def take(self, count: int) -> list[int]:
        return []


async def _echo(**arguments: object) -> object:
    return arguments


def control_calls(data: bytes) -> None:
    line: Any = FakeLine()
    answer, _ = step(control._answer(line, data, {"status": _echo}))
    control._encode(answer)


def _control_calls() -> list[bytes]:
    return [b'{"call":"status","arguments":{"a":[1,{"b":null}]},"descriptors":1}', b'{"call":"stop"}']


# --- control API ---


class _Anything(dict[str, object]):
    """Stands for the service, and all that belongs to it: takes and answers anything."""

    def __getattr__(self, name: str) -> "_Anything":
        return self

    def __call__(self, *arguments: object, **named: object) -> "_Answered":
        return _Answered()

    def get(self, *arguments: object) -> "_Answered":  # type: ignore[override]  # connections.get is meant
        return _Answered()


class _Answered(dict[str, object]):
    """An answer, whether it is awaited or not."""

    def __getattr__(self, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return "x"

    def __await__(self) -> Any:
        return self
        yield


_application: Any = None
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")


def api(data: bytes) -> None:
    """A request: method, path with query, and body, a line each; the whole application but the sockets."""
    global _application
    from replicator.agent import api as module

    if _application is None:
        service: Any = _Anything()
        _application = module.application(service, service)
    method, _, rest = data.partition(b"\n")
    target, _, body = rest.partition(b"\n")
    path, _, query = target.partition(b"?")
    header = [(b"if-match", body[:20])] if len(method) > 6 else []
    scope = {
        "type": "http",
        "method": _METHODS[len(method) % len(_METHODS)] if method else "POST",
        "path": path.decode("latin-1"),
        "raw_path": path,
        "query_string": query,
        "headers": header,
        "scheme": "http",
        "server": ("agent", None),
        "client": None,
        "http_version": "1.1",
        "state": {"peer": None},
    }
    if path.endswith(b"/wait"):
        return  # it waits beside its handler for the client to leave
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    answered: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answered.append(message)

    trio.run(_application, scope, receive, send)
    assert answered[0]["status"] != 500, answered


def _requests() -> list[bytes]:
    from replicator.agent import api as module

    service: Any = _Anything()
    bodies = [
        b'{"path":"/srv","options":{"a":"b"}}',
        b'{"name":"web","rules":[{"path":"/srv/data","include":true,"recursive":false}],"generation":3}',
        b'{"action":"start","kind":"full","checksum":true,"orphans":"keep"}',
        b'{"repset":"web","target":"h:1500","maps":[{"source":"/a","target":"/b"}]}',
        b'{"source":"/a","destination":"h:/b"}',
        b'{"action":"move","directory":"/x","older_than_days":1.5,"limit_count":5}',
        b'{"copy":"web","paths":["/a"],"maps":[{"source":"/a","replica":"/b"}],"even_if":["newer"]}',
        b"",
    ]
    paths = [
        getattr(route, "path", "/").replace("{", "").replace("}", "")
        for route in module.application(service, service).routes
    ]
    found = [
        b"x" * (i % 5 or 5) + b"\n" + path.encode() + b"\n" + bodies[i % 8] for i, path in enumerate(paths)
    ]
    return [
        *found,
        b"x" * 5 + b"\n/v1/events?since=3&limit=5\n",
        b"x" * 5 + b"\n/v1/repsets/?\xd0\n",
        b"x" * 7 + b'\n/v1/repsets/web\n{"rules":[]}',
    ]


TARGETS: dict[str, Target] = {
    "engine": Target(engine, engine_seeds),
    "intake": Target(intake, _frames),
    "reports": Target(reports, _frames),
    "records": Target(records, seeds.records),
    "pieces": Target(batch, seeds.batches),
    "checks": Target(check_batch, lambda: seeds.check_batches() + seeds.findings() + seeds.refusals()),
    "dirty": Target(dirty, lambda: [seeds.dirty_map()]),
    "api": Target(api, _requests),
    "configuration": Target(configuration, _configurations),
    "states": Target(states, _states),
    "sets": Target(sets, _sets),
    "restores": Target(restores, _restores),
    "failover": Target(failover, _failover),
    "trust": Target(trust, _trust, memory_factor=200),
    "control": Target(control_calls, _control_calls),
}

__all__ = ["FREE_BYTES", "TARGETS", "Target", "trio"]
