"""Hosts as network namespaces on one switch, whose cables can be pulled.

    with lan("alpha", "beta") as (alpha, beta):
        subprocess.run([*beta.command, "ip", "address"])
        alpha.cut()                   # nothing goes either way, and nobody is told
        alpha.mend()
        with alpha.deaf_to(beta): ... # what alpha sends to beta is lost, the other way goes on: half open
        alpha.send(signal.SIGSTOP)    # all that runs on it

Files are the machine's own, network and host name are not. A namespace ends with the last process in it, and
what keeps it open ends with this process, however that ends.
"""

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kit.patience import until

_NETWORK = "10.77.0"
_NETWORK_6 = "fd77:"
_HOLE = "hole"  # a cable of the switch that leads nowhere
_TIMEOUT_S = 20
_END_TIMEOUT_S = 30


class _Namespace:
    """A namespace of network and host name, kept by a process that ends with its standard input."""

    def __init__(self) -> None:
        keeper = ["unshare", "--net", "--uts", "sh", "-c", "ip link set lo up; echo ready; exec cat"]
        self._keeper = subprocess.Popen(keeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"ready\n"

    @property
    def pid(self) -> int:
        return self._keeper.pid

    @property
    def command(self) -> list[str]:
        """What to put before a command that is to run there."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", f"--uts=/proc/{self.pid}/ns/uts"]

    def run(self, *command: str) -> str:
        """Its output. Raises CalledProcessError."""
        done = subprocess.run(
            [*self.command, *command], check=True, timeout=_TIMEOUT_S, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    def ip(self, *arguments: str) -> str:
        return self.run("ip", *arguments)

    def close(self) -> None:
        self._keeper.communicate(timeout=_TIMEOUT_S)


class Host(_Namespace):
    """One host with one cable to the switch."""

    def __init__(self, switch: _Namespace, number: int) -> None:
        super().__init__()
        self.number = number
        self.address = f"{_NETWORK}.{number}"
        self.address_6 = f"{_NETWORK_6}:{number}"
        self._switch = switch
        self._port = f"port{number}"
        peer = ("peer", "name", "eth0", "netns", str(self.pid))
        switch.ip("link", "add", self._port, "type", "veth", *peer)
        switch.ip("link", "set", self._port, "master", "switch", "up")
        switch.run("tc", "qdisc", "add", "dev", self._port, "clsact")
        self.configure()
        (link,) = json.loads(self.ip("-json", "link", "show", "eth0"))
        self.hardware_address: str = link["address"]

    def configure(self) -> None:
        """What is in its configuration, and no other address: as after a boot."""
        self.ip("link", "set", "eth0", "down")
        self.ip("address", "flush", "dev", "eth0")
        self.ip("address", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")
        if os.path.exists("/proc/net/if_inet6"):
            self.ip("address", "add", f"{self.address_6}/64", "dev", "eth0", "nodad")

    def cut(self) -> None:
        self._switch.ip("link", "set", self._port, "down")

    def mend(self) -> None:
        self._switch.ip("link", "set", self._port, "up")

    def slow_down(self, kilobits_per_s: int) -> None:
        """What goes to this host."""
        command = [*self._switch.command, "tc", "qdisc", "replace", "dev", self._port, "root", "tbf"]
        command += ["rate", f"{kilobits_per_s}kbit", "burst", "32k", "latency", "200ms"]
        subprocess.run(command, check=True, timeout=_TIMEOUT_S)

    def block(self, other: "Host") -> None:
        """`other` gets nothing any more of what this host sends, broadcasts included."""
        arguments = ["pref", str(self.number), "protocol", "all", "u32"]
        arguments += ["match", "ether", "src", self.hardware_address]
        arguments += ["action", "mirred", "egress", "redirect", "dev", _HOLE]
        self._switch.run("tc", "filter", "add", "dev", other._port, "egress", *arguments)

    def unblock(self, other: "Host") -> None:
        self._switch.run("tc", "filter", "del", "dev", other._port, "egress", "pref", str(self.number))

    @contextmanager
    def deaf_to(self, other: "Host") -> Iterator[None]:
        """`other` does not get what this host sends; what it sends arrives."""
        self.block(other)
        try:
            yield
        finally:
            self.unblock(other)

    def addresses(self) -> set[str]:
        """That it has, without prefix; those of its configuration included."""
        found: set[str] = set()
        for link in json.loads(self.ip("-json", "address", "show", "dev", "eth0")):
            found.update(entry["local"] for entry in link.get("addr_info", []))
        return found

    # --- processes ---

    def processes(self) -> list[int]:
        """All that run on it, in this order of their start or about so."""
        mine = os.stat(f"/proc/{self.pid}/ns/net")
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != self.pid:
                with suppress(OSError):
                    if os.path.samestat(os.stat(f"/proc/{entry}/ns/net"), mine):
                        found.append(int(entry))
        return sorted(found)

    def send(self, number: signal.Signals) -> None:
        """To all of them: SIGSTOP is a pause of the host, as of a virtual machine that is being moved."""
        reached: set[int] = set()
        while new := set(self.processes()) - reached:  # one that was just being forked
            for process_id in new:
                with suppress(ProcessLookupError):
                    os.kill(process_id, number)
            reached |= new

    def end_all(self) -> None:
        """SIGKILL, and wait until nothing is open any more: one that is being killed still has its files."""
        with ExitStack() as stack:
            descriptors = []
            self.send(signal.SIGSTOP)  # nobody starts another one for whoever ends
            for process_id in self.processes():
                with suppress(ProcessLookupError):
                    descriptors.append(os.pidfd_open(process_id))
                    stack.callback(os.close, descriptors[-1])
            self.send(signal.SIGKILL)
            until(
                lambda: len(select.select(descriptors, [], [], 0)[0]) == len(descriptors),
                _END_TIMEOUT_S,
                what=f"processes of {self.address} do not end",
            )

    @property
    def sent_bytes(self) -> int:
        """On the cable, since it is there: all headers included."""
        for line in Path(f"/proc/{self.pid}/net/dev").read_text().splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == "eth0":
                return int(counters.split()[8])
        raise AssertionError("the host has no cable")


@contextmanager
def lan(*names: str) -> Iterator[list[Host]]:
    """One host per name, all on one switch."""
    with ExitStack() as stack:
        switch = _Namespace()
        stack.callback(switch.close)
        switch.ip("link", "add", "switch", "type", "bridge", "forward_delay", "0")
        switch.ip("link", "set", "switch", "up")
        switch.ip("link", "add", _HOLE, "type", "veth", "peer", "name", f"{_HOLE}-end")
        switch.ip("link", "set", _HOLE, "up")
        hosts = []
        for number in range(1, len(names) + 1):
            hosts.append(Host(switch, number))
            stack.callback(hosts[-1].close)
        yield hosts
