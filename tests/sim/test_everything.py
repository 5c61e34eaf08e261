"""A tree of all that a copy is to have is equal after each kind of mirror. Each single difference is found
and named by a verification, and brought right by each kind of mirror that looks for it.
"""

import os
from pathlib import Path

import pytest
import trio
import trio.testing
from kit.everything import CHANGES, Change, make_everything
from kit.simulation import Simulation, simulate
from kit.trees import assert_same_tree, differences, snapshot

from replicator.ops import shown
from replicator.status import MirrorStatus, TargetDataState, VerifyPhase, VerifyProgress

pytestmark = pytest.mark.sim

_OVER = (VerifyPhase.COMPLETE, VerifyPhase.STOPPED)

KINDS: dict[str, dict[str, object]] = {
    "full": {"kind": "full"},
    "difference": {},
    "newer": {"newer": True},
    "checksum": {"checksum": True},
    "newer and checksum": {"newer": True, "checksum": True},
    "checksum of all": {"checksum": True},  # with [mirror] checksum_all
}
SEES_ALL = frozenset({"full", "checksum of all"})


def make(simulation: Simulation) -> None:
    longest = max(len(os.fsencode(root)) for root in (simulation.source_root, simulation.target_root))
    make_everything(simulation.source_root, longest)


async def mirrored(simulation: Simulation, kind: str) -> None:
    """From its start to its end."""
    sender = simulation.sender
    assert sender is not None
    sender.mirrors.checksum_all = kind == "checksum of all"
    sender.mirror_start(**KINDS[kind])  # type: ignore[arg-type]
    with trio.fail_after(600):
        while (  # noqa: ASYNC110  # a look from outside: nothing tells
            simulation.status.mirror_status is not MirrorStatus.IDLE
            or simulation.status.target_data_state is TargetDataState.MIRRORING
        ):
            await trio.sleep(0.01)


async def verified(simulation: Simulation, **options: bool) -> VerifyProgress:
    sender = simulation.sender
    assert sender is not None
    sender.verify_start(**options)
    with trio.fail_after(600):
        while sender.verify_progress().phase not in _OVER:  # noqa: ASYNC110  # as above
            await trio.sleep(0.01)
    return sender.verify_progress()


def differing(simulation: Simulation) -> list[str]:
    return differences(snapshot(simulation.source_root), snapshot(simulation.target_root))


@pytest.mark.parametrize("there", ["nothing", "something else"])
@pytest.mark.parametrize("kind", KINDS)
async def test_it_is_equal_after_each_kind_of_mirror(
    kind: str, there: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with simulate(1, start=False) as simulation:
        make(simulation)
        if there == "something else":
            (simulation.target_root / "directory").touch()
            for name in ("fifo", "link", "twin"):
                (simulation.target_root / name).mkdir()
            os.mkfifo(simulation.target_root / "large")
        simulation.start_receiver()
        sender = simulation.start_sender()
        sender.mirrors.checksum_all = kind == "checksum of all"
        sender.mirror_start(**KINDS[kind])  # type: ignore[arg-type]
        await simulation.drained()
        assert simulation.status.mirror.complete and not simulation.status.mirror.problem_count
        simulation.assert_equal()
        for checksum in (False, True):
            report = await verified(simulation, checksum=checksum)
            assert not report.differences and not report.problems and not report.changing
            assert (report.files, report.directories) == counted(simulation.source_root)


def counted(root: Path) -> tuple[int, int]:
    nodes = snapshot(root).values()
    directories = sum(node.type == "directory" for node in nodes)
    return len(nodes) - directories, directories


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.label)
async def test_one_difference(change: Change, autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(2, start=False) as simulation:
        make(simulation)
        simulation.start_receiver()
        simulation.start_sender()
        await simulation.drained()
        change.make(simulation.target_root)
        assert differing(simulation)
        await check_named(simulation, change)
        for kind in KINDS:
            if not differing(simulation):
                change.make(simulation.target_root)
            await mirrored(simulation, kind)
            check_brought(simulation, change, kind)
        assert_same_tree(simulation.source_root, simulation.target_root)  # the last one sees all
        for checksum in (False, True):
            if not differing(simulation):
                change.make(simulation.target_root)
            report = await verified(simulation, checksum=checksum, remirror=True)
            await simulation.drained()
            left = differing(simulation)
            if not change.aspects:  # holes stand for zeros: nothing is said of them, and nothing is done
                assert left and all(": holes: " in line for line in left)
            elif checksum or not change.hidden:
                assert (left, report.remirrored) == ([], 1)


async def check_named(simulation: Simulation, change: Change) -> None:
    """It, and nothing else."""
    for checksum in (False, True):
        report = await verified(simulation, checksum=checksum)
        found = {difference.path: set(difference.aspects) for difference in report.differences}
        if (change.hidden and not checksum) or not change.aspects:
            assert not found
            continue
        if change.aspects == {"hard link"}:
            ((path, aspects),) = found.items()
            assert "hard link" in aspects and path.rpartition("/")[2] in change.path + "another name twin"
            continue
        also = {"content"} if "size" in change.aspects and checksum else set()
        ((path, aspects),) = found.items()
        assert path == shown(os.fsencode(change.path))
        assert change.aspects <= aspects <= change.aspects | also


def check_brought(simulation: Simulation, change: Change, kind: str) -> None:
    left, status = differing(simulation), simulation.status
    if kind in SEES_ALL or (not change.hidden and "newer" not in kind):
        assert (kind, left) == (kind, [])
    elif "newer" in kind and left and not change.hidden:
        # It says what it leaves alone, and does not call that a copy.
        assert (kind, [p.path for p in status.mirror.problems]) == (kind, [change.path])
        assert status.target_data_state is TargetDataState.MIRROR_REQUIRED
        return
    assert status.target_data_state is TargetDataState.OK
