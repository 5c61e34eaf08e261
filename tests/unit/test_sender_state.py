"""What a sender remembers."""

from random import Random

import pytest
from kit.disk import MemoryDisk
from kit.journals import Host

from replicator.sender.sender_state import SenderState, SenderStateFile

PATH = "/home/source/connection.json"


@pytest.mark.parametrize("seed", range(8))
def test_what_is_saved_is_kept_when_the_host_loses_power(seed: int) -> None:
    """What is done after it relies on it: a mirror that has begun was not complete before."""
    disk = MemoryDisk(random=Random(seed))
    world = Host(disk=disk).world
    file = SenderStateFile(world, PATH, SenderState(settled=True))
    file.save()
    file.state.settled = False
    file.save()
    disk.lose_power()
    assert not SenderStateFile(world, PATH, SenderState(settled=True)).state.settled


def test_nothing_is_remembered_of_a_connection_that_is_gone() -> None:
    disk = MemoryDisk()
    world = Host(disk=disk).world
    file = SenderStateFile(world, PATH, SenderState())
    file.save()
    file.remove()
    file.save()
    assert disk.paths("/home") == []
