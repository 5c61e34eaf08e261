"""Everything is killed with SIGKILL and started again: what was captured and not sent is on the target soon,
also what no comparison would find, and nothing else is looked at.
"""

import time
from pathlib import Path

import pytest
from kit.hidden_change import change_in_place
from kit.patience import until
from kit.protected import Protected, protected, serves
from kit.snapshots import beneath, frozen
from kit.unused import build_unused, forget_reads, was_read

pytestmark = pytest.mark.e2e

WITHIN_S = 20.0  # `make bench BENCH=restart` measures it; a machine that runs all tests may be busy
MARK = b"changed in place"


def mirrors(pair: Protected) -> int:
    story = pair.alpha.json("story", pair.id, "--limit", "1000")
    return sum(e["dimension"] == "mirror status" and e["event"] == "mirror begins" for e in story)


def head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(len(MARK))


@pytest.mark.parametrize("spared", [(), ("capture",)], ids=["all", "all but the capture"])
def test_a_hidden_change_is_there_soon_after_a_restart(spared: tuple[str, ...], tmp_path: Path) -> None:
    source = tmp_path / "source"
    build_unused(source, seed=1, large_bytes=1 << 20)
    with protected(tmp_path) as pair:
        pair.drained()
        name, mirrored = "0/large", mirrors(pair)
        with beneath(pair.alpha.home, pair.mount_id) as below:
            forget_reads(below)
        with frozen(pair.status["receiver_pid"]):
            change_in_place(source / name, MARK)
            pair.alpha.kill_all(*spared)
            pair.beta.kill_all()
        assert head(pair.copy / name) != MARK
        if not spared:
            assert not serves(source)
        for agent in (pair.beta, pair.alpha):
            agent.launch()
        began_s = time.monotonic()
        until(lambda: head(pair.copy / name) == MARK, WITHIN_S)
        print(f"there {time.monotonic() - began_s:.2f} s after the start")
        for agent in (pair.beta, pair.alpha):
            agent.wait_started()
        pair.drained()
        assert head(source / name) == MARK
        with beneath(pair.alpha.home, pair.mount_id) as below:
            assert not was_read(below)
        pair.assert_equal()
        assert pair.status["target_data_state"] == "OK"
        assert (mirrors(pair), pair.status["sent_mirror_bytes"]) == (mirrored, 0)
        assert pair.status["sent_bytes"] < 64 << 10
