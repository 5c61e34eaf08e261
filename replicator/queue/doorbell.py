"""Who is to be woken: the part of the doorbell that a journal decides. The bells come with the World.

A reader says in the header that it sleeps, looks again, and waits. The writer publishes, looks for sleepers,
and rings only those. Either the writer sees the flag, or the reader sees the head.
"""

from uuid import UUID

from replicator.queue.header import Header
from replicator.world import World

SUFFIX = ".bell"
URGENT_SUFFIX = ".urgent"
ANSWERS_NAME = "answers.bell"


def bell_path(memory_directory: str, cursor: UUID) -> str:
    return f"{memory_directory}/{cursor}{SUFFIX}"


def urgent_path(memory_directory: str, cursor: UUID) -> str:
    """The bell of a reader that somebody waits for."""
    return f"{memory_directory}/{cursor}{URGENT_SUFFIX}"


def answers_path(memory_directory: str) -> str:
    """The bell of a writer that waits for its readers."""
    return f"{memory_directory}/{ANSWERS_NAME}"


def ring_sleepers(world: World, memory_directory: str, header: Header) -> None:
    """Wake the readers that sleep; each is rung once for one sleep."""
    for index in header.readers():
        if header.sleeping(index):
            # First the flag, then the bell: a reader that goes to sleep in between is rung once too often,
            # never too seldom.
            header.set_sleeping(index, False)
            world.doorbells.ring(bell_path(memory_directory, header.slot_uuid(index)))


def ring_all(world: World, memory_directory: str, header: Header) -> None:
    """Make every reader look: a predecessor may have died between publishing and ringing."""
    for index in header.readers():
        header.set_sleeping(index, False)
        world.doorbells.ring(bell_path(memory_directory, header.slot_uuid(index)))
