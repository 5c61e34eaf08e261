"""Records that make a name: of a new object, or of one that has others."""

import errno
import os
import stat
from collections.abc import Callable

from replicator.fs.apply_outcome import ApplyError, CrossDevice, Outcome
from replicator.fs.apply_tree import AppliedTree
from replicator.fs.attributes import set_attributes
from replicator.fs.beneath import MISSING
from replicator.fs.credentials import as_owner
from replicator.fs.unfinished import CREATE_FLAGS
from replicator.fs.whole_file import WholeFile, place_whole
from replicator.ops import Attributes, Record


class Creation:
    """Each record is applied as `Applier.apply` says."""

    def __init__(self, tree: AppliedTree, incoming: bytes, link_text: Callable[[bytes], bytes]) -> None:
        """`incoming`: name of a file that is not complete, where there are no files without name.
        `link_text`: the text of a symlink as it has to be on the target.
        """
        self._tree = tree
        self._incoming = incoming
        self._link_text = link_text

    def create(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        attributes = Attributes.decode(record.payload)
        root, path = self._tree.maps.place_name(record.path)

        def make(directory: int, name: bytes) -> None:
            with as_owner(attributes.uid, attributes.gid):
                descriptor = os.open(name, CREATE_FLAGS, attributes.mode & 0o7777, dir_fd=directory)
            root.keep_file(path, descriptor)
            set_attributes(descriptor, attributes, current=os.fstat(descriptor))

        def keep(state: os.stat_result) -> bool:
            if tolerant or not stat.S_ISREG(state.st_mode) or state.st_size:
                return False
            set_attributes(root.file(path), attributes, current=state)
            return True

        return self._make(record, tolerant, in_doubt, make, keep)

    def file(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        try:
            whole = WholeFile.decode(record.payload)
        except ValueError as error:
            raise ApplyError(record, str(error)) from error

        def make(directory: int, name: bytes) -> None:
            place_whole(whole, directory, name, self._incoming)

        def keep(state: os.stat_result) -> bool:
            # It was there with all it holds, or not at all: in doubt, what looks like it is it.
            same = state.st_size == whole.size and state.st_mtime_ns == whole.attributes.mtime_ns
            return stat.S_ISREG(state.st_mode) and same and not tolerant

        return self._make(record, tolerant, in_doubt, make, keep)

    def mkdir(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        attributes = Attributes.decode(record.payload)
        root, path = self._tree.maps.place_name(record.path)

        def make(directory: int, name: bytes) -> None:
            with as_owner(attributes.uid, attributes.gid):
                os.mkdir(name, attributes.mode & 0o7777, dir_fd=directory)
            descriptor = root.directory(path)
            set_attributes(descriptor, attributes, current=os.fstat(descriptor))

        def keep(state: os.stat_result) -> bool:
            if not stat.S_ISDIR(state.st_mode):
                return False
            set_attributes(root.directory(path), attributes, current=state)
            return True

        return self._make(record, tolerant, in_doubt, make, keep)

    def symlink(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        attributes = Attributes.decode(record.payload)
        text = self._link_text(record.path2)
        root, path = self._tree.maps.place_name(record.path)

        def make(directory: int, name: bytes) -> None:
            with as_owner(attributes.uid, attributes.gid):
                os.symlink(text, name, dir_fd=directory)
            state = os.stat(name, dir_fd=directory, follow_symlinks=False)
            set_attributes(directory, attributes, name=name, current=state)

        def keep(state: os.stat_result) -> bool:
            if tolerant or not stat.S_ISLNK(state.st_mode):
                return False
            directory, name = root.parent(path)
            if os.readlink(name, dir_fd=directory) != text:
                return False
            set_attributes(directory, attributes, name=name, current=state)
            return True

        return self._make(record, tolerant, in_doubt, make, keep)

    def mknod(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        attributes = Attributes.decode(record.payload)
        root, path = self._tree.maps.place_name(record.path)

        def make(directory: int, name: bytes) -> None:
            with as_owner(attributes.uid, attributes.gid):
                os.mknod(name, attributes.mode, attributes.rdev, dir_fd=directory)
            state = os.stat(name, dir_fd=directory, follow_symlinks=False)
            set_attributes(directory, attributes, name=name, current=state)

        def keep(state: os.stat_result) -> bool:
            same = stat.S_IFMT(state.st_mode) == stat.S_IFMT(attributes.mode)
            if tolerant or not same or state.st_rdev != attributes.rdev:
                return False
            directory, name = root.parent(path)
            set_attributes(directory, attributes, name=name, current=state)
            return True

        return self._make(record, tolerant, in_doubt, make, keep)

    def link(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        links = self._tree.links if tolerant else None
        old_root, old = self._tree.maps.place_name(record.path)
        new_root, new = self._tree.maps.place_name(record.path2)
        state = self._tree.look(record.path) if tolerant or in_doubt else None
        if tolerant and (state is None or stat.S_ISDIR(state.st_mode)):
            self._tree.remove(record.path2)
            return Outcome.IGNORED
        try:
            source, target = old_root.parent(old), new_root.parent(new)
        except OSError as error:
            if tolerant and error.errno in MISSING:
                return Outcome.IGNORED
            raise
        outcome = Outcome.APPLIED
        try:
            _hard_link(record, source, target)
        except CrossDevice:
            if not tolerant:
                raise
            self._tree.remove(record.path2)
            return Outcome.IGNORED
        except FileExistsError:
            if not (tolerant or in_doubt):
                raise
            there = self._tree.look(record.path2)
            if state is None or there is None or not os.path.samestat(state, there):
                if not tolerant:
                    raise
                self._tree.remove(record.path2)
                _hard_link(record, old_root.parent(old), new_root.parent(new))
            else:
                outcome = Outcome.ALREADY
        if links:
            # Only what is known to be the source's file is worth knowing under a second name; what is still
            # to be brought may be anything here.
            known = record.path in links.names(record.identity)
            links.forget(record.path2)
            if known:
                links.add(record.identity, record.path2)
        return outcome

    def _make(
        self,
        record: Record,
        tolerant: bool,
        in_doubt: bool,
        make: Callable[[int, bytes], None],
        keep: Callable[[os.stat_result], bool],
    ) -> Outcome:
        """Make an object; `keep` completes what is in its place already, if that will do."""
        root, path = self._tree.maps.place_name(record.path)
        try:
            directory, name = root.parent(path)
        except OSError as error:
            if tolerant and error.errno in MISSING:
                return Outcome.IGNORED
            raise
        try:
            make(directory, name)
            return Outcome.APPLIED
        except FileExistsError:
            if not (tolerant or in_doubt):
                raise
        state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if keep(state):
            return Outcome.ALREADY
        if not tolerant:
            raise FileExistsError(errno.EEXIST, "something else has this name")
        self._tree.remove(record.path)
        make(*root.parent(path))
        return Outcome.APPLIED


def _hard_link(record: Record, source: tuple[int, bytes], target: tuple[int, bytes]) -> None:
    try:
        os.link(source[1], target[1], src_dir_fd=source[0], dst_dir_fd=target[0], follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise CrossDevice(record, "the two lie on different file systems", errno.EXDEV) from error
        raise
