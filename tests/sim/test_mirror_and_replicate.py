"""Whole senders and receivers under virtual time: mirror, replicate, both at once."""

import os
import shutil

import pytest
import trio
import trio.testing
from kit.simulation import simulate
from kit.trees import build_random_tree

from replicator.sender.arguments import SenderOptions

pytestmark = pytest.mark.sim


async def test_a_tree_is_mirrored_exactly(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(1, start=False) as simulation:
        build_random_tree(simulation.source_root, 1, 80)
        simulation.start_receiver()
        simulation.start_sender()
        await simulation.drained()
        simulation.assert_equal()
        assert simulation.status.target_data_state == "OK"


async def test_a_change_before_the_first_session_is_not_missed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It hides behind size and mtime, but it was captured: the comparison does not have to find it."""
    async with simulate(10352, options=SenderOptions(mirror="difference"), start=False) as simulation:
        source = simulation.source
        source.create(b"file")
        source.write(b"file", 0, b"before")
        shutil.copytree(simulation.source_root, simulation.target_root, dirs_exist_ok=True)
        simulation.start_receiver()
        simulation.start_sender()  # but nothing has been said yet
        mtime_ns = os.stat(source.at(b"file")).st_mtime_ns
        source.write(b"file", 0, b"behind")
        source.utime(b"file", mtime_ns)
        await simulation.drained()
        simulation.assert_equal()


async def test_changes_follow(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(2) as simulation:
        await simulation.drained()
        source = simulation.source
        source.mkdir(b"d")
        source.create(b"d/f")
        source.write(b"d/f", 0, b"hello")
        await simulation.drained()
        simulation.assert_equal()
        source.rename(b"d", b"e")
        source.unlink(b"e/f")
        await simulation.drained()
        simulation.assert_equal()
