"""Where an agent listens: ports (NT-02), IPv6, and the address that a connection's data goes to (CN-04)."""

import socket
from pathlib import Path

import pytest
import trio
from kit import dtd, machine
from kit.dtd import Agent

from replicator import limits
from replicator.addresses import Address, parse_host_port
from replicator.agent.listener import open_listeners, permitted
from replicator.agent.planning import address_of, check_route
from replicator.agent.state import Connection, ConnectionOptions
from replicator.errors import UsageError
from replicator.repset import ReplicationSet


@pytest.mark.parametrize(
    ("port", "taken"),
    [(1, limits.PORT), (1024, limits.PORT), (1025, 1025), (1500, 1500), (65535, 65535), (0, limits.PORT)],
)
def test_a_port_out_of_range_is_not_used(port: int, taken: int) -> None:
    assert permitted(Address("127.0.0.1", port)) == Address("127.0.0.1", taken)


async def test_all_addresses_are_those_of_both_families() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    listeners = await open_listeners(Address("::", dtd.free_port()))
    try:
        families = {listener.socket.family for listener in listeners}
        assert families == {socket.AF_INET, socket.AF_INET6}
        port = listeners[0].socket.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            await (await trio.open_tcp_stream(host, port)).aclose()
    finally:
        for listener in listeners:
            await listener.aclose()


@pytest.mark.parametrize("text", ["[fe80::1%eth0]:1600", "[::1]:1600", "10.0.0.7:1600", "backup-data:1600"])
def test_a_route_is_where_a_sender_dials(text: str) -> None:
    def connection(route: str, host: str = "backup") -> Connection:
        return Connection(
            uuid="u",
            id=1,
            repset=ReplicationSet("web"),
            target_host=host,
            target_port=1501,
            maps=(),
            options=ConnectionOptions(route=route),
            created=0.0,
        )

    own = Address("0.0.0.0", 1500)
    assert str(address_of(connection(text), own)) == text
    assert address_of(connection("10.0.0.7"), own) == Address("10.0.0.7", 1501)
    assert address_of(connection(""), own) == Address("backup", 1501)
    assert address_of(connection("", ""), own) == Address("127.0.0.1", 1500)
    assert address_of(connection(text, "Diagnostics"), own).host == "Diagnostics"
    assert parse_host_port(text).port == 1600


def test_a_route_without_a_port_has_that_of_the_target() -> None:
    target = Address("backup", 1501)
    made = Connection(
        uuid="u",
        id=1,
        repset=ReplicationSet("web"),
        target_host=target.host,
        target_port=target.port,
        maps=(),
        options=ConnectionOptions(route=check_route("10.0.0.7", target)),
        created=0.0,
    )
    assert address_of(made, Address("0.0.0.0", 1500)) == Address("10.0.0.7", 1501)


def test_a_route_is_refused_where_nothing_may_leave_the_host() -> None:
    backup = Address("backup", 1500)
    assert check_route("", Address("Diagnostics", 1500)) == ""
    assert check_route("10.0.0.7:1600", backup) == check_route("10.0.0.7:1600", None) == "10.0.0.7:1600"
    for wrong in ("10.0.0.7:70000", "10.0.0.7/24", "::1", "-"):
        with pytest.raises(UsageError, match="address"):
            check_route(wrong, backup)
    with pytest.raises(UsageError, match="nothing of a connection to Diagnostics leaves this host"):
        check_route("10.0.0.7:1600", Address("diagnostics", 1500))
    with pytest.raises(UsageError, match="Diagnostics is none"):  # and what is sent there arrives nowhere
        check_route("DIAGNOSTICS:1600", backup)


@pytest.mark.skipif(not machine.is_root(), reason="an agent needs root")
def test_a_port_in_use_is_an_event(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        agent = Agent(tmp_path / "home", "alpha")
        refused = agent.dtd("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        assert refused.code == 1 and "in use" in refused.err
    assert " 4046 error " in (agent.home / "log" / "dtd.log").read_text()
