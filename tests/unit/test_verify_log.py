"""The log of verifications: its size is bounded, however it is kept."""

from kit.simulation import simulated_world

from replicator.mirror.checks import Aspect, There
from replicator.ops import Identity
from replicator.sender.verify_log import VerifyLog, VerifyLogSettings
from replicator.sender.verify_run import Difference, VerifyOptions, VerifyRun
from replicator.world import World

HERE = There(0o100644, 0, 0, 0, 100, 1_700_000_000_123_456_789, 1)


async def never(host: str, port: int) -> None:
    raise AssertionError


def made(settings: VerifyLogSettings) -> tuple[World, VerifyLog]:
    world = simulated_world(1, never)  # type: ignore[arg-type]
    log = VerifyLog(world, "/home/log", "Connection 1, a set --> host:1500", "a set")
    log.settings = settings
    return world, log


def verification(log: VerifyLog, number: int, differences: int = 3) -> None:
    run = VerifyRun(f"run-{number}", VerifyOptions(), 0, 0)
    log.begin(run)
    found = [
        Difference(0, b"path %d" % n, Identity(n, 0), 1, {Aspect.MISSING}, HERE, None)
        for n in range(differences)
    ]
    log.differs(run, found)
    run.finished_ns = run.finished_wall_ns = 1_500_000
    log.end(run)


def text_of(world: World, path: str) -> str:
    if not world.disk.exists(path):
        return ""
    handle = world.disk.open_read(path)
    try:
        return world.disk.read(handle, world.disk.size(path), 0).decode()
    finally:
        world.disk.close(handle)


def test_a_missing_file() -> None:
    world, log = made(VerifyLogSettings())
    verification(log, 1, differences=1)
    assert log.path == "/home/log/a set DTVerify.log" and log.json_path == "/home/log/a set DTVerify.jsonl"
    text = text_of(world, log.path)
    assert "path 0 MISSING ON TARGET (53001)" in text and "    100 BYTES OUT OF SYNC" in text
    assert "Size = 100 Mask = [0x81a4]" in text and ".123456789 " in text
    assert "Elapsed time: 0.001500 seconds" in text
    assert text_of(world, log.json_path).count("\n") == 3


def test_a_full_log_is_left_as_it_is() -> None:
    world, log = made(VerifyLogSettings(size_max=3000))
    for number in range(10):
        verification(log, number)
    text = text_of(world, log.path)
    assert len(text) <= 3000 and text.endswith("\n") and "run-0" in text and "run-9" not in text


def test_a_full_log_is_put_aside() -> None:
    world, log = made(VerifyLogSettings(size_max=3000, files=3))
    for number in range(30):
        verification(log, number)
    texts = [text_of(world, log.path + suffix) for suffix in ("", ".1", ".2", ".3")]
    assert all(0 < len(text) <= 3000 for text in texts[:3]) and not texts[3]
    assert "END VERIFICATION run-29" in texts[0] and "run-0\n" not in "".join(texts)


def test_each_begins_a_new_one() -> None:
    world, log = made(VerifyLogSettings(append=False))
    for number in range(3):
        verification(log, number)
    assert text_of(world, log.path).count("BEGIN VERIFICATION") == 1
