"""A service that fails over: hosts that are namespaces, with agents and disks that lose power, and a client.

    with failover_lab(tmp_path) as lab:
        lab.protect()                          # the service's directory, from source to target
        lab.serve(lab.source)                  # on the virtual address
        with lab.client() as client:
            failed_s = lab.cut(lab.source)
            ...
            answer = lab.first_answer(client, failed_s)

A client that writes all the time (`kit.ledger_client`) says when the service was back and what it was told is
done; `kit.ledger.rows` says what there is.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from kit import ledger, leftovers
from kit.dtd import Agent, pair
from kit.hosts import Host, lan
from kit.ledger_client import Acknowledged, Answer
from kit.patience import until
from kit.power_disk import PowerDisk, power_disk
from kit.snapshots import beneath
from kit.trees import assert_same_tree
from kit.two_hosts import small_disk
from kit.writers import PATH, Writer
from replicator.child.control import Control
from replicator.failovers import Phase
from replicator.paths import Home

VIRTUAL = "10.77.0.100"
VIRTUAL_6 = "fd77::100"
SERVICE_PORT = 8080
MONITOR = "service"
DISK_BYTES = 1 << 30
MEMORY_DISK = "256m"
CONFIGURATION = """\
[queue]
memory_directory = "{memory}"
memory_size = "32 MiB"
[failover]
scripts_for_others = "{scripts}"
"""
_SCRIPT = """\
#!/bin/sh
case $1 in
start)
    PYTHONPATH={path} setsid {command} >>{log} 2>&1 </dev/null &
    echo $! >{note}
    ;;
stop)
    pid=$(cat {note}) || exit 0
    kill "$pid"
    while grep -qs . "/proc/$pid/cmdline"; do sleep 0.05; done  # empty: it has ended, whoever waits for it
    ;;
esac
"""


class Machine:
    """A host, its agent, and the disk with the agent's home and the host's files."""

    def __init__(self, directory: Path, name: str, host: Host, disk: PowerDisk) -> None:
        self.name = name
        self.host = host
        self.disk = disk
        self.memory = directory / f"{name}-memory"
        self.data = disk.path / "data"
        self.configured: list[str] = []  # virtual addresses that it has from boot on
        self.agent = Agent(disk.path / "home", name, host)
        self.agent.listen = f"0.0.0.0:{self.agent.port}"  # on virtual addresses as well
        self.agent.boot_id_file = directory / f"{name}-boot-id"
        self.agent.boot_id_file.write_text(f"{uuid.uuid4()}\n")
        self.agent.home.mkdir()
        (self.agent.home / "replicator.toml").write_text(
            CONFIGURATION.format(memory=self.memory, scripts=directory)
        )
        subprocess.run(["sync", "-f", disk.path], check=True, timeout=60)

    @property
    def root(self) -> Path:
        """The captured directory of the source, or the copy of it."""
        return self.data

    def add_address(self, address: str) -> None:
        prefix, options = (64, ("nodad",)) if ":" in address else (24, ())
        self.host.ip("address", "add", f"{address}/{prefix}", "dev", "eth0", *options)

    def remove_address(self, address: str) -> None:
        self.host.ip("address", "del", f"{address}/{64 if ':' in address else 24}", "dev", "eth0")

    def has(self, address: str) -> bool:
        return address in self.host.addresses()

    # --- power ---

    def lose_power(self) -> float:
        """What was not synced is gone, and all that ran. Returns when, by CLOCK_MONOTONIC."""
        self.host.send(signal.SIGSTOP)  # so that none sees its disk go
        self.host.cut()
        moment_s = time.monotonic()
        self.disk.cut_power()
        self.host.end_all()
        self.agent.kill()
        return moment_s

    def boot(self, *, start: bool = True) -> None:
        """The disk as the device had it, the addresses of its configuration, empty memory."""
        self.unmount_all()
        self.disk.boot()
        for directory in self.memory.iterdir():
            shutil.rmtree(directory)
        assert self.agent.boot_id_file is not None
        self.agent.boot_id_file.write_text(f"{uuid.uuid4()}\n")
        self.host.configure()
        for address in self.configured:
            self.add_address(address)
        self.host.mend()
        if start:
            self.agent.start()

    def unmount_all(self) -> None:
        """What is mounted below its disk. Nobody serves it any more."""
        for point in leftovers.mounts_below(self.disk.path):
            subprocess.run(["umount", "-l", point], check=False, timeout=20)

    def pause(self) -> None:
        """It stands still, as a virtual machine that is being moved: its kernel answers nobody either."""
        self.host.cut()
        self.host.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.host.send(signal.SIGCONT)
        self.host.mend()


class Client:
    """A client of the service, while it runs and afterwards."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    @property
    def told(self) -> Acknowledged:
        return Acknowledged.of(self._writer.output)

    def first_answer(self, moment_s: float, timeout_s: float = 60) -> Answer:
        """To a request that was made after that moment. AssertionError: none came."""
        answer: Answer = until(lambda: self.told.first_sent_after(moment_s), timeout_s)
        return answer

    def stop(self) -> Acknowledged:
        return Acknowledged.of(self._writer.stop())


class FailoverLab:
    """Use `failover_lab`."""

    def __init__(self, directory: Path, machines: list[Machine], client_host: Host, mode: str) -> None:
        self.directory = directory
        self.source, self.target, *others = machines
        self.witness = others[0] if others else None
        self.machines = machines
        self.mode = mode  # SQLite's journal mode
        self.client_host = client_host
        self._serial = 0
        self._services: list[subprocess.Popen[bytes]] = []

    # --- what is protected, and the service in it ---

    def protect(self, *, synchronous: bool = False) -> None:
        """`synchronous`: what SQLite syncs, it syncs on both hosts."""
        self.source.root.mkdir(exist_ok=True)
        destination = f"{self.target.agent.address}:{self.target.root}"
        self.source.agent.json("protect", self.source.root, destination, "--wait")
        if synchronous:
            assert self.source.agent.dtctl("mount", "set", self.source.root, "sync=fsync").code == 0
        self.own_address()

    def become_cold(self) -> None:
        """A loss of power of the source from now on costs what is changed from now on, and nothing else."""
        (mount,) = self.source.agent.json("mount", "list")

        async def ask() -> Any:
            async with Control(Home(str(self.source.agent.home)).socket("capture", mount["id"])) as capture:
                return await capture.call("status")

        until(lambda: not trio.run(ask)["hot"], 60, 0.5)

    def own_address(self) -> None:
        """The virtual address is the source's, from now on and after each boot."""
        self.source.configured = [VIRTUAL]
        self.source.add_address(VIRTUAL)

    @property
    def status(self) -> dict[str, Any]:
        (status,) = self.source.agent.json("status")
        assert isinstance(status, dict)
        return status

    # --- failover ---

    def monitor(
        self,
        *options: str,
        automatic: bool = True,
        interval_s: float = 1.0,
        misses: int = 3,
        serve: bool = True,
        source: str = "",
    ) -> None:
        """The target watches the virtual address, with the witness if there is one. `serve`: it starts the
        service when it has taken over. `source`: the address by which it knows the source.
        """
        address = f"{source}:{self.source.agent.port}" if source else self.source.agent.address
        command = ["failover", "add", address, "--name", MONITOR]
        command += ["--address", f"{VIRTUAL}/24@eth0", "--interval", str(interval_s), "--misses", str(misses)]
        if self.witness is not None:
            command += ["--witness", self.witness.agent.address]
        elif automatic:
            command += ["--even-if-partitioned"]
        if automatic:
            command += ["--automatic"]
        if serve:
            here, there = self.service_script(self.target), self.service_script(self.source)
            for script in (
                f"post-failover={here} start",
                f"pre-failback={here} stop",
                f"source-post-failback={there} start",
            ):
                command += ["--script", script]
        self.target.agent.json(*command, *options)
        if self.witness is not None:
            until(lambda: self.group["armed"], 30, 0.1)

    @property
    def group(self) -> dict[str, Any]:
        """The monitor, as `dtctl failover show` shows it."""
        found = self.target.agent.json("failover", "show", MONITOR)
        assert isinstance(found, dict)
        return found

    def phase_becomes(self, phase: Phase, timeout_s: float = 30) -> dict[str, Any]:
        found: dict[str, Any] = until(lambda: (now := self.group)["phase"] == phase and now, timeout_s, 0.1)
        return found

    def restore_is_required(self) -> None:
        """At the source, which has found itself superseded."""
        until(lambda: self.status["target_data_state"] == "Restore Required", 60, 0.2)

    def follow(self) -> None:
        """A person decides at the source, which has found itself superseded, who survives."""
        self.restore_is_required()
        self.source.agent.json("failover", "follow", MONITOR)

    def is_exact(self) -> bool:
        status = self.status
        return status["target_data_state"] == "OK" and not status["queued_ops"]

    def assert_equal(self) -> None:
        """What the storage below the source's mount has, and the copy."""
        (connection,) = self.source.agent.json("status")
        assert self.source.agent.dtctl("wait", str(connection["id"]), "--timeout", "50").code == 0
        (mount,) = self.source.agent.json("mount", "list")
        with beneath(self.source.agent.home, mount["id"]) as below:
            assert_same_tree(below, self.target.root)

    def recovery_point(self) -> float | None:
        """When the source did the last change that was applied, as the target tells, by clocks: seconds."""
        reports = self.target.agent.json("failover", "reports", MONITOR)
        points = [copy["applied_until"] for copy in reports[-1]["copies"]]
        return min((point for point in points if point is not None), default=None)

    def fail_back(self, order: str) -> dict[str, Any]:
        """Returns the report. `order`: "restore-first", "failback-first", or "stay", which swaps `source` and
        `target`.
        """
        how = ("--stay",) if order == "stay" else ("--order", order)
        report = self.target.agent.json("failback", MONITOR, *how, "--yes")
        assert isinstance(report, dict)
        if order == "stay" and report["outcome"] == "completed":
            self.source, self.target = self.target, self.source
        return report

    def home_has_everything(self) -> None:
        """The former source follows, and lacks nothing that the target has."""

        def exact() -> bool:
            shown = self.target.agent.dtctl("failback", MONITOR, "--dry-run", "--json")
            return shown.code == 0 and "has everything" in " ".join(shown.json["preview"]["state"])

        until(exact, 90, 0.3)

    def history(self) -> list[str]:
        """What happened to the monitor: a word each."""
        return [entry["what"] for entry in self.target.agent.json("failover", "history", MONITOR)]

    # --- the service ---

    def service_command(self, machine: Machine, directory: Path | None = None) -> list[str]:
        command = [sys.executable, "-m", "kit.ledger", str(directory or machine.root)]
        return [*command, VIRTUAL, str(SERVICE_PORT), self.mode, machine.name]

    def serve(self, machine: Machine, directory: Path | None = None) -> None:
        """Start the service there; it ends with the host."""
        with open(self.directory / f"service-{machine.name}.log", "ab") as output:
            service = subprocess.Popen(
                [*machine.host.command, *self.service_command(machine, directory)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": PATH},
            )
        self._services.append(service)

    def service_script(self, machine: Machine) -> Path:
        """`start` and `stop`, as an administrator would write it."""
        path = self.directory / f"service-{machine.name}"
        command = " ".join(map(str, self.service_command(machine)))
        path.write_text(_SCRIPT.format(path=PATH, command=command, note=f"{path}.pid", log=f"{path}.log"))
        path.chmod(0o755)
        return path

    def end_service(self, machine: Machine) -> None:
        """Whoever has started it."""
        for process_id in machine.host.processes():
            with suppress(OSError):
                if b"kit.ledger\0" in Path(f"/proc/{process_id}/cmdline").read_bytes():
                    os.kill(process_id, signal.SIGTERM)
                    until(lambda process_id=process_id: process_id not in machine.host.processes())

    @contextmanager
    def client(self, machine: Machine | None = None) -> Iterator[Client]:
        """On a host of its own, or on that of `machine`: that one's network may be cut."""
        self._serial += 1
        host = machine.host if machine else self.client_host
        first = self._serial * 1_000_000_000
        arguments = (VIRTUAL, str(SERVICE_PORT), str(first))
        writer = Writer(self.directory / f"client-{self._serial}", "kit.ledger_client", *arguments, host=host)
        try:
            yield Client(writer)
        finally:
            writer.close()

    @contextmanager
    def overload(self, machine: Machine) -> Iterator[None]:
        """Its processors and its disk have too much to do."""
        output = self.directory / f"overload-{machine.name}"
        writer = Writer(output, "kit.overload", machine.disk.path / "overload", host=machine.host)
        try:
            yield
            writer.stop()
        finally:
            writer.close()

    def rows(self, directory: Path) -> list[int]:
        """Of a database that nobody writes to."""
        return ledger.rows(directory, self.directory / "scratch")

    def served_rows(self) -> list[int]:
        """As the service itself tells a client."""
        program = f"from urllib.request import urlopen; print(urlopen('http://{VIRTUAL}:{SERVICE_PORT}/').read().decode())"
        return [int(line) for line in self.client_host.run(sys.executable, "-c", program).split()]

    # --- what happens ---

    def cut(self, machine: Machine) -> float:
        """Its cable. Returns when, by CLOCK_MONOTONIC."""
        machine.host.cut()
        return time.monotonic()

    @contextmanager
    def apart(self, one: Machine, other: Machine) -> Iterator[None]:
        """Neither hears the other; both hear all others."""
        with one.host.deaf_to(other.host), other.host.deaf_to(one.host):
            yield

    def holders(self, address: str = VIRTUAL) -> list[str]:
        """Who has it, cut off or not."""
        return [machine.name for machine in self.machines if machine.has(address)]

    def close(self) -> None:
        """All processes and mounts of all hosts, whatever state they are in."""
        for machine in self.machines:
            machine.host.end_all()
            machine.agent.kill()
            machine.unmount_all()
        for service in self._services:
            service.wait(30)

    def told(self) -> str:
        """For whoever looks into a test that failed."""
        texts = [f"holders of {VIRTUAL}: {self.holders()}"]
        for machine in self.machines:
            if machine.agent.process is None:
                texts.append(f"--- {machine.name}: no agent")
                continue
            for words in (
                ("failover", "history"),
                ("failover", "guards"),
                ("failover", "reports", MONITOR),
                ("status",),
                ("events",),
            ):
                texts.append(f"--- {machine.name}: dtctl {' '.join(words)}")
                with suppress(subprocess.TimeoutExpired):
                    done = machine.agent.dtctl(*words)
                    texts.append(done.out[-6000:] + done.err)
            texts.append((machine.agent.home / "dtd.out").read_text()[-4000:])
        for log in self.directory.glob("service-*.log"):
            texts.append(f"--- {log.name}\n{log.read_text()[-2000:]}")
        return "\n".join(texts)

    def only_holder_becomes(self, name: str, timeout_s: float = 30) -> None:
        until(lambda: self.holders() == [name], timeout_s, 0.1)


def announce(machine: Machine, address: str) -> None:
    """By hand: a gratuitous ARP (RFC 826, 5227), that neighbours learn where an IPv4 address is now."""
    program = f"""
import socket, struct
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0x0806))
mac, ip = bytes.fromhex("{machine.host.hardware_address.replace(":", "")}"), socket.inet_aton("{address}")
raw.send(b"\\xff" * 6 + mac + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1) + mac + ip + b"\\0" * 6 + ip)
"""
    machine.host.run(sys.executable, "-c", program)


@contextmanager
def failover_lab(
    directory: Path, *, witness: bool = False, mode: str = "wal", start: bool = True, planted: str = ""
) -> Iterator[FailoverLab]:
    """Agents started, nothing protected; everything is down afterwards. `mode`: SQLite's journal mode.
    `planted`: a mistake that all agents have, see `kit/boot`.
    """
    names = ["source", "target"] + ["witness"] * witness
    with ExitStack() as stack:
        *hosts, client_host = stack.enter_context(lan(*names, "client"))
        machines = []
        for name, host in zip(names, hosts, strict=True):
            disk = stack.enter_context(power_disk(directory / f"{name}-disk", DISK_BYTES))
            stack.enter_context(small_disk(directory / f"{name}-memory", MEMORY_DISK))
            machines.append(Machine(directory, name, host, disk))
            machines[-1].agent.planted = planted
        pair(*(machine.agent for machine in machines))
        lab = FailoverLab(directory, machines, client_host, mode)
        try:
            for machine in machines if start else ():
                machine.agent.start()
            yield lab
        except Exception as error:
            error.add_note(lab.told())
            raise
        finally:
            lab.close()
