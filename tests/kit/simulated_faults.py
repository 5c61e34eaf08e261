"""The faults of a simulated run: a table of what may happen to a connection, at any moment.

Each returns when it has begun; one that lasts a while ends by itself, beside the run, or with `heal`.
"""

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable
from random import Random

import trio

from kit.disk import ProcessDied
from kit.topology import SOURCE, Connection, Mount, Topology
from replicator.errors import ReplicatorError

_ILLNESSES = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EMFILE)
_LASTS_S = (0.01, 0.5, 3, 20)  # the last one is longer than anybody waits for a heartbeat
_DAY_NS = 86_400 * 10**9
_FILLERS = 8


class Faults:
    """Faults of one run. `lose_power(connection)` is the run's, which knows what was synced."""

    def __init__(
        self,
        net: Topology,
        connections: list[Connection],
        chance: Random,
        *,
        lose_power: Callable[[Connection], Awaitable[None]],
        set_illness: Callable[[Connection, Callable[[str], None]], None],
    ) -> None:
        self.told: list[str] = []  # what happened, for people
        self._net = net
        self._connections = connections
        self._chance = chance
        self._lose_power = lose_power
        self._set_illness = set_illness
        self._healers: list[Callable[[], None]] = []

    async def happen(self, kinds: list[str]) -> None:
        """One of these."""
        connection = self._chance.choice(self._connections)
        kind = self._chance.choice(kinds)
        self.told.append(f"{trio.current_time():.4f} {kind} {connection.host}")
        await FAULTS[kind](self, connection)

    def heal(self) -> None:
        """Everything that lasts ends now."""
        for end in self._healers:
            end()
        self._healers.clear()

    def _command(self, connection: Connection, name: str, *arguments: str | bool) -> None:
        """As an administrator's, to a sender that may end meanwhile."""
        if connection.sender_process.dead:
            return
        with contextlib.suppress(ProcessDied):
            getattr(connection.running, name)(*arguments)

    def _for_a_while(self, end: Callable[[], None]) -> None:
        lasts_s = self._chance.choice(_LASTS_S)

        async def later() -> None:
            await trio.sleep(lasts_s)
            if end in self._healers:
                self._healers.remove(end)
                end()

        self._healers.append(end)
        self._net.nursery.start_soon(later)

    # --- processes ---

    async def kill_sender(self, connection: Connection) -> None:
        await connection.kill_sender()
        connection.start_sender()

    async def kill_receiver(self, connection: Connection) -> None:
        await connection.kill_receiver()
        connection.start_receiver()

    async def kill_both(self, connection: Connection) -> None:
        await self.kill_sender(connection)
        await self.kill_receiver(connection)

    async def kill_capture(self, connection: Connection) -> None:
        self._chance.choice(connection.mounts).restart_writer()

    async def sender_dies_in_a_disk_call(self, connection: Connection) -> None:
        connection.sender_process.die_in(self._chance.randrange(1, 20))

    async def receiver_dies_in_a_disk_call(self, connection: Connection) -> None:
        connection.receiver_process.die_in(self._chance.randrange(1, 40))

    # --- the network ---

    async def cut(self, connection: Connection) -> None:
        self._net.network.cut(SOURCE, connection.host)

    async def half_open(self, connection: Connection) -> None:
        """Nothing arrives, and nobody is told."""
        self._net.network.part(SOURCE, connection.host)
        self._for_a_while(lambda: self._net.network.heal(SOURCE, connection.host))

    async def slow_network(self, connection: Connection) -> None:
        usual_s = self._net.network.latency_s
        self._net.network.latency_s = self._chance.choice((0.1, 1.0))
        self._net.network.cut(SOURCE, connection.host)  # counts for new connections

        def end() -> None:
            self._net.network.latency_s = usual_s

        if usual_s < 0.1:
            self._for_a_while(end)

    # --- disks ---

    async def slow_target_disk(self, connection: Connection) -> None:
        self._slow_disk(connection.world.delays_s)

    async def slow_source_disk(self, connection: Connection) -> None:
        self._slow_disk(self._net.world.delays_s)

    def _slow_disk(self, delays_s: list[float]) -> None:
        usual = list(delays_s)
        delays_s[:] = [0.0, 0.05, 0.5, 2.0]
        if max(usual) < 0.1:
            self._for_a_while(lambda: delays_s.__setitem__(slice(None), usual))

    async def ill_target(self, connection: Connection) -> None:
        """Its file system is full, read-only, or fails: now and then, or always."""
        number = self._chance.choice(_ILLNESSES)
        share = self._chance.choice((0.3, 1.0))

        def illness(operation: str) -> None:
            if self._chance.random() < share:
                raise OSError(number, os.strerror(number), operation)

        self._set_illness(connection, illness)
        self._for_a_while(lambda: self._set_illness(connection, lambda operation: None))

    async def full_spool(self, connection: Connection) -> None:
        disk = connection.world.disk
        disk.volatile_capacity = disk.capacity = self._chance.choice((0, 70_000))

        def end() -> None:
            disk.volatile_capacity = disk.capacity = None

        self._for_a_while(end)

    # --- clocks, commands, power ---

    async def clock_jumps(self, connection: Connection) -> None:
        """The wall clock of a host is set; the monotonic one is not."""
        clock = self._chance.choice((self._net.world.clock, connection.world.clock))
        clock.jump_ns += self._chance.choice((-1, 1)) * self._chance.randrange(_DAY_NS)

    async def pause_target(self, connection: Connection) -> None:
        receiver = connection.receiver
        if receiver is not None:
            receiver.pause()
            self._for_a_while(receiver.resume)

    async def stop_transmission(self, connection: Connection) -> None:
        self._command(connection, "transmit_stop")
        self._for_a_while(lambda: self._command(connection, "transmit_start"))

    async def pause_transmission(self, connection: Connection) -> None:
        self._command(connection, "transmit_pause")
        self._for_a_while(lambda: self._command(connection, "transmit_start"))

    async def mirror_again(self, connection: Connection) -> None:
        """An administrator brings everything once more, while changes go on."""
        with contextlib.suppress(ReplicatorError):  # one that is being stopped
            kind = self._chance.choice(("full", "difference"))
            checksum = kind == "difference" and connection.options.checksum
            self._command(connection, "mirror_start", kind, "", False, checksum)

    async def target_loses_power(self, connection: Connection) -> None:
        await self._lose_power(connection)
        connection.start_receiver()

    async def full_queue(self, connection: Connection) -> None:
        """Until changes are lost."""
        self._command(connection, "transmit_stop")
        fill_queue(self._chance.choice(connection.mounts))
        self._for_a_while(lambda: self._command(connection, "transmit_start"))


def fill_queue(mount: Mount) -> None:
    """To the last byte: not even a HOLE fits any more."""
    number = 0
    for size in (4096, 1):
        lost = mount.lost
        while mount.lost == lost:
            mount.source.write(b"filler", number % _FILLERS * 4096, bytes([number % 256]) * size)
            number += 1


FAULTS: dict[str, Callable[[Faults, Connection], Awaitable[None]]] = {
    method.__name__: method
    for method in (
        Faults.kill_sender,
        Faults.kill_receiver,
        Faults.kill_both,
        Faults.kill_capture,
        Faults.sender_dies_in_a_disk_call,
        Faults.receiver_dies_in_a_disk_call,
        Faults.cut,
        Faults.half_open,
        Faults.slow_network,
        Faults.slow_target_disk,
        Faults.slow_source_disk,
        Faults.ill_target,
        Faults.full_spool,
        Faults.clock_jumps,
        Faults.pause_target,
        Faults.stop_transmission,
        Faults.pause_transmission,
        Faults.mirror_again,
        Faults.target_loses_power,
        Faults.full_queue,
    )
}
COSTLY = frozenset({"mirror_again", "target_loses_power", "full_queue"})
"""After these, more than the queue is needed."""
