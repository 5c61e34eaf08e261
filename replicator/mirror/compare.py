"""Compare a target's tree with what its source says of it. Nothing is changed, and times of access stay where
the file system allows it.
"""

import errno
import os
import stat
from collections.abc import Iterable

from replicator import limits
from replicator.bounds import Extent
from replicator.errors import ReplicatorError
from replicator.fs.apply import Applier
from replicator.fs.attributes import data_extents, read_xattrs
from replicator.fs.beneath import MISSING, Root
from replicator.mirror import digests
from replicator.mirror.checks import Aspect, Check, CheckBatch, CheckNames, Content, Finding, There
from replicator.mirror.links import LinkTable
from replicator.mirror.pieces import Xattrs
from replicator.ops import AttributeMask, Identity
from replicator.repset import Filter

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_TARGET_IS_ILL = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE})


class Comparer:
    """Of one journal, in the thread that applies its records."""

    def __init__(self, applier: Applier, rules: Filter | None) -> None:
        """`rules`: of the set; None if they are not known, so that nothing is extra."""
        self._applier = applier
        self._maps = applier.maps
        self._rules = rules
        # Names of files that have several here, by their inode: to find those that are one file by mistake.
        self._links = LinkTable()

    def close(self) -> None:
        self._links.close()

    def compare(self, batch: CheckBatch) -> list[Finding]:
        """What is not as the batch says. OSError if the whole target is ill."""
        with self._links.transaction():
            return self._compare_all(batch)

    def _compare_all(self, batch: CheckBatch) -> list[Finding]:
        found: list[Finding] = []
        for index, check in enumerate(batch.checks):
            try:
                finding = (
                    self._names(check, index) if isinstance(check, CheckNames) else self._one(check, index)
                )
            except ReplicatorError as error:
                finding = Finding(index, problem=str(error))
            except OSError as error:
                if error.errno in _TARGET_IS_ILL:
                    raise
                finding = Finding(index, problem=f"cannot be read: {error.strerror or error}")
            if finding is not None:
                found.append(finding)
        return found

    # --- one object ---

    def _one(self, check: Check, index: int) -> Finding | None:
        place = self._maps.place(check.path)
        root, path = place.root, place.path
        if not path:
            return self._compare(check, index, root, root.descriptor, b".")
        try:
            directory, name = root.parent(path)
            return self._compare(check, index, root, directory, name)
        except OSError as error:
            if error.errno not in MISSING:
                raise
            return Finding(index, (Aspect.MISSING,))

    def _compare(self, check: Check, index: int, root: Root, directory: int, name: bytes) -> Finding | None:
        state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        wanted = check.attributes
        text = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(state.st_mode) else b""
        there = there_of(state, text)
        if stat.S_IFMT(state.st_mode) != stat.S_IFMT(wanted.mode):
            return Finding(index, (Aspect.TYPE,), there)
        aspects: list[Aspect] = []
        blocks: list[Extent] = []
        if stat.S_ISLNK(state.st_mode):
            if text != self._applier.link_text(check.link_text):
                aspects.append(Aspect.LINK_TEXT)
        elif state.st_mode & 0o7777 != wanted.mode & 0o7777:
            aspects.append(Aspect.MODE)
        if (state.st_uid, state.st_gid) != (wanted.uid, wanted.gid):
            aspects.append(Aspect.OWNER)
        if state.st_mtime_ns != wanted.mtime_ns:
            aspects.append(Aspect.MTIME)
        if wanted.mask & AttributeMask.RDEV and state.st_rdev != wanted.rdev:
            aspects.append(Aspect.DEVICE)
        aspects += _xattr_aspects(check.xattrs, read_xattrs(b"/proc/self/fd/%d/%s" % (directory, name)))
        if stat.S_ISREG(state.st_mode):
            if state.st_size != check.size:
                aspects.append(Aspect.SIZE)
            if check.content is not None:
                blocks = _differing(directory, name, check.content)
                if blocks:
                    aspects.append(Aspect.CONTENT)
        peer = b"" if stat.S_ISDIR(state.st_mode) else self._peer(check, state)
        if (check.peer != b"") and self._is_at(check.peer, state) is not check.is_peer:
            aspects.append(Aspect.HARD_LINK)
        if not aspects and not peer:
            return None
        return Finding(index, tuple(aspects), there, tuple(blocks), peer=peer)

    def _peer(self, check: Check, state: os.stat_result) -> bytes:
        """Another name of this object here that the source did not tell as one of it."""
        if state.st_nlink < 2:
            return b""
        inode = Identity(state.st_ino, 0)
        known = self._links.find(inode)
        if known is not None and known != check.path:
            if self._is_at(known, state):
                return b"" if known == check.peer else known
            self._links.forget(known)
        self._links.add(inode, check.path)
        return b""

    def _is_at(self, path: bytes, state: os.stat_result) -> bool:
        try:
            place = self._maps.place_name(path)
            directory, name = place.root.parent(place.path)
            return os.path.samestat(os.stat(name, dir_fd=directory, follow_symlinks=False), state)
        except OSError as error:
            if error.errno in MISSING:
                return False
            raise

    # --- names ---

    def _names(self, check: CheckNames, index: int) -> Finding | None:
        rules = self._rules
        if rules is None:
            return None
        root, path = self._maps.place(check.path)
        listed = {*check.names, *check.kept}
        try:
            directory = root.directory(path)
        except OSError as error:
            if error.errno in MISSING:
                return None  # the check of the directory itself says so
            raise
        found: list[tuple[bytes, There]] = []
        count = 0
        with os.scandir(directory) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if name <= check.after or (check.until and name > check.until) or name in listed:
                    continue
                below = check.path + b"/" + name if check.path else name
                if name.startswith(self._applier.incoming) or self._maps.is_root(below):
                    continue
                is_directory = entry.is_dir(follow_symlinks=False)
                if not (rules.may_contain(below) if is_directory else rules.includes(below)):
                    continue
                state = entry.stat(follow_symlinks=False)
                if is_directory and state.st_dev != root.device:
                    continue
                count += 1
                if len(found) < limits.CHECK_EXTRA_NAMES:
                    found.append((name, there_of(state)))
        if not count:
            return None
        return Finding(index, (Aspect.EXTRA,), names=tuple(sorted(found)), count=count)


def there_of(state: os.stat_result, text: bytes = b"") -> There:
    size = state.st_size if stat.S_ISREG(state.st_mode) else 0
    rdev = state.st_rdev if stat.S_ISCHR(state.st_mode) or stat.S_ISBLK(state.st_mode) else 0
    return There(
        state.st_mode, state.st_uid, state.st_gid, rdev, size, state.st_mtime_ns, state.st_nlink, text
    )


def _xattr_aspects(wanted: Xattrs, there: Xattrs) -> Iterable[Aspect]:
    if wanted == there:
        return
    acls = [[xattrs.get(name) for name in _ACLS] for xattrs in (wanted, there)]
    if acls[0] != acls[1]:
        yield Aspect.ACL
    if {k: v for k, v in wanted.items() if k not in _ACLS} != {
        k: v for k, v in there.items() if k not in _ACLS
    }:
        yield Aspect.XATTRS


def _differing(directory: int, name: bytes, content: Content) -> list[Extent]:
    """Blocks whose content is not as told; what both have as zeros is equal, be it data or hole."""
    _check_content(content)
    descriptor = os.open(name, _READ_FLAGS, dir_fd=directory)
    try:
        found = digests.unequal(descriptor, content.extents, content.block_bytes, content.digests)
        size = os.fstat(descriptor).st_size
        for offset, length in digests.gaps(content.start, content.end, content.extents):
            end = min(offset + length, size)
            for start, count in data_extents(descriptor, end, offset):
                found += digests.not_zero(descriptor, start, count, content.block_bytes)
    finally:
        os.close(descriptor)
    return _joined(found)


def _joined(blocks: list[Extent]) -> list[Extent]:
    joined: list[Extent] = []
    for offset, length in sorted(blocks):
        if joined and sum(joined[-1]) >= offset:
            joined[-1] = (joined[-1][0], max(sum(joined[-1]), offset + length) - joined[-1][0])
        else:
            joined.append((offset, length))
    return joined


def _check_content(content: Content) -> None:
    """ReplicatorError unless its parts describe each other."""
    place, block_bytes = content.start, content.block_bytes
    well = 0 <= content.start <= content.end
    well = well and digests.UNIT_BYTES <= block_bytes <= limits.COMPARE_READ_BYTES
    for offset, length in content.extents:
        well = well and place <= offset and length > 0
        place = offset + length
    count = digests.count_blocks(content.extents, block_bytes) if well else -1
    if place > content.end or count * digests.DIGEST_BYTES != len(content.digests):
        raise ReplicatorError("malformed check: its digests do not describe its extents")
