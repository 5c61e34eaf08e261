"""`dtctl why` of a path that a full queue lost operations on, from the loss until it is repaired."""

import pytest
import trio
import trio.testing
from kit.topology import TICK_S, topology

pytestmark = pytest.mark.sim

TINY = {"memory_bytes": 2 * 64 * 1024, "disk_bytes": 0}


async def test_dirty_until_it_is_brought(autojump_clock: trio.testing.MockClock) -> None:
    async with topology(1) as net:
        data = net.mount("data", **TINY)
        connection = net.connect([data], "backup")
        for name in (b"filler", b"lost", b"other"):
            data.source.create(name)
        await connection.drained()
        sender = connection.running

        async def dirty(path: str) -> str:
            return str((await sender.why(data.journal_id, path))["dirty"])

        assert await dirty("lost") == ""
        sender.transmit_stop()
        while not data.lost:
            data.source.write(b"filler", 0, b"x" * 4096)
        data.source.write(b"lost", 0, b"x" * 4096)
        assert "the queue is full" in await dirty("lost")
        sender.set_recovery(automatic=False)
        sender.transmit_start()
        with trio.fail_after(600):
            while data.writer.statistics().segments > 1 or not data.writer.record_losses():
                await trio.sleep(TICK_S)
                data.writer.collect()
        await trio.sleep(5)
        assert sender.status().recovery.text == "Log recovery paused"
        assert "regions of it" in await dirty("lost")
        assert await dirty("other") == ""
        sender.mirror_resume()
        await connection.drained()
        assert await dirty("lost") == ""
        connection.assert_equal()
