"""Hosts as network namespaces on one switch, whose cables can be pulled.

    with lan("alpha", "beta") as (alpha, beta):
        subprocess.run([*beta.command, "ip", "address"])
        alpha.cut()                   # nothing goes either way, and nobody is told
        alpha.mend()
        with alpha.deaf_to(beta): ... # what alpha sends to beta is lost, the other way goes on: half open

Files and processes are the machine's own. A namespace ends with the last process in it, and what keeps it
open ends with this process, however that ends.
"""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_NETWORK = "10.77.0"
_NOBODY = "02:00:00:00:00:01"  # a hardware address that no host has
_TIMEOUT_S = 20


class _Namespace:
    """A network namespace, kept by a process that ends with its standard input."""

    def __init__(self) -> None:
        keeper = ["unshare", "--net", "sh", "-c", "ip link set lo up; echo ready; exec cat"]
        self._keeper = subprocess.Popen(keeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"ready\n"

    @property
    def pid(self) -> int:
        return self._keeper.pid

    @property
    def command(self) -> list[str]:
        """What to put before a command that is to run there."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net"]

    def ip(self, *arguments: str) -> None:
        subprocess.run([*self.command, "ip", *arguments], check=True, timeout=_TIMEOUT_S)

    def close(self) -> None:
        self._keeper.communicate(timeout=_TIMEOUT_S)


class Host(_Namespace):
    """One host with one cable to the switch."""

    def __init__(self, switch: _Namespace, number: int) -> None:
        super().__init__()
        self.address = f"{_NETWORK}.{number}"
        self._switch = switch
        self._port = f"port{number}"
        peer = ("peer", "name", "eth0", "netns", str(self.pid))
        switch.ip("link", "add", self._port, "type", "veth", *peer)
        switch.ip("link", "set", self._port, "master", "switch", "up")
        self.ip("address", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")

    def cut(self) -> None:
        self._switch.ip("link", "set", self._port, "down")

    def mend(self) -> None:
        self._switch.ip("link", "set", self._port, "up")

    def slow_down(self, kilobits_per_s: int) -> None:
        """What goes to this host."""
        command = [*self._switch.command, "tc", "qdisc", "replace", "dev", self._port, "root", "tbf"]
        command += ["rate", f"{kilobits_per_s}kbit", "burst", "32k", "latency", "200ms"]
        subprocess.run(command, check=True, timeout=_TIMEOUT_S)

    @contextmanager
    def deaf_to(self, other: "Host") -> Iterator[None]:
        """`other` does not get what this host sends; what it sends arrives."""
        self.ip("neigh", "replace", other.address, "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
        try:
            yield
        finally:
            self.ip("neigh", "del", other.address, "dev", "eth0")

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
        hosts = []
        for number in range(1, len(names) + 1):
            hosts.append(Host(switch, number))
            stack.callback(hosts[-1].close)
        yield hosts
