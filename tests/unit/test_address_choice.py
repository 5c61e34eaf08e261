"""On which interface an address goes (FO-03), which are taken (FO-06), what is risky (FO-07). Pure."""

import ipaddress

import pytest

from replicator.errors import ReplicatorError, UsageError
from replicator.failover.addresses import Host, Place, Wanted, parse, place_of, risks, wanted
from replicator.failover.netlink import HostAddress, Link
from replicator.failovers import FailWhen, MonitorSettings, Take, WatchedAddress


def link(number: int, name: str, *, up: bool = True, loopback: bool = False) -> Link:
    return Link(number, name, bytes([2, 0, 0, 0, 0, number]), up, up, loopback, not loopback)


LO, ETH0, ETH1, DOWN = (
    link(1, "lo", loopback=True),
    link(2, "eth0"),
    link(3, "eth1"),
    link(4, "eth2", up=False),
)
HOST = Host(
    [LO, ETH0, ETH1, DOWN],
    [
        HostAddress(number, ipaddress.ip_interface(text))
        for number, text in [
            (1, "127.0.0.1/8"),
            (1, "10.7.0.0/16"),  # a route to nowhere
            (2, "10.0.0.2/8"),
            (3, "10.9.0.2/16"),
            (2, "2001:db8::2/64"),
            (4, "172.16.0.2/24"),
        ]
    ],
)


@pytest.mark.parametrize(
    ("address", "interface", "found"),
    [
        ("10.0.0.5/8", "", ETH0),
        ("10.9.0.5/16", "", ETH1),  # the narrowest network
        ("10.7.0.5/8", "", ETH0),  # not the loopback
        ("10.0.0.5/32", "", ETH0),
        ("2001:db8::5/64", "", ETH0),
        ("192.0.2.1/24", "eth1", ETH1),
    ],
)
def test_where_it_goes(address: str, interface: str, found: Link) -> None:
    assert place_of(Wanted(parse(address), interface), HOST) == Place(parse(address), found)


@pytest.mark.parametrize(
    ("address", "interface", "reason"),
    [
        ("192.0.2.1/24", "", "no interface of this host is in its network"),
        ("2001:db9::5/64", "", "no interface of this host is in its network"),
        ("10.0.0.5/8", "eth9", "has no interface eth9, but lo, eth0, eth1, eth2"),
        ("172.16.0.5/24", "", "interface eth2 of this host is down"),
    ],
)
def test_where_it_cannot_go(address: str, interface: str, reason: str) -> None:
    with pytest.raises(ReplicatorError, match=reason):
        place_of(Wanted(parse(address), interface), HOST)


@pytest.mark.parametrize(
    "text", ["10.0.0.5", "x/24", "127.0.0.1/8", "224.0.0.1/4", "fe80::1/64", "0.0.0.0/0"]
)
def test_what_is_no_address_of_a_service(text: str) -> None:
    with pytest.raises(UsageError, match=r"address '.*': (say its network|must be)"):
        parse(text)


ONE, TWO = WatchedAddress(address="10.0.0.5/8"), WatchedAddress(address="10.9.0.5/16", interface="eth1")
ALSO = WatchedAddress(address="10.0.0.6/8", monitored=False)


def settings(*addresses: WatchedAddress, take: Take = Take.MONITORED, any_: bool = False) -> MonitorSettings:
    fail_when = FailWhen.ANY if any_ else FailWhen.ALL
    return MonitorSettings(source_host="s", addresses=addresses, take=take, fail_when=fail_when)


def test_which_are_taken() -> None:
    assert wanted(settings(ONE, TWO, ALSO)) == [
        Wanted(parse("10.0.0.5/8")),
        Wanted(parse("10.9.0.5/16"), "eth1"),
    ]
    assert wanted(settings(ONE, ALSO, take=Take.ALL))[1] == Wanted(parse("10.0.0.6/8"))
    assert wanted(settings(ONE, ALSO, take=Take.NONE)) == []  # a cluster moves them


def test_what_may_put_an_address_on_two_hosts() -> None:
    assert risks(settings(ONE, TWO)) == risks(settings(ONE, any_=True)) == risks(settings(ONE, ALSO)) == []
    assert "may exist twice" in risks(settings(ONE, TWO, any_=True))[0]
    assert "10.0.0.6/8 will be taken without" in risks(settings(ONE, ALSO, take=Take.ALL))[0]
