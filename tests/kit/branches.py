"""A losing branch, saved as a bundle; and what a bundle makes of the state at the fork: that branch."""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

from kit import dirty_model
from replicator.failover.bundle_format import Absent, Part, Saved
from replicator.failover.bundle_read import RootReader
from replicator.failover.divergence import Branch, Bundles, Tail
from replicator.fs.beneath import Root
from replicator.ops import Kind, Position, Record
from replicator.queue.cursor import Run
from replicator.queue.dirty import DirtyMap

BRANCH = Branch(
    group="g", group_name="web", agent="a", agent_name="alpha", epoch=1, winner_epoch=2, winner="beta"
)


def copied(tree: Path, place: Path) -> dict[bytes, int]:
    """A copy of a tree. Returns the inode numbers that `tree` has now, by path of what is no directory."""
    subprocess.run(["cp", "-a", str(tree), str(place)], check=True, timeout=60)
    found = {}
    base = os.fsencode(tree)
    for directory, _, names in os.walk(base):
        for name in names:
            full = os.path.join(directory, name)
            found[os.path.relpath(full, base)] = os.lstat(full).st_ino
    return found


def record(kind: Kind, path: bytes, **fields: object) -> Record:
    return dirty_model.record(kind, path, **fields)


def run_of(records: Iterable[Record]) -> Run:
    return Run(Position(0, 0), Position(1, 1), memoryview(b"records"), [(0, 0, record) for record in records])


def saved(bundles: Bundles, tree: Path, keys: DirtyMap, records: Iterable[Record] = ()) -> str | None:
    """The directory of the bundle; None: nothing was to be saved."""
    with Root(str(tree)) as root:
        manifest = bundles.save(BRANCH, [Tail("j", root, keys, (1, 1), (2, 2), [run_of(records)])])
    return bundles.path(manifest) if manifest is not None else None


def overlay(bundles: Bundles, exported: Path, base: Path, inodes: dict[bytes, int]) -> None:
    """Make of `base`, the state at the fork, the losing branch. `inodes`: as `copied` returned them."""
    (manifest,) = bundles.all()
    with RootReader(bundles.path(manifest), 0, manifest.roots[0]) as reader:
        items = list(reader.items())
    files = os.fsencode(exported / "files") + os.fsencode(manifest.roots[0].path)
    there = os.fsencode(base)
    _remove(items, there, inodes)
    at = {inode: path for path, inode in inodes.items() if os.path.lexists(_join(there, path))}
    objects = [item.saved for item in items if not isinstance(item, Absent)]
    for item in objects:
        _place(item, files, there, at)
    for item in sorted(objects, key=lambda item: stat.S_ISDIR(item.mode)):
        _dress(item, _join(there, item.path))


def _remove(items: list, there: bytes, inodes: dict[bytes, int]) -> None:  # type: ignore[type-arg]
    def gone(path: bytes) -> None:
        full = _join(there, path)
        if os.path.isdir(full) and not os.path.islink(full):
            shutil.rmtree(full)
        elif os.path.lexists(full):
            os.unlink(full)
        for known in [known for known in inodes if known == path or known.startswith(path + b"/")]:
            del inodes[known]

    for item in items:
        if isinstance(item, Absent):
            gone(item.path)
            continue
        full = _join(there, item.saved.path)
        if stat.S_ISDIR(item.saved.mode):
            if os.path.lexists(full) and (os.path.islink(full) or not os.path.isdir(full)):
                gone(item.saved.path)
            if item.names is not None and os.path.isdir(full):
                for name in set(os.listdir(full)) - set(item.names):
                    gone(_join(item.saved.path, name))
        elif item.saved.part is Part.WHOLE and item.saved.same_as != item.saved.path:
            gone(item.saved.path)


def _place(item: Saved, files: bytes, there: bytes, at: dict[int, bytes]) -> None:
    full, source = _join(there, item.path), _join(files, item.path)
    if stat.S_ISDIR(item.mode):
        os.makedirs(full, exist_ok=True)
        return
    os.makedirs(os.path.dirname(full), exist_ok=True)
    if item.part is Part.WHOLE:
        known = at.get(item.inode)
        if known is not None and known != item.path and not os.path.lexists(full):
            os.link(_join(there, known), full, follow_symlinks=False)
        if stat.S_ISREG(item.mode):
            if item.same_as is None:
                _copy(source, full, [(0, item.size)], item.size)
        elif not os.path.lexists(full):
            if stat.S_ISLNK(item.mode):
                os.symlink(os.readlink(source), full)
            else:
                os.mknod(full, os.lstat(source).st_mode, os.lstat(source).st_rdev)
        at[item.inode] = item.path
    elif item.part is Part.REGIONS:
        _copy(source, full, item.regions, item.size)


def _copy(source: bytes, target: bytes, spans: Iterable[tuple[int, int]], size: int) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(writing, min(size, os.fstat(writing).st_size))
        for start, end in spans:
            os.pwrite(writing, os.pread(reading, end - start, start), start)
        os.ftruncate(writing, size)
    finally:
        os.close(reading)
        os.close(writing)


def _dress(item: Saved, full: bytes) -> None:
    os.chown(full, item.uid, item.gid, follow_symlinks=False)
    if not stat.S_ISLNK(item.mode):
        os.chmod(full, stat.S_IMODE(item.mode))
    for known in os.listxattr(full, follow_symlinks=False):
        if os.fsencode(known) not in dict(item.xattrs):
            os.removexattr(full, known, follow_symlinks=False)
    for name, value in item.xattrs:
        os.setxattr(full, name, value, follow_symlinks=False)
    os.utime(full, ns=(item.mtime_ns, item.mtime_ns), follow_symlinks=False)


def _join(directory: bytes, name: bytes) -> bytes:
    return b"/".join(part for part in (directory, name) if part)
