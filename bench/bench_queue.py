"""What a queue takes while the target is away, and how long it takes to empty when the target is back.

The target's agent is stopped, 1 GiB is written through the mount, and the target is started again. Peak
memory of a process counts the pages of the memory tier that it looks at (shared); "own" is what it has
beside them.
"""

import time
from pathlib import Path

import harness


def measure(work: Path, quick: bool) -> None:
    size = 256 * harness.MIB if quick else harness.GIB
    source, copy = work / "source", work / "copy"
    source.mkdir()
    with harness.pair(work) as agents:
        agents.capture(source)
        agents.connect(source, copy)
        processes = agents.processes()
        agents.target_agent.stop()
        start = time.perf_counter()
        harness.make_file(source / "file", size)
        rate = size / (time.perf_counter() - start) / harness.MIB
        time.sleep(1.0)
        table = harness.Table(f"{size // harness.MIB} MiB written while the target is stopped", "what", "MiB")

        def mib(label: str, count: float) -> None:
            table.row(label, f"{count / harness.MIB:.1f}")

        mib("memory tier, on tmpfs", harness.used_bytes(work / "memory" / "source"))
        mib("disk tier", harness.used_bytes(agents.source_agent.home / "queue"))
        for role in ("capture", "sender", "source dtd"):
            mib(f"{role}: peak memory", harness.memory_bytes(processes[role], "VmHWM"))
            mib(f"{role}: own memory", harness.memory_bytes(processes[role], "RssAnon"))
        queued = agents.status()["queued_bytes"]
        start = time.perf_counter()
        agents.target_agent.start()
        started_s = time.perf_counter() - start
        harness.until(lambda: agents.status()["queued_bytes"] < queued, interval_s=0.05)
        resumed_s = time.perf_counter() - start
        agents.wait()
        drained_s = time.perf_counter() - start
        after = agents.processes()
        for role in ("capture", "sender", "receiver"):
            mib(f"{role}: peak memory after the drain", harness.memory_bytes(after[role], "VmHWM"))
        agents.settle()
        result = harness.assert_equal(source, copy)
        mib("memory tier after the drain", harness.used_bytes(work / "memory" / "source"))
        mib("disk tier after the drain", harness.used_bytes(agents.source_agent.home / "queue"))
        table = harness.Table("Time", "what", "")
        table.row("written at, MiB/s", f"{rate:.0f}")
        table.row("target started, s", f"{started_s:.2f}")
        table.row("the queue gets shorter, s after that start began", f"{resumed_s:.2f}")
        table.row("everything is applied, s after that start began", f"{drained_s:.2f}")
        table.row("source and copy", result)


if __name__ == "__main__":
    harness.run(__doc__, measure)
