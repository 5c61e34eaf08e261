"""Frames: every type has a struct, every struct a type, and what a newer version adds is ignored."""

import msgspec
import pytest

from replicator.net import frames
from replicator.net.frames import BULK_TYPES, FRAME_TYPE, Derived, Frame, FrameType, Greeting, Mark, Records


def test_types_and_structs_match_one_to_one() -> None:
    assert set(FRAME_TYPE.values()) == set(FrameType)
    assert len(FRAME_TYPE) == len(FrameType)
    structs = {
        value
        for value in vars(frames).values()
        if isinstance(value, type) and issubclass(value, Frame) and not value.__subclasses__()
    }
    parts = {Greeting, frames.PathMap, frames.JournalInfo, Mark}
    assert structs - parts == set(FRAME_TYPE)


def test_zero_is_no_frame() -> None:
    assert 0 not in set(FrameType)
    bulk = {FrameType.RECORDS, FrameType.DERIVED, FrameType.BATCH, FrameType.CHECKS, FrameType.PACKED}
    assert bulk == BULK_TYPES


@pytest.mark.parametrize("head", [Records, Derived])
def test_marks_are_whole_numbers_of_64_bits(head: type[Frame]) -> None:
    value = head(0, Mark(0, 0), Mark(2**64 - 1, 2**64 - 1))  # type: ignore[call-arg]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=head) == value
    for bad in ([0, [0, 0], [-1, 0]], [0, [0, 0], [1.5, 0]], [0, [0, 0]], [0, [0, 0], ["1", 0]]):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(bad), type=head)


def test_members_of_a_newer_version_are_ignored() -> None:
    data = msgspec.msgpack.encode(["reason", "and something new"])
    assert msgspec.msgpack.decode(data, type=frames.Bye) == frames.Bye("reason")
