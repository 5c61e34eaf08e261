"""`dtctl recovery` with real agents: at once, over restarts, and what replication notices of a mirror at full
speed.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.patience import until
from kit.protected import Protected, protected

pytestmark = pytest.mark.e2e

MIB = 1 << 20
FILES = 150


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Protected]:
    """With a source of 150 MiB that is not connected yet."""
    with protected(tmp_path, connect=False) as made:
        made.source.mkdir()
        for number in range(FILES):
            (made.source / f"file-{number}").write_bytes(os.urandom(MIB))
        yield made


def sent_within(pair: Protected, seconds: float) -> int:
    before = pair.status["sent_mirror_bytes"]
    time.sleep(seconds)
    return int(pair.status["sent_mirror_bytes"]) - int(before)


def recovery(pair: Protected, *arguments: str) -> Any:
    return pair.alpha.json("recovery", *arguments)


def test_speed_holds_at_once_and_over_restarts(pair: Protected) -> None:
    assert recovery(pair)["speed"] == "normal"
    assert recovery(pair, "speed", "none")["speed"] == "none"
    pair.connect(wait=False)
    assert sent_within(pair, 1.0) == 0
    status = pair.status
    assert status["recovery"] == {
        "text": "Difference mirror suspended",
        "automatic": True,
        "priority": "regular",
        "speed": "none",
        "share": 0.0,
    }
    pair.alpha.kill()
    pair.alpha.start()
    os.kill(status["sender_pid"], 9)
    until(lambda: pair.status["sender_pid"] not in (None, status["sender_pid"]))
    assert sent_within(pair, 1.0) == 0
    assert recovery(pair, "speed")["speed"] == "none"
    recovery(pair, "speed", "low")
    until(lambda: pair.status["sent_mirror_bytes"] > 0)
    assert pair.status["recovery"]["share"] <= 0.5
    recovery(pair, "speed", "maximum")
    pair.assert_equal()
    assert pair.status["recovery"]["text"] == ""


def test_auto_pause_and_priority(pair: Protected) -> None:
    recovery(pair, "speed", "none")
    pair.connect(wait=False)
    name = pair.status["repset"]
    assert recovery(pair, "priority", name, "critical")["priorities"] == {name: "critical"}
    assert recovery(pair, "auto", pair.id, "off")["recovery"]["automatic"] is False
    assert recovery(pair, "pause", pair.id)["recovery"]["text"] == "Difference mirror paused"
    recovery(pair, "speed", "maximum")
    texts = [event["text"] for event in pair.alpha.json("events")]
    for text in ("speed maximum", "recovery priority critical", "recoveries wait for a person"):
        assert any(text in line for line in texts), text
    pair.alpha.stop()  # the sender as well
    pair.alpha.start()
    until(lambda: pair.status["state"] == "Started")
    status = pair.status
    assert status["recovery"]["text"] == "Difference mirror paused"
    assert (status["recovery"]["priority"], status["recovery"]["automatic"]) == ("critical", False)
    assert sent_within(pair, 1.0) == 0
    recovery(pair, "resume", pair.id)
    pair.assert_equal()
    assert recovery(pair, "priority", name, "regular")["priorities"] == {}


def test_refusals(tmp_path: Path) -> None:
    with protected(tmp_path, connect=False) as pair:
        for line in ("speed fast", "priority nothing high", "auto 1 maybe", "auto 77 on", "pause 77"):
            refused = pair.alpha.dtctl("recovery", *line.split())
            assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1), line


def test_a_mirror_does_not_starve_replication(pair: Protected) -> None:
    """A change is on the target soon while a mirror runs as fast as it can."""
    recovery(pair, "speed", "none")
    pair.connect(wait=False)
    recovery(pair, "speed", "maximum")
    probe, copy = pair.source / "probe", pair.copy / "probe"
    took = []
    number = 0
    while pair.status["mirror_status"] == "Mirroring":
        text = b"%08d" % number
        probe.write_bytes(text)
        began = time.monotonic()
        while not copy.exists() or copy.read_bytes() != text:
            assert time.monotonic() - began < 10
            time.sleep(0.002)
        took.append(time.monotonic() - began)
        number += 1
    assert took, "the mirror was over before anything could be measured"
    took.sort()
    assert took[len(took) // 2] < 1.0, took
    pair.assert_equal()


def test_a_copy_in_use_and_the_side_that_survives(pair: Protected) -> None:
    pair.connect()
    uuid, name = pair.status["uuid"], pair.status["repset"]
    assert pair.alpha.dtctl("recovery", "force", pair.id, "source", "--confirm", name).code == 1
    assert pair.beta.dtctl("target", "use", uuid).code == 1  # its source writes it
    assert pair.beta.dtctl("target", "pause", uuid).code == 0
    until(lambda: pair.status["target_status"] == "Paused")
    assert pair.beta.dtctl("target", "use", uuid).code == 0
    (pair.copy / "file-0").write_bytes(b"changed there")
    until(lambda: pair.status["state"] == "Error")
    (pair.source / "file-1").write_bytes(b"changed here")
    assert pair.status["target_data_state"] == "Restore Required"
    for line in ("target", "target --confirm web", "source", "source --confirm other"):
        refused = pair.alpha.dtctl("recovery", "force", pair.id, *line.split())
        assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
        assert "would be lost" in refused.err or "is lost" in refused.err
    assert pair.beta.dtctl("target", "resume", uuid).code == 1
    recovery(pair, "force", pair.id, "source", "--confirm", name)
    pair.assert_equal()
    assert pair.status["target_data_state"] == "OK"
