"""How runs ended, kept in bounded number over restarts."""

from kit.disk import MemoryDisk
from kit.simulation import simulated_world

from replicator.orphans import MIRROR, START, OrphanAction, OrphanPhase, OrphanReport
from replicator.sender.run_reports import RunReports
from replicator.status import RunReport

PATH = "/home/source/connection.runs"


def report(number: int, kind: str) -> RunReport:
    return RunReport(
        run=str(number),
        kind=kind,
        started=float(number),
        finished=float(number),
        elapsed_s=0.0,
        result="complete",
    )


async def never(host: str, port: int) -> None:
    raise AssertionError


def test_the_newest_of_each_kind_are_kept() -> None:
    world = simulated_world(1, never)  # type: ignore[arg-type]
    reports = RunReports(world, PATH, kept=3)
    for number in range(10):
        reports.add(report(number, "background" if number % 2 else "recovery"))
    reports.add(report(10, "verify"))
    for known in (reports, RunReports(world, PATH, kept=3)):
        assert [r.run for r in known.newest()] == ["4", "5", "6", "7", "8", "9", "10"]
        assert [r.run for r in known.newest(("verify",))] == ["10"]
        assert [r.run for r in known.newest(count=2)] == ["9", "10"]
    reports.remove()
    assert RunReports(world, PATH).newest() == []


def test_a_damaged_file_is_none() -> None:
    world = simulated_world(1, never)  # type: ignore[arg-type]
    disk = world.disk
    assert isinstance(disk, MemoryDisk)
    disk.makedirs("/home/source")
    handle = disk.open_append(PATH)
    disk.append(handle, [b"[{"], 0)
    disk.close(handle)
    reports = RunReports(world, PATH)
    reports.add(report(1, "full"))
    assert [r.run for r in RunReports(world, PATH).newest()] == ["1"]


def test_what_becomes_of_orphans_takes_the_place_of_their_search() -> None:
    world = simulated_world(1, never)  # type: ignore[arg-type]
    reports = RunReports(world, PATH)
    reports.add(report(1, "orphans"))
    reports.add(report(2, "difference"))
    removed = OrphanReport(
        run="1",
        phase=OrphanPhase.COMPLETE,
        mode=START,
        action=OrphanAction.DELETE,
        files=3,
        done_files=2,
        done_bytes=500,
        changed=1,
        started=1.0,
        finished=3.0,
    )
    for _ in range(2):  # told again in the next session
        reports.orphans_ended(removed)
    reports.orphans_ended(OrphanReport(run="2", phase=OrphanPhase.COMPLETE, mode=MIRROR, finished=2.0))
    assert [(r.run, r.kind) for r in reports.newest()] == [("2", "difference"), ("1", "orphans")]
    told = reports.newest()[-1]
    assert (told.files, told.bytes, told.skipped, told.options) == (2, 500, 1, "delete")
    assert told.text == "orphans complete: deleted 2 files (500 bytes) and 0 directories, 1 stayed"
