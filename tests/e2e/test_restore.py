"""RT-01…10 with agents, mounts and dtctl: data comes home, and protection goes on."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import leftovers
from kit.dtd import running
from kit.patience import until
from kit.protected import Protected, protected
from kit.trees import build_random_tree, differences, snapshot

pytestmark = [pytest.mark.fs, pytest.mark.e2e]


def mirrors(pair: Protected) -> list[str]:
    """Kinds of the mirrors that have begun."""
    story = pair.alpha.json("story", pair.id, "--limit", "1000")
    return [entry["reason"] for entry in story if entry["event"] == "mirror begins" and entry["reason"]]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Protected]:
    with protected(tmp_path, connect=False) as pair:
        (pair.source / "dir" / "deep").mkdir(parents=True)
        for number in range(30):
            (pair.source / "dir" / f"file {number}").write_text(f"content {number}")
        (pair.source / "dir" / "deep" / "leaf").write_text("leaf")
        pair.connect()
        yield pair


def restore(pair: Protected, *options: str) -> dict[str, Any]:
    """Begin one that must succeed, and wait for its end."""
    found: dict[str, Any] = pair.alpha.json("restore", "start", pair.id, *options, "--wait")
    assert found["phase"] == "complete", found
    return found


def check_protection_resumed(pair: Protected, begun: int) -> None:
    """Source and copy are equal, later changes arrive, and no mirror was needed."""
    pair.assert_equal()
    assert pair.status["target_data_state"] == "OK"
    (pair.source / "later").write_text("and on")
    pair.assert_equal()
    assert (pair.copy / "later").read_text() == "and on"
    assert set(mirrors(pair)[begun:]) <= {"recovery"}
    assert pair.status["sent_mirror_bytes"] < 1000


def test_an_older_source_comes_home(pair: Protected) -> None:
    begun = len(mirrors(pair))
    refused = pair.alpha.dtctl("restore", "start", pair.id)
    assert refused.code == 1 and "--even-if replicating" in refused.err
    pair.alpha.json("transmit", "stop", pair.id)
    shutil.rmtree(pair.source / "dir")
    (pair.source / "made since").write_text("is lost")
    refused = pair.alpha.dtctl("restore", "start", pair.id)
    assert refused.code == 1 and "--even-if newer" in refused.err
    preview = pair.alpha.json("restore", "start", pair.id, "--dry-run", "--orphans", "delete")
    assert preview["counts"] == {"create": 33, "remove": 1} and "newer" in preview["refused"]
    before = snapshot(pair.copy)
    restore(pair, "--orphans", "delete", "--orphans-over-limit", "--even-if", "newer")
    assert snapshot(pair.copy) == before
    assert (pair.source / "dir" / "deep" / "leaf").read_text() == "leaf"
    assert not (pair.source / "made since").exists()
    check_protection_resumed(pair, begun)


def test_a_tree_of_everything_comes_home_exactly(tmp_path: Path) -> None:
    with protected(tmp_path, connect=False) as pair:
        pair.source.mkdir()
        build_random_tree(pair.source, 5, 400)
        before = snapshot(pair.source)
        pair.connect()
        begun = len(mirrors(pair))
        pair.alpha.json("transmit", "stop", pair.id)
        for path in pair.source.iterdir():  # as if its disk was replaced by an empty one
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        restore(pair, "--even-if", "newer")
        found = snapshot(pair.source)
        assert differences(before, found) == []
        check_protection_resumed(pair, begun)


def test_what_the_copy_does_not_have_is_kept_and_sent(pair: Protected) -> None:
    """RT-09: orphans are kept by default; then protection brings them to the copy, and nothing else."""
    begun = len(mirrors(pair))
    pair.alpha.json("transmit", "stop", pair.id)
    (pair.source / "old").mkdir()
    (pair.source / "old" / "only here").write_text("kept")
    restore(pair, "--even-if", "newer")
    assert (pair.source / "old" / "only here").exists()
    pair.assert_equal()
    assert (pair.copy / "old" / "only here").read_text() == "kept"
    check_protection_resumed(pair, begun)


def test_an_empty_host_is_protected_again(pair: Protected, tmp_path: Path) -> None:
    """The host is lost, and another one takes its place: nothing is known there."""
    before = snapshot(pair.copy)
    pair.alpha.stop()
    pair.alpha.dtd("--stop-mounts", "--force")
    shutil.rmtree(pair.source)
    with running(tmp_path, "gamma") as (gamma,):
        listed = gamma.json("restore", "copies", pair.beta.address)
        assert [copy["source_name"] for copy in listed] == ["alpha"]
        assert not gamma.json("repset", "list")
        options = ("--from", pair.beta.address, "--protect", "--wait")
        done = gamma.json("restore", "start", listed[0]["repset"]["name"], *options)
        assert "without a mirror" in done["resumed"]
        assert snapshot(pair.source) == before == snapshot(pair.copy)
        (pair.source / "later").write_text("and on")
        (status,) = gamma.json("status")
        assert gamma.dtctl("wait", str(status["id"]), "--timeout", "50").code == 0
        assert (pair.copy / "later").read_text() == "and on"
        (status,) = gamma.json("status")
        assert status["target_data_state"] == "OK" and status["sent_mirror_bytes"] < 1000
        # The former source comes back: it must not write over what the new one does.
        gamma.stop()
        gamma.dtd("--stop-mounts", "--force")
        pair.alpha.start()
        until(lambda: "restore required" in pair.status["state_reason"])
        assert (pair.copy / "later").read_text() == "and on"


def test_a_copy_that_was_used_comes_home(pair: Protected) -> None:
    """The copy was taken into use, programs changed it, and the source takes over again (DC-24)."""
    begun = len(mirrors(pair))
    uuid = pair.status["uuid"]
    pair.beta.json("target", "pause", uuid)
    until(lambda: pair.beta.json("target", "list")[0]["status"]["target_status"] == "Paused")
    pair.beta.json("target", "use", uuid)
    (pair.copy / "made there").write_text("while the source was away")
    (pair.copy / "dir" / "file 7").unlink()
    (pair.source / "dir" / "file 8").write_text("changed here, and lost")
    until(lambda: pair.status["state"] == "Error")
    restore(pair, "--orphans", "delete", "--orphans-over-limit", "--even-if", "newer")
    assert (pair.source / "made there").read_text() == "while the source was away"
    assert (pair.source / "dir" / "file 8").read_text() == "content 8"
    assert not (pair.source / "dir" / "file 7").exists()
    check_protection_resumed(pair, begun)


def test_it_keeps_to_the_limit_of_its_line(pair: Protected) -> None:
    big = pair.source / "dir" / "big"
    big.write_bytes(b"0123456789abcdef" * 250_000)
    pair.assert_equal()
    pair.alpha.json("transmit", "pause", pair.id)
    big.unlink()
    pair.alpha.json("limit", "bandwidth", pair.id, "1 MB/s")
    began_s = time.monotonic()
    restore(pair, "--path", str(big), "--even-if", "newer", "--even-if", "replicating")
    assert 3 < time.monotonic() - began_s < 20
    assert big.stat().st_size == 4_000_000


def test_one_directory_comes_home_beside_running_programs(pair: Protected) -> None:
    begun = len(mirrors(pair))
    pair.alpha.json("transmit", "pause", pair.id)
    shutil.rmtree(pair.source / "dir" / "deep")
    with open(pair.source / "dir" / "file 1", "r+") as used:  # a program has the mount busy
        refused = pair.alpha.dtctl(
            "restore", "start", pair.id, "--even-if", "newer", "--even-if", "replicating"
        )
        assert refused.code == 1 and "busy" in refused.err and "fuser" in refused.err
        restore(pair, "--path", str(pair.source / "dir" / "deep"))
        used.write("changed")
    assert (pair.source / "dir" / "deep" / "leaf").read_text() == "leaf"
    pair.alpha.json("transmit", "resume", pair.id)
    check_protection_resumed(pair, begun)
    assert (pair.copy / "dir" / "file 1").read_text() == "changed 1"


@pytest.mark.parametrize("option", ["--only-missing", "--newer", "--checksum", ""])
def test_what_becomes_of_files_that_are_there(pair: Protected, tmp_path: Path, option: str) -> None:
    """RT-06…08, into another directory (RT-03). What --dry-run prints is what happens."""
    place = tmp_path / "elsewhere"
    (place / "dir").mkdir(parents=True)
    old, young = place / "dir" / "file 1", place / "dir" / "file 2"
    for path, when in ((old, 1_000_000_000), (young, 4_000_000_000)):
        path.write_text(f"other content of {path.name}")
        os.utime(path, (when, when))
    (place / "orphan").write_text("none of the copy's")
    before = snapshot(place)
    options = ["--to", str(place), "--even-if", "replicating", *filter(None, [option])]
    refused = pair.alpha.dtctl("restore", "start", pair.id, *options)
    assert refused.code == 1 and "--even-if not-empty" in refused.err
    preview = pair.alpha.json("restore", "start", pair.id, *options, "--dry-run")
    assert snapshot(place) == before and not preview["left_out"]
    restore(pair, *options, "--even-if", "not-empty", "--even-if", "newer")
    after = snapshot(place)
    steps = {step["path"].removeprefix(f"{place}/").rstrip("/"): step["action"] for step in preview["steps"]}
    made = {os.fsdecode(path) for path in after.keys() - before.keys()}
    assert made == {path for path, action in steps.items() if action == "create"}
    changed = {
        os.fsdecode(path)
        for path in after.keys() & before.keys()
        if after[path].type == "file" and after[path] != before[path]
    }
    assert changed == {path for path, action in steps.items() if action == "overwrite"}
    overwritten: dict[str, set[str]] = {"--only-missing": set(), "--newer": {"dir/file 1"}}
    assert changed == overwritten.get(option, {"dir/file 1", "dir/file 2"})
    assert steps["orphan"] == "keep" and (place / "orphan").exists()
    assert (place / "dir" / "file 3").read_text() == "content 3"


@pytest.mark.parametrize("victim", ["sender", "receiver", "source dtd", "target dtd"])
def test_killed_half_way(tmp_path: Path, victim: str) -> None:
    """It goes on by itself."""
    with protected(tmp_path, connect=False) as pair:
        pair.source.mkdir()
        content = random.Random(1).randbytes(5000)
        for number in range(1500):
            (pair.source / f"file {number}").write_bytes(content)
        pair.connect()
        begun = len(mirrors(pair))
        pair.alpha.json("transmit", "stop", pair.id)
        for path in pair.source.iterdir():
            path.unlink()
        found = pair.alpha.json("restore", "start", pair.id, "--even-if", "newer")
        until(lambda: len(list(pair.source.iterdir())) > 40, 60, 0.005)
        assert len(list(pair.source.iterdir())) < 1500
        kill(pair, victim)
        until(
            lambda: pair.alpha.json("restore", "status")[0]["phase"] not in ("running", "finishing"), 60, 0.2
        )
        (done,) = pair.alpha.json("restore", "status", str(found["id"]))
        assert done["phase"] == "complete", done
        check_protection_resumed(pair, begun)


def kill(pair: Protected, victim: str) -> None:
    agent = pair.beta if victim in ("sender", "target dtd") else pair.alpha
    if victim.endswith("dtd"):
        agent.kill()
        agent.start()
        return
    for process_id, command in leftovers.processes_of_home(agent.home).items():
        if f"replicator.{victim}.process " in command:
            os.kill(process_id, signal.SIGKILL)


def test_stopped_half_way_nothing_is_replicated_by_itself(pair: Protected) -> None:
    pair.alpha.json("transmit", "stop", pair.id)
    shutil.rmtree(pair.source / "dir")
    uuid = pair.status["uuid"]
    pair.beta.kill()  # so that it cannot come to its end
    assert pair.alpha.dtctl("restore", "start", pair.id).code == 3
    assert pair.alpha.json("mount", "list")[0]["state"] == "serving"
    pair.beta.start()
    before = snapshot(pair.copy)
    found = pair.alpha.json("restore", "start", pair.id, "--even-if", "newer")
    pair.beta.kill()
    stopped = pair.alpha.json("restore", "stop", str(found["id"]))
    assert stopped["phase"] == "stopped"
    assert pair.status["state"] == "Error" and "given up" in pair.status["state_reason"]
    assert snapshot(pair.copy) == before
    pair.beta.start()
    pair.beta.json("target", "resume", uuid)
    pair.alpha.json("transmit", "start", pair.id)  # what is here survives
    pair.assert_equal()
