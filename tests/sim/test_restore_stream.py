"""The stream of a restore: a copy that stands still, journals that stay empty, and a tree that may have
anything in it. Kills of either side at random moments; it ends exact, and the copy is untouched.
"""

import os
import random
import subprocess
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from kit.links import Network
from kit.random_changes import RandomChanges
from kit.recording import Source
from kit.simulated_directory import simulated_directory
from kit.simulation import PORT, run_receiver, simulated_world
from kit.trees import assert_same_tree, differences, snapshot

from replicator.orphans import OrphanAction, OrphanSettings
from replicator.receiver.arguments import ReceiverArguments
from replicator.receiver.receiver import Receiver
from replicator.receiver.replica_tree import ReplicaTree
from replicator.repset import ReplicationSet, Rule
from replicator.sender.arguments import JournalArguments, MapArguments, SenderArguments, SenderOptions
from replicator.sender.copies import open_copies
from replicator.sender.sender import Sender
from replicator.status import ConnectionStatus, TargetDataState

pytestmark = pytest.mark.sim

UUID = str(uuid.UUID(int=9))
HOME = "/srv/data"  # where the source was, as the rules name it


class Restoring:
    """Both sides. Use `restoring`."""

    def __init__(self, seed: int, directory: Path, nursery: trio.Nursery) -> None:
        self.copy, self.place = directory / "copy", directory / "place"
        self.copy.mkdir()
        self.place.mkdir()
        self.network = Network(seed)
        self.rules = (Rule(HOME),)
        self.options = SenderOptions(mirror="difference")
        self.orphans = OrphanSettings(action=OrphanAction.DELETE, limit_count=0, limit_percent=0)
        self.keeps_existing = False
        self._home = directory / "home"
        self._nursery = nursery
        self._copy_world = simulated_world(seed * 7 + 1, self._connect)
        self._place_world = simulated_world(seed * 7 + 2, self._connect)
        self._scopes: dict[str, trio.CancelScope] = {}
        self.sender: Sender | None = None

    async def _connect(self, host: str, port: int) -> trio.abc.HalfCloseableStream:
        return await self.network.connect("beta", "alpha", PORT)

    def start_sender(self) -> None:
        arguments = SenderArguments(
            home="/home",
            connection_uuid=UUID,
            agent_uuid="beta-agent",
            agent_name="beta",
            target_host="restore",
            target_port=0,
            repset=ReplicationSet("set", 1, self.rules),
            journals=[
                JournalArguments(
                    str(uuid.UUID(int=5)), str(self.copy), "", "/memory/empty", "/home/empty", rules_root=HOME
                )
            ],
            maps=[MapArguments(0, "", str(self.place))],
            options=self.options,
        )
        world = replace(self._copy_world)
        flows, writers = open_copies(world, arguments)
        sender = self.sender = Sender(world, arguments, flows)
        scope = self._scopes["sender"] = trio.CancelScope()

        async def run() -> None:
            with scope:
                await sender.run()
            for flow in flows:
                flow.source.close()
                flow.cursor.close()
            for writer in writers:
                writer.close(persist=False)

        self._nursery.start_soon(run)

    def start_receiver(self) -> None:
        (self._home / "target" / UUID).mkdir(parents=True, exist_ok=True)
        arguments = ReceiverArguments(
            home=str(self._home),
            connection_uuid=UUID,
            agent_uuid="alpha-agent",
            agent_name="alpha",
            memory_directory="/memory/spool",
            segment_bytes=64 * 1024,
            orphans=self.orphans,
        )
        tree = partial(ReplicaTree, keeps_existing=self.keeps_existing)
        receiver = Receiver(self._place_world, arguments, tree)
        scope = self._scopes["receiver"] = trio.CancelScope()
        incoming = self.network.listen("alpha", PORT)

        async def run() -> None:
            with scope:
                await run_receiver(receiver, incoming)

        self._nursery.start_soon(run)

    def set_clocks(self) -> None:
        """To the time of the file system, a little later."""
        for world in (self._copy_world, self._place_world):
            world.clock.jump_ns += time.time_ns() - world.clock.wall_ns() + 1_000_000_000

    async def kill(self, who: str) -> None:
        self._scopes[who].cancel()
        if who == "receiver":
            self.network.close_listener("alpha", PORT)
        self.network.cut("beta", "alpha")
        await trio.testing.wait_all_tasks_blocked()
        self._copy_world.disk.owners.clear()
        self._place_world.disk.owners.clear()

    @property
    def status(self) -> ConnectionStatus:
        assert self.sender is not None
        return self.sender.status()

    async def complete(self) -> None:
        """As the agent looks at it: see `how_it_goes`."""
        with trio.fail_after(600):
            while True:
                status = self.status
                idle = status.mirror_status == "Idle" and status.connected_since is not None
                settled = not status.orphans.at_work and status.target_data_state is TargetDataState.OK
                if idle and settled:
                    return
                await trio.sleep(0.1)


@asynccontextmanager
async def restoring(seed: int) -> AsyncIterator[Restoring]:
    with simulated_directory() as directory:
        async with trio.open_nursery() as nursery:
            yield Restoring(seed, directory, nursery)
            nursery.cancel_scope.cancel()


def copied(root: Path, place: Path) -> None:
    subprocess.run(["cp", "-a", root, place], check=True, timeout=60)


def fill(root: Path, chance: random.Random, steps: int) -> None:
    RandomChanges(Source(root), chance).steps(steps)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("there", ["empty", "older", "other"])
@pytest.mark.parametrize("seed", range(12))
async def test_exact_after_kills(there: str, seed: int, autojump_clock: trio.testing.MockClock) -> None:
    chance = random.Random(f"{there} {seed}")
    async with restoring(seed) as pair:
        fill(pair.copy, chance, 80)
        if there == "older":
            pair.place.rmdir()
            copied(pair.copy, pair.place)
            changes = RandomChanges(Source(pair.place), chance)
            changes.restores_times = False
            changes.steps(30)
        elif there == "other":
            fill(pair.place, chance, 60)
        before = snapshot(pair.copy)
        pair.start_receiver()
        pair.start_sender()
        for _ in range(chance.randint(0, 5)):
            await trio.sleep(chance.choice((0, 0.0005, 0.002, 0.01, 0.2)))
            for who, again in (("sender", pair.start_sender), ("receiver", pair.start_receiver)):
                if chance.random() < 0.5:
                    await pair.kill(who)
                    again()
        await pair.complete()
        assert_same_tree(pair.copy, pair.place, frozenset({"holes"} if there == "older" else ()))
        assert snapshot(pair.copy) == before


@pytest.mark.parametrize("seed", range(6))
async def test_only_what_is_missing(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    """Nothing that is there changes; what is missing is as in the copy."""
    chance = random.Random(seed)
    async with restoring(seed) as pair:
        fill(pair.copy, chance, 80)
        fill(pair.place, chance, 40)
        pair.keeps_existing, pair.orphans = True, OrphanSettings()
        kept, wanted = snapshot(pair.place), snapshot(pair.copy)
        pair.start_receiver()
        pair.start_sender()
        with trio.fail_after(600):
            while pair.status.mirror_status != "Idle" or not pair.status.mirror.kind:  # noqa: ASYNC110
                await trio.sleep(0.1)
        after = snapshot(pair.place)
        same = {path: node._replace(links=(), mtime_ns=0) for path, node in after.items() if path in kept}
        former = {path: node._replace(links=(), mtime_ns=0) for path, node in kept.items()}
        assert differences(former, same) == []
        made = {path: node._replace(links=()) for path, node in after.items() if path not in kept}
        bare = {path: wanted[path]._replace(links=()) for path in made}
        assert differences(bare, made) == []
        missing = {path for path in wanted if path not in after}
        assert all(
            any(path.startswith(k + b"/") for k in kept if kept[k].type != "directory") for path in missing
        )


async def test_single_paths(autojump_clock: trio.testing.MockClock) -> None:
    async with restoring(1) as pair:
        (pair.copy / "a" / "b" / "c").mkdir(parents=True)
        (pair.copy / "a" / "b" / "c" / "file").write_text("content")
        (pair.copy / "a" / "other").write_text("not wanted")
        (pair.copy / "a").chmod(0o700)
        pair.rules = (Rule(f"{HOME}/a/b"),)
        pair.start_receiver()
        pair.start_sender()
        await pair.complete()
        assert_same_tree(pair.copy / "a" / "b", pair.place / "a" / "b")
        assert not (pair.place / "a" / "other").exists()


@pytest.mark.parametrize("who", ["sender", "receiver"])
async def test_a_kill_costs_little(who: str, autojump_clock: trio.testing.MockClock) -> None:
    """What has arrived is not sent again."""
    async with restoring(1) as pair:
        for number in range(400):
            (pair.copy / f"{number}").write_bytes(bytes([number % 256]) * 20_000)
            if number % 2:  # claimed one by one
                os.setxattr(pair.copy / f"{number}", "user.colour", b"blue")
        await trio.sleep(1)
        pair.set_clocks()  # or all files would look as if they had changed since it began
        pair.start_receiver()
        pair.start_sender()
        with trio.fail_after(600):
            while len(os.listdir(pair.place)) < 200:  # noqa: ASYNC110  # nothing tells
                await trio.sleep(0.001)
        await pair.kill(who)
        lacking = 400 - len(os.listdir(pair.place))
        assert lacking > 0
        before = pair.status.sent_mirror_bytes if who == "receiver" else 0
        getattr(pair, f"start_{who}")()
        await pair.complete()
        assert pair.status.sent_mirror_bytes - before < (lacking + 10) * 20_500
        assert_same_tree(pair.copy, pair.place)
