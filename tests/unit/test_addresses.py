"""How users spell addresses and destinations."""

import pytest

from replicator.addresses import (
    Address,
    Destination,
    normalise_path,
    parse_destination,
    parse_host_port,
)
from replicator.errors import UsageError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host", Address("host", 1500)),
        ("host:1600", Address("host", 1600)),
        ("10.0.0.1:1", Address("10.0.0.1", 1)),
        ("[::1]", Address("::1", 1500)),
        ("[fe80::1]:65535", Address("fe80::1", 65535)),
        ("a_b-c.example.org.", Address("a_b-c.example.org.", 1500)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_host_port(text) == address
    assert parse_host_port(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1500",
        "host:",
        "host:0",
        "host:65536",
        "host:x",
        "host:١",
        "::1",
        "[::1",
        "[x]:1",
        "a b",
        "-x",
        "h/x",
    ],
)
def test_impossible_addresses(text: str) -> None:
    with pytest.raises(UsageError):
        parse_host_port(text)


def test_loopback() -> None:
    assert all(parse_host_port(h).is_loopback for h in ("127.0.0.1", "127.9.9.9", "[::1]", "localhost"))
    assert not any(
        parse_host_port(h).is_loopback for h in ("0.0.0.0", "[::]", "10.0.0.1", "localhost.example.org")
    )
    assert parse_host_port("0.0.0.0").connectable_host == "127.0.0.1"
    assert parse_host_port("[::]").connectable_host == "::1"


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("/copy", Destination(None, "/copy")),
        ("/a:b/c", Destination(None, "/a:b/c")),
        ("host:/copy", Destination(Address("host", 1500), "/copy")),
        ("host:1600:/copy//x/", Destination(Address("host", 1600), "/copy/x")),
        ("[::1]:/copy", Destination(Address("::1", 1500), "/copy")),
        ("[::1]:1600:/a:b", Destination(Address("::1", 1600), "/a:b")),
        ("host:/a=b:/c", Destination(Address("host", 1500), "/a=b:/c")),
    ],
)
def test_destinations(text: str, destination: Destination) -> None:
    assert parse_destination(text) == destination


@pytest.mark.parametrize(
    "text", ["", "copy", "host:", "host:copy", "host:x:/copy", "::1:/copy", "h:/a/../b", "host/x:/y"]
)
def test_impossible_destinations(text: str) -> None:
    with pytest.raises(UsageError):
        parse_destination(text)


def test_paths() -> None:
    assert normalise_path("//a/./b//", "path") == "/a/b"
    assert normalise_path("/", "path") == "/"
    for path in ("a", "/a/../b", "/\0", "/" + "x" * 4095):
        with pytest.raises(UsageError):
            normalise_path(path, "path")
