"""Addresses move between hosts: neighbours notice, conflicts are found, nothing is left. On hosts that are
network namespaces on one switch; the kernel's own tools are the judges.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kit import machine
from kit.address_driver import Driver, driver
from kit.hosts import Host, lan
from kit.patience import until

from replicator.failovers import Monitor, MonitorSettings, Take, WatchedAddress

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not (machine.is_root() and machine.has_network_namespaces()), reason="needs network namespaces"
    ),
]
V4, V6 = "10.77.0.100", "fd77::100"
BOTH = (f"{V4}/24", f"{V6}/64")


class Lan(NamedTuple):
    source: Host
    target: Host
    client: Host


@pytest.fixture(scope="module")
def switch() -> Iterator[Lan]:
    with lan("source", "target", "client") as found:
        yield Lan(*found)


@pytest.fixture
def hosts(switch: Lan) -> Lan:
    """As after a boot. The source has the addresses, and the client has just talked to it."""
    run(switch.target, "ip", "link", "del", "eth1")
    for host in switch:
        host.mend()
        host.configure()
    for address in BOTH:
        switch.source.ip("address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
    for address in (V4, V6):
        assert reaches(switch.client, address, 100)
    return switch


@pytest.fixture
def target(hosts: Lan, tmp_path: Path) -> Iterator[Driver]:
    with driver(hosts.target, tmp_path / "target") as there:
        yield there


def monitor(
    *addresses: str, host_name: str = "", take: Take = Take.MONITORED, interface: str = ""
) -> Monitor:
    watched = tuple(WatchedAddress(address=address, interface=interface) for address in addresses or BOTH)
    settings = MonitorSettings(source_host="source", addresses=watched, host_name=host_name, take=take)
    return Monitor(uuid="group", name="group", settings=settings)


def run(host: Host, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*host.command, *command], capture_output=True, text=True, timeout=30, check=False)


KNOCK = """
import socket, sys, time
address, times = sys.argv[1], int(sys.argv[2])
answers = 0
while times:
    times -= 1
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as s:
        s.settimeout(0.02)
        try:
            s.connect((address, 9))
        except ConnectionRefusedError:  # its kernel has answered
            print(time.time(), flush=True)
            answers += 1
            if times < 1000:
                break
        except OSError:
            pass
    time.sleep(0.002)
sys.exit(not answers)
"""
"""Asks a port that nobody listens on, again and again; prints when there was an answer. Less than 1,000
times: until there is one."""


def reaches(host: Host, address: str, tries: int = 5) -> bool:
    return run(host, sys.executable, "-c", KNOCK, address, str(tries)).returncode == 0


def has(host: Host) -> list[str]:
    """Addresses as ip(8) sees them, without those of the host itself."""
    listed = json.loads(run(host, "ip", "-j", "address", "show", "dev", "eth0").stdout)
    found = [f"{a['local']}/{a['prefixlen']}" for a in listed[0]["addr_info"] if a["scope"] == "global"]
    own = {host.address, *(f"fd77::{number}" for number in range(1, 9))}
    return [address for address in found if address.split("/")[0] not in own]


def mac(host: Host) -> str:
    listed = json.loads(run(host, "ip", "-j", "link", "show", "dev", "eth0").stdout)
    return str(listed[0]["address"])


def believed(host: Host, address: str) -> str:
    """The MAC at which a host believes an address to be."""
    listed: list[dict[str, Any]] = json.loads(run(host, "ip", "-j", "neigh", "show", "to", address).stdout)
    return str(listed[0].get("lladdr", "")) if listed else ""


def test_neighbours_believe_the_target_at_once_though_they_ask_nobody(hosts: Lan, target: Driver) -> None:
    for address in (V4, V6):
        assert believed(hosts.client, address) == mac(hosts.source)
    hosts.source.cut()
    answer = target.ask("take", monitor())
    assert answer["error"] == ""
    assert answer["result"]["taken"] == [f"{address} on eth0" for address in BOTH]
    assert sorted(has(hosts.target)) == sorted(BOTH)
    for address in (V4, V6):
        until(lambda a=address: believed(hosts.client, a) == mac(hosts.target), 5)
        assert reaches(hosts.client, address)
    assert [event.split()[0] for event in answer["events"]] == ["9320", "9320"]


def test_a_source_that_still_has_its_addresses_is_named(hosts: Lan, target: Driver) -> None:
    for what in ("probe", "take"):
        answer = target.ask(what, monitor())
        for address in BOTH:
            assert f"{address} is in use: {mac(hosts.source)} answers on eth0" in answer["error"]
        assert answer["seconds"] < 2
    assert has(hosts.target) == []
    assert believed(hosts.client, V4) == mac(hosts.source)
    forced = target.ask("take", monitor(), forced=True)
    assert forced["error"] == "" and "forced in spite of" in forced["said"][0]
    assert sorted(has(hosts.target)) == sorted(BOTH)
    until(lambda: believed(hosts.client, V4) == mac(hosts.target), 5)


def test_what_was_free_is_asked_for_again_after_it_was_taken(hosts: Lan, target: Driver) -> None:
    hosts.source.cut()
    assert target.ask("probe", monitor())["error"] == ""
    assert target.ask("take", monitor())["error"] == ""
    target.ask("give_up", monitor())
    hosts.source.mend()
    until(lambda: reaches(hosts.target, V4), 10)
    assert "is in use" in target.ask("take", monitor())["error"]


def test_one_conflict_of_two_takes_nothing(hosts: Lan, target: Driver) -> None:
    answer = target.ask("take", monitor(f"{V4}/24", "10.77.0.101/24"))
    assert V4 in answer["error"] and "10.77.0.101" not in answer["error"]
    assert has(hosts.target) == []


@pytest.mark.parametrize("address", ["10.77.0.102/24", "fd77::102/64"])
def test_two_that_want_the_same_address_find_one_another(
    hosts: Lan, target: Driver, tmp_path: Path, address: str
) -> None:
    hosts.source.cut()
    with driver(hosts.client, tmp_path / "other") as other:
        answers: dict[str, dict[str, Any]] = {}

        def ask(name: str, there: Driver) -> None:
            answers[name] = there.ask("probe", monitor(address))

        for there in (target, other):  # both have imported everything
            there.ask("held", "group")
        threads = [threading.Thread(target=ask, args=x) for x in (("one", target), ("other", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert "is about to take it, too" in answers["one"]["error"] + answers["other"]["error"]


def test_a_target_that_is_cut_off_itself_takes_nothing(hosts: Lan, target: Driver) -> None:
    hosts.target.cut()
    answer = target.ask("probe", monitor())
    assert f"{BOTH[0]} on eth0: no link there: is it this host that is cut off?" in answer["error"]
    assert target.ask("take", monitor(), forced=True)["error"] == ""  # a person knows better


def test_giving_back_leaves_nothing(hosts: Lan, target: Driver) -> None:
    hosts.source.cut()
    assert target.ask("take", monitor())["error"] == ""
    answer = target.ask("give_up", monitor())
    assert sorted(answer["said"]) == sorted(f"{address} on eth0" for address in BOTH)
    assert has(hosts.target) == []
    assert target.ask("held", "group")["result"] == []
    assert target.ask("give_up", monitor())["said"] == []


def test_where_an_address_goes(hosts: Lan, target: Driver) -> None:
    def error(*addresses: str, interface: str = "") -> str:
        return str(target.ask("probe", monitor(*addresses, interface=interface))["error"])

    assert error("192.0.2.5/24").startswith("192.0.2.5/24: no interface of this host is in its network")
    assert "has no interface eth7, but lo, eth0" in error("192.0.2.5/24", interface="eth7")
    assert error("192.0.2.5/24", interface="eth0") == ""
    assert error(f"{hosts.target.address}/24").endswith("is an address of this host itself, on eth0")
    hosts.target.ip("link", "set", "eth0", "down")
    assert error("192.0.2.5/24", interface="eth0").endswith("interface eth0 of this host is down")
    assert error("10.77.0.5").startswith("address '10.77.0.5': say its network")


def test_several_interfaces(hosts: Lan, target: Driver) -> None:
    """FO-03."""
    hosts.target.ip("link", "add", "eth1", "type", "veth", "peer", "name", "other")
    for name in ("eth1", "other"):
        hosts.target.ip("link", "set", name, "up")
    hosts.target.ip("address", "add", "10.88.0.2/16", "dev", "eth1")
    hosts.source.cut()
    answer = target.ask("take", monitor(f"{V4}/24", "10.88.9.9/16", "10.88.9.10/32"))
    assert answer["result"]["taken"] == [f"{V4}/24 on eth0", "10.88.9.9/16 on eth1", "10.88.9.10/32 on eth1"]


def test_addresses_of_others_survive_the_first_of_their_network(hosts: Lan, target: Driver) -> None:
    """The kernel removes those that came after it."""
    assert target.ask("take", monitor("192.0.2.5/24", interface="eth0"))["error"] == ""
    hosts.target.ip("address", "add", "192.0.2.9/24", "dev", "eth0")
    assert sorted(has(hosts.target)) == ["192.0.2.5/24", "192.0.2.9/24"]
    assert target.ask("give_up", monitor())["said"] == ["192.0.2.5/24 on eth0"]
    assert has(hosts.target) == ["192.0.2.9/24"]


def test_after_a_reboot_they_are_put_up_again_unless_somebody_has_them(hosts: Lan, tmp_path: Path) -> None:
    hosts.source.cut()
    with driver(hosts.target, tmp_path) as target:
        assert target.ask("take", monitor())["error"] == ""
    reboot(hosts.target)
    with driver(hosts.target, tmp_path) as target:
        assert target.ask("restore", "group")["error"] == ""
        assert sorted(has(hosts.target)) == sorted(BOTH)
        assert target.ask("restore", "group")["events"] == []  # it was no reboot
    reboot(hosts.target)
    hosts.source.mend()
    until(lambda: reaches(hosts.target, V4), 10)
    with driver(hosts.target, tmp_path) as target:
        assert "is in use" in target.ask("restore", "group")["error"]
        assert has(hosts.target) == []


def reboot(host: Host) -> None:
    for address in has(host):
        host.ip("address", "del", address, "dev", "eth0")


def test_what_another_host_owns_goes(hosts: Lan, tmp_path: Path) -> None:
    hosts.source.cut()
    with driver(hosts.target, tmp_path) as target:
        assert target.ask("take", monitor())["error"] == ""
        target.kill()
    with driver(hosts.target, tmp_path) as target:
        assert target.ask("groups")["result"] == ["group"]
        target.ask("give_up_all", ["another"])
        assert sorted(has(hosts.target)) == sorted(BOTH)
        target.ask("give_up_all", ["group"])
        assert has(hosts.target) == []


def test_a_source_drops_its_addresses_and_gets_them_back(hosts: Lan, tmp_path: Path) -> None:
    with driver(hosts.source, tmp_path) as source:
        answer = source.ask("drop", "group", list(BOTH))
        assert sorted(answer["result"]) == sorted(f"{address} on eth0" for address in BOTH)
        assert has(hosts.source) == []
        assert source.ask("drop", "group", list(BOTH))["result"] == []
        hosts.source.ip("address", "add", BOTH[0], "dev", "eth0")  # as the system does at boot
        assert source.ask("drop", "group", list(BOTH))["result"] == [f"{BOTH[0]} on eth0"]
    with driver(hosts.source, tmp_path) as source:
        answer = source.ask("put_back", "group")
        assert answer["error"] == ""
        assert sorted(has(hosts.source)) == sorted(BOTH)
        assert source.ask("groups")["result"] == []  # they are the system's now


def test_a_source_whose_system_does_not_put_them_up_at_boot_gets_them_back(
    hosts: Lan, tmp_path: Path
) -> None:
    hosts.source.configure()
    with driver(hosts.source, tmp_path) as source:
        assert source.ask("drop", "group", list(BOTH))["result"] == []
        assert source.ask("put_back", "group")["error"] == ""
        assert sorted(has(hosts.source)) == sorted(BOTH)


def test_neighbours_that_believe_a_source_that_came_back_are_told_again(hosts: Lan, tmp_path: Path) -> None:
    """Its system puts its addresses up at boot, and announces them; then its agent drops them."""
    hosts.source.cut()
    with driver(hosts.target, tmp_path / "target", [0.1]) as target:
        assert target.ask("take", monitor())["error"] == ""
        time.sleep(0.5)  # the target has said all that it says by itself
        hosts.source.mend()
        with driver(hosts.source, tmp_path / "source", [0.1]) as source:
            for address in BOTH:
                hosts.source.ip("address", "del", address, "dev", "eth0")
            assert source.ask("take", monitor(), forced=True)["error"] == ""
            until(lambda: believed(hosts.client, V4) == mac(hosts.source), 5)
            source.ask("drop", "group", list(BOTH))
        assert believed(hosts.client, V4) == mac(hosts.source)  # nobody has told it
        target.ask("announce", "group")
        for address in (V4, V6):
            until(lambda a=address: believed(hosts.client, a) == mac(hosts.target), 5)


def test_a_host_takes_a_name_and_gives_it_back(hosts: Lan, tmp_path: Path) -> None:
    named = monitor(host_name="source")
    run(hosts.target, "hostname", "target")
    with driver(hosts.target, tmp_path) as target:
        answer = target.ask("set_host_name", named)
        assert answer["error"] == "" and answer["events"][0].startswith("9323 this host is called source")
        assert target.ask("set_host_name", named)["error"] == ""  # again, after a crash
        target.ask("give_up", named)
        assert run(hosts.target, "hostname").stdout == "target\n"
        target.ask("set_host_name", named)
    run(hosts.target, "hostname", "target")  # as after a reboot
    with driver(hosts.target, tmp_path) as target:
        target.ask("restore", "group")
        assert run(hosts.target, "hostname").stdout == "source\n"
        target.ask("give_up_all", ["group"])
        assert run(hosts.target, "hostname").stdout == "target\n"


def test_a_client_gets_through_within_a_second(hosts: Lan, target: Driver, tmp_path: Path) -> None:
    """From the order to take an address to the first answer, for a client that never stopped asking."""
    log = tmp_path / "ping"
    target.ask("held", "group")  # all is imported
    with ExitStack() as stack:
        file = stack.enter_context(log.open("w"))
        knocking = subprocess.Popen(
            [*hosts.client.command, sys.executable, "-c", KNOCK, V4, "100000"], stdout=file
        )
        stack.callback(knocking.wait, 10)
        stack.callback(knocking.kill)
        until(lambda: len(answers(log)) > 20, 10)
        hosts.source.cut()
        time.sleep(0.1)
        began = time.time()
        assert target.ask("take", monitor())["error"] == ""
        until(lambda: answers(log)[-1] > began, 10)
    took_s = min(at for at in answers(log) if at > began) - began
    assert took_s < 1
    print(f"first answer after {took_s:.3f} s")


def answers(log: Path) -> list[float]:
    return [float(line) for line in log.read_text().splitlines() if line.count(".") == 1]
