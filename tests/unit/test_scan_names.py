"""What the scanner finds in a directory: by which way its names are read makes no difference."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from replicator.mirror.comparison import WHOLE
from replicator.mirror.scan import Choice, Directory, Source
from replicator.repset import ReplicationSet, Rule, compile_filter


def choice() -> Choice:
    def never(*_: object) -> bool:
        return False

    return Choice(WHOLE, True, False, never, never, never, never, set())


def source(root: Path, *rules: Rule) -> Iterator[Source]:
    repset = ReplicationSet("set", 1, (Rule(str(root)), *rules))
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    found = Source(descriptor, partial(compile_filter, repset, os.fsencode(root)))
    yield found
    found.close()


def listed(root: Path, path: bytes, *rules: Rule) -> Directory:
    (tree,) = [source.look(path, choice()) for source in source(root, *rules)]
    assert isinstance(tree, Directory)
    return tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    below = os.fsencode(tmp_path)
    for name in (b"leaf", b"branch/a", b"branch/b", b"branch/skipped"):
        os.makedirs(below + b"/" + name)
    for name in (b"leaf/z", b"leaf/a", b"leaf/\xff", b"leaf/x.tmp", b"branch/f", b"branch/\xff"):
        os.close(os.open(below + b"/" + name, os.O_CREAT))
    os.symlink("a", below + b"/leaf/link")
    return tmp_path


def names_of(found: Directory) -> tuple[list[bytes], tuple[bytes, ...]]:
    return found.directories, found.listing.names


def test_all_names_are_found_as_they_are(root: Path) -> None:
    assert names_of(listed(root, b"leaf")) == ([], (b"a", b"link", b"x.tmp", b"z", b"\xff"))
    directories, names = names_of(listed(root, b"branch"))
    assert directories == [b"branch/a", b"branch/b", b"branch/skipped"]
    assert names == (b"f", b"\xff", b"a", b"b", b"skipped")


def test_rules_are_heeded(root: Path) -> None:
    rules = Rule(f"{root}/leaf/*.tmp", include=False), Rule(f"{root}/branch/skipped", include=False)
    assert names_of(listed(root, b"leaf", *rules)) == ([], (b"a", b"link", b"z", b"\xff"))
    assert names_of(listed(root, b"branch", *rules))[0] == [b"branch/a", b"branch/b"]
