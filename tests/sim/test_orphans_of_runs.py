"""Orphans: what a target does with what its copy has and the source does not."""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from kit.patience import LONG_S, until_async
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate
from kit.trees import differences, snapshot

from replicator import limits
from replicator.errors import ReplicatorError
from replicator.fs import relocate
from replicator.orphans import (
    FORCE,
    MIRROR,
    PREVIEW,
    START,
    OrphanAction,
    OrphanPhase,
    OrphanReport,
    OrphanSettings,
)
from replicator.receiver import replica_tree
from replicator.receiver.replica_tree import ReplicaTree
from replicator.repset import ReplicationSet, Rule, compile_filter
from replicator.sender.arguments import SenderOptions
from replicator.status import VerifyPhase

pytestmark = pytest.mark.sim

DAY_S = 86_400
EVERYTHING = compile_filter(ReplicationSet(name="all", generation=1, rules=(Rule("/", True, True),)), b"/")
DELETE = OrphanSettings(action=OrphanAction.DELETE, limit_count=0, limit_percent=0)


def some_source(simulation: Simulation) -> None:
    source = simulation.source
    source.mkdir(b"d")
    source.mkdir(b"d/e")
    for name in (b"a", b"d/b", b"d/e/c"):
        source.create(name)
        source.write(name, 0, b"content of " + name)
    source.settle()


def put(root: Path, *names: str, age_s: float = 0.0) -> None:
    """Files that nobody replicates."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"orphan {name}")
        when = path.stat().st_mtime - age_s
        os.utime(path, (when, when))


def names_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


async def handled(simulation: Simulation, run: str = "") -> OrphanReport:
    """The report of the (next) run, when nothing is left to do."""
    assert simulation.sender is not None
    with trio.fail_after(600):
        while True:
            report = simulation.sender.orphans()
            if (report.run == run or not run) and report.phase and not report.at_work:
                return report
            await trio.sleep(0.05)


async def by_hand(simulation: Simulation, mode: str = START) -> OrphanReport:
    assert simulation.sender is not None
    report = await handled(simulation, simulation.sender.orphans_start(mode))
    await simulation.drained()
    return report


@asynccontextmanager
async def mirrored(
    settings: OrphanSettings | None, *orphans: str, age_s: float = 0.0, excluded: str = "", **more: object
) -> AsyncIterator[Simulation]:
    """A complete copy, in which there are orphans."""

    def rules(root: Path) -> list[Rule]:
        return [Rule(str(root), True, True)] + ([Rule(f"{root}/{excluded}", False, True)] if excluded else [])

    async with simulate(1, rules=rules, start=False) as simulation:
        simulation.orphans = settings or OrphanSettings()
        some_source(simulation)
        put(simulation.target_root, *orphans, age_s=age_s)
        simulation.start_receiver()
        simulation.start_sender()
        await simulation.drained()
        yield simulation


async def test_they_stay_by_default(autojump_clock: trio.testing.MockClock) -> None:
    async with mirrored(None, "x", "d/y", "z/1/2") as simulation:
        assert {"x", "d/y", "z/1/2"} <= names_below(simulation.target_root)
        assert (await by_hand(simulation)).phase is OrphanPhase.HALTED
        assert {"x", "d/y", "z/1/2"} <= names_below(simulation.target_root)


async def test_a_mirror_deletes_them(autojump_clock: trio.testing.MockClock) -> None:
    async with mirrored(DELETE, "x", "d/y", "z/1/2") as simulation:
        report = await handled(simulation)
        simulation.assert_equal()
        assert (report.done_files, report.done_directories) == (3, 2)
        assert report.done_bytes == sum(len(f"orphan {name}") for name in ("x", "d/y", "z/1/2"))
        assert report.phase is OrphanPhase.COMPLETE


@pytest.mark.parametrize("by", ["remirror", "verify only", "by hand only"])
async def test_a_verification_that_brings_what_differs_handles_them(
    by: str, autojump_clock: trio.testing.MockClock
) -> None:
    settings = msgspec.structs.replace(DELETE, with_mirrors=by != "by hand only")
    async with mirrored(settings) as simulation:
        sender = simulation.sender
        assert sender is not None
        put(simulation.target_root, "x", "z/1/2")
        (simulation.target_root / "a").chmod(0o600)
        sender.verify_start(remirror=by != "verify only")
        await until_async(lambda: sender.verify_progress().phase is VerifyPhase.COMPLETE, LONG_S, 0.01)
        await simulation.drained()
        assert sender.verify_progress().extra == 2
        if by == "remirror":
            report = await handled(simulation)
            assert (report.done_files, report.done_directories, report.mode) == (2, 2, MIRROR)
            await simulation.drained()
            simulation.assert_equal()
            assert sender.runs(["orphans"], 5)[-1].result == "complete"
        else:
            assert {"x", "z/1/2"} <= names_below(simulation.target_root)
            assert not sender.runs(["orphans"], 5)


async def test_by_hand_only(autojump_clock: trio.testing.MockClock) -> None:
    settings = OrphanSettings(action=OrphanAction.DELETE, with_mirrors=False, limit_count=0, limit_percent=0)
    async with mirrored(settings, "x", "d/y", "z/1/2") as simulation:
        await trio.sleep(10)
        assert {"x", "d/y", "z/1/2"} <= names_below(simulation.target_root)
        preview = await by_hand(simulation, PREVIEW)
        assert {"x", "d/y", "z/1/2"} <= names_below(simulation.target_root)
        before = names_below(simulation.target_root)
        report = await by_hand(simulation)
        gone = before - names_below(simulation.target_root)
        assert {name.rstrip("/") for name in preview.names} == gone
        assert (preview.files, preview.directories, preview.bytes) == (
            report.done_files,
            report.done_directories,
            report.done_bytes,
        )
        simulation.assert_equal()


async def test_they_are_moved(autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    settings = OrphanSettings(
        action=OrphanAction.MOVE, directory=str(tmp_path / "orphans"), limit_count=0, limit_percent=0
    )
    async with mirrored(settings, "x", "d/y", "z/1/2") as simulation:
        report = await handled(simulation)
        simulation.assert_equal()
        run = Path(report.directory)
        assert run.parent == tmp_path / "orphans"
        moved = {str(path.relative_to(run / "target")): path for path in (run / "target").rglob("*")}
        assert set(moved) == {"x", "d", "d/y", "z", "z/1", "z/1/2"}
        assert moved["d/y"].read_text() == "orphan d/y"
        assert run.stat().st_mode & 0o777 == 0o700


async def test_what_is_young_stays_with_its_directory(autojump_clock: trio.testing.MockClock) -> None:
    settings = OrphanSettings(
        action=OrphanAction.DELETE, older_than_days=7, with_mirrors=False, limit_count=0, limit_percent=0
    )
    async with mirrored(settings, "old", "z/old") as simulation:
        now_s = simulation.target_world.clock.wall_ns() / 1e9
        put(simulation.target_root, "young", "z/young", "y/old")
        for name, days in (("old", 8), ("z/old", 8), ("young", 6), ("z/young", 6), ("y/old", 8)):
            when = now_s - days * DAY_S
            os.utime(simulation.target_root / name, (when, when))
        for name in ("z", "y"):
            when = now_s - 8 * DAY_S
            os.utime(simulation.target_root / name, (when, when))
        report = await by_hand(simulation)
        left = names_below(simulation.target_root) - names_below(simulation.source_root)
        assert left == {"young", "z", "z/young"}
        assert (report.done_files, report.done_directories, report.kept) == (3, 1, 3)


@pytest.mark.parametrize("kind", ["mirror", "recovery"])
async def test_what_the_rules_exclude_is_no_orphan(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    async with mirrored(DELETE, "x", "d/y.log", "z/1.log", "z/2", excluded="*.log") as simulation:
        report = await handled(simulation)
        if kind == "recovery":
            await simulation.kill_receiver()
            shutil.rmtree(simulation.target_root.parent / "home")
            simulation.target_world.disk.lose_power()
            simulation.start_receiver()
            await trio.sleep(10)
            await simulation.drained()
        left = names_below(simulation.target_root) - names_below(simulation.source_root)
        assert left == {"d/y.log", "z", "z/1.log"}
        assert (report.done_files, report.kept) == (2, 1)


@pytest.mark.parametrize("mistake", ["excluded ones are orphans", "times are not kept"])
async def test_mistakes_are_found(
    mistake: str, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mistake == "times are not kept":
        monkeypatch.setattr(relocate, "keeping_time", lambda directory: contextlib.nullcontext())
        with pytest.RaisesGroup(AssertionError, flatten_subgroups=True):
            await test_a_mirror_deletes_them(autojump_clock)
    else:
        monkeypatch.setattr(replica_tree, "_rules", lambda connect, journal: EVERYTHING)
        with pytest.RaisesGroup(AssertionError, flatten_subgroups=True):
            await test_what_the_rules_exclude_is_no_orphan("mirror", autojump_clock)


async def test_too_many_wait_for_a_person(autojump_clock: trio.testing.MockClock) -> None:
    settings = OrphanSettings(action=OrphanAction.DELETE, limit_count=2, limit_percent=0)
    names = ["x", "d/y", "z/1/2"]
    async with mirrored(settings, *names) as simulation:
        report = await handled(simulation)
        assert report.phase is OrphanPhase.HALTED and "limit of 2" in report.reason
        assert set(names) <= names_below(simulation.target_root)
        assert set(report.names) == {"x", "d/y", "z/", "z/1/", "z/1/2"}
        again = await by_hand(simulation)
        assert again.phase is OrphanPhase.HALTED
        assert set(names) <= names_below(simulation.target_root)
        assert (await by_hand(simulation, FORCE)).phase is OrphanPhase.COMPLETE
        simulation.assert_equal()


async def test_a_copy_is_not_emptied(autojump_clock: trio.testing.MockClock) -> None:
    settings = OrphanSettings(action=OrphanAction.DELETE, limit_count=0, limit_percent=50)
    async with mirrored(settings, *(f"file {n}" for n in range(20))) as simulation:
        report = await handled(simulation)
        assert report.phase is OrphanPhase.HALTED and "of the copy" in report.reason
        assert len(names_below(simulation.target_root)) >= 20


async def test_paused_resumed_and_stopped(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ORPHAN_STEP_NS", 0)
    names = [f"file {n}" for n in range(300)]
    async with mirrored(
        OrphanSettings(action=OrphanAction.DELETE, with_mirrors=False, limit_count=0, limit_percent=0),
        *names,
    ) as simulation:
        assert simulation.receiver is not None and simulation.sender is not None
        replica, sender = simulation.receiver.replica, simulation.sender

        async def paused(run: str) -> int:
            """Some are gone, and nothing goes on."""

            def is_paused() -> bool:
                report = replica.orphans.report
                return (report.run, report.phase) == (run, OrphanPhase.PAUSED)

            await until_async(is_paused, LONG_S, 0.0001)
            done = replica.orphans.report.done_files
            await trio.sleep(60)
            assert replica.orphans.report.phase is OrphanPhase.PAUSED
            assert replica.orphans.report.done_files == done
            return done

        remove = ReplicaTree.remove_orphans

        def remove_five(tree: ReplicaTree, *arguments: Any) -> None:
            remove(tree, *arguments)
            if tree.orphans.report.done_files == 5:
                replica.orphans.act("pause")

        monkeypatch.setattr(ReplicaTree, "remove_orphans", remove_five)
        run = sender.orphans_start(START)
        done = await paused(run)
        await sender.orphans_act("stop")
        report = await handled(simulation, run)
        assert (report.phase, report.done_files) == (OrphanPhase.STOPPED, done)
        assert len(names_below(simulation.target_root) - names_below(simulation.source_root)) == 300 - done
        await simulation.drained()
        run = sender.orphans_start(START)
        await paused(run)
        await sender.orphans_act("resume")
        report = await handled(simulation, run)
        assert (report.phase, report.done_files) == (OrphanPhase.COMPLETE, 300 - done)
        simulation.assert_equal()


async def one_run(seed: int, action: OrphanAction, directory: Path) -> None:
    """Orphans in the copy, changes, kills, cuts, runs by hand: in the end both are equal, and what was moved
    is all there.
    """
    chance = random.Random(seed)
    settings = OrphanSettings(
        action=action,
        directory=str(directory) if action is OrphanAction.MOVE else "",
        with_mirrors=chance.random() < 0.8,
        limit_count=0,
        limit_percent=0,
    )

    def rules(root: Path) -> list[Rule]:
        return [Rule(str(root), True, True), Rule(f"{root}/*.keep", False, True)]

    options = SenderOptions(mirror=chance.choice(("full", "difference")))
    async with simulate(seed, options=options, rules=rules, start=False) as simulation:
        simulation.orphans = settings
        changes = RandomChanges(simulation.source, chance)
        changes.steps(60)
        _copy(simulation)
        changes.restores_times = False  # a comparison by size and mtime need not find it
        directories = [p for p in simulation.target_root.rglob("*") if p.is_dir() and not p.is_symlink()]
        chosen = [simulation.target_root, *directories]
        contents: set[str] = set()
        keep: set[str] = set()
        for number in range(chance.randint(1, 12)):
            above = chance.choice(chosen) / chance.choice(("", "orphan-directory", "orphan-directory/deeper"))
            above.mkdir(parents=True, exist_ok=True)
            excluded = chance.random() < 0.3
            text = f"orphan {number} of {seed}"
            (above / (f"orphan-{number}" + (".keep" if excluded else ""))).write_text(text)
            (keep if excluded else contents).add(text)
        simulation.start_receiver()
        simulation.start_sender()
        for _ in range(chance.randint(5, 25)):
            changes.steps(chance.choice((0, 0, 1, 3)))
            await trio.sleep(chance.choice((0, 0.001, 0.01, 0.1)))
            if chance.random() < 0.1:
                await chance.choice((_kill_receiver, _kill_sender, _cut))(simulation)
            if chance.random() < 0.1 and simulation.sender is not None:
                try:
                    simulation.sender.orphans_start(chance.choice((START, PREVIEW)))
                except ReplicatorError:
                    pass  # not connected, or a mirror runs
        await simulation.drained()
        await by_hand(simulation)
        left = _files(simulation.target_root)
        assert not contents & left, (seed, contents & left)
        if action is OrphanAction.MOVE:
            moved = _files(directory)
            assert moved <= contents, (seed, moved - contents)
        _assert_equal_but_excluded(simulation)


def _assert_equal_but_excluded(simulation: Simulation) -> None:
    one, other = snapshot(simulation.source_root), snapshot(simulation.target_root)
    for path in sorted(other, reverse=True):
        below = path + b"/"
        holds = any(inner.startswith(below) for inner in other)
        if path.endswith(b".keep") or (path not in one and other[path].type == "directory" and not holds):
            del other[path]
    assert not differences(one, other)


def _copy(simulation: Simulation) -> None:
    subprocess.run(["cp", "-a", f"{simulation.source_root}/.", str(simulation.target_root)], check=True)


def _files(root: Path) -> set[str]:
    found = set()
    for path in root.rglob("orphan-*"):
        if path.is_file() and not path.is_symlink():
            found.add(path.read_text())
    return found


async def _kill_receiver(simulation: Simulation) -> None:
    await simulation.kill_receiver()
    simulation.start_receiver()


async def _kill_sender(simulation: Simulation) -> None:
    await simulation.kill_sender()
    simulation.start_sender()


async def _cut(simulation: Simulation) -> None:
    simulation.network.cut("source", "target")


@pytest.mark.parametrize("action", [OrphanAction.DELETE, OrphanAction.MOVE])
@pytest.mark.parametrize("seed", range(10))
async def test_random_runs(
    seed: int,
    action: OrphanAction,
    autojump_clock: trio.testing.MockClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "NAMES_PER_PIECE", 3)
    monkeypatch.setattr(limits, "STEP_FILES", 3)
    monkeypatch.setattr(limits, "ORPHAN_STEP_NS", 0)
    await one_run(seed, action, tmp_path / "orphans")
