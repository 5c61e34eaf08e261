"""The table of hard-linked files: names follow renames, removals and exchanges."""

from collections.abc import Iterator

import pytest

from replicator.mirror.links import LinkTable
from replicator.ops import NO_IDENTITY, Identity

_ONE, _TWO = Identity(1, 0), Identity(2**64 - 1, 7)


@pytest.fixture
def links() -> Iterator[LinkTable]:
    table = LinkTable()
    yield table
    table.close()


def test_it_is_false_until_something_is_known(links: LinkTable) -> None:
    assert not links
    links.add(NO_IDENTITY, b"x")
    assert not links
    links.add(_TWO, b"x")
    assert links
    assert links.find(_TWO) == b"x"
    assert links.find(_ONE) is None
    links.clear()
    assert not links
    assert links.find(_TWO) is None


def test_a_path_belongs_to_one_file(links: LinkTable) -> None:
    links.add(_ONE, b"x")
    links.add(_TWO, b"x")
    assert links.names(_ONE) == []
    assert links.names(_TWO) == [b"x"]


def test_forget_takes_all_below_and_nothing_beside(links: LinkTable) -> None:
    for path in (b"d", b"d/a", b"d/b/c", b"d.x", b"d0", b"da", b"e\xff"):
        links.add(_ONE, path)
    links.forget(b"d")
    assert links.names(_ONE) == [b"d.x", b"d0", b"da", b"e\xff"]


def test_rename_moves_all_below(links: LinkTable) -> None:
    for path in (b"d", b"d/a\xff", b"d/b/c", b"d-", b"d0"):
        links.add(_ONE, path)
    links.rename(b"d", b"some/where")
    assert links.names(_ONE) == [b"d-", b"d0", b"some/where", b"some/where/a\xff", b"some/where/b/c"]


def test_rename_into_a_name_that_begins_alike(links: LinkTable) -> None:
    links.add(_ONE, b"a/x")
    links.rename(b"a", b"aa")
    assert links.names(_ONE) == [b"aa/x"]


def test_exchange(links: LinkTable) -> None:
    links.add(_ONE, b"a/x")
    links.add(_TWO, b"b")
    links.exchange(b"a", b"b")
    assert links.names(_ONE) == [b"b/x"]
    assert links.names(_TWO) == [b"a"]


def test_a_file_keeps_it_over_a_restart(tmp_path: object) -> None:
    file = f"{tmp_path}/links"
    table = LinkTable(file)
    with table.transaction():
        table.add(_ONE, b"x")
    table.add(_ONE, b"y")
    table.close()
    again = LinkTable(file)
    assert again
    assert again.names(_ONE) == [b"x", b"y"]
    again.close()


def test_names_of_one_directory() -> None:
    links = LinkTable()
    assert links.names_in(b"d") == set()
    for number, path in enumerate((b"d/a", b"d/b", b"d/e/c", b"da", b"\xff\xff\xff", b"d")):
        links.add(Identity(number + 1, 0), path)
    assert links.names_in(b"d") == {b"a", b"b"}
    assert links.names_in(b"") == {b"da", b"\xff\xff\xff", b"d"}
    links.close()
