"""Mirrors that compare, with real agents: what hides behind size and time is found, in proportion."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kit import dtd
from kit.patience import until

from replicator.limits import MIB

pytestmark = pytest.mark.e2e

# Otherwise the target notices who changes its copy, and has that brought at once.
CONFIGURATION = '[target]\nwatch = "off"\n[mirror]\nchecksum_all = true\n'
COMPARE = Path(__file__).parents[2] / "scripts" / "compare_trees.py"
LARGE_BYTES = 32 * MIB


def build(source: Path, chance: random.Random) -> None:
    with open(source / "large", "wb") as file:
        for _ in range(LARGE_BYTES // MIB):
            file.write(chance.randbytes(MIB))
    with open(source / "sparse", "wb") as file:
        file.truncate(1 << 30)
        for number in range(50):
            os.pwrite(file.fileno(), chance.randbytes(8192), number << 24)
    (source / "small").write_bytes(chance.randbytes(5000))
    os.link(source / "large", source / "link")


def spoil(path: Path, chance: random.Random, places: list[int]) -> None:
    """Change bytes, and keep size and time."""
    state = path.stat()
    with open(path, "r+b", buffering=0) as file:
        for place in places:
            os.pwrite(file.fileno(), chance.randbytes(10), place)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def assert_equal(source: Path, copy: Path) -> None:
    result = subprocess.run(
        [sys.executable, COMPARE, source, copy], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.timeout_s(240)
def test_blocks_are_compared(tmp_path: Path) -> None:
    chance = random.Random(1)
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    build(source, chance)
    with dtd.running(tmp_path, "alpha", "beta", configuration=CONFIGURATION) as (alpha, beta):
        con = str(alpha.json("protect", source, f"{beta.address}:{copy}", "--wait")["id"])
        places = [chance.randrange(LARGE_BYTES // 4096) * 4096 for _ in range(100)]
        spoil(copy / "large", chance, places)
        spoil(copy / "sparse", chance, [3 << 24, (5 << 24) + 4096, 7 * MIB])
        spoil(copy / "small", chance, [100])
        sent = alpha.json("status", con)[0]["sent_mirror_bytes"]
        alpha.json("mirror", "start", con, "--kind", "difference", "--checksum")
        assert alpha.dtctl("wait", con, "--timeout", "120").code == 0
        assert_equal(source, copy)
        (status,) = alpha.json("status", con)
        run = status["mirror"]
        assert run["complete"] and run["checksum"]
        assert 0 < run["sent_bytes"] <= 5000 + 102 * 4096
        assert run["compared_bytes"] > LARGE_BYTES
        assert status["sent_mirror_bytes"] - sent < 2 * MIB

        # Killed in the middle, either side.
        spoil(copy / "large", chance, [place + 4096 for place in places[:-1]])
        alpha.json("mirror", "start", con, "--checksum")
        for agent, pid in ((alpha, status["sender_pid"]), (beta, beta.json("target", "list")[0]["pid"])):
            os.kill(pid, signal.SIGKILL)
            until(lambda agent=agent: agent.json("status") is not None, 30)
        assert alpha.dtctl("wait", con, "--timeout", "120").code == 0
        assert_equal(source, copy)
        assert alpha.json("status", con)[0]["target_data_state"] == "OK"

        newer = alpha.dtctl("mirror", "start", con, "--newer")
        assert newer.code == 0 and "wrong for databases" in newer.err
        refused = alpha.dtctl("mirror", "start", con, "full", "--checksum")
        assert refused.code == 2 and "full mirror" in refused.err
