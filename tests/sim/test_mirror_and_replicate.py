"""Whole senders and receivers under virtual time: mirror, replicate, both at once."""

import pytest
import trio
import trio.testing
from kit.simulation import simulate
from kit.trees import build_random_tree

pytestmark = pytest.mark.sim


async def test_a_tree_is_mirrored_exactly(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(1, start=False) as simulation:
        build_random_tree(simulation.source_root, 1, 80)
        simulation.start_receiver()
        simulation.start_sender()
        await simulation.drained()
        simulation.assert_equal()
        assert simulation.status.target_data_state == "OK"


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
