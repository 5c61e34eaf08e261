"""A source and a target, each a host of its own, made of what can fail: processes, cables, a small disk for
the queue, and for each of them a disk, with its home and its files, that can lose power.

    with two_hosts(tmp_path) as hosts:
        hosts.connect()
        hosts.kill(["receiver", "source dtd"])
        hosts.restart_killed()

`PROCESSES` has the names of processes.
"""

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kit import leftovers
from kit.dtd import Agent, pair
from kit.hosts import Host, lan
from kit.patience import until
from kit.power_disk import PowerDisk, power_disk
from kit.protected import Protected, serves

QUEUE_DISK = "24m"
MEMORY_DISK = "512m"
CONFIGURATION = """\
[queue]
memory_directory = "{memory}"
memory_size = "32 MiB"
segment_size = "1 MiB"
"""
PROCESSES = (
    "capture", "holder", "sender", "receiver", "source dtd", "target dtd",
    "source fork_server", "target fork_server",
)  # fmt: skip
END_TIMEOUT_S = 30.0
CONVERGE_TIMEOUT_S = 150.0


class TwoHosts(Protected):
    """Use `two_hosts`."""

    def __init__(
        self, directory: Path, alpha: Agent, beta: Agent, disks: tuple[PowerDisk, PowerDisk]
    ) -> None:
        source_disk, disk = disks
        super().__init__(source_disk.path, alpha, beta, disk.path / "copy")
        self.source_memory, self.target_memory = directory / "source-memory", directory / "target-memory"
        self.disk = disk
        self.source_disk = source_disk
        assert alpha.host is not None and beta.host is not None
        self.source_host: Host = alpha.host
        self.target_host: Host = beta.host
        self._killed: dict[str, int | None] = {}

    # --- processes ---

    def process(self, name: str) -> int | None:
        """Process id of who has this name now; None: nobody."""
        if name.endswith(" dtd"):
            agent = self._agents[name]
            return agent.process.pid if agent.process is not None else None
        if name == "holder":
            note = self.source_memory / f"replicator-{self.alpha.uuid}" / self._mount_directory / "holder"
            with suppress(OSError, ValueError):
                held = int(json.loads(note.read_text())["pid"])
                return held if _is_alive(held) else None
            return None
        kind = name.rpartition(" ")[2]
        agent = self.beta if name in ("receiver", "target fork_server") else self.alpha
        program = f"replicator.agent.{kind} " if kind == "fork_server" else f"replicator.{kind}.process "
        for process_id, command in leftovers.processes_of_home(agent.home).items():
            if program in command:
                return process_id
        return None

    @property
    def _agents(self) -> dict[str, Agent]:
        return {"source dtd": self.alpha, "target dtd": self.beta}

    @property
    def _mount_directory(self) -> str:
        """Its name is the mount's, which is asked of no process: any of them may be dead or stopped."""
        (capture,) = (self.alpha.home / "run").glob("capture-*.json")
        return capture.stem.removeprefix("capture-")

    def kill(self, names: Iterable[str]) -> list[str]:
        """With SIGKILL, all at once. Returns those that there were."""
        found = {name: self.process(name) for name in names}
        self._killed = {name: process_id for name, process_id in found.items() if process_id is not None}
        for process_id in self._killed.values():
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        return list(self._killed)

    def restart_killed(self) -> None:
        """Start again those that nobody else starts, and wait until all have their successors."""
        for name, agent in self._agents.items():
            if name in self._killed:
                agent.kill()
                agent.start()
        for name, former in self._killed.items():
            if name.endswith(" fork_server"):  # its agent does without from then on
                continue
            until(lambda n=name, f=former: self.process(n) not in (None, f), 60)
        if "capture" in self._killed:
            until(lambda: serves(self.source), 60)

    def lose_target_power(self) -> None:
        """What the target had not synced is gone, its processes and its memory are; it boots."""
        with leftovers.held(self.beta.home) as processes:
            processes.send(signal.SIGSTOP)  # so that none sees its disk go
            self.disk.cut_power()
            processes.send(signal.SIGKILL)
            self.beta.kill()
            until(processes.have_ended, END_TIMEOUT_S)
        until(lambda: not leftovers.processes_of_home(self.beta.home), END_TIMEOUT_S)
        for directory in self.target_memory.iterdir():
            shutil.rmtree(directory)
        self.disk.boot()
        assert self.beta.boot_id_file is not None
        self.beta.boot_id_file.write_text(f"{uuid.uuid4()}\n")

    # --- looks ---

    def converged(self, timeout_s: float = CONVERGE_TIMEOUT_S) -> float:
        """Wait until all that was done is on the target, and the copy is exact. Returns seconds."""
        began_s = time.monotonic()
        until(lambda: self._is_complete(began_s + timeout_s), timeout_s)
        return time.monotonic() - began_s

    def _is_complete(self, deadline_s: float) -> bool:
        # A connection that is just being restarted is not there to be asked.
        left_s = max(min(deadline_s - time.monotonic(), 30), 1)
        if self.alpha.dtctl("wait", self.id, "--timeout", str(int(left_s))).code != 0:
            return False
        status = self.alpha.dtctl("status", "--json")
        return status.code == 0 and status.json[0]["target_data_state"] == "OK"

    def settled(self) -> None:
        """Wait until the whole copy is on stable storage: from there on no power loss costs all of it."""
        (self.source / "settled").touch()
        self.converged()
        wanted = self.status["applied"]
        until(lambda: all(self.status["durable"][journal] >= at for journal, at in wanted.items()), 60, 0.5)

    def sync(self) -> None:
        """What a file system has not written yet may look like data where there is a hole."""
        for disk in (self.source_disk, self.disk):
            subprocess.run(["sync", "-f", disk.path], check=True, timeout=60)

    def story(self, after: int = -1) -> list[dict[str, Any]]:
        """What happened to the connection since the entry of that number."""
        entries: list[dict[str, Any]] = self.alpha.json("story", self.id, "--limit", "1000")
        return [entry for entry in entries if entry["sequence"] > after]


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    """A tmpfs of this size."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "test-disk", directory]
    subprocess.run(command, check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True, timeout=20)


@contextmanager
def two_hosts(directory: Path) -> Iterator[TwoHosts]:
    """Started, not connected; everything is down afterwards."""
    queue, boot_id = directory / "queue", directory / "boot_id"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    memories = [directory / f"{side}-memory" for side in ("source", "target")]
    with (
        lan("alpha", "beta") as (source, target),
        power_disk(directory / "source-disk") as source_disk,
        power_disk(directory / "target-disk") as disk,
        small_disk(queue, QUEUE_DISK),
        small_disk(memories[0], MEMORY_DISK),
        small_disk(memories[1], MEMORY_DISK),
    ):
        alpha = Agent(source_disk.path / "alpha", "alpha", source)
        beta = Agent(disk.path / "beta", "beta", target)
        beta.boot_id_file = boot_id
        for agent, memory in zip((alpha, beta), memories, strict=True):
            agent.home.mkdir()
            configuration = CONFIGURATION.format(memory=memory)
            configuration += f'disk_directory = "{queue}"\ndisk_free_min = 0\n' if agent is alpha else ""
            (agent.home / "replicator.toml").write_text(configuration)
        pair(alpha, beta)
        try:
            for agent in (alpha, beta):
                agent.start()
            yield TwoHosts(directory, alpha, beta, (source_disk, disk))
        finally:
            for agent in (alpha, beta):
                agent.close()
