"""Real agents as processes, driven by `dtctl` as a user drives them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

from kit import leftovers
from kit.hosts import Host
from replicator import limits
from replicator.agent.peers import make_identity
from replicator.agent.state import load_identity
from replicator.paths import Home
from replicator.security import pem
from replicator.security.trust import KnownCertificate, KnownPeer, TrustStore

START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 60.0

_DTD = [sys.executable, "-c", "from replicator.agent.dtd import main; main()"]
_DTCTL = [sys.executable, "-c", "from replicator.cli.main import main; main()"]
_BOOT = Path(__file__).with_name("boot")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Result:
    """How a command ended."""

    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.code = process.returncode
        self.out = process.stdout
        self.err = process.stderr

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Agent:
    """A dtd with a home of its own, on a host of its own if there is one."""

    def __init__(self, home: Path, name: str, host: Host | None = None) -> None:
        self.home = home
        self.name = name
        self.host = host
        self.port = free_port()
        self.listen = ""  # in place of `address`
        self.boot_id_file: Path | None = None  # in place of the machine's
        self.planted = ""  # a mistake that it has, see `kit/boot`
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{self.host.address if self.host else '127.0.0.1'}:{self.port}"

    @property
    def uuid(self) -> str:
        return str(json.loads((self.home / "agent.json").read_text())["uuid"])

    @property
    def _dtd(self) -> list[str]:
        return [*self.host.command, *_DTD] if self.host else _DTD

    @property
    def _environment(self) -> dict[str, str]:
        if self.boot_id_file is None:
            return dict(os.environ)
        found = {**os.environ, "PYTHONPATH": str(_BOOT), "TEST_BOOT_ID_FILE": str(self.boot_id_file)}
        if self.planted:
            found["TEST_PLANTED"] = self.planted
            found["PYTHONPATH"] += os.pathsep + str(_BOOT.parents[1])
        return found

    def start(self) -> None:
        self.launch()
        self.wait_started()

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        self.home.mkdir(parents=True, exist_ok=True)
        with open(self.home / "dtd.out", "ab") as output:
            self.process = subprocess.Popen(
                [
                    *self._dtd,
                    "--home",
                    self.home,
                    "--name",
                    self.name,
                    "--listen",
                    self.listen or self.address,
                ],
                stdout=output,
                stderr=output,
                env=self._environment,
            )

    def wait_started(self) -> None:
        """Until it answers. AssertionError if it does not."""
        assert self.process is not None
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while self.dtctl("status").code != 0:
            if (code := self.process.poll()) is not None or time.monotonic() > deadline_s:
                how = "in time" if code is None else f"and ended with {code}"
                output = (self.home / "dtd.out").read_text()
                raise AssertionError(f"{self.name} did not start {how}:\n{output}")
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGTERM, as systemd does: mounts stay."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def kill_all(self, *spared: str) -> None:
        """With SIGKILL, all processes of this agent at once but those of the roles `spared`."""
        if self.process is not None:
            self.process.kill()  # first: it would start another one for whoever ends
        for process_id, command in leftovers.processes_of_home(self.home).items():
            if not any(f"replicator.{role}.process " in command for role in spared):
                with suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
        self.kill()

    def _end(self, number: int) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(number)
        process.wait(30)

    def dtctl(self, *arguments: str | os.PathLike[str]) -> Result:
        return self._run(_DTCTL, *arguments)

    def dtd(self, *arguments: str) -> Result:
        # It may sync a file system that others keep busy, and is given that time.
        return self._run(_DTD, *arguments, timeout_s=COMMAND_TIMEOUT_S + limits.CAPTURE_STOP_TIMEOUT_S)

    def json(self, *arguments: str | os.PathLike[str]) -> Any:
        """The document of a command that must succeed."""
        return self.dtctl(*arguments, "--json").json

    def _run(
        self, program: list[str], *arguments: str | os.PathLike[str], timeout_s: float = COMMAND_TIMEOUT_S
    ) -> Result:
        # --home comes before the command for dtctl; dtd takes it anywhere.
        command = [*program, "--home", self.home, *arguments]
        return Result(subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False))

    def close(self) -> None:
        """Take everything down, whatever state it is in."""
        self.stop()
        if self.home.is_dir():
            self.dtd("--stop-mounts", "--force")
            leftovers.remove_memory_directories(self.home)


def pair(*agents: Agent) -> None:
    """As `dtctl pair` leaves them, each with each other. They need not have been started."""
    shown = {}
    for agent in agents:
        home = Home(str(agent.home))
        agent.home.mkdir(exist_ok=True)
        identity = load_identity(home.identity, agent.name)
        make_identity(home, identity)
        shown[agent] = Path(home.credentials).read_text()
    for agent in agents:
        store = TrustStore(Home(str(agent.home)).trust)
        for other in agents:
            if other is not agent:
                certificate = KnownCertificate(pem=pem.certificate_of(shown[other]))
                store.save(KnownPeer(uuid=other.uuid, name=other.name, certificates=(certificate,)))


@contextmanager
def running(
    directory: Path, *names: str, hosts: Sequence[Host] = (), configuration: str = ""
) -> Iterator[list[Agent]]:
    """Agents with homes below `directory`, started; everything of theirs is down afterwards.

    `hosts`: one for each of them, or none. `configuration`: replicator.toml of all of them that have none.
    """
    agents = [Agent(directory / name, name, host) for name, host in zip_longest(names, hosts[: len(names)])]
    for agent in agents:
        agent.home.mkdir(exist_ok=True)
        if not (agent.home / "replicator.toml").exists():
            (agent.home / "replicator.toml").write_text(configuration)
    if hosts:
        pair(*agents)
    try:
        for agent in agents:
            agent.start()
        yield agents
    finally:
        for agent in agents:
            agent.close()
