"""Monitors as users write them."""

from typing import Any

import msgspec
import pytest

from replicator.errors import UsageError
from replicator.failover_settings import check_name, check_settings, parse_address, parse_check
from replicator.failovers import Check, CheckKind, MonitorSettings, Policy, Take, WatchedAddress

ADDRESS = WatchedAddress(address="10.0.0.5/24", interface="eth0")


def settings(*addresses: WatchedAddress, **more: Any) -> MonitorSettings:
    return MonitorSettings(source_host="alpha", addresses=addresses or (ADDRESS,), **more)


@pytest.mark.parametrize(
    ("text", "address", "interface"),
    [
        ("10.0.0.5/24@eth0", "10.0.0.5/24", "eth0"),
        ("10.0.0.5/24", "10.0.0.5/24", ""),
        ("10.0.0.5", "10.0.0.5/32", ""),
        ("FD00::0:5/64@br-lan.7", "fd00::5/64", "br-lan.7"),
        ("fd00::5", "fd00::5/128", ""),
    ],
)
def test_addresses(text: str, address: str, interface: str) -> None:
    assert parse_address(text) == WatchedAddress(address=address, interface=interface)


@pytest.mark.parametrize("text", ["", "alpha", "10.0.0.5/33", "10.0.0.5/24@", "10.0.0/24", "@eth0"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="address"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("agent", Check(CheckKind.AGENT)),
        ("ping", Check(CheckKind.PING)),
        ("tcp:22", Check(CheckKind.TCP, "22")),
        ("http:/health", Check(CheckKind.HTTP, "/health")),
        ("http:http://www:8080/health", Check(CheckKind.HTTP, "http://www:8080/health")),
        ("https://www/health?a=b:c", Check(CheckKind.HTTP, "https://www/health?a=b:c")),
        ("12*http:/health", Check(CheckKind.HTTP, "/health", 12)),
        ("3*https://www/", Check(CheckKind.HTTP, "https://www/", 3)),
        ("command:test -e /x:y", Check(CheckKind.COMMAND, "test -e /x:y")),
    ],
)
def test_checks(text: str, check: Check) -> None:
    assert parse_check(text) == check


@pytest.mark.parametrize(
    "text",
    [
        "", "agents", "agent:x", "ping:10.0.0.5", "tcp", "tcp:0", "tcp:65536", "tcp:http", "tcp:-1", "http:",
        "http:health", "http:ftp://x/", "http:http:///x", "http:http://x:99999/", "http:/a b", "http:/ü",
        "0*ping", "x*ping", "1001*ping", "*ping", "12*", "command:", "command: ", "command:a\0b", "http:http://[x/",
    ],
)  # fmt: skip
def test_what_is_no_check(text: str) -> None:
    with pytest.raises(UsageError, match="check"):
        parse_check(text)


def test_names() -> None:
    for name in ("web", "10.0.0.5", "a_b-c"):
        check_name(name)
    for name in ("", "-a", ".", "a b", "a/b", "ü", "x" * 101):
        with pytest.raises(UsageError, match="name"):
            check_name(name)


def test_settings_that_can_be() -> None:
    check_settings(settings())
    check_settings(settings(witness="gamma", automatic=True))
    check_settings(settings(witness="etcd://a:2379,[::1]:2379/replicator", automatic=True))
    check_settings(settings(fence_command="/bin/true", automatic=True))
    check_settings(settings(even_if_partitioned=True, automatic=True))
    check_settings(settings(ADDRESS, WatchedAddress(address="10.0.0.6/24", monitored=False)))
    check_settings(MonitorSettings(source_host="fd00::1", addresses=(ADDRESS,)))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (settings(automatic=True), "witness"),
        (MonitorSettings(source_host="a b", addresses=(ADDRESS,)), "host name"),
        (MonitorSettings(source_host="alpha", source_port=0, addresses=(ADDRESS,)), "port"),
        (MonitorSettings(source_host="alpha"), "at least one address"),
        (settings(msgspec.structs.replace(ADDRESS, monitored=False)), "at least one address"),
        (settings(ADDRESS, msgspec.structs.replace(ADDRESS, address="10.0.0.5/16")), "there twice"),
        (settings(msgspec.structs.replace(ADDRESS, address="FD00::5/64")), "must be written as"),
        (settings(msgspec.structs.replace(ADDRESS, interface="x" * 16)), "interface"),
        (settings(msgspec.structs.replace(ADDRESS, interface="a/b")), "interface"),
        (settings(msgspec.structs.replace(ADDRESS, interval_s=0.1)), "interval"),
        (settings(msgspec.structs.replace(ADDRESS, interval_s=float("nan"))), "interval"),
        (settings(msgspec.structs.replace(ADDRESS, misses=0)), "misses"),
        (settings(msgspec.structs.replace(ADDRESS, checks=())), "checks"),
        (settings(msgspec.structs.replace(ADDRESS, checks=(Check(CheckKind.PING),) * 2)), "there twice"),
        (settings(msgspec.structs.replace(ADDRESS, checks=(Check(CheckKind.TCP, "x"),))), "port"),
        (
            settings(msgspec.structs.replace(ADDRESS, checks=(parse_check("ping"), parse_check("2*ping")))),
            "there twice",
        ),
        (settings(witness="a:b:c"), "address"),
        (settings(witness="etcd://a:x/y"), "port"),
        (settings(witness="etcd://a:2379"), "PREFIX"),
        (settings(witness="etcds://agents:s3cret@a:2379/y"), "etcd_user"),
        (settings(policy=Policy.PREFER_NODE), "--prefer-node"),
        (settings(host_name="a_b c"), "host name"),
        (settings(drain_s=-1.0), "drain"),
        (settings(lag_max_s=-1.0), "max-lag"),
    ],
)
def test_settings_that_cannot_be(wrong: MonitorSettings, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        check_settings(wrong)


def test_which_addresses_are_taken() -> None:
    """FO-06, FO-08."""
    other = WatchedAddress(address="10.0.0.6/24", monitored=False)
    for take, taken in ((Take.MONITORED, (ADDRESS,)), (Take.ALL, (ADDRESS, other)), (Take.NONE, ())):
        assert settings(ADDRESS, other, take=take).taken == taken


def test_the_shortest_countdown() -> None:
    checks = (Check(CheckKind.PING), Check(CheckKind.TCP, "80", 2), Check(CheckKind.HTTP, "/", 9))
    address = msgspec.structs.replace(ADDRESS, checks=checks, interval_s=2.0, misses=5)
    assert address.timeout_s == 4.0
    assert msgspec.structs.replace(address, checks=checks[:1]).timeout_s == 10.0
