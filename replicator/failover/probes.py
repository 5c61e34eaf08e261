"""Signs of life that a source is asked for, besides the heartbeat: ICMP echo, a TCP port, HTTP, a command.

Each probe returns when there was an answer. Otherwise it raises `Silent`, with the reason for people, or
`Unable`: this host could not ask, which says nothing of the source.
"""

import errno
import os
import signal
import socket
import ssl
import struct
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import trio

from replicator import limits
from replicator.failovers import Check, CheckKind


class Silent(Exception):
    """No answer, or one that says that the service does not work."""


class Unable(Exception):
    """A fault of this host."""


OWN_FAULTS = frozenset(
    [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EPERM, errno.EACCES, errno.EAGAIN]
)
"""Of system calls: nothing left this host. EPERM: a packet filter of its own."""


async def probe(check: Check, address: str, environment: Mapping[str, str], timeout_s: float) -> None:
    """Ask once. `address`: an IP address, without prefix. Not for `CheckKind.AGENT`. `environment`: of a
    command, besides this process' own.
    """
    try:
        with trio.fail_after(timeout_s):
            if check.kind is CheckKind.PING:
                await ping(address)
            elif check.kind is CheckKind.TCP:
                await connect(address, int(check.argument))
            elif check.kind is CheckKind.HTTP:
                await request(address, check.argument)
            else:
                assert check.kind is CheckKind.COMMAND, check
                await command(check.argument, environment)
    except trio.TooSlowError:
        raise Silent(f"no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise judged(error) from None


def judged(error: OSError) -> Silent | Unable:
    """What an error of a system call means."""
    text = error.strerror or str(error)
    return Unable(text) if error.errno in OWN_FAULTS else Silent(text)


# --- ICMP: RFC 792, RFC 4443 ---

_ECHO = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
_NONCE_BYTES = 16
_V4, _V6 = (8, 0), (128, 129)  # types of request and reply
_ICMP6_FILTER, _ICMP6_FILTER_BYTES = 1, 32  # include/uapi/linux/icmpv6.h


async def ping(address: str) -> None:
    """Wait for the reply to one echo request. Needs CAP_NET_RAW."""
    is_v6 = ":" in address
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6) if is_v6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    asked, answered = _V6 if is_v6 else _V4
    nonce = os.urandom(_NONCE_BYTES)
    message = _echo(asked, nonce, checksum=not is_v6)  # the kernel fills that of ICMPv6 in: RFC 3542
    with trio.socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as raw:
        if is_v6:
            raw.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, _only(answered))
        await raw.connect((address, 0))
        await raw.send(message)
        while True:
            data = await raw.recv(2048)
            payload = data if is_v6 else data[(data[0] & 0x0F) * 4 :] if data else b""
            if len(payload) >= _ECHO.size and payload[0] == answered and payload[_ECHO.size :] == nonce:
                return


def _echo(kind: int, nonce: bytes, *, checksum: bool) -> bytes:
    identifier = int.from_bytes(nonce[:2], "big")
    message = _ECHO.pack(kind, 0, 0, identifier, 0) + nonce
    if not checksum:
        return message
    return _ECHO.pack(kind, 0, internet_checksum(message), identifier, 0) + nonce


def internet_checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _only(kind: int) -> bytes:
    """A filter that lets this type through: set bits are blocked."""
    words = [0xFFFFFFFF] * (_ICMP6_FILTER_BYTES // 4)
    words[kind >> 5] &= ~(1 << (kind & 31))
    return struct.pack(f"={len(words)}I", *words)


# --- TCP, HTTP ---


async def connect(address: str, port: int) -> None:
    """Wait until the port accepts."""
    with await _connected(address, port):
        pass


async def _connected(address: str, port: int) -> trio.socket.SocketType:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = trio.socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        await found.connect((address, port))
    except BaseException:
        found.close()
        raise
    return found


async def request(address: str, target: str) -> None:
    """Wait for the status of a GET; 400 and above are no answer. `target`: a path, or a URL: its host is only
    the name that is asked for, the connection goes to the address. Certificates are not looked at: it is
    about life, and not about identity.
    """
    url = urlsplit(target if "://" in target else f"http://{bracketed(address)}{target}")
    port = url.port or (443 if url.scheme == "https" else 80)
    path = url._replace(scheme="", netloc="", fragment="").geturl() or "/"
    text = f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nUser-Agent: dtd\r\nConnection: close\r\n\r\n"
    stream: trio.abc.Stream = trio.SocketStream(await _connected(address, port))
    if url.scheme == "https":
        stream = trio.SSLStream(stream, _anybody(), server_hostname=url.hostname)
    try:
        await stream.send_all(text.encode())
        status = await _status(stream)
    except (trio.BrokenResourceError, ssl.SSLError) as error:
        raise Silent(f"the connection broke: {error.__cause__ or error}") from None
    finally:
        await trio.aclose_forcefully(stream)
    if status >= 400:
        raise Silent(f"status {status}")


async def _status(stream: trio.abc.Stream) -> int:
    head = b""
    while b"\n" not in head:
        chunk = await stream.receive_some(1024)
        head += chunk
        if not chunk or len(head) > limits.PROBE_HEAD_BYTES:
            raise Silent("no HTTP status in the answer")
    words = head.split(b"\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise Silent("no HTTP status in the answer")
    return int(words[1][:3])


def _anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def bracketed(address: str) -> str:
    """As in a URL."""
    return f"[{address}]" if ":" in address else address


# --- a command ---


async def command(line: str, environment: Mapping[str, str]) -> None:
    """Wait until a line of the shell has ended with 0. Cancelled, its whole process group is killed."""
    process = await trio.lowlevel.open_process(
        ["/bin/sh", "-c", line],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **environment},
        cwd="/",
    )
    try:
        code = await process.wait()
    finally:
        with suppress(ProcessLookupError):  # what it has left behind goes as well
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()
    if code:
        raise Silent(f"ended with {code}" if code > 0 else f"killed by {signal.Signals(-code).name}")
