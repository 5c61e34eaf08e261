"""Where a target may write: checked when a source connects, before anything is created.

What cannot be right is refused with one line (CF-14, RS-13, and guarantee 7); the source's agent checks the
same before it connects, but a target does not rely on it.
"""

import os

from replicator.errors import ReplicatorError
from replicator.fs import mounts, target_lock
from replicator.net.frames import Connect, PathMap
from replicator.repset import is_inside, overlapping
from replicator.status import TargetLock

_PSEUDO = ("/proc", "/sys", "/dev")


class RefusedTarget(ReplicatorError):
    """A target path that must not be used; trying again does not help."""


def check_targets(
    connect: Connect, *, others: tuple[str, ...], private: tuple[str, ...], same_host: bool
) -> None:
    """Raises RefusedTarget. `others`: target directories of all other connections of this agent. `private`:
    where this agent keeps its own files. `same_host`: the source is this very agent, so its roots are paths
    here. Symlinks in what exists of a path are followed.
    """
    if not connect.maps:
        raise RefusedTarget("the connection maps no path: give it a target directory")
    roots = [os.path.realpath(os.fsdecode(journal.root)) for journal in connect.journals]
    own: list[tuple[PathMap, str]] = []
    for path_map in connect.maps:
        if path_map.journal >= len(connect.journals):
            raise RefusedTarget(f"a map names journal {path_map.journal}, which does not exist")
        named = os.fsdecode(path_map.target)
        target = check_target(named)
        for known, place in own:
            if overlapping(target, place) and not _is_natural(known, path_map):
                raise RefusedTarget(f"two maps lead to one place: {place} and {target}")
        own.append((path_map, target))
        for other in others:
            if overlapping(target, os.path.realpath(other)):
                raise RefusedTarget(
                    f"{named} is already written by another connection (to {other}): "
                    "choose another target path"
                )
        for directory in private:
            if overlapping(target, os.path.realpath(directory)):
                raise RefusedTarget(
                    f"the target {named} cannot be used: the agent keeps its own files in {directory};"
                    " choose another target path"
                )
        for root in roots if same_host else ():
            if overlapping(target, root):
                raise RefusedTarget(
                    f"the target {named} and its source {root} overlap: every change would come back "
                    "for ever; choose a target outside of what is protected"
                )


def check_lock(connect: Connect) -> None:
    """Raises RefusedTarget if the copy cannot be locked as the source asks for."""
    if connect.lock not in list(TargetLock):
        raise RefusedTarget(f"this agent knows no lock {connect.lock[:40]!r} for a copy")
    if connect.lock != TargetLock.NONE:
        try:
            target_lock.check([m.target for m in connect.maps], mounts.read_mountinfo())
        except target_lock.LockError as error:
            raise RefusedTarget(str(error)) from None


def _is_natural(one: PathMap, other: PathMap) -> bool:
    """Whether the deeper of two maps leads to where its path would go by the other one."""
    if one.journal != other.journal:
        return False
    if len(one.source) > len(other.source):
        one, other = other, one
    above = one.source + b"/" if one.source else b""
    below = other.source[len(above) :]
    return other.source.startswith(above) and bool(below) and other.target == one.target + b"/" + below


def check_target(named: str) -> str:
    """The real path of one target directory, which need not exist. Raises RefusedTarget."""
    if not named.startswith("/") or "\0" in named or ".." in named.split("/"):
        raise RefusedTarget(f"the target {named!r} is not an absolute path without '..'")
    target = os.path.realpath(named)
    if target == "/":
        raise RefusedTarget("the target must not be /: choose a directory below it")
    for pseudo in _PSEUDO:
        # Shared memory is storage, if a small one.
        if is_inside(target, pseudo) and not is_inside(target, "/dev/shm"):
            raise RefusedTarget(f"the target {named} lies in {pseudo}, which is no storage")
    existing = target
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise RefusedTarget(f"the target {named} cannot be used: {existing} is not a directory")
    return target


def make_targets(connect: Connect, known: Connect | None) -> None:
    """Create the target directories that are missing. OSError.

    One that was there before is not created again: it is probably not mounted, and its copy would go to
    another disk. Raises ReplicatorError then.
    """
    before = {path_map.target for path_map in known.maps} if known is not None else set()
    for path_map in connect.maps:
        target = os.fsdecode(path_map.target)
        if path_map.target in before and not os.path.isdir(target):
            raise ReplicatorError(f"the target directory {target} has disappeared: mount or restore it")
        _make_durably(target)


def _make_durably(directory: str) -> None:
    """Whoever is told of it finds it also after a power loss. OSError."""
    if os.path.isdir(directory):
        return
    parent = os.path.dirname(directory)
    _make_durably(parent)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
