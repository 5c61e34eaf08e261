"""A value in shared memory: whatever interrupts a store, the last one or the one before it is found whole."""

import random

import pytest
from kit.disk import MemoryDisk, memory_world

from replicator.receiver.shared_value import SharedValue


def open_value(disk: MemoryDisk, create: bool = False) -> SharedValue:
    return SharedValue(memory_world(disk), "/memory/value", 100, create=create)


def test_a_new_one_is_empty_and_remembers_the_last_store() -> None:
    disk = MemoryDisk()
    value = open_value(disk, create=True)
    assert value.load() is None
    for number in range(5):
        value.store(b"value %d" % number)
        assert value.load() == b"value %d" % number
        value.close()
        value = open_value(disk)
        assert value.load() == b"value %d" % number
    value.store(b"")
    value.close()
    assert open_value(disk).load() == b""


def test_what_was_never_created_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        open_value(MemoryDisk())


def test_too_long_a_value_changes_nothing() -> None:
    value = open_value(MemoryDisk(), create=True)
    value.store(b"x" * 100)
    with pytest.raises(ValueError, match="does not fit"):
        value.store(b"x" * 101)
    assert value.load() == b"x" * 100


def test_a_store_torn_anywhere_leaves_the_one_before_it() -> None:
    disk = MemoryDisk()
    value = open_value(disk, create=True)
    chance = random.Random(2)
    for number in range(20):
        before = bytes(disk.pages["/memory/value"])
        former = value.load()
        new = chance.randbytes(chance.randrange(101))
        value.store(new)
        value.close()
        after = bytes(disk.pages["/memory/value"])
        changed = [index for index in range(len(after)) if before[index] != after[index]]
        for _ in range(30):
            # Any subset of the changed bytes may have reached memory.
            torn = bytearray(before)
            kept = set(chance.sample(changed, chance.randrange(len(changed))))
            for index in kept:
                torn[index] = after[index]
            disk.pages["/memory/value"][:] = torn
            found = open_value(disk)
            assert found.load() == former, number
            found.close()
        disk.pages["/memory/value"][:] = after
        value = open_value(disk)
        assert value.load() == new


def test_one_owner_at_a_time() -> None:
    disk = MemoryDisk()
    first, second = open_value(disk, create=True), open_value(disk)
    assert first.claim() and not second.claim()
    first.close()
    assert second.claim()
