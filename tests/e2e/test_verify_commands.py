"""Verification with real agents: by dtctl, while programs write all the time, and what it brings."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kit.patience import until
from kit.protected import Protected, protected

from replicator.limits import MIB

pytestmark = [pytest.mark.fs, pytest.mark.e2e]

# Otherwise the target notices who changes its copy, and has that brought at once.
NOT_WATCHED = '[target]\nwatch = "off"\n'
LOGGED = '[verify]\nlog_directory = "{}"\nlog_name = "compared.log"\n'
WRITER = Path(__file__).parents[1] / "kit" / "steady_writer.py"
WRITES_PER_S = 5000
WRITERS = 4  # processes: one alone waits for its answers most of the time
LOADED_S = 150.0  # for one verification meanwhile, on a machine that is busy anyway


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Protected]:
    (tmp_path / "logs").mkdir()
    configuration = LOGGED.format(tmp_path / "logs")
    with protected(
        tmp_path, configuration=configuration, beta_configuration=NOT_WATCHED, connect=False
    ) as pair:
        pair.source.mkdir()
        chance = random.Random(1)
        (pair.source / "large").write_bytes(chance.randbytes(20 * MIB))
        for number in range(300):
            directory = pair.source / f"d{number % 7}"
            directory.mkdir(exist_ok=True)
            (directory / f"file {number}").write_bytes(chance.randbytes(3000))
        pair.connect()
        pair.drained()
        yield pair


def flip(path: Path, place: int) -> None:
    """Change one byte, and keep size and time."""
    state = path.stat()
    with open(path, "r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, place)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), place)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_flipped_byte_is_found_and_brought(pair: Protected, tmp_path: Path) -> None:
    equal = pair.alpha.dtctl("verify", pair.id, "--checksum", "--json")
    report = equal.json
    assert report["files"] == 301 and report["read_bytes"] == 20 * MIB + 300 * 3000
    flip(pair.copy / "large", 15 * MIB)
    (pair.copy / "extra").write_text("extra")
    assert pair.alpha.dtctl("verify", pair.id).code == 1  # the extra name, and the time of its directory
    found = pair.alpha.dtctl("verify", pair.id, "--checksum", "--remirror", "--json")
    assert found.code == 1
    aspects = {d["path"]: d["aspects"] for d in json.loads(found.out)["differences"]}
    assert aspects == {"large": ["content"], "extra": ["extra"], "": ["mtime"]}
    pair.drained()
    assert (pair.copy / "large").read_bytes() == (pair.source / "large").read_bytes()
    (pair.copy / "extra").unlink()
    os.utime(pair.copy, ns=(0, pair.source.stat().st_mtime_ns))
    assert pair.alpha.dtctl("verify", pair.id, "--checksum").code == 0
    pair.assert_equal()

    (log,) = (tmp_path / "logs").glob("*compared.log")
    text = log.read_text()
    assert "large DIFFERENT ON TARGET: content" in text and "65536 BYTES OUT OF SYNC" in text
    assert text.count("BEGIN VERIFICATION") == text.count("END VERIFICATION") == 4
    history = pair.alpha.json("verify", "history", pair.id)
    assert [entry["different"] for entry in history] == [0, 2, 3, 0]
    runs = pair.alpha.json("runs", pair.id)
    assert {run["kind"] for run in runs} == {"verify", "difference", "recovery"}
    until(lambda: {4058, 4062, 9097} <= {event["id"] for event in pair.alpha.json("events")})
    for command in (("runs",), ("verify", "history", pair.id), ("verify", "status", pair.id)):
        assert pair.alpha.dtctl(*command).code == 0


def test_it_is_driven(pair: Protected) -> None:
    pair.alpha.json("verify", "schedule", pair.id, "--at", "now", "--every", "30 minutes", "--checksum")
    report = until(lambda: (r := pair.alpha.json("verify", "status", pair.id))["phase"] == "complete" and r)
    assert report["schedule"] == "every 30 minutes (checksum)"
    assert 1700 < report["next_run"] - time.time() < 1801
    pair.alpha.stop()
    pair.alpha.start()
    assert pair.alpha.json("verify", "status", pair.id)["next_run"] == report["next_run"]
    pair.alpha.json("verify", "schedule", pair.id, "--off")
    pair.alpha.json("verify", "background", pair.id, "1 MiB")
    until(lambda: pair.status["verify"]["background_bytes_per_s"] == MIB)
    pair.alpha.json("verify", "background", pair.id, "off")
    assert pair.alpha.dtctl("verify", pair.id, "--newer").code == 2
    assert pair.alpha.dtctl("verify", "schedule", pair.id, "--every", "often").code == 2
    assert "no verification" in pair.alpha.dtctl("verify", "stop", pair.id).err
    assert pair.alpha.dtctl("mirror", "start", pair.id).code == 0


class Load(NamedTuple):
    """What went on during a test."""

    verifications: int
    operations: int
    seconds: float

    def __str__(self) -> str:
        rate = self.operations / self.seconds
        return f"{self.verifications} verifications, {self.operations} operations, {rate:.0f}/s"


def verified(pair: Protected, *options: str) -> dict[str, Any]:
    """The report of a verification, complete and without problems."""
    pair.alpha.json("verify", "start", pair.id, "--checksum", *options)
    until(lambda: pair.status["verify"]["phase"] == "complete", LOADED_S, 0.5)
    report: dict[str, Any] = pair.alpha.json("verify", "status", pair.id)
    assert not report["problems"]
    assert report["files"] > 340
    return report


def find_a_flipped_byte(pair: Protected) -> None:
    """While programs write: it is found, and nothing else, and brought."""
    copy, place = pair.copy / "large", 5 * MIB
    before = copy.read_bytes()
    flip(copy, place)
    found = {d["path"]: d["aspects"] for d in verified(pair, "--remirror")["differences"]}
    assert found == {"large": ["content"]}
    until(lambda: copy.read_bytes() == before, LOADED_S, 0.5)
    until(lambda: pair.status["target_data_state"] == "OK", LOADED_S, 0.5)


def verify_under_load(pair: Protected, seconds: float, writers: int) -> Load:
    """Verify again and again while programs write; none may find a difference that nobody made."""
    count, running = 0, []
    try:
        for number in range(writers):
            command = [sys.executable, WRITER, pair.source / f"busy {number}", str(WRITES_PER_S // writers)]
            pipe = subprocess.PIPE
            running.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        ends_s = time.monotonic() + seconds
        while count == 0 or time.monotonic() < ends_s:
            differences = verified(pair)["differences"]
            assert not differences, differences[:10]
            count += 1
        find_a_flipped_byte(pair)
        ended = [writer.communicate("stop\n", LOADED_S)[0].split() for writer in running]
    finally:
        for writer in running:
            writer.kill()
            writer.wait()
    load = Load(count, sum(int(done) for done, _ in ended), max(float(s) for _, s in ended))
    pair.assert_equal(150, ignore=frozenset({"holes"}))
    return load


@pytest.mark.timeout_s(400)
def test_no_false_difference_under_load(pair: Protected) -> None:
    load = verify_under_load(pair, 20, 1)
    print(load)
    assert load.operations > 1000  # of 100,000 that are wanted: this machine may be busy


@pytest.mark.soak
@pytest.mark.timeout_s(900)
def test_no_false_difference_under_load_for_long(pair: Protected) -> None:
    print(verify_under_load(pair, float(os.environ.get("SOAK_VERIFY_S", "120")), WRITERS))
