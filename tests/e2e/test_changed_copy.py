"""AD-09: what others change in a copy is noticed, told, and brought again from the source."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.patience import until
from kit.protected import Protected, protected
from kit.trees import assert_same_tree

from replicator.config import WATCH_OFF, WATCH_ON

pytestmark = [pytest.mark.fs, pytest.mark.e2e]


def fill(source: Path) -> None:
    (source / "dir" / "below").mkdir(parents=True)
    for name in ("a", "b", "c", "dir/d", "dir/e", "dir/below/f"):
        (source / name).write_text(f"content of {name}")
    os.symlink("a", source / "link")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Protected]:
    with protected(tmp_path, connect=False) as pair:
        pair.source.mkdir()
        fill(pair.source)
        pair.connect()
        until(lambda: watch(pair))
        if watch(pair) != WATCH_ON:
            pytest.skip(watch(pair))
        yield pair


def receiver(pair: Protected) -> dict[str, object]:
    (target,) = pair.beta.json("target", "list")
    return {"pid": target["pid"], **(target["status"] or {})}


def watch(pair: Protected) -> str:
    """ "" until it is known."""
    state = str(receiver(pair).get("watch", WATCH_OFF))
    return "" if state == WATCH_OFF else state


def noticed(pair: Protected) -> int:
    return int(str(receiver(pair).get("foreign_changes", 0)))


def foreign(pair: Protected, script: str) -> None:
    """Somebody else does this in the copy; returns when it was noticed."""
    before = noticed(pair)
    subprocess.run(["sh", "-ec", script], cwd=pair.copy, check=True, timeout=10)
    until(lambda: noticed(pair) > before)


def repaired(pair: Protected) -> None:
    until(lambda: pair.status["target_data_state"] == "OK" and pair.status["mirror_status"] == "Idle")


def event_texts(agent: object) -> list[str]:
    return [event["text"] for event in agent.json("events")]  # type: ignore[attr-defined]


SCRIPTS = [
    "echo foreign > a; rm b; rm -r dir/below; chmod 600 c; touch -d 2001-01-01 dir/d; rm link; ln -s b link",
    "mv dir/below .; rm -r below; setfattr -n user.foreign -v 1 c; chown 7:7 dir; mv a b",
    "rm c; mkdir c; rm dir/e; ln -s .. dir/e"
    # Size and time are as before: only a look at the content could tell.
    "; printf 'CONTENT OF a' > x; touch -r a x; cat x > a; touch -r x a; rm x",
]


def test_the_copy_is_as_the_source_again(pair: Protected) -> None:
    for script in SCRIPTS:
        foreign(pair, script)
        until(lambda: _same(pair))
        repaired(pair)
        pair.assert_equal()
    until(lambda: any("changed here by somebody else" in text for text in event_texts(pair.beta)))
    until(lambda: any("somebody else changed the copy" in text for text in event_texts(pair.alpha)))
    assert "others have changed" in pair.alpha.dtctl("story", pair.id).out


def _same(pair: Protected) -> bool:
    """The last changes of a script may be in a second report; what is looked at may be removed meanwhile."""
    try:
        assert_same_tree(pair.source, pair.copy)
    except (AssertionError, FileNotFoundError):
        return False
    return True


def test_only_what_was_changed_is_sent(pair: Protected) -> None:
    (pair.source / "large").write_bytes(os.urandom(8 << 20))
    pair.drained()
    before = pair.status["sent_bytes"]
    foreign(pair, "echo foreign > dir/below/f")
    repaired(pair)
    pair.assert_equal()
    assert pair.status["sent_bytes"] - before < 64 << 10


def test_what_was_put_there_stays_unless_orphans_are_to_go(pair: Protected) -> None:
    foreign(pair, "mkdir mine; echo mine > mine/file; echo mine > dir/mine")
    repaired(pair)
    time.sleep(1)  # whatever would be removed is
    assert (pair.copy / "mine" / "file").read_text() == (pair.copy / "dir" / "mine").read_text() == "mine\n"
    pair.alpha.json("disconnect", pair.id)
    set_name = pair.alpha.json("repset", "list")[0]["name"]
    body = {
        "repset": set_name,
        "target": pair.beta.address,
        "maps": [{"source": str(pair.source), "target": str(pair.copy)}],
        "orphans": "delete",
    }
    pair.id = str(post(pair, "connections", body)["id"])
    pair.assert_equal()
    until(lambda: watch(pair))
    foreign(pair, "mkdir mine; echo mine > mine/file; echo mine > dir/mine")
    until(lambda: _same(pair))
    repaired(pair)


def post(pair: Protected, path: str, body: dict[str, object]) -> dict[str, object]:
    from replicator.cli.client import Client

    answer = Client(str(pair.alpha.home)).post(path, body=body)
    assert isinstance(answer, dict)
    return answer


def test_noticed_while_the_source_is_away_it_is_repaired_later(pair: Protected) -> None:
    pair.alpha.json("transmit", "stop", pair.id)
    foreign(pair, "echo foreign > a; rm b")
    (pair.source / "c").write_text("changed on the source")
    pid = int(str(receiver(pair)["pid"]))
    os.kill(pid, signal.SIGKILL)  # what was noticed is not forgotten with the process
    until(lambda: receiver(pair).get("target_data_state") == "Mirror Required")
    assert receiver(pair)["pid"] != pid
    pair.alpha.json("transmit", "start", pair.id)
    repaired(pair)
    pair.assert_equal()


def test_a_sender_killed_at_the_repair(pair: Protected) -> None:
    for number in range(3):
        foreign(pair, f"echo foreign {number} > a; rm -r dir")
        os.kill(pair.status["sender_pid"], signal.SIGKILL)
        until(lambda: pair.status["sender_pid"])
        repaired(pair)
        until(lambda: _same(pair))
        pair.assert_equal()


def test_what_the_receiver_itself_does_is_never_taken_for_it(pair: Protected) -> None:
    subprocess.run(
        [
            "sh",
            "-ec",
            "for i in $(seq 300); do echo $i > n$i; mv n$i m$i; echo >> m$i; done; rm m1*; cp -a dir copied;"
            "rm -r dir; chmod 700 m2*; ln m30 hard; echo >> hard",
        ],
        cwd=pair.source,
        check=True,
        timeout=60,
    )
    pair.alpha.json("mirror", "start", pair.id, "--mirror", "full")
    pair.assert_equal()
    time.sleep(1)
    assert noticed(pair) == 0


def test_a_program_that_works_with_the_copy_does_not_keep_the_source_busy(pair: Protected) -> None:
    writer = subprocess.Popen(
        ["sh", "-c", "while :; do echo again >> a; sleep 0.02; done"],
        cwd=pair.copy,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: noticed(pair))
        time.sleep(10)
        story = pair.alpha.dtctl("story", pair.id).out
        assert story.count("mirror begins: recovery") <= 5
    finally:
        writer.kill()
        writer.wait()
    until(lambda: _same(pair), timeout_s=60)


def test_switched_off_nothing_is_noticed(tmp_path: Path) -> None:
    with protected(tmp_path, beta_configuration='[target]\nwatch = "off"\n', connect=False) as pair:
        pair.source.mkdir()
        fill(pair.source)
        pair.connect()
        (pair.copy / "a").write_text("foreign")
        time.sleep(2)
        assert (pair.copy / "a").read_text() == "foreign"
        assert (receiver(pair)["watch"], noticed(pair)) == (WATCH_OFF, 0)
