"""What persons do in a replay: settings, commands at the wrong moment, and what makes it well again.

They use `dtctl`; where they only look, the API by which it looks.
"""

import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kit.failover_agents import Setup
from kit.failover_lab import MONITOR, VIRTUAL
from kit.failover_world import Fault
from kit.patience import until
from replicator.cli.client import Client
from replicator.errors import ReplicatorError
from replicator.failovers import Lapse, Phase

if TYPE_CHECKING:
    from kit.replay import Stage, Standing

COMMANDS_MAX = 3  # at once: who types more of them waits for none
COMMAND_S = 60.0
AGAIN_S = 3.0  # until something is tried again that did not help
_DTCTL = [sys.executable, "-c", "from replicator.cli.main import main; main()"]


class People:
    """All of them, at any host."""

    def __init__(self, stage: "Stage") -> None:
        self._stage = stage
        self._typed: list[tuple[subprocess.Popen[str], str, float]] = []
        self._tried_s: dict[str, float] = {}

    # --- looking ---

    def look(self, host: "Standing", *path: str) -> Any:
        """What the agent shows; None: it does not."""
        if not host.agent_runs:
            return None
        with suppress(ReplicatorError):
            return Client(str(host.machine.agent.home)).get(*path)
        return None

    def group(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.look(self._stage.hosts["target"], "failover", "monitors", MONITOR)
        return found

    def guard(self) -> dict[str, Any] | None:
        found = self.look(self._stage.hosts["source"], "failover", "guards")
        return found[0] if found else None

    # --- typing ---

    def type(self, host: "Standing", *words: str) -> None:
        """A command, if an agent is there to hear it. Nobody waits for its end."""
        if not host.agent_runs or len(self._typed) >= COMMANDS_MAX:
            return
        self._stage.say(f"{host.name}: dtctl {' '.join(words)}")
        command = subprocess.Popen(
            [*_DTCTL, "--home", host.machine.agent.home, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._typed.append((command, f"{host.name}: dtctl {words[0]} {words[1]}", time.monotonic()))

    def reap(self) -> None:
        for typed in self._typed[:]:
            command, name, began_s = typed
            if command.poll() is None and time.monotonic() < began_s + COMMAND_S:
                continue
            command.kill()
            text, _ = command.communicate(timeout=30)
            self._typed.remove(typed)
            self._stage.say(f"{name}: {command.returncode} {' '.join(text.split())[-300:]}")

    def close(self) -> None:
        for command, _, _ in self._typed:
            command.kill()
            command.communicate(timeout=30)
        self._typed = []

    # --- before ---

    def configure(self, setup: Setup) -> None:
        """The settings of a history, in force at the source."""
        from kit.replay import INTERVAL_MIN_S, SPEED

        stage, lab = self._stage, self._stage.lab
        assert lab.witness is not None
        stage.keep_etcd(setup.witness == "etcd")
        witness = {
            "agent": lab.witness.agent.address,
            "etcd": f"etcd://{lab.witness.host.address}:2379/replicator",
        }
        lab.target.agent.json(
            *("failover", "edit", MONITOR),
            *(
                "--interval",
                str(max(setup.interval_s / SPEED, INTERVAL_MIN_S)),
                "--misses",
                str(setup.misses),
            ),
            *("--witness", witness.get(setup.witness, ""), "--lapse", setup.lapse),
            *("--fence-command", str(stage.switch) if setup.fence_command else ""),
            "--automatic" if setup.starts_by_itself else "--manual",
            "--even-if-partitioned" if setup.even_if_partitioned else "--not-if-partitioned",
        )
        until(lambda: not self.unprotected(setup.lapse), 60, 0.1)

    # --- meanwhile ---

    def command(self, fault: Fault) -> None:
        """Rightly or not, as in the simulation."""
        stage = self._stage
        source, target, witness = (stage.hosts[name] for name in ("source", "target", "witness"))
        match fault.what:
            case "now":
                self.type(target, "failover", "now", MONITOR, "--no-wait")
            case "yes":
                self.type(target, "failover", "answer", MONITOR, "yes", "--no-wait")
            case "force":
                self.type(target, "failover", "now", MONITOR, "--source-is-off", "--no-wait")
            case "failback":
                self._go_home()
            case "retry":
                group = self.group()
                if group is not None and group["halted"]:
                    self._retry(group)
            case "edit":
                self.type(target, "failover", "edit", MONITOR, "--lapse", str(fault.arguments[0]))
            case "resolve":
                self._follow()
            case "open":
                self.type(source, "failover", "open", MONITOR, "--even-if-two-masters")
            case "forget":
                group = self.group()
                if group is not None:
                    self.type(witness, "witness", "forget", group["uuid"])
            case _:
                raise AssertionError(f"nobody knows how to {fault.what}")

    def _go_home(self, *options: str) -> None:
        """Services that the source still runs have the data open."""
        group = self.group()
        if group is not None and group["phase"] == Phase.ACTIVE:
            self._stage.services[0].disable()
        self.type(self._stage.hosts["target"], "failback", MONITOR, "--yes", *options)

    def _follow(self) -> None:
        guard = self.guard()
        if guard is not None and guard["superseded"]:
            self._stage.services[0].disable()
        self.type(self._stage.hosts["source"], "failover", "follow", MONITOR)

    def _retry(self, group: dict[str, Any], *options: str) -> None:
        if group["phase"] == Phase.HANDING_BACK:
            self._go_home(*options)
        else:
            self.type(self._stage.hosts["target"], "failover", "now", MONITOR, "--no-wait", *options)

    # --- afterwards ---

    def help(self) -> str:
        """Does what is needed next. Returns why the group is not protected as configured; "": it is."""
        group, guard = self.group(), self.guard()
        if group is None or guard is None:
            return "an agent does not answer"
        phase = Phase(group["phase"])
        if group["halted"]:
            self._now_and_then("retry", lambda: self._retry(group, "--force"))
        elif phase is Phase.ACTIVE and (guard["by_hand"] or not guard["superseded"]):
            self._now_and_then("follow", self._follow)
        elif phase is Phase.ACTIVE:
            self._now_and_then("failback", self._go_home)
        elif phase is Phase.IDLE:
            self._now_and_then(
                "start", lambda: self.type(self._stage.hosts["target"], "failover", "start", MONITOR)
            )
        elif phase is Phase.WATCHING and not guard["superseded"]:
            self._stage.services[0].enable()
        return self.unprotected(Lapse(group["settings"]["lapse"]))

    def _now_and_then(self, what: str, act: Any) -> None:
        """Not while a command is under way."""
        if not self._typed and time.monotonic() > self._tried_s.get(what, 0.0) + AGAIN_S:
            act()
            self._tried_s[what] = time.monotonic()

    def unprotected(self, lapse: Lapse) -> str:
        """As `failover_histories.Checker.unprotected`, from outside."""
        stage = self._stage
        group, guard = self.group(), self.guard()
        if group is None or guard is None:
            return "an agent does not answer"
        if Phase(group["phase"]) is not Phase.WATCHING or group["halted"]:
            return f"the target is {group['phase']} {group['halted']}"
        if not guard["is_open"] or guard["superseded"]:
            return f"the source does not write: {guard['reason']}"
        if guard["epoch"] != group["epoch"]:
            return f"epochs {guard['epoch']} and {group['epoch']}"
        if lapse is not Lapse.NONE and not group["armed"]:
            return "the target does not know that its source stops by itself"
        holders = stage.lab.holders(VIRTUAL)
        if holders != ["source"]:
            return f"the address is at {holders}"
        status = self.look(stage.hosts["source"], "connections")
        if status is None or any(one["target_data_state"] != "OK" for one in status):
            states = [one["target_data_state"] for one in status or ()]
            return f"the copy is {states}"
        witness = self.look(stage.hosts["witness"], "failover", "witness")
        if any(entry["candidate"] for entry in witness or ()):
            return "the witness waits for what becomes of its vote"
        return ""
