"""A hostile host: a program that knocks at the ports of agents in all the ways that must not get it in.

    python -m kit.hostile < orders     in its network namespace: an order a line (JSON), an answer a line

Each attack is made from an address of its own, so that what an agent logs of it can be told. It answers with
what it got: bytes that came back, or how it was turned away.
"""

import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

TIMEOUT_S = 15.0
GREETING = b"REPLICATOR 1 replicate %s\n"
_RECORD_HEAD = 5  # of TLS: type, version, length


# --- one connection to a port of agents ---


def dialled(order: dict[str, Any]) -> socket.socket:
    source = (order["from"], 0)
    stream = socket.create_connection((order["host"], order["port"]), TIMEOUT_S, source)
    stream.settimeout(TIMEOUT_S)
    return stream


def answer_of(stream: socket.socket) -> str:
    """All that comes until the other side closes."""
    found = b""
    with suppress(ConnectionError):
        while data := stream.recv(65536):
            found += data
    return found.decode("latin-1")


def plain(order: dict[str, Any]) -> str:
    """`bytes` as they are, and no more."""
    with dialled(order) as stream:
        stream.sendall(order["bytes"].encode("latin-1"))
        if order.get("half"):
            stream.shutdown(socket.SHUT_WR)
        return answer_of(stream)


def tls(order: dict[str, Any]) -> str:
    """A handshake with `certificate` ("": none), then `bytes`. `old`: TLS 1.2 at most."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if order.get("old"):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if order.get("certificate"):
        context.load_cert_chain(order["certificate"])
    with dialled(order) as stream:
        try:
            with context.wrap_socket(stream) as secured:
                secured.sendall(order.get("bytes", "").encode("latin-1"))
                return answer_of(secured)
        except (ssl.SSLError, ConnectionError) as error:
            return f"refused: {error}"


def loris(order: dict[str, Any]) -> str:
    """`count` connections that say a byte a second. Returns after how many seconds the last one is closed."""
    began_s = time.monotonic()
    held = []
    for _ in range(order["count"]):
        with suppress(OSError):
            held.append(dialled(order))
    while held and time.monotonic() < began_s + order["patience_s"]:
        for stream in list(held):
            stream.setblocking(False)
            try:
                stream.send(order.get("byte", "R").encode())
                if stream.recv(4096) != b"":
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            stream.close()
            held.remove(stream)
        time.sleep(0.2)
    taken_s = time.monotonic() - began_s
    for stream in held:
        stream.close()
    return f"{len(held)} held after {taken_s:.1f} s"


def flood(order: dict[str, Any]) -> str:
    """`count` connections, each closed at once."""
    for _ in range(order["count"]):
        with suppress(OSError), dialled(order) as stream:
            stream.sendall(order["bytes"].encode("latin-1"))
    return ""


def datagrams(order: dict[str, Any]) -> str:
    """Each of `datagrams` (hexadecimal), `count` times. Returns what comes back."""
    found = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.bind((order["from"], 0))
        port.setblocking(False)
        for _ in range(order["count"]):
            for data in order["datagrams"]:
                with suppress(OSError):
                    port.sendto(bytes.fromhex(data), (order["host"], order["port"]))
        time.sleep(0.3)
        with suppress(OSError):
            while port.recv(4096):
                found += 1
    return f"{found} answers"


def frames(order: dict[str, Any]) -> str:
    """Whole Ethernet frames (hexadecimal), as they are, again and again for `seconds`."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as line:
        line.bind(("eth0", 0))
        until_s = time.monotonic() + order["seconds"]
        while time.monotonic() < until_s:
            for data in order["frames"]:
                line.send(bytes.fromhex(data))
            time.sleep(0.05)
    return ""


# --- somebody on the line ---


class Relay:
    """Passes on what goes to `port` of a host, keeps all of it, and can do something to it."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._to = order["host"], order["port"]
        self._listener = socket.create_server((order["from"], order["listen"]))
        self.kept: list[bytearray] = []  # what each connection said to the target
        self.deed = ""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection(self._to, TIMEOUT_S)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self.kept.append(bytearray())
            for ends in ((near, far, self.kept[-1]), (far, near, None)):
                threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, from_: socket.socket, to: socket.socket, kept: bytearray | None) -> None:
        with suppress(OSError):
            while data := from_.recv(65536):
                if kept is None:
                    to.sendall(data)
                    continue
                kept += data
                if not self.deed or data[0] != 0x17:  # application data: RFC 8446 5.1
                    to.sendall(data)
                    continue
                deed, self.deed = self.deed, ""
                to.sendall(_DEEDS[deed](data))
                if deed == "truncate":
                    break
        for end in (from_, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _records(data: bytes) -> list[bytes]:
    found = []
    while data:
        length = _RECORD_HEAD + int.from_bytes(data[3:5], "big")
        found.append(data[:length])
        data = data[length:]
    return found


def _swapped(data: bytes) -> bytes:
    """Two records in the wrong order; of one alone the two halves."""
    records = _records(data)
    if len(records) > 1:
        return b"".join([records[1], records[0], *records[2:]])
    middle = _RECORD_HEAD + (len(data) - _RECORD_HEAD) // 2
    return data[:_RECORD_HEAD] + data[middle:] + data[_RECORD_HEAD:middle]


_DEEDS: dict[str, Callable[[bytes], bytes]] = {
    "swap": _swapped,
    "repeat": lambda data: data + data,
    "truncate": lambda data: data[: len(data) // 2],
    "flip": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
}
_relay: Relay | None = None


def relay(order: dict[str, Any]) -> str:
    global _relay
    _relay = Relay(order)
    return "ready"


def do(order: dict[str, Any]) -> str:
    """This is done to the next data that passes."""
    assert _relay is not None
    _relay.deed = order["what"]
    return ""


def is_done(order: dict[str, Any]) -> str:
    assert _relay is not None
    return "" if _relay.deed else "done"


def replay(order: dict[str, Any]) -> str:
    """All that was said on an earlier connection, once more."""
    assert _relay is not None
    said = max(_relay.kept, key=len)
    with dialled(order) as stream:
        with suppress(OSError):
            stream.sendall(bytes(said))
            stream.shutdown(socket.SHUT_WR)
        return answer_of(stream)


# --- an agent that is paired, and hostile ---


def session(order: dict[str, Any]) -> str:
    """As the agent whose `identity` and `trust` this is: a session about `connection`, with a copy in
    `target`, that does `what`. Returns why it ended within `patience_s`; "": it has not.
    """
    import trio

    return trio.run(_session, order)


async def _session(order: dict[str, Any]) -> str:
    import trio

    from kit.recording import make_record
    from kit.scripted_source import RecordedJournal, ScriptedSession, connect_frame
    from replicator.addresses import Address
    from replicator.net.engine import encode_frame, encode_greeting
    from replicator.net.frames import MirrorBegin, MirrorEnd
    from replicator.ops import Kind
    from replicator.security.channel import Introduction, go_on, introduce, secure
    from replicator.security.settings import SecuritySettings

    settings = SecuritySettings(identity=order["identity"], trust=order["trust"], loopback_plain=False)
    address, uuid = Address(order["host"], order["port"]), order["connection"]
    stream = await trio.open_tcp_stream(*address, local_address=order["from"])
    async with stream:
        channel = await secure(stream, address, settings)
        mine = Introduction(uuid=order["uuid"], name="mallory")
        await introduce(channel, encode_greeting(uuid), mine)
        secured = await go_on(channel, settings)
        source = ScriptedSession(secured)
        answer = await source.open(connect_frame(order["target"], connection_uuid=uuid), order["uuid"], uuid)
        if not hasattr(answer, "received"):
            return f"refused: {answer}"
        journal = RecordedJournal()
        for name in (b"a", b"b", b"c"):
            journal.add(make_record(Kind.MKDIR, name, payload=_directory()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.listen)
            nursery.start_soon(source.session.heartbeat)
            await source.send(MirrorBegin("m", "full"))
            await source.send(MirrorEnd("m", True))
            await source.send(*journal.run(0, 1))
            await source.applied(1)
            whole = b"".join(map(bytes, encode_frame(*journal.run(1, 2))))
            deeds = {
                "replay": [b"".join(map(bytes, encode_frame(*journal.run(0, 1))))],
                "reorder": [b"".join(map(bytes, encode_frame(*journal.run(2, 3)))), whole],
                "truncate": [whole[: len(whole) // 2]],
                "oversize": [b"\xff\xff\xff\x7f" + whole[4:]],
                "count": [whole[:6] + b"\xff\xff" + whole[8:]],
                "flip": [whole[:-1] + bytes([whole[-1] ^ 1])],
                "type": [whole[:4] + b"\xee" + whole[5:]],
            }
            with suppress(trio.BrokenResourceError):
                for data in deeds[order["what"]]:
                    await secured.send_all(data)
                if order["what"] == "truncate":
                    await secured.send_eof()
            with trio.move_on_after(order["patience_s"]):
                await source.until_ended()
            nursery.cancel_scope.cancel()
        return source.ended


def _directory() -> bytes:
    from kit.recording import attributes_at

    return attributes_at(b"/").encode()


_ATTACKS: dict[str, Callable[[dict[str, Any]], str]] = {
    each.__name__: each
    for each in (plain, tls, loris, flood, datagrams, frames, relay, do, is_done, replay, session)
}


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = _ATTACKS[order["attack"]](order)
        except OSError as error:
            answer = f"refused: {error}"
        print(json.dumps(answer), flush=True)


class Mallory:
    """The program, on a host."""

    def __init__(self, process: Any) -> None:
        self._process = process

    def __call__(self, attack: str, **order: Any) -> str:
        self._process.stdin.write(json.dumps({"attack": attack, **order}) + "\n")
        self._process.stdin.flush()
        return str(json.loads(self._process.stdout.readline()))


@contextmanager
def mallory(command: list[str], directory: str) -> Iterator[Mallory]:
    """`command` begins what runs on that host; `directory`: of the tests."""
    import subprocess

    with subprocess.Popen(
        [*command, sys.executable, "-m", "kit.hostile"],
        cwd=directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Mallory(process)
        finally:
            process.kill()


if __name__ == "__main__":
    main()
