"""The service of a replay, as an operating system would keep it: it runs on a host whenever it is enabled,
the directory is mounted and the address is there, and is started again when it ends. The scripts of the
failover enable and disable it. And its clients: one outside, one on each host that may own it.
"""

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from kit.failover_lab import SERVICE_PORT, VIRTUAL, FailoverLab, Machine
from kit.hosts import Host
from kit.ledger_client import Acknowledged, Answer
from kit.writers import PATH, Writer

CLIENT_PAUSE_S = 0.05
AGAIN_S = 0.3  # until a service that has ended, or could not be started, is looked at again
OFF_S = 3.0  # for one that was ended
NUMBERS = 1_000_000  # of one client
_SCRIPT = """\
#!/bin/sh
case $1 in
start) rm -f {off} ;;
stop)
    touch {off}
    pid=$(cat {note}) || exit 0
    kill "$pid"
    tries=0
    while kill -0 "$pid"; do
        tries=$((tries + 1))
        [ $tries = 20 ] && kill -9 "$pid"
        [ $tries = 100 ] && exit 1
        sleep 0.1
    done 2>/dev/null
    rm -f {note}
    ;;
esac
"""


class Service:
    """On one host. `tend` does what is due; nobody else starts or reaps it."""

    def __init__(self, lab: FailoverLab, machine: Machine, *, enabled: bool) -> None:
        self.machine = machine
        self._command = [*machine.host.command, *lab.service_command(machine), "--frail"]
        self._log = lab.directory / f"service-{machine.name}.log"
        self._off = lab.directory / f"service-{machine.name}.off"
        self._note = lab.directory / f"service-{machine.name}.pid"
        self._process: subprocess.Popen[bytes] | None = None
        self._look_s = 0.0
        self.script = lab.directory / f"service-{machine.name}"
        self.script.write_text(_SCRIPT.format(off=self._off, note=self._note))
        self.script.chmod(0o755)
        if not enabled:
            self._off.touch()

    def enable(self) -> None:
        self._off.unlink(missing_ok=True)

    def disable(self) -> None:
        """A person ends it, so that nothing has the directory open."""
        self._off.touch()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def has_ended(self) -> bool:
        self.tend(host_runs=False)
        return self._process is None

    def tend(self, *, host_runs: bool) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            self._note.unlink(missing_ok=True)
        off_s = self._off_s()
        if self._process is not None and off_s is not None and off_s > OFF_S:
            self._process.kill()  # it was just being started when it was ended
        if self._process is not None or not host_runs or off_s is not None or time.monotonic() < self._look_s:
            return
        self._look_s = time.monotonic() + AGAIN_S
        if _is_captured(self.machine.root) and self.machine.has(VIRTUAL):
            with open(self._log, "ab") as output:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, "PYTHONPATH": PATH},
                )
            self._note.write_text(f"{self._process.pid}\n")

    def _off_s(self) -> float | None:
        """How long it has been disabled; None: it is not."""
        try:
            return time.time() - self._off.stat().st_mtime
        except FileNotFoundError:
            return None

    def close(self) -> None:
        """What waits for a capture that stands still, of a host that is paused, ends with that."""
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)


def _is_captured(root: Path) -> bool:
    """Without a look at the directory itself, which may wait for a capture that stands still."""
    with open("/proc/self/mountinfo") as mounts:
        return any(
            line.split()[4] == str(root) and line.split(" - ")[1].startswith("fuse") for line in mounts
        )


class Clients:
    """`keep` starts again whose host was down."""

    def __init__(self, lab: FailoverLab, serial: int) -> None:
        self._lab = lab
        self._serial = serial
        self._writers: dict[Host, Writer] = {}
        self._outputs: list[Path] = []

    def keep(self, host: Host) -> None:
        writer = self._writers.get(host)
        if writer is not None:
            with suppress(AssertionError):
                writer.assert_running()
                return
        self._serial += 1
        output = self._lab.directory / f"client-{self._serial}"
        arguments = (VIRTUAL, str(SERVICE_PORT), str(self._serial * NUMBERS), str(CLIENT_PAUSE_S))
        self._writers[host] = Writer(output, "kit.ledger_client", *arguments, host=host)
        self._outputs.append(output)

    @property
    def serial(self) -> int:
        """The last that was used."""
        return self._serial

    @property
    def answers(self) -> list[Answer]:
        return [answer for output in self._outputs for answer in Acknowledged.of(output.read_text()).answers]

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def etcd_command(directory: Path, host: Host) -> list[str]:
    """An etcd of one, on that host."""
    clients, peers = f"http://{host.address}:2379", f"http://{host.address}:2380"
    return [
        *host.command,
        *("env", "ETCD_UNSUPPORTED_ARCH=arm64"),
        *("etcd", "--data-dir", str(directory), "--log-outputs", "stderr", "--log-level", "error"),
        *("--listen-client-urls", clients, "--advertise-client-urls", clients),
        *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
        *("--initial-cluster", f"default={peers}"),
    ]
