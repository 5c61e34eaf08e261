"""The ordering rules, one by one. The sum of them is tested by the simulations."""

from collections.abc import Callable

import pytest

from replicator import limits
from replicator.mirror.order import Decision, Order, Remaining, name_change_in_directory, name_change_touches
from replicator.mirror.patches import TO_END, PatchRequest, aligned
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
    assert order.must_send_whole(Identity(7, 0), b"")
    assert not order.must_send_whole(Identity(8, 0), b"")


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
    assert not order.must_send_whole(Identity(7, 0), b"")
    order.void(Identity(7, 0))
    assert order.ship(record(Kind.WRITE, b"b", flags=Flag.MULTILINK)) is Decision.SKIP
    assert order.must_send_whole(Identity(7, 0), b"")


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
    assert order.must_send_whole(Identity(7, 0), b"") and not order.link_is_known(Identity(7, 0))
    order.file_sent(b"a", Identity(7, 0), whole=True)
    assert not order.must_send_whole(Identity(7, 0), b"")


def test_touched_files_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TOUCHED_FILES", 2)
    order = mirrored(b"")
    for inode in range(3):
        order.ship(record(Kind.WRITE, b"x", inode=inode))
    assert order.must_send_whole(Identity(99, 0), b"")  # which ones is not known any more: all of them


def test_attributes_of_a_pending_directory_touch_no_file() -> None:
    order = mirrored(b"d")
    assert order.ship(record(Kind.SETATTR, b"d", flags=Flag.DIRECTORY)) is Decision.SKIP
    assert not order.must_send_whole(Identity(7, 0), b"")


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


# --- recoveries of what is known to be old ---

_ID = Identity(7, 0)


def patched(path: bytes = b"d/f", *, multilink: bool = False, opened: bool = False) -> Order:
    """An order that was asked for regions of one file, and nothing else."""
    order = mirrored()
    order.active = True
    order.require_regions(path, _ID, [(5000, 10)], multilink=multilink)
    if opened:
        assert order.next_patch() is not None
    return order


def test_operations_on_a_file_to_be_patched_are_shipped() -> None:
    order = patched()
    assert order.ship(record(Kind.WRITE, b"d/f")) is Decision.SHIP
    request = order.next_patch()
    assert request is not None and request.ranges == [(4096, 8192)] and not request.void


_VOIDING = [
    record(Kind.UNLINK, b"d/f"),
    record(Kind.RENAME, b"d/f", b"x"),
    record(Kind.RENAME, b"x", b"d/f"),
    record(Kind.RENAME, b"d", b"e", flags=Flag.DIRECTORY),
    record(Kind.RENAME, b"e", b"d", arg0=RENAME_EXCHANGE),
    record(Kind.LINK, b"d/f", b"x"),
    record(Kind.CREATE, b"d/f"),
    record(Kind.REMOVE_TREE, b"d"),
]
_HARMLESS = [
    record(Kind.UNLINK, b"d/g"),
    record(Kind.RENAME, b"d/g", b"x"),
    record(Kind.LINK, b"x", b"d/g"),
    record(Kind.CREATE, b"d/f2"),
    record(Kind.RENAME, b"dd", b"x", flags=Flag.DIRECTORY),
]


@pytest.mark.parametrize("opened", [False, True], ids=["waiting", "being read"])
@pytest.mark.parametrize("multilink", [False, True])
@pytest.mark.parametrize(
    ("change", "voids"), [*((r, True) for r in _VOIDING), *((r, False) for r in _HARMLESS)]
)
def test_a_change_of_its_name_voids_a_patch(
    change: Record, voids: bool, multilink: bool, opened: bool
) -> None:
    order = patched(multilink=multilink, opened=opened)
    order.ship(change._replace(inode=8))
    assert order.must_send_whole(_ID, b"anywhere")
    assert order.names_unknown is (voids and multilink)
    if not opened:
        assert (order.next_patch() is None) is voids


def test_a_pending_path_is_not_patched() -> None:
    for pend_first in (False, True):
        order = mirrored()
        order.active = True
        if pend_first:
            order.require(b"d")
        order.require_regions(b"d/f", _ID, [(0, 1)], multilink=False)
        order.require(b"d")
        assert order.next_patch() is None
        assert order.must_send_whole(_ID, b"d/f")


def test_a_patch_that_became_pending_while_it_was_read_ends() -> None:
    order = mirrored()
    order.active = True
    order.require_regions(b"d/f", _ID, [(0, 1)], multilink=False)
    request = order.next_patch()
    assert request is not None and order.may_patch(request)
    order.require(b"d/f")
    assert not order.may_patch(request) and request.void
    order.patch_left(request, request.ranges)  # its reader hears of it later
    assert order.next_patch() is None
    assert order.must_send_whole(_ID, b"d/f")


def test_a_patched_file_is_believed_when_the_target_has_it_and_not_before() -> None:
    order = patched()
    request = order.next_patch()
    assert request is not None
    assert order.must_send_whole(_ID, b"d/f")
    order.patch_sent(request, 1)
    assert order.must_send_whole(_ID, b"d/f") and order.nothing_pending()
    order.patch_settled(_ID)
    assert not order.must_send_whole(_ID, b"d/f")


def test_a_second_patch_under_way_keeps_its_file_unbelieved() -> None:
    order = patched()
    first = order.next_patch()
    order.require_regions(b"d/f", _ID, [(0, 1)])
    assert first is not None
    order.patch_sent(first, 1)
    order.patch_settled(_ID)
    assert order.must_send_whole(_ID, b"d/f")


def test_an_interrupted_patch_goes_on_with_what_is_left() -> None:
    order = patched()
    request = order.next_patch()
    assert request is not None
    order.patch_left(request, [(4096, 8192)])
    order.patch_left(request, [(0, 4096)])
    assert order.next_patch() is request and request.ranges == [(0, 8192)]
    order.patch_sent(request, 1)
    order.patch_settled(_ID)
    assert order.everything_read() and not order.must_send_whole(_ID, b"d/f")


def test_a_patched_file_is_known_under_its_identity() -> None:
    order = patched(multilink=True)
    request = order.next_patch()
    assert request is not None and not order.link_is_known(_ID)
    order.patch_sent(request, 2)
    assert order.link_is_known(_ID)


def test_names_are_required_until_they_are_in_the_stream() -> None:
    order = mirrored()
    order.active = True
    order.require_names(b"d")
    assert order.next_names() == b"d" and order.next_names() is None
    assert not order.everything_read() and not order.nothing_pending()
    assert not order.is_pending(b"d") and not order.is_pending(b"d/x")
    order.require_names(b"d")  # again, while it is read
    order.names_sent(b"d")
    assert order.next_names() == b"d"
    order.names_sent(b"d")
    assert order.everything_read() and order.nothing_pending()


def test_a_new_directory_is_brought_while_the_old_list_of_names_stands() -> None:
    order = mirrored()
    order.active = True
    order.require_names(b"d")
    order.ship(record(Kind.MKDIR, b"d/x"))
    order.ship(record(Kind.MKDIR, b"e/x"))
    assert order.is_pending(b"d/x") and not order.is_pending(b"e/x")
    assert order.next_names() == b"d"
    order.names_sent(b"d")
    order.ship(record(Kind.MKDIR, b"d/y"))
    assert not order.is_pending(b"d/y")


def test_names_of_a_pending_directory_are_left_to_its_listing() -> None:
    order = mirrored(b"d")
    order.require_names(b"d/e")
    assert order.next_names() is None and order.everything_read()


def test_what_was_replaced_is_not_compared_and_stays_so_when_it_moves() -> None:
    order = mirrored()
    order.active = True
    order.require_replaced(b"d/e")
    assert order.must_send_whole(_ID, b"d/e/f") and not order.must_send_whole(_ID, b"d/f")
    order.ship(record(Kind.RENAME, b"d", b"x", flags=Flag.DIRECTORY))
    assert order.must_send_whole(_ID, b"x/e/f")
    order.file_sent(b"x/e/f", _ID, whole=True)
    assert not order.must_send_whole(_ID, b"x/e/f")


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([], []),
        ([(0, 0)], []),
        ([(0, 1)], [(0, 4096)]),
        ([(4095, 2)], [(0, 8192)]),
        ([(8192, 1), (0, 1)], [(0, 4096), (8192, 12288)]),
        ([(0, 4096), (4096, 1)], [(0, 8192)]),
        ([(100, TO_END)], [(0, TO_END)]),
        ([(5000, TO_END - 5000), (20000, 1)], [(4096, TO_END)]),
    ],
)
def test_regions_become_whole_blocks(regions: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    assert aligned(regions) == expected


# --- comparisons ---


def compared(number: int = 7) -> tuple[Order, PatchRequest]:
    """A comparison that is being read: one piece of digests is on its way."""
    order = mirrored()
    order.active = True
    order.require_compared(b"d/f", _ID, number, multilink=False)
    request = order.next_patch()
    assert request is not None and order.must_send_whole(_ID, b"d/f")
    todo = request.take()
    assert todo.compare == [(0, TO_END)] and not todo.ends
    request.unanswered += 1
    return order, request


def test_a_comparison_ends_when_all_is_answered() -> None:
    order, request = compared()
    assert not request.take().ends
    order.park_patch(request)
    assert order.next_patch() is None and not order.everything_read()
    order.digests_answered(request, 4096)
    assert order.next_patch() is request and request.take().ends


def test_what_differs_is_brought_before_the_end() -> None:
    order, request = compared()
    order.park_patch(request)
    blocks = [(0, 65536, b"units")]
    assert order.differ(7, blocks) is request
    assert order.next_patch() is request
    todo = request.take()
    assert todo.blocks == blocks and not todo.ends
    order.park_patch(request)
    order.digests_answered(request, 4096)
    assert order.next_patch() is request and request.take().ends
    order.patch_sent(request, 1)
    assert order.differ(7, blocks) is None  # heard again, in another session: it has them
    order.patch_settled(_ID)
    assert order.everything_read() and not order.must_send_whole(_ID, b"d/f")


def test_an_answer_that_came_before_it_was_parked() -> None:
    order, request = compared()
    order.digests_answered(request, 4096)
    order.park_patch(request)
    assert order.next_patch() is request


def test_digests_that_were_lost_are_read_again() -> None:
    order, request = compared()
    order.park_patch(request)
    order.digests_lost(request, (0, 4096))
    assert order.next_patch() is request
    assert request.take().compare == [(0, 4096)]


def test_other_regions_of_what_is_compared_join_it() -> None:
    """An end of their own would give the file its time before all of it is right."""
    order, request = compared()
    order.require_regions(b"d/f", _ID, [(0, 1)])
    order.park_patch(request)
    assert order.next_patch() is request and request.take().ranges == [(0, 4096)]
    assert order.next_patch() is None


@pytest.mark.parametrize(
    "make_void",
    [
        lambda order: order.ship(record(Kind.RENAME, b"d/f", path2=b"d/g")),
        lambda order: order.ship(record(Kind.UNLINK, b"d/f")),
        lambda order: order.ship(record(Kind.RENAME, b"d", path2=b"e", flags=Flag.DIRECTORY)),
        lambda order: order.require(b"d/f"),
        lambda order: order.require(b"d"),
        lambda order: order.require_compared(b"d/f", Identity(77, 0), 8, multilink=False),
    ],
    ids=["renamed", "removed", "moved", "required", "above required", "another"],
)
@pytest.mark.parametrize("parked", [False, True])
def test_a_void_comparison_hears_no_answers(make_void: Callable[[Order], object], parked: bool) -> None:
    order, request = compared()
    if parked:
        order.park_patch(request)
    make_void(order)
    assert request.void and order.differ(7, [(0, 4096, b"")]) is None
    assert order.must_send_whole(_ID, b"d/f")
    order.digests_answered(request, 4096)
    order.digests_lost(request, (0, 4096))
    order.park_patch(request)
    later = order.next_patch()
    assert later is None or later.number == 8


def test_a_target_that_has_nothing_to_compare() -> None:
    order = mirrored()
    assert order.may_compare(_ID)
    order.never_compare(_ID)
    assert not order.may_compare(_ID) and order.may_compare(Identity(6, 0))
    order.file_sent(b"d/f", _ID, whole=True)
    assert order.may_compare(_ID)
