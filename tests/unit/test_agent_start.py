"""What an agent has imported when it starts its children: programs on mounts wait for that."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Of failover, before mounts: who owns what is below them, and the fences that follow.
AGENT = {"calls", "contained", "fenced_start", "fencing", "guard_fences", "guards", "ownership"}
MACHINES = {"lease", "owner", "writing"}
LATER = ("starlette", "hypercorn", "sqlite3", "http", "cryptography")


def loaded() -> set[str]:
    """By whoever is about to start children: `Service` is made by then (`dtd.run_agent`)."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, replicator.agent.dtd; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=ROOT,
    )
    return set(done.stdout.split())


def test_little_is_imported_before_children_start() -> None:
    modules = loaded()
    below = lambda package: {m.removeprefix(package) for m in modules if m.startswith(package)}  # noqa: E731
    assert below("replicator.agent.failover.") <= AGENT
    assert below("replicator.failover.") <= MACHINES
    assert not {m for m in modules if m.split(".")[0] in LATER}
    assert not {m for m in modules if m.startswith(("replicator.agent.api", "replicator.agent.routes"))}
