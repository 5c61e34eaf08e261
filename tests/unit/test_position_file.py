"""The durable position of a target: whatever becomes of the host, what is found was saved, and nothing that
was acknowledged is lost.
"""

import errno
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from kit.disk import Fault, MemoryDisk, ProcessDied, memory_world

from replicator import limits
from replicator.ops import Position
from replicator.receiver.position_file import PositionFile
from replicator.receiver.replica_state import Marks

DIRECTORY = "/home/target"
PATH = DIRECTORY + "/position"


WALL_NS = 10**18


def new_disk(seed: int = 0) -> MemoryDisk:
    disk = MemoryDisk(random=Random(seed))
    disk.makedirs(DIRECTORY)
    disk.sync()
    return disk


def open_file(disk: MemoryDisk) -> PositionFile:
    return PositionFile(memory_world(disk), DIRECTORY)


def marks(number: int, journals: int = 2) -> Marks:
    """Of a length of its own, so that torn slots differ in more than a digit."""
    return {f"journal {index} of {number}": Position(number, number << 40) for index in range(journals)}


def test_a_new_one_has_no_marks_and_remembers_the_last() -> None:
    disk = new_disk()
    file = open_file(disk)
    assert (file.marks, file.wall_ns) == ({}, 0)
    for number in range(1, 6):
        file.save(marks(number), number)
        assert (file.marks, file.wall_ns) == (marks(number), number)
        file.close()
        file = open_file(disk)
        assert (file.marks, file.wall_ns) == (marks(number), number)


def test_a_new_position_costs_one_write_and_one_sync() -> None:
    disk = new_disk()
    file = open_file(disk)
    size = disk.size(PATH)
    disk.log.clear()
    file.save(marks(1), WALL_NS)
    file.save(marks(1), WALL_NS)  # nothing new
    assert disk.log == [f"append {PATH}", f"fsync {PATH}"]
    assert disk.size(PATH) == size


def test_the_most_journals_of_a_connection_fit() -> None:
    disk = new_disk()
    file = open_file(disk)
    largest = {f"{index:036}": Position(2**64 - 1, 2**64 - 1) for index in range(limits.JOURNALS)}
    file.save(largest, WALL_NS)
    file.close()
    assert open_file(disk).marks == largest
    with pytest.raises(ValueError, match="do not fit"):
        open_file(disk).save({f"{index:036}": Position(2**64 - 1, 0) for index in range(2000)}, 0)


def save_three(disk: MemoryDisk, saved: Callable[[Marks], None]) -> None:
    file = open_file(disk)
    for number in range(1, 4):
        file.save(marks(number, journals=number), WALL_NS)
        saved(marks(number, journals=number))


def calls_of_three() -> int:
    disk = new_disk()
    before = disk.calls
    save_three(disk, lambda _: None)
    return disk.calls - before


@pytest.mark.parametrize("power", [True, False], ids=["power loss", "kill"])
@pytest.mark.parametrize("when", ["before", "torn", "after"])
def test_a_crash_at_any_call_loses_nothing_that_was_acknowledged(power: bool, when: Any) -> None:
    written = [{}, *(marks(number, journals=number) for number in range(1, 4))]
    for call in range(1, calls_of_three() + 1):
        for seed in range(20 if power else 1):
            disk = new_disk(seed)
            disk.die_at(disk.calls + call, when)
            acknowledged: list[Marks] = [{}]
            with pytest.raises(ProcessDied):
                save_three(disk, acknowledged.append)
            disk.die()
            if power:
                disk.lose_power()
            file = open_file(disk)
            assert file.marks in written[len(acknowledged) - 1 : len(acknowledged) + 1]
            # What was found may be acknowledged, so it must be there after the next loss of power as well.
            found = file.marks
            disk.die()
            disk.lose_power()
            file = open_file(disk)
            assert file.marks == found
            file.save(marks(9), WALL_NS)
            file.close()
            assert open_file(disk).marks == marks(9)


@pytest.mark.parametrize("name", ["append", "fsync"])
def test_after_an_error_the_former_position_stays_until_a_save_succeeds(name: str) -> None:
    for failures in range(1, 4):
        for seed in range(20):
            disk = new_disk(seed)
            file = open_file(disk)
            file.save(marks(1), WALL_NS)
            left = failures

            def fault(_: int, call: str, path: str) -> Fault | None:
                nonlocal left
                if call == name and path == PATH and left:
                    left -= 1
                    return Fault(error=errno.EIO)
                return None

            disk.fault = fault
            for number in range(failures):
                with pytest.raises(OSError, match="error"):
                    file.save(marks(2 + number), WALL_NS)
                assert file.marks == marks(1)
            if seed % 2:
                disk.lose_power()
                # An attempt may have reached the medium in spite of its error; the position is true all the
                # same, because its copy was synced before.
                assert open_file(disk).marks in [marks(number + 1) for number in range(failures + 1)]
            else:
                file.save(marks(7), WALL_NS)
                disk.lose_power()
                assert open_file(disk).marks == marks(7)


def test_damage_in_both_slots_leaves_nothing_known() -> None:
    disk = new_disk()
    file = open_file(disk)
    for number in (1, 2):
        file.save(marks(number), WALL_NS)
    file.close()
    for slot, left in ((0, marks(1)), (limits.POSITION_BYTES, {})):
        handle = disk.open_append(PATH)
        disk.append(handle, [b"\xff"], slot + 25)
        disk.close(handle)
        assert open_file(disk).marks == left
