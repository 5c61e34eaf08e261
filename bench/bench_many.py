"""A target with many sources that have nothing to send: what each of them costs, and who notices.

The sources are sessions of one program, played as far as CONNECTED and heartbeats; their receivers are real.
Beside them one real source writes 4 KiB now and then. `--connections` of them, for `--seconds`.
"""

import statistics
import sys
import threading
import time
from functools import partial
from pathlib import Path

import harness
import trio
from kit.scripted_source import ScriptedSession, connect_frame

from replicator.net.frames import Connected

PATIENCE_S = 300.0


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


class Sources:
    """In a thread of its own; `up` of them are connected."""

    def __init__(self, port: int, copies: Path, count: int) -> None:
        self.up = 0
        self._port, self._copies, self._count = port, copies, count
        self._scope = trio.CancelScope()
        self._thread = threading.Thread(target=trio.run, args=(self._run,))
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread.start()

    def close(self) -> None:
        if self._token is not None:
            self._token.run_sync_soon(self._scope.cancel)
        self._thread.join()

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                for number in range(self._count):
                    nursery.start_soon(self._one, number)

    async def _one(self, number: int) -> None:
        name = uuid(number)
        while True:
            try:
                await self._session(number, name)
            except Exception as error:  # as a sender does: again
                print(f"source {number}: {error!r}", file=sys.stderr)
            await trio.sleep(1)

    async def _session(self, number: int, name: str) -> None:
        stream = await trio.open_tcp_stream(
            "127.0.0.1", self._port, local_address=f"127.0.{number // 200}.{number % 200 + 1}"
        )
        source = ScriptedSession(stream)
        frame = connect_frame(str(self._copies / str(number)), connection_uuid=name, repset=f"set {number}")
        answer = await source.open(frame, agent_uuid=name, uuid=name)
        if not isinstance(answer, Connected):
            raise harness.BenchError(f"refused: {answer}")
        self.up += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.session.heartbeat)
                await source.listen()
                nursery.cancel_scope.cancel()
        finally:
            self.up -= 1


def proportional_bytes(process_id: int) -> int:
    for line in Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return 0


def wakeups(process_id: int) -> int:
    text = Path(f"/proc/{process_id}/status").read_text()
    return sum(
        int(line.split()[1]) for line in text.splitlines() if line.startswith("voluntary_ctxt_switches")
    )


def latencies(source: Path, copy: Path, count: int) -> list[float]:
    found = []
    for number in range(count):
        block = number.to_bytes(8, "little") * 512
        start = time.perf_counter()
        with open(source / "file", "r+b", buffering=0) as file:
            file.write(block)
        harness.until(lambda block=block: (copy / "file").read_bytes() == block)
        found.append(time.perf_counter() - start)
        time.sleep(0.2)
    return found


def measure(work: Path, quick: bool, connections: int, seconds: int) -> None:
    source, copy = work / "source", work / "copy"
    source.mkdir()
    (source / "file").write_bytes(bytes(4096))
    table = harness.Table(
        "A target with idle sources",
        "connections",
        "until all are connected",
        "memory of a receiver (PSS)",
        "memory of the agent",
        "processor time of a receiver, per hour",
        "wake-ups of a receiver per second",
        "processor time of the agent",
        "`dtctl` list of targets",
        "4 KiB → target, median",
    )
    for watch, counts in (("auto", (0, connections)), ("off", (connections,))):
        _measure(work, table, source, copy, watch, counts, seconds, quick)


def _measure(
    work: Path,
    table: harness.Table,
    source: Path,
    copy: Path,
    watch: str,
    counts: tuple[int, ...],
    seconds: int,
    quick: bool,
) -> None:
    with harness.pair(work, settings=f'[target]\nwatch = "{watch}"\n[queue]\n') as agents:
        agents.capture(source)
        agents.connect(source, copy)
        agent_pid = agents.processes()["target dtd"]
        for count in counts:
            sources = Sources(agents.target_agent.port, work / "copies", count)
            try:
                start = time.perf_counter()
                while sources.up < count and time.perf_counter() - start < PATIENCE_S:
                    time.sleep(0.05)
                if sources.up < count:
                    refusals = [e["text"] for e in agents.target.get("events") if e["severity"] != "info"]
                    raise harness.BenchError(f"{sources.up} of {count} connected: {refusals[-5:]}")
                connected_s = time.perf_counter() - start
                time.sleep(2)
                row = [
                    f"{count}" + (", watch off" if watch == "off" else ""),
                    f"{connected_s:.1f} s",
                    *_look(agents, agent_pid, seconds),
                ]
                delays = latencies(source, copy, 5 if quick else 30)
                table.row(*row, f"{statistics.median(delays) * 1000:.1f} ms")
            finally:
                sources.close()


def _look(agents: harness.Pair, agent_pid: int, seconds: int) -> list[str]:
    receivers = [target["pid"] for target in agents.target.get("targets")]
    everyone = [agent_pid, *receivers]
    before = {pid: (harness.processor_s(pid), wakeups(pid)) for pid in everyone}
    time.sleep(seconds)
    after = {pid: (harness.processor_s(pid), wakeups(pid)) for pid in everyone}
    spent = statistics.mean(after[pid][0] - before[pid][0] for pid in receivers)
    woken = statistics.mean(after[pid][1] - before[pid][1] for pid in receivers)
    start = time.perf_counter()
    agents.target.get("targets")
    list_s = time.perf_counter() - start
    memory = statistics.mean(proportional_bytes(pid) for pid in receivers)
    return [
        f"{memory / 2**20:.1f} MiB",
        f"{proportional_bytes(agent_pid) / 2**20:.0f} MiB",
        f"{spent / seconds * 3600:.1f} s",
        f"{woken / seconds:.1f}",
        f"{(after[agent_pid][0] - before[agent_pid][0]) / seconds * 100:.1f} %",
        f"{list_s * 1000:.0f} ms",
    ]


if __name__ == "__main__":
    harness.run(__doc__, partial(measure), connections=(200, 10), seconds=(30, 3))
