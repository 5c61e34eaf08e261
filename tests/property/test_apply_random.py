"""Random operations on a source, applied to a target, give the same tree; also killed and repeated."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kit.recording import Source
from kit.trees import acl, assert_same_tree, build_random_tree, snapshot

from replicator.fs.apply import Applier
from replicator.fs.beneath import Root
from replicator.mirror.links import LinkTable
from replicator.ops import RENAME_EXCHANGE, RENAME_NOREPLACE, Kind, Record

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")

_Operation = tuple[str, int, int, int, bytes]
_MODES = (0o600, 0o644, 0o755, 0o2775, 0o4711, 0o1777, 0o000)
_OWNERS = ((0, 0), (1000, 1000), (0, 7), (33, 0))
_TEXTS = (b"a", b"../b/c", b"/nowhere/at/all", b"a/b")
_TYPES = (stat.S_IFIFO | 0o644, stat.S_IFSOCK | 0o755, stat.S_IFCHR | 0o660)
_FLAGS = (0, 0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE)
_ALLOCATE_MODES = (0x00, 0x01, 0x03, 0x10, 0x11, 0x08, 0x20)
_XATTRS = (
    (b"user.x", b"1"),
    (b"trusted.y", b""),
    (b"system.posix_acl_access", acl(77, 6)),
    (b"system.posix_acl_default", acl(78, 5, 0o750)),
)
_KINDS = (
    ["create"] * 5 + ["mkdir"] * 4 + ["rename"] * 5 + ["write"] * 4 + ["link"] * 2 + ["setxattr"] * 2
    + ["appear"] * 3 + ["symlink", "mknod", "unlink", "unlink", "rmdir", "truncate", "fallocate", "fallocate"]
    + ["chmod", "chown", "utime", "removexattr"]
)  # fmt: skip
_NUMBERS = st.integers(0, 2**16)
_OPERATIONS = st.tuples(st.sampled_from(_KINDS), _NUMBERS, _NUMBERS, _NUMBERS, st.binary(max_size=100))


def _names_in(root: bytes) -> tuple[list[bytes], list[bytes]]:
    """Paths of what is no directory, and of directories (the root among them)."""
    files: list[bytes] = []
    directories = [b""]
    for directory in directories:
        for entry in sorted(os.scandir(root + b"/" + directory), key=lambda found: found.name):
            path = directory + b"/" + entry.name if directory else entry.name
            (directories if entry.is_dir(follow_symlinks=False) else files).append(path)
    return files, directories


def _perform_one(source: Source, operation: _Operation) -> None:
    """One operation on what is there: the numbers choose."""
    kind, one, two, three, data = operation
    files, directories = _names_in(source.root)
    everything = files + directories[1:]
    parent = directories[two % len(directories)]
    name = (b"a", b"b", b"c", b"d")[three % 4]
    new = parent + b"/" + name if parent else name
    everything = everything or [b"missing"]
    file = files[one % len(files)] if files else b"missing"
    old = everything[one % len(everything)]
    if kind == "create":
        source.create(new, _MODES[one % 7], _OWNERS[one % 4])
    elif kind == "appear":
        extents = {position: data for position in (0, 5000, 70_000)[: one % 4] if data}
        xattrs = dict(_XATTRS[:3][two % 4 : three % 4])
        source.appear(new, extents, three, xattrs, _MODES[one % 7], _OWNERS[two % 4])
    elif kind == "mkdir":
        source.mkdir(new, _MODES[one % 7], _OWNERS[one % 4])
    elif kind == "symlink":
        source.symlink(new, _TEXTS[one % 4], _OWNERS[two % 4])
    elif kind == "mknod":
        source.mknod(new, _TYPES[one % 3], os.makedev(240, 3), _OWNERS[one % 4])
    elif kind == "link":
        source.link(file, new)
    elif kind == "rename":
        source.rename(old, everything[two % len(everything)] if three & 4 else new, _FLAGS[three % 7])
    elif kind == "unlink":
        source.unlink(file)
    elif kind == "rmdir":
        source.rmdir((directories[1:] or [b"missing"])[one % max(1, len(directories) - 1)])
    elif kind == "write":
        source.write(file, two, data * (three % 100) or b"x")
    elif kind == "truncate":
        source.truncate(file, two)
    elif kind == "fallocate":
        source.fallocate(
            file, _ALLOCATE_MODES[three % 7], (0, 4096, 100)[two % 3], (4096, 8192, 777)[three % 3]
        )
    elif kind == "chmod":
        source.chmod(old, _MODES[three % 7])
    elif kind == "chown":
        source.chown(old, *_OWNERS[three % 4])
    elif kind == "utime":
        source.utime(old, two * 10**9 + three)
    elif kind == "setxattr":
        source.setxattr(old, *_XATTRS[three % 4])
    elif kind == "removexattr":
        source.removexattr(old, _XATTRS[three % 4][0])


_RUNS = st.lists(_OPERATIONS, min_size=20, max_size=60)
_SETTINGS = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    phases=(
        Phase.explicit,
        Phase.generate,
    ),  # shrinking real trees takes minutes
    suppress_health_check=[HealthCheck.too_slow],
)


@contextlib.contextmanager
def _two_trees() -> Iterator[tuple[Path, Path]]:
    # In memory: fast, and no cache decides what of a preallocated file is a hole, as it does for ext4.
    base = Path(tempfile.mkdtemp(prefix="replicator-test-apply-", dir="/dev/shm"))
    previous = os.umask(0)
    try:
        for name in ("source", "target"):
            (base / name).mkdir()
        yield base / "source", base / "target"
    finally:
        os.umask(previous)
        shutil.rmtree(base)


def _perform(source: Source, operations: list[_Operation]) -> None:
    for operation in operations:
        with contextlib.suppress(OSError):  # what the kernel refuses is not journaled
            _perform_one(source, operation)


@_SETTINGS
@given(_RUNS)
def test_the_target_is_the_source_after_every_record(operations: list[_Operation]) -> None:
    with _two_trees() as (source_path, target_path), Root(target_path) as root:
        applier = Applier([(b"", root)])

        def follow(record: Record) -> None:
            applier.apply(record, tolerant=False)

        source = Source(source_path, follow)
        _perform(source, operations)
        assert_same_tree(source_path, target_path, frozenset({"mtime_ns"}))
        source.settle()
        assert_same_tree(source_path, target_path)


@_SETTINGS
@given(_RUNS, st.booleans())
def test_every_record_may_be_repeated_in_doubt(operations: list[_Operation], tolerant: bool) -> None:
    with _two_trees() as (source_path, target_path):
        source = Source(source_path)
        _perform(source, operations)
        source.settle()
        for record in source.records:
            with Root(target_path) as root:
                applier = Applier([(b"", root)])
                intent = applier.intent(record)
                applier.apply(record, tolerant=tolerant)
            with Root(target_path) as root:  # killed after the operation: the same record again
                Applier([(b"", root)]).apply(record, tolerant=tolerant, in_doubt=True, intent=intent)
        # A repeated operation changes the mtime of its directory, unless it is recognised.
        # What is preallocated twice is data to tmpfs; preallocated once it is a hole.
        preallocated = any(record.kind == Kind.FALLOCATE for record in source.records)
        ignore = frozenset({"holes"}) if preallocated else frozenset()
        assert_same_tree(source_path, target_path, ignore)


@_SETTINGS
@given(_RUNS)
def test_in_doubt_and_not_done_is_done(operations: list[_Operation]) -> None:
    with _two_trees() as (source_path, target_path):
        source = Source(source_path)
        _perform(source, operations)
        source.settle()
        for record in source.records:
            with Root(target_path) as root:
                applier = Applier([(b"", root)])
                applier.apply(record, tolerant=False, in_doubt=True, intent=applier.intent(record))
        assert_same_tree(source_path, target_path)


@_SETTINGS
@given(_RUNS, _RUNS, st.booleans())
def test_tolerant_takes_any_target(
    operations: list[_Operation], others: list[_Operation], linked: bool
) -> None:
    """On any other tree nothing fails, and nothing outside is touched."""
    with _two_trees() as (source_path, target_path):
        stale = Source(target_path)
        (target_path.parent / "outside").mkdir()
        build_random_tree(target_path.parent / "outside", 1, 5)
        before = snapshot(target_path.parent / "outside")
        _perform(stale, others)
        with contextlib.suppress(OSError):
            os.symlink("../outside", target_path / "c")
        source = Source(source_path)
        _perform(source, operations)
        with Root(target_path) as root, contextlib.closing(LinkTable()) as links:
            applier = Applier([(b"", root)], links=links)
            for record in source.records:
                if linked:
                    links.add(record.identity, record.path)
                applier.apply(record, tolerant=True)
        assert snapshot(target_path.parent / "outside") == before
