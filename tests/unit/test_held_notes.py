"""Replies that wait, as a successor of a killed process finds them."""

from pathlib import Path

from replicator.fs.held_notes import SLOTS, HeldNotes


def test_a_successor_finds_what_was_not_answered(tmp_path: Path) -> None:
    path = str(tmp_path / "held")
    notes = HeldNotes(path)
    for unique in range(2, 8, 2):
        notes.note(unique, b"reply %d" % unique)
    notes.answered(4)
    successor = HeldNotes(path)
    assert [successor.find(unique) for unique in range(2, 8, 2)] == [b"reply 2", None, b"reply 6"]
    successor.answered(2)
    assert successor.find(2) is None and HeldNotes(path).find(2) is None
    successor.remove()
    assert not (tmp_path / "held").exists()


def test_an_empty_reply_is_one(tmp_path: Path) -> None:
    notes = HeldNotes(str(tmp_path / "held"))
    notes.note(2, b"")
    assert notes.find(2) == b""


def test_what_does_not_fit_is_not_noted(tmp_path: Path) -> None:
    notes = HeldNotes(str(tmp_path / "held"))
    notes.note(2, bytes(1000))
    assert notes.find(2) is None
    for unique in range(4, 4 + 2 * SLOTS + 10, 2):
        notes.note(unique, b"x")
    assert notes.find(4) == b"x" and notes.find(4 + 2 * SLOTS + 8) is None
    notes.answered(4)
    notes.note(2, b"y")
    assert notes.find(2) == b"y"
