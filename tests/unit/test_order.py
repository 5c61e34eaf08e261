"""The ordering rules, one by one. The sum of them is tested by the simulations."""

import pytest

from replicator import limits
from replicator.mirror.order import Decision, Order, Remaining, name_change_in_directory, name_change_touches
from replicator.ops import RENAME_EXCHANGE, Flag, Identity, Kind, Record


def record(
    kind: Kind, path: bytes, path2: bytes = b"", *, inode: int = 7, flags: int = 0, arg0: int = 0
) -> Record:
    return Record(kind, flags, 1, 0, 0, 0, 0, inode, 0, arg0, 0, path, path2, b"")


def mirrored(*pending: bytes) -> Order:
    """An order whose mirror has still to bring these paths, and nothing else."""
    order = Order()
    order.begin(pending)
    while order.next_work() is not None:
        pass
    return order


def test_without_a_mirror_everything_is_shipped() -> None:
    assert Order().ship(record(Kind.WRITE, b"a/b")) is Decision.SHIP


def test_data_of_a_pending_path_is_not_shipped_and_its_file_is_touched() -> None:
    order = mirrored(b"a")
    assert order.ship(record(Kind.WRITE, b"a/b/c")) is Decision.SKIP
    assert order.must_send_whole(Identity(7, 0))
    assert not order.must_send_whole(Identity(8, 0))


def test_the_root_covers_everything() -> None:
    order = mirrored(b"")
    assert order.is_pending(b"") and order.is_pending(b"a") and order.is_pending(b"a/b")


def test_names_are_shipped_even_where_pending() -> None:
    order = mirrored(b"a")
    for kind in (Kind.CREATE, Kind.MKDIR, Kind.UNLINK, Kind.RMDIR, Kind.SYMLINK, Kind.MKNOD):
        assert order.ship(record(kind, b"a/x")) is Decision.SHIP


def test_what_was_sent_is_no_longer_pending() -> None:
    order = mirrored(b"d")
    order.directory_sent(b"d", [b"d/sub"], [b"f", b"g"])
    assert not order.is_pending(b"d")
    assert order.is_pending(b"d/sub/x") and order.is_pending(b"d/f") and order.is_pending(b"d/g")
    assert not order.is_pending(b"d/new")  # not in the listing: created after it, its records follow
    order.file_sent(b"d/f")
    assert not order.is_pending(b"d/f") and order.is_pending(b"d/g")
    order.file_sent(b"d/g")
    order.directory_sent(b"d/sub", [], [])
    assert order.nothing_pending()


def test_a_rename_makes_its_destination_pending() -> None:
    order = mirrored()
    order.active = True
    assert order.ship(record(Kind.RENAME, b"a", b"b")) is Decision.SHIP
    assert order.is_pending(b"b/below") and not order.is_pending(b"a")
    assert order.next_work() == b"b"


def test_an_exchange_makes_both_names_pending() -> None:
    order = mirrored()
    order.ship(record(Kind.RENAME, b"a", b"b", arg0=RENAME_EXCHANGE))
    assert order.is_pending(b"a") and order.is_pending(b"b")


def test_a_link_makes_both_names_pending() -> None:
    order = mirrored()
    order.ship(record(Kind.LINK, b"a", b"b"))
    assert order.is_pending(b"a") and order.is_pending(b"b")


def test_a_second_rename_while_the_first_is_read_puts_the_path_on_the_list_again() -> None:
    order = mirrored()
    order.ship(record(Kind.RENAME, b"a", b"b"))
    assert order.next_work() == b"b"
    order.ship(record(Kind.RENAME, b"c", b"b"))
    assert order.next_work() == b"b"
    assert order.next_work() is None


def test_a_hot_path_stands_on_the_list_once() -> None:
    order = mirrored()
    for _ in range(10):
        order.ship(record(Kind.RENAME, b"tmp", b"db"))
    assert order.next_work() == b"db"
    assert order.next_work() is None


def test_data_of_a_linked_file_goes_to_the_copy_that_was_sent() -> None:
    order = mirrored(b"b")
    order.file_sent(b"a", Identity(7, 0), whole=True, links=2)
    assert order.ship(record(Kind.WRITE, b"b", flags=Flag.MULTILINK)) is Decision.BY_IDENTITY
    assert not order.must_send_whole(Identity(7, 0))
    order.void(Identity(7, 0))
    assert order.ship(record(Kind.WRITE, b"b", flags=Flag.MULTILINK)) is Decision.SKIP
    assert order.must_send_whole(Identity(7, 0))


def test_a_copy_that_missed_an_operation_is_no_link_target() -> None:
    order = mirrored(b"b")
    order.file_sent(b"a", Identity(7, 0), whole=True, links=2)
    assert order.ship(record(Kind.WRITE, b"b")) is Decision.SKIP  # its other name is gone meanwhile
    assert not order.link_is_known(Identity(7, 0))


def test_a_new_file_shares_nothing_with_the_former_owner_of_its_inode() -> None:
    order = mirrored()
    order.active = True
    order.file_sent(b"a", Identity(7, 0), whole=True, links=2)
    assert order.was_brought(Identity(7, 0))
    order.ship(record(Kind.CREATE, b"new"))
    assert not order.link_is_known(Identity(7, 0)) and not order.was_brought(Identity(7, 0))


def test_a_refused_piece_is_sent_whole() -> None:
    order = mirrored()
    order.file_sent(b"a", Identity(7, 0), links=2)
    order.require(b"a", touched=Identity(7, 0))
    assert order.must_send_whole(Identity(7, 0)) and not order.link_is_known(Identity(7, 0))
    order.file_sent(b"a", Identity(7, 0), whole=True)
    assert not order.must_send_whole(Identity(7, 0))


def test_touched_files_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TOUCHED_FILES", 2)
    order = mirrored(b"")
    for inode in range(3):
        order.ship(record(Kind.WRITE, b"x", inode=inode))
    assert order.must_send_whole(Identity(99, 0))  # which ones is not known any more: all of them


def test_attributes_of_a_pending_directory_touch_no_file() -> None:
    order = mirrored(b"d")
    assert order.ship(record(Kind.SETATTR, b"d", flags=Flag.DIRECTORY)) is Decision.SKIP
    assert not order.must_send_whole(Identity(7, 0))


def test_remaining_names_end_in_order() -> None:
    names = Remaining([b"a", b"b", b"d"])
    assert b"b" in names and b"c" not in names
    names.advance_past(b"b")
    assert b"a" not in names and b"b" not in names and b"d" in names
    names.advance_past(b"c")  # not one of them: nothing happens
    assert b"d" in names and names
    names.advance_past(b"d")
    assert not names


@pytest.mark.parametrize(
    ("changed", "path", "expected"),
    [
        (record(Kind.RENAME, b"a", b"x"), b"a/b", True),
        (record(Kind.RENAME, b"x", b"a"), b"a/b", True),
        (record(Kind.UNLINK, b"a/b"), b"a/b", True),
        (record(Kind.UNLINK, b"a/bb"), b"a/b", False),
        (record(Kind.CREATE, b"a/b/c"), b"a/b", False),
        (record(Kind.WRITE, b"a/b"), b"a/b", False),
        (record(Kind.LINK, b"z", b"a/b"), b"a/b", True),
    ],
)
def test_name_changes_that_touch_a_path(changed: Record, path: bytes, expected: bool) -> None:
    assert name_change_touches(changed, path) is expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (record(Kind.CREATE, b"a/b/c"), True),
        (record(Kind.CREATE, b"a/b/c/d"), False),
        (record(Kind.RENAME, b"z", b"a/b/c"), True),
        (record(Kind.RENAME, b"a", b"z"), True),
        (record(Kind.SETATTR, b"a/b"), False),
    ],
)
def test_name_changes_in_a_directory(changed: Record, expected: bool) -> None:
    assert name_change_in_directory(changed, b"a/b") is expected
