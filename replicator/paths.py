"""Where an agent keeps what it owns. One home directory per agent, so that several agents run on one host.

`docs/developers/architecture.md` ("Home directory") lists the layout; nobody else puts these names together.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from typing import Literal

from replicator.errors import ReplicatorError

DEFAULT_HOME = "/var/lib/replicator"
HOME_VARIABLE = "REPLICATOR_HOME"

Role = Literal["capture", "sender", "receiver"]
ROLES: tuple[Role, ...] = ("capture", "sender", "receiver")


def default_home() -> str:
    """`REPLICATOR_HOME`, or the system's place."""
    return os.environ.get(HOME_VARIABLE) or DEFAULT_HOME


@dataclass(frozen=True)
class Home:
    """Paths below one home directory. `path` is absolute."""

    path: str

    @property
    def lock(self) -> str:
        return os.path.join(self.path, "agent.lock")

    @property
    def identity(self) -> str:
        return os.path.join(self.path, "agent.json")

    @property
    def credentials(self) -> str:
        """Private key and certificate of the agent, in PEM."""
        return os.path.join(self.path, "identity.pem")

    @property
    def next_credentials(self) -> str:
        """The same, which peers are being told of."""
        return os.path.join(self.path, "identity.pem.next")

    @property
    def trust(self) -> str:
        """Directory of the agents that are trusted: a file each."""
        return os.path.join(self.path, "trust")

    @property
    def state(self) -> str:
        return os.path.join(self.path, "state.json")

    @property
    def places(self) -> str:
        """Where each queue is."""
        return os.path.join(self.path, "places.json")

    @property
    def configuration(self) -> str:
        return os.path.join(self.path, "replicator.toml")

    @property
    def api_socket(self) -> str:
        return os.path.join(self.path, "api.sock")

    @property
    def run(self) -> str:
        return os.path.join(self.path, "run")

    @property
    def bell(self) -> str:
        """Rung by a sender when its state changes in a way that is worth an event."""
        return os.path.join(self.run, "agent.bell")

    @property
    def bare_files(self) -> str:
        """Which files need not be asked for extended attributes; of no value after a reboot."""
        return os.path.join(self.run, "bare-files")

    @property
    def log(self) -> str:
        return os.path.join(self.path, "log")

    @property
    def event_log(self) -> str:
        return os.path.join(self.log, "dtd.log")

    @property
    def queue(self) -> str:
        """The disk tier of journals, if the configuration names no other place."""
        return os.path.join(self.path, "queue")

    def target(self, connection_uuid: str) -> str:
        """State and spool of a receiver."""
        return os.path.join(self.path, "target", connection_uuid)

    def source(self, connection_uuid: str) -> str:
        """What a sender remembers over a restart, as JSON."""
        return os.path.join(self.path, "source", connection_uuid + ".json")

    def dirt(self, connection_uuid: str) -> str:
        """What the target of a connection may lack."""
        return os.path.join(self.path, "source", connection_uuid + ".dirt")

    def story(self, connection_uuid: str) -> str:
        """What happened to a connection: one JSON value a line."""
        return os.path.join(self.path, "source", connection_uuid + ".story")

    def schedule(self, connection_uuid: str) -> str:
        """How far a sender is in its transmission schedule."""
        return os.path.join(self.path, "source", f"{connection_uuid}.schedule")

    def diagnostics(self, connection_uuid: str) -> str:
        """What a connection to nowhere has measured."""
        return os.path.join(self.path, "source", f"{connection_uuid}.diagnostics")

    def verify(self, connection_uuid: str) -> str:
        """What is to be verified of a connection, and when."""
        return os.path.join(self.path, "source", connection_uuid + ".verify")

    def runs(self, connection_uuid: str) -> str:
        """How the runs of a connection ended."""
        return os.path.join(self.path, "source", connection_uuid + ".runs")

    @property
    def failover(self) -> str:
        """Directory of what is remembered of failover besides the state."""
        return os.path.join(self.path, "failover")

    @property
    def witness(self) -> str:
        """What this agent knows of groups that it is the witness of."""
        return os.path.join(self.path, "witness.json")

    @property
    def withdrawals(self) -> str:
        """Votes that witnesses still have to be told of that they were not used."""
        return os.path.join(self.path, "failover", "withdrawals.json")

    def promotion(self, group: str) -> str:
        """The last promotion of that group that this host knows of."""
        return os.path.join(self.failover, group, "promotion.json")

    def tails(self, group: str) -> str:
        """What this host wrote behind the fork point of that group, as its former owner."""
        return os.path.join(self.failover, group, "tails.json")

    def tries(self, group: str) -> str:
        """Tries of failbacks of that group to this host."""
        return os.path.join(self.failover, group, "tries.json")

    def siblings(self, group: str) -> str:
        """Other targets of the source of that group, as it said last."""
        return os.path.join(self.failover, group, "siblings.json")

    @property
    def failover_history(self) -> str:
        """What happened to the groups of this host: one JSON value a line."""
        return os.path.join(self.failover, "history")

    @property
    def divergence(self) -> str:
        """Directory of bundles: what losing branches had."""
        return os.path.join(self.path, "divergence")

    @property
    def failover_addresses(self) -> str:
        """Addresses and host name that this host has for groups, or has dropped for them."""
        return os.path.join(self.failover, "addresses.json")

    @property
    def failover_procedures(self) -> str:
        """Directory of notes of procedures under way, and of reports of those that have ended: a file each
        per group.
        """
        return os.path.join(self.failover, "procedures")

    def target_limit(self, host: str) -> str:
        """Shared memory of all senders to that host: what they may send."""
        return os.path.join(self.run, f"limit-{hashlib.sha256(host.encode()).hexdigest()[:16]}")

    def fence(self, mount_id: str) -> str:
        """Shared memory: until when programs may change something in a mount. There only where that ends."""
        return os.path.join(self.run, f"fence-{mount_id}")

    @property
    def grants(self) -> str:
        """Leases that this agent may have granted as a target."""
        return os.path.join(self.failover, "grants.json")

    @property
    def targets(self) -> str:
        return os.path.join(self.path, "target")

    def socket(self, role: Role, identifier: str) -> str:
        """Control socket of a child."""
        return os.path.join(self.run, f"{role}-{identifier}.sock")

    def arguments(self, role: Role, identifier: str) -> str:
        """What a child was started with, as JSON."""
        return os.path.join(self.run, f"{role}-{identifier}.json")

    def child_log(self, role: Role, identifier: str) -> str:
        """stdout and stderr of a child."""
        return os.path.join(self.log, f"{role}-{identifier}.log")

    @property
    def fork_server_log(self) -> str:
        """stdout and stderr of the process that forks children."""
        return os.path.join(self.log, "fork-server.log")

    def children(self) -> list[tuple[Role, str]]:
        """(role, identifier) of every child that has a control socket, alive or not."""
        try:
            names = sorted(os.listdir(self.run))
        except FileNotFoundError:
            return []
        found: list[tuple[Role, str]] = []
        for name in names:
            for role in ROLES:
                if name.startswith(role + "-") and name.endswith(".sock"):
                    found.append((role, name.removeprefix(role + "-").removesuffix(".sock")))
        return found

    def create(self) -> None:
        """Create what is missing of the directories, for root only.

        Others may pass through the home, to its control API, and see or enter nothing else in it.
        """
        own = (self.run, self.log, self.queue, self.targets, self.trust, self.failover)
        for directory in (self.path, *own):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        os.chmod(self.path, 0o711)


def memory_directory(base: str, agent_uuid: str, *below: str) -> str:
    """Where an agent keeps its memory tiers: `below` is a mount id, or `spool-<connection uuid>`."""
    return os.path.join(base, f"replicator-{agent_uuid}", *below)


def create_memory_directory(path: str) -> None:
    """Make the directory of all memory tiers of an agent, for root only. Raises ReplicatorError.

    It lies where everybody may write: what somebody else has put there is not used.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        state = os.lstat(path)
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
            raise ReplicatorError(f"{path} was made by somebody else: remove it, then start again")
        os.chmod(path, 0o700)
    except OSError as error:
        raise ReplicatorError(f"memory directory {path}: {error.strerror}") from error


def remove_if_empty(*paths: str) -> None:
    """Remove directories, one after the other, until one is not empty or not there."""
    try:
        for path in paths:
            os.rmdir(path)
    except OSError:
        pass  # something is kept there, or it was never made
