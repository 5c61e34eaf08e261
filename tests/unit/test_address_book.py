"""The book of addresses that this host has for its groups: durable, and never damaged in silence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.disk import MemoryDisk, ProcessDied

from replicator.errors import ReplicatorError
from replicator.failover.address_book import AddressBook, Entry, HostName

PATH = "/home/failover/addresses.json"


def entry(address: str, group: str = "g", *, dropped: bool = False) -> Entry:
    return Entry(group=group, address=address, interface="eth0", dropped=dropped)


def test_what_is_put_is_there_for_the_next_agent() -> None:
    disk = MemoryDisk()
    AddressBook(disk, PATH).put([entry("10.0.0.5/24"), entry("2001:db8::5/64"), entry("10.0.0.6/24", "h")])
    disk.lose_power()
    book = AddressBook(disk, PATH)
    assert [e.address for e in book.of("g")] == ["10.0.0.5/24", "2001:db8::5/64"]
    assert book.groups == ["g", "h"]
    book.forget("g")
    assert AddressBook(disk, PATH).groups == ["h"]


def test_an_address_is_had_or_dropped() -> None:
    book = AddressBook(MemoryDisk(), PATH)
    book.put([entry("10.0.0.5/24")])
    book.put([entry("10.0.0.5/24", dropped=True)])
    assert book.of("g") == [] and book.groups == []
    assert book.of("g", dropped=True) == [entry("10.0.0.5/24", dropped=True)]
    book.forget("g")
    assert book.of("g", dropped=True) != []
    book.forget("g", dropped=True)
    assert book.of("g", dropped=True) == []


def test_the_host_name() -> None:
    disk = MemoryDisk()
    name = HostName(group="g", name="alpha", former="beta")
    AddressBook(disk, PATH).set_host_name(name)
    book = AddressBook(disk, PATH)
    assert book.host_name == name
    book.set_host_name(None)
    assert AddressBook(disk, PATH).host_name is None


@pytest.mark.parametrize("power", [False, True])
def test_a_crash_leaves_the_old_or_the_new(power: bool) -> None:
    undisturbed = MemoryDisk()
    AddressBook(undisturbed, PATH).put([entry("10.0.0.5/24")])
    before = undisturbed.calls
    AddressBook(undisturbed, PATH).put([entry("10.0.0.6/24")])
    for call in range(before + 1, undisturbed.calls + 1):
        disk = MemoryDisk()
        AddressBook(disk, PATH).put([entry("10.0.0.5/24")])
        disk.die_at(call, "torn")
        with pytest.raises(ProcessDied):
            AddressBook(disk, PATH).put([entry("10.0.0.6/24")])
        disk.lose_power() if power else disk.die()
        found = [e.address for e in AddressBook(disk, PATH).of("g")]
        assert found in (["10.0.0.5/24"], ["10.0.0.5/24", "10.0.0.6/24"])


@given(st.binary(max_size=200))
def test_damage_is_said(data: bytes) -> None:
    disk = MemoryDisk()
    disk.makedirs("/home/failover")
    handle = disk.open_append(PATH)
    disk.append(handle, [data], 0)
    try:
        AddressBook(disk, PATH)
    except ReplicatorError as error:
        assert "is damaged" in str(error)
