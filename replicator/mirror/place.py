"""Put the pieces of a mirror into a target tree.

A file that is there already is not changed in place, but for what `replicator.mirror.patch` does: its new
content is built beside it and takes its name in one step, so that neither a reader nor another hard link ever
sees half of it. Large files arrive in parts and are built without any name. Placing the same batch twice
gives the same tree, which is what a receiver does after a kill.
"""

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from replicator import limits
from replicator.errors import ReplicatorError
from replicator.fs import unfinished
from replicator.fs.apply import Applier
from replicator.fs.attributes import (
    read_xattrs,
    set_attributes,
    set_times,
    write_xattrs,
)
from replicator.fs.bare_files import BareFiles
from replicator.fs.beneath import MISSING, Root, check_name
from replicator.fs.copying import clone, copy_on
from replicator.fs.many_states import AVAILABLE, read_states, sizes_of
from replicator.fs.path_maps import OutsideError
from replicator.fs.unfinished import CREATE_FLAGS, UNFINISHED_MODE, unlink_quietly
from replicator.mirror import alike
from replicator.mirror.begun import MARK, BegunFiles, keeping_mtime
from replicator.mirror.comparison import Claim
from replicator.mirror.digests import digest_of_file
from replicator.mirror.elsewhere import Candidate, FileIndex, open_candidate
from replicator.mirror.links import LinkTable
from replicator.mirror.moved import OldCopy
from replicator.mirror.order import parent_of
from replicator.mirror.orphans import Finder
from replicator.mirror.packed_place import TARGET_IS_ILL, ManyPlacer, Plainly
from replicator.mirror.patch import NotAsClaimed, Patcher, dress_directory, fill
from replicator.mirror.patches import ALIGN_BYTES
from replicator.mirror.pieces import (
    Abandon,
    Alike,
    AnyEntry,
    Batch,
    Begun,
    Digests,
    Entry,
    File,
    Files,
    Finish,
    Links,
    LinkTo,
    Listing,
    Names,
    Object,
    Part,
    Patch,
    Patched,
    Refused,
    Same,
    Times,
    Xattrs,
)
from replicator.mirror.transfers import OpenTransfer, OpenTransfers
from replicator.ops import NO_IDENTITY, AttributeMask, Attributes, Identity, shown

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_ALL = int(AttributeMask.MODE | AttributeMask.UID | AttributeMask.GID | AttributeMask.MTIME)
_NO_CLAIM = frozenset({Claim.NOTHING, Claim.ELSEWHERE})  # that something is right already


class Placer:
    """Places batches of one journal, in the order of the stream, in the thread that applies its records.

    Becomes the applier's source of open transfers and of identities.
    """

    def __init__(
        self,
        applier: Applier,
        links: LinkTable,
        finder: Finder | None = None,
        *,
        keeps_existing: bool = False,
        bare: BareFiles | None = None,
    ) -> None:
        """`finder`: of orphans; None where nobody cares. `keeps_existing`: only what is missing is made.
        `bare`: what need not be asked for extended attributes.
        """
        self._bare = bare
        self._keeps_existing = keeps_existing
        self._made: OrderedDict[bytes, None] = OrderedDict()  # the last directories that were missing
        self._finder = finder
        self._maps = applier.maps
        self._applier = applier
        self._links = links
        self._incoming = applier.incoming
        self._transfers = OpenTransfers(self._incoming + MARK)
        applier.links = links
        applier.transfers = self._transfers
        self._begun = BegunFiles(applier.maps.roots, self._incoming)
        self._offers: dict[int, int] = {}  # descriptors by the number of the transfer they are for
        self._given_up: OrderedDict[int, None] = OrderedDict()
        self._interrupted: tuple[Batch, int, list[Refused]] | None = None
        self._index: FileIndex | None = None  # once something was looked for
        self._origins: OrderedDict[Identity, Candidate] = OrderedDict()  # what files are to be built of
        self._plainly = Plainly(applier.maps)
        self._many = ManyPlacer(
            self, self._plainly, applier, links, self._transfers, finder, keeps_existing=keeps_existing
        )
        self.suspect_since_ns: int | None = None  # since power loss: whose ctime is later may hold anything
        self.mirror_since_ns: int | None = None  # what was made later was brought by this full mirror
        self._patcher = patcher = Patcher(
            applier.maps, links, self._transfers, self.know, self._dress_named, finder
        )
        self._handlers: dict[type[Entry], Callable[[Any], None]] = {
            Listing: self._place_listing,
            Object: self.place_object,
            File: self.place_file,
            Part: self._place_part,
            Finish: self._place_finish,
            Abandon: self._place_abandon,
            Same: self._place_same,
            Alike: self._place_alike,
            LinkTo: self.place_link,
            Times: self._place_times,
            Names: patcher.place_names,
            Patch: patcher.place_patch,
            Patched: self._place_patched,
            Digests: self._place_digests,
            Begun: self._place_begun,
        }

    def place(self, batch: Batch) -> list[Refused]:
        """Place all entries and return what was refused.

        OSError if the target itself is ill (full, read-only): call again with this batch.
        """
        start = 0
        refused: list[Refused] = []
        if self._interrupted is not None and self._interrupted[0] is batch:
            _, start, refused = self._interrupted
        self._interrupted = None
        self._plainly.begin()
        entries = batch.entries
        with self._links.transaction():
            for index in range(start, len(entries)):
                entry = entries[index]
                try:
                    if isinstance(entry, Files | Links):
                        refused += [
                            _refusal(batch, one, reason, claim=claim)
                            for one, reason, claim in self._many.place(entry)
                        ]
                        continue
                    if not (self._keeps_existing and self._is_kept(entry)):
                        self._handlers[type(entry)](entry)
                    if self._finder is not None and not isinstance(entry, Times | Abandon):
                        self._finder.is_the_sources(entry.path)
                except NotAsClaimed as claim:
                    refused.append(_refusal(batch, entry, str(claim), claim=claim))
                except ReplicatorError as error:
                    refused.append(_refusal(batch, entry, str(error)))
                except OSError as error:
                    if error.errno in TARGET_IS_ILL:
                        self._interrupted = (batch, index, refused)
                        raise
                    reason = error.strerror or str(error)
                    # What cannot be compared may still be replaced.
                    unread = NotAsClaimed(reason) if isinstance(entry, Digests) else None
                    refused.append(_refusal(batch, entry, reason, claim=unread))
        return refused

    def close(self) -> None:
        """Nothing is left open. What may be gone on with stays."""
        self.leave_transfers()
        for number in list(self._offers):
            self.withdraw(number)

    def leave_transfers(self) -> None:
        """Whoever goes on with those that are open asks for them."""
        self._origins.clear()
        if self._index is not None:
            self._index.close()
            self._index = None
        for number in self._transfers.numbers():
            transfer = self._transfers.numbered(number)
            if transfer is not None and transfer.kept_in is not None:
                self._transfers.pop(number)
                transfer.close()
            else:
                self._give_up(number)

    def give_up_transfers(self) -> None:
        """Nothing more comes for any of them. OSError."""
        self.leave_transfers()
        self._begun.remove_all()

    # --- only what is missing ---

    def _is_kept(self, entry: Entry) -> bool:
        """Whether something is there that stays as it is, whatever it is. ReplicatorError: it is in the
        way.
        """
        if isinstance(entry, Part | Abandon | Alike | Begun):  # of these one speaks of several
            return False
        if isinstance(entry, Times):
            return entry.path not in self._made
        root, path = self._maps.place(entry.path)
        if isinstance(entry, Listing):
            self.refuse_what_is_in_the_way(root, path)
            return False
        self.refuse_what_is_in_the_way(root, path.rpartition(b"/")[0])
        if _state_of(root, path) is None:
            return False
        if isinstance(entry, Finish):
            self._give_up(entry.transfer)
        return True

    def refuse_what_is_in_the_way(self, root: Root, directory: bytes) -> None:
        while directory:
            if self._is_directory(root, directory):
                return
            if _state_of(root, directory) is not None:
                raise ReplicatorError(f"{shown(directory)} is no directory here: left as it is")
            directory = directory.rpartition(b"/")[0]

    def _is_directory(self, root: Root, path: bytes) -> bool:
        try:
            root.directory(path)
        except OSError as error:
            if error.errno not in MISSING:
                raise
            return False
        return True

    def missing_above(self, batch: Batch) -> list[bytes]:
        """The topmost directories that placing this would make because something lies below. OSError."""
        found: dict[bytes, None] = {}
        for entry in batch.entries:
            directory = entry.path if isinstance(entry, Files | Links | Alike) else parent_of(entry.path)
            top: bytes | None = None
            try:
                while directory and not self._is_directory(*self._maps.place(directory)):
                    top, directory = directory, parent_of(directory)
            except OutsideError:
                pass  # above all roots
            if top is not None:
                found[top] = None
        listed = {entry.path for entry in batch.entries if isinstance(entry, Listing)}
        return [top for top in found if top not in listed]

    # --- directories ---

    def _place_listing(self, entry: Listing) -> None:
        root, path = self._maps.place(entry.path)
        for name in entry.directories:
            check_name(name)
        kept = self._keeps_existing and self._is_directory(root, path)
        directory = self.ensure_directory(root, path)
        if entry.exact:
            self._remove_others(root, path, entry)
            directory = root.directory(path)
        elif entry.orphans and self._finder is not None:
            self._finder.look(entry.path, {*entry.names, *entry.directories})
            directory = root.directory(path)
        if not kept:
            dress_directory(directory, entry.attributes, entry.xattrs)
        if self._keeps_existing:  # each makes itself, so that whether it was there is known
            if not kept:
                self._made[entry.path] = None
                if len(self._made) > limits.DIRECTORIES_MADE:
                    self._made.popitem(last=False)
            return
        for name in self._missing_directories(directory, entry.directories):
            child = _join(path, name)
            if self._maps.is_root(_join(entry.path, name)):
                continue
            try:
                os.mkdir(name, 0o700, dir_fd=directory)
            except FileExistsError:
                state = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if not stat.S_ISDIR(state.st_mode):
                    self._forget_links(_join(entry.path, name))
                    root.remove(child)
                    directory = root.directory(path)
                    os.mkdir(name, 0o700, dir_fd=directory)
        self._plainly.dressed(entry.path)

    def _missing_directories(self, directory: int, names: Sequence[bytes]) -> list[bytes]:
        """Those of these names that may be no directories in the open one."""
        if not (names and AVAILABLE):
            return list(names)
        there = read_states(directory, names).directories()
        return [name for name, is_directory in zip(names, there, strict=True) if not is_directory]

    def ensure_directory(self, root: Root, path: bytes) -> int:
        try:
            return root.directory(path)
        except OSError as error:
            if error.errno not in MISSING:
                raise
        root.make_directories(path)
        return root.directory(path)

    def _remove_others(self, root: Root, path: bytes, entry: Listing) -> None:
        keep = {*entry.names, *entry.directories}
        others: list[bytes] = []
        with os.scandir(root.directory(path)) as entries:
            for found in entries:
                name = os.fsencode(found.name)
                if name not in keep and not self._transfers.has_name(name):
                    others.append(name)
        for name in others:
            if entry.orphans and self._finder is not None:
                self._finder.remove_others(_join(entry.path, name), self._forget_links)
                continue
            self._forget_links(_join(entry.path, name))
            root.remove(_join(path, name))

    def _place_times(self, entry: Times) -> None:
        root, path = self._maps.place(entry.path)
        try:
            descriptor = root.directory(path)
        except OSError as error:
            if error.errno not in MISSING:
                raise
            return  # moved or removed meanwhile: it is brought again, with its times
        if os.fstat(descriptor).st_mtime_ns != entry.mtime_ns:
            set_times(descriptor, None, entry.mtime_ns)

    # --- files ---

    def place_file(self, entry: File) -> None:
        if self._transfers and (earlier := self._transfers.number_of(entry.identity)) is not None:
            self._give_up(earlier)
        root, path = self._maps.place_name(entry.path)
        directory, name = self._parent(root, path)
        try:
            descriptor = os.open(name, CREATE_FLAGS, UNFINISHED_MODE, dir_fd=directory)
            temporary = name
        except FileExistsError:
            descriptor, temporary = self._create_beside(directory)
        try:
            fill(descriptor, entry.extents, entry.data.buffer)
            if not entry.extents or sum(entry.extents[-1]) != entry.size:
                os.ftruncate(descriptor, entry.size)
            self._dress_new(directory, descriptor, entry.path, entry.attributes, entry.xattrs)
            if temporary is not name:
                self._take_name(root, path, directory, temporary)
        except BaseException:
            unlink_quietly(directory, temporary)
            raise
        finally:
            os.close(descriptor)
        self.know(entry.path, entry.identity, entry.links)

    def _place_part(self, entry: Part) -> None:
        if entry.first:
            self._open_transfer(entry)
        transfer = self._transfers.numbered(entry.transfer)
        if transfer is None:
            self._refuse_unknown(entry.transfer)
            return
        fill(transfer.descriptor, entry.extents, entry.data.buffer)

    def _open_transfer(self, entry: Part) -> None:
        root, path = self._maps.place_name(entry.path)
        self._give_up(entry.transfer)
        earlier = self._transfers.number_of(entry.identity)
        if earlier is not None:
            self._give_up(earlier)
        directory, _ = self._parent(root, path)
        kept_in: Root | None = None
        name: bytes | None = None
        if entry.offered:
            found = self._offers.pop(entry.transfer, None)
            if found is None:
                raise NotAsClaimed("the file that was to have its content is not here any more")
            descriptor = found
        elif entry.changed_ns is not None and os.fstat(directory).st_dev == root.device:
            kept_in = root
            descriptor, name = self._begun.begin(root, entry.identity, entry.changed_ns)
        else:
            descriptor, name = unfinished.begin(directory, self._incoming + b"-%d" % entry.transfer)
        transfer = OpenTransfer(
            descriptor, entry.identity, entry.path, name, kept_in=kept_in, offered=entry.offered
        )
        self._transfers.add(entry.transfer, transfer)

    def offer(self, path: bytes, number: int) -> int | None:
        """Lend a file without a name for a transfer that will come; None: there is none. From any thread."""
        root, below = self._maps.place_name(path)
        directory = -1
        try:
            try:
                directory = root.open_directory(below.rpartition(b"/")[0])
                descriptor = unfinished.begin_nameless(directory)
            except OSError:  # its directory may come later
                descriptor = unfinished.begin_nameless(root.descriptor)
        except OSError:
            return None
        finally:
            if directory >= 0:
                os.close(directory)
        self.withdraw(number)
        while len(self._offers) >= limits.LOCAL_OFFERS:
            os.close(self._offers.pop(next(iter(self._offers))))
        self._offers[number] = descriptor
        return descriptor

    def withdraw(self, number: int) -> None:
        """Nobody wants it."""
        descriptor = self._offers.pop(number, None)
        if descriptor is not None:
            os.close(descriptor)

    def _place_begun(self, entry: Begun) -> None:
        """Answered by what is raised: it is here up to some place, or not at all."""
        root, _ = self._maps.place_name(entry.path)
        earlier = self._transfers.number_of(entry.identity)
        if earlier is not None:
            transfer = self._transfers.numbered(earlier)
            if transfer is not None and transfer.kept_in is not None:
                self._transfers.pop(earlier)
                transfer.close()
            else:
                self._give_up(earlier)
        found = self._begun.find(root, entry.identity, entry.changed_ns)
        if found is None:
            raise NotAsClaimed("nothing of it is here")
        state = os.fstat(found.descriptor)
        end = state.st_size // ALIGN_BYTES * ALIGN_BYTES
        if not (stat.S_ISREG(state.st_mode) and end):
            os.close(found.descriptor)
            raise NotAsClaimed("nothing of it is here")
        transfer = OpenTransfer(found.descriptor, entry.identity, entry.path, found.name, kept_in=root)
        self._transfers.add(entry.number, transfer)
        torn = self.suspect_since_ns is not None and state.st_ctime_ns >= self.suspect_since_ns
        compared = torn or not found.unchanged
        raise NotAsClaimed("a part of it is here", links=max(entry.links, 1) if compared else 0, begun=end)

    def _place_finish(self, entry: Finish) -> None:
        transfer = self._transfers.numbered(entry.transfer)
        if transfer is None:
            self._refuse_unknown(entry.transfer)
            return
        self._finish(entry, entry.transfer, transfer)

    def _finish(self, entry: Finish | Patched, number: int, transfer: OpenTransfer) -> None:
        root, path = self._maps.place_name(entry.path)
        directory, name = self._parent(root, path)
        descriptor = transfer.descriptor
        os.ftruncate(descriptor, entry.size)
        kept_in = transfer.kept_in
        made_here = kept_in is None and not transfer.offered
        self._dress_new(
            directory, descriptor, entry.path, entry.attributes, entry.xattrs, made_here=made_here
        )
        if transfer.name is None:
            self._name_nameless(root, path, directory, name, descriptor)
        else:
            try:
                if kept_in is None:
                    self._take_name(root, path, directory, transfer.name)
                else:
                    with keeping_mtime(kept_in.descriptor):
                        self._take_name(root, path, directory, transfer.name, kept_in.descriptor)
            except FileNotFoundError:
                self._give_up(number)
                raise NotAsClaimed("the unfinished copy was removed") from None
        self._transfers.pop(number)
        transfer.close()
        self.know(entry.path, transfer.identity, entry.links)

    def _place_abandon(self, entry: Abandon) -> None:
        self._give_up(entry.transfer)

    def _refuse_unknown(self, number: int) -> None:
        """Refuse a transfer once, however many parts of it are still under way."""
        if number in self._given_up:
            return
        self._given_up[number] = None
        if len(self._given_up) > limits.PIECES_IN_FLIGHT:
            self._given_up.popitem(last=False)
        raise NotAsClaimed("this target does not know the transfer")

    def _give_up(self, number: int) -> None:
        transfer = self._transfers.pop(number)
        if transfer is None:
            return
        transfer.close()
        if transfer.name is not None and transfer.kept_in is not None:
            self._begun.remove(transfer.kept_in, transfer.name)
        elif transfer.name is not None:
            root, path = self._maps.place_name(transfer.path)
            try:
                directory, _ = root.parent(path)
            except OSError:
                return  # its directory is gone, and so is it
            unlink_quietly(directory, transfer.name)

    # --- files of which much has moved ---

    def _place_digests(self, entry: Digests) -> None:
        transfer = self._transfers.numbered(entry.number)
        if not entry.anchors:
            kept = transfer is not None and transfer.kept_in is not None
            self._patcher.place_digests(entry, transfer.descriptor if transfer is not None and kept else None)
            return
        if entry.begins:
            self._give_up(entry.number)
            transfer = self._begin_rebuild(entry)
        if transfer is None:
            raise NotAsClaimed("this target does not know the file that is built")
        self._patcher.take_from_old(entry, transfer)

    def _begin_rebuild(self, entry: Digests) -> OpenTransfer:
        """Beside the old copy, which stays as it is until the other one is complete."""
        old = OldCopy(self._open_old(entry))
        try:
            root, path = self._maps.place_name(entry.path)
            directory, _ = root.parent(path)
            descriptor, name = unfinished.begin(directory, self._incoming + b"-%d" % entry.number)
        except BaseException:
            old.close()
            raise
        transfer = OpenTransfer(descriptor, entry.identity, entry.path, name, old)
        self._transfers.add(entry.number, transfer)
        return transfer

    def _place_patched(self, entry: Patched) -> None:
        if not entry.rebuild:
            self._patcher.place_patched(entry)
            return
        transfer = self._transfers.numbered(entry.rebuild)
        if transfer is None:
            raise NotAsClaimed("this target does not know the file that is built")
        root, path = self._maps.place_name(entry.path)
        directory, _ = self._parent(root, path)
        mtime_ns = os.fstat(directory).st_mtime_ns  # which nothing would bring again
        self._finish(entry, entry.rebuild, transfer)
        directory, _ = root.parent(path)
        set_times(directory, None, mtime_ns)

    def _place_elsewhere(self, entry: Same) -> None:
        """Nothing has the name; a file of this size and mtime is what it is built of, if its content proves
        to be the same.
        """
        if self.state(entry.path) is not None:
            raise NotAsClaimed("something has its name")
        if self._index is None:
            self._index = FileIndex(self._maps.roots)
        found = self._index.find(entry.size, entry.attributes.mtime_ns)
        if found is None:
            raise NotAsClaimed("no file here has its size and time")
        self._origins[entry.identity] = found
        if len(self._origins) > limits.PIECES_IN_FLIGHT * limits.STEP_FILES:
            self._origins.popitem(last=False)

    def _open_old(self, entry: Digests) -> int:
        origin = self._origins.pop(entry.identity, None)
        if origin is None:
            return self._patcher.open_old(entry)
        descriptor = open_candidate(origin, entry.size)
        if descriptor is None:
            raise NotAsClaimed("it is no longer where it was")
        return descriptor

    def _place_same(self, entry: Same) -> None:
        if entry.claim is Claim.ELSEWHERE:
            self._place_elsewhere(entry)
            return
        root, path = self._maps.place_name(entry.path)
        try:
            directory, name = root.parent(path)
            state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in MISSING:
                raise
            raise NotAsClaimed("there is no such file") from None
        if not stat.S_ISREG(state.st_mode):
            raise NotAsClaimed("it is no regular file")
        wrong = self._is_wrong(entry, directory, name, state)
        if wrong and not entry.blocks:
            raise NotAsClaimed(wrong)
        self._take_over(entry, root, path, state)
        if wrong:
            raise NotAsClaimed(wrong, links=max(entry.links, 1))
        if entry.claim is not Claim.NOTHING:  # else they come with its blocks
            directory, name = root.parent(path)
            self._dress_named(root, path, directory, name, entry.attributes, entry.xattrs)

    def _place_alike(self, entry: Alike) -> None:
        if not alike.is_well_formed(entry):
            raise ReplicatorError("malformed piece: its states do not describe its names")
        root, path = self._maps.place(entry.path)
        try:
            directory = root.directory(path)
        except OSError as error:
            if error.errno not in MISSING:
                raise
            raise NotAsClaimed("there is no such directory", entry.names) from None
        if self._keeps_existing:
            lacking = tuple(name for name in entry.names if self.state(_join(entry.path, name)) is None)
            if lacking:
                raise NotAsClaimed("some are missing", lacking)
            return
        for name in self._links.names_in(entry.path).intersection(entry.names):
            self._links.forget(_join(entry.path, name))  # it has one name now, so no other is a link to it
        if self._finder is not None:
            self._finder.are_the_sources(entry.path, entry.names)
        try:
            others = alike.unlike(directory, entry, self.suspect_since_ns, self.mirror_since_ns, self._bare)
        except OSError as error:
            if error.errno in TARGET_IS_ILL:
                raise
            size = sum(sizes_of(entry.states))
            raise NotAsClaimed(error.strerror or str(error), entry.names, size=size) from None
        if others:
            sizes = sizes_of(entry.states)
            size = sum(sizes[index] for index in others)
            names = tuple(entry.names[index] for index in others)
            raise NotAsClaimed("some are not as claimed", names, size=size)

    def _is_wrong(self, entry: Same, directory: int, name: bytes, state: os.stat_result) -> str:
        """Why the file here is not as claimed; "": it is. ReplicatorError: it is left as it is."""
        if entry.claim is Claim.NOTHING:
            return ""
        if entry.claim is Claim.CONTENT:
            return self._is_other_content(entry, directory, name, state)
        differs = state.st_size != entry.size or state.st_mtime_ns != entry.attributes.mtime_ns
        if entry.claim is Claim.NOT_OLDER and differs and state.st_mtime_ns >= entry.attributes.mtime_ns:
            if entry.links > 1:  # it stands for its other names, too
                self._links.add(entry.identity, entry.path)
            raise ReplicatorError("it is not older than on the source, and differs: left as it is")
        if differs:
            return "size or time differ"
        if self.suspect_since_ns is not None and state.st_ctime_ns >= self.suspect_since_ns:
            # A file system may keep size and times of a power cut and not the content.
            return "it was written shortly before power was lost"
        if entry.claim is Claim.BROUGHT and not self._has_brought(directory, name):
            return "this mirror has not brought it"
        return ""

    def _has_brought(self, directory: int, name: bytes) -> bool:
        # A mirror makes each file it brings anew. Its ctime says less: a rename of an old file changes it.
        return self.mirror_since_ns is not None and all(
            read_states(directory, [name]).made_after(self.mirror_since_ns)
        )

    def _is_other_content(self, entry: Same, directory: int, name: bytes, state: os.stat_result) -> str:
        if state.st_size != entry.size:
            return "its size differs"
        descriptor = os.open(name, _READ_FLAGS, dir_fd=directory)
        try:
            return "" if digest_of_file(descriptor, entry.size) == entry.digest else "its content differs"
        finally:
            os.close(descriptor)

    def _take_over(self, entry: Same, root: Root, path: bytes, state: os.stat_result) -> None:
        """The file here is the copy of this one from here on, under all names that the source knows, and no
        others.
        """
        earlier = self._transfers.number_of(entry.identity)
        if earlier is not None:
            self._give_up(earlier)
        if entry.links > 1 or state.st_nlink > 1:
            known = self._links.names(entry.identity)
            registered = entry.path in known
            if entry.links > 1 and not registered and self._link_to_known(entry.path, known):
                self._links.forget(entry.path)
                self._links.add(entry.identity, entry.path)
            else:
                # The number of links is of a moment after this place: until the stream comes to its removal,
                # a name that is known here is a link, through which the file may still be changed.
                links = max(entry.links, self._count_copies(known, state)) if registered else entry.links
                if state.st_nlink > (links if registered else 1):
                    # Who else has this inode is not known: writing to it could change a file that is no link
                    # of this.
                    self._copy_of_its_own(root, path, state)
                self.know(entry.path, entry.identity, links)
        elif self._links:
            self._links.forget(entry.path)

    def _count_copies(self, paths: list[bytes], state: os.stat_result) -> int:
        """How many of these names the object of that state has."""
        return sum(there is not None and os.path.samestat(there, state) for there in map(self.state, paths))

    def _copy_of_its_own(self, root: Root, path: bytes, state: os.stat_result) -> None:
        directory, name = root.parent(path)
        source = os.open(name, _READ_FLAGS, dir_fd=directory)
        try:
            descriptor, temporary = self._create_beside(directory)
            try:
                _copy_content(source, descriptor, state.st_size)
                os.utime(descriptor, ns=(state.st_atime_ns, state.st_mtime_ns))
                self._take_name(root, path, directory, temporary)
            except BaseException:
                unlink_quietly(directory, temporary)
                raise
            finally:
                os.close(descriptor)
        finally:
            os.close(source)

    # --- other objects ---

    def place_object(self, entry: Object) -> None:
        root, path = self._maps.place_name(entry.path)
        if entry.links > 1 and self._links:
            known = self._links.names(entry.identity)
            if entry.path not in known and self._link_to_known(entry.path, known):
                self._links.forget(entry.path)
                self._links.add(entry.identity, entry.path)
                return
        directory, name = self._parent(root, path)
        text = self._applier.link_text(entry.link_text)
        if stat.S_ISLNK(entry.attributes.mode) and self._make_symlink(directory, name, entry, text):
            self.know(entry.path, entry.identity, entry.links)
            return
        try:
            state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            _make_object(directory, name, entry, text)
        else:
            alone = state.st_nlink == 1 or entry.path in self._links.names(entry.identity)
            if not (alone and _is_like(directory, name, state, entry, text)):
                self._remove_incoming(directory)
                _make_object(directory, self._incoming, entry, text)
                self._take_name(root, path, directory, self._incoming)
                directory, name = root.parent(path)
        self._dress_named(root, path, directory, name, entry.attributes, entry.xattrs)
        self.know(entry.path, entry.identity, entry.links)

    def _make_symlink(self, directory: int, name: bytes, entry: Object, text: bytes) -> bool:
        """False: something has the name, or there is more to do."""
        if entry.xattrs or entry.attributes.mask & _ALL != _ALL:
            return False
        try:
            os.symlink(text, name, dir_fd=directory)
        except FileExistsError:
            return False
        _, _, uid, gid, _, _, mtime_ns = entry.attributes
        if uid or gid or not self._plainly.is_root_s(entry.path.rpartition(b"/")[0], directory):
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)
        return True

    # --- hard links ---

    def place_link(self, entry: LinkTo) -> None:
        known = self._links.names(entry.identity)
        if entry.path in known:
            self._maps.place_name(entry.path)
            if self.state(entry.path) is not None:
                return
        self._parent(*self._maps.place_name(entry.path))
        free = self.state(entry.path) is None
        if not self._link_to_known(entry.path, known):
            raise NotAsClaimed("this target does not know the file under another name")
        if not free:  # there may have been a directory, and what is known below it
            self._links.forget(entry.path)
        self._links.add(entry.identity, entry.path)

    def _link_to_known(self, path: bytes, known: list[bytes]) -> bool:
        """Make `path` another name of the copy that is there under one of the `known` ones."""
        for other in known:
            state = self.state(other) if other != path else None
            if state is None or stat.S_ISDIR(state.st_mode):
                continue
            try:
                self._link_over(other, path, state)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                continue
            return True
        return False

    def _link_over(self, source: bytes, path: bytes, state: os.stat_result) -> None:
        """Give the object at `source` (its state) the name `path` too, in place of what has it."""
        there = self.state(path)
        if there is not None and os.path.samestat(there, state):
            return
        source_root, source_below = self._maps.place_name(source)
        root, below = self._maps.place_name(path)
        source_directory, source_name = source_root.parent(source_below)
        directory, name = root.parent(below)
        target = name if there is None else self._incoming
        if there is not None:
            self._remove_incoming(directory)
        os.link(
            source_name,
            target,
            src_dir_fd=source_directory,
            dst_dir_fd=directory,
            follow_symlinks=False,
        )
        if there is not None:
            self._take_name(root, below, directory, target)

    def know(self, path: bytes, identity: Identity, links: int) -> None:
        """`path` is now the copy of that file: every other known name of it becomes a link to this copy."""
        if links <= 1 and not self._links:
            return
        others = [other for other in self._links.names(identity) if other != path] if links > 1 else []
        self._links.forget(path)
        if links <= 1:
            return
        self._links.add(identity, path)
        if not others:
            return
        state = self.state(path)
        assert state is not None
        for other in others:
            if self.state(other) is None:
                self._links.forget(other)
            else:
                self._link_elsewhere(path, other, state)

    def _link_elsewhere(self, source: bytes, path: bytes, state: os.stat_result) -> None:
        """As `_link_over`, in a directory that this piece does not speak of: it keeps its time, which nothing
        would bring again.
        """
        root, below = self._maps.place_name(path)
        directory, _ = root.parent(below)
        mtime_ns = os.fstat(directory).st_mtime_ns
        self._link_over(source, path, state)
        directory, _ = root.parent(below)
        set_times(directory, None, mtime_ns)

    def _forget_links(self, path: bytes) -> None:
        if self._links:
            self._links.forget(path)

    def state(self, path: bytes) -> os.stat_result | None:
        root, below = self._maps.place_name(path)
        return root.look(below)

    # --- names ---

    def _parent(self, root: Root, path: bytes) -> tuple[int, bytes]:
        """As `Root.parent`; a missing directory is made, its own piece brings the attributes."""
        try:
            return root.parent(path)
        except OSError as error:
            if error.errno not in MISSING:
                raise
        root.make_directories(path.rpartition(b"/")[0])
        return root.parent(path)

    def _create_beside(self, directory: int) -> tuple[int, bytes]:
        try:
            return os.open(self._incoming, CREATE_FLAGS, UNFINISHED_MODE, dir_fd=directory), self._incoming
        except FileExistsError:  # left by a kill
            self._remove_incoming(directory)
        return os.open(self._incoming, CREATE_FLAGS, UNFINISHED_MODE, dir_fd=directory), self._incoming

    def _remove_incoming(self, directory: int) -> None:
        unlink_quietly(directory, self._incoming)

    def _take_name(
        self, root: Root, path: bytes, directory: int, temporary: bytes, made_in: int | None = None
    ) -> None:
        """Rename what is ready over whatever has the name. `made_in`: another directory that it is in."""
        name = path.rpartition(b"/")[2]
        source = directory if made_in is None else made_in
        try:
            os.rename(temporary, name, src_dir_fd=source, dst_dir_fd=directory)
        except IsADirectoryError:
            root.remove(path)
            directory, name = root.parent(path)
            source = directory if made_in is None else made_in
            os.rename(temporary, name, src_dir_fd=source, dst_dir_fd=directory)
        root.forget(path)

    def _name_nameless(self, root: Root, path: bytes, directory: int, name: bytes, descriptor: int) -> None:
        try:
            unfinished.finish(descriptor, None, directory, name)
            return
        except FileExistsError:
            self._remove_incoming(directory)
        unfinished.finish(descriptor, None, directory, self._incoming)
        self._take_name(root, path, directory, self._incoming)

    # --- attributes ---

    def _dress_new(
        self,
        directory: int,
        descriptor: int,
        path: bytes,
        attributes: Attributes,
        xattrs: Xattrs,
        *,
        made_here: bool = True,
    ) -> None:
        """Attributes of a file made just now, whose content is complete. `made_here`: in that directory."""
        head = path.rpartition(b"/")[0]
        inherits = not made_here or self._plainly.passes_on(head, directory, descriptor)
        mask, mode, uid, gid = attributes[:4]
        if mask & _ALL != _ALL:
            set_attributes(descriptor, attributes)
        elif inherits or uid or gid or mode & 0o7777 != UNFINISHED_MODE:
            if inherits or uid or gid:  # else it is root's, as it was made
                os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode & 0o7777)
        if inherits:
            write_xattrs(descriptor, xattrs)
        elif xattrs:
            for name, value in xattrs.items():
                os.setxattr(descriptor, name, value)
        os.utime(descriptor, ns=(attributes.mtime_ns, attributes.mtime_ns))

    def _dress_named(
        self,
        root: Root,
        path: bytes,
        directory: int,
        name: bytes,
        attributes: Attributes,
        xattrs: Mapping[bytes, bytes],
    ) -> None:
        """Attributes of an object that is no directory: as few calls as it lacks."""
        state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        set_attributes(directory, attributes, name=name, current=state)
        current = read_xattrs(b"/proc/self/fd/%d/%s" % (directory, name))
        if current != xattrs:
            pinned = root.open_object(path)
            try:
                write_xattrs(pinned, xattrs, current)
            finally:
                os.close(pinned)


def _state_of(root: Root, path: bytes) -> os.stat_result | None:
    """Of what has this name; None: nothing."""
    try:
        directory, name = root.parent(path)
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno not in MISSING:
            raise
        return None


def _refusal(batch: Batch, entry: AnyEntry, reason: str, *, claim: NotAsClaimed | None = None) -> Refused:
    """`claim`: what did not hold, so that sending again helps."""
    identity = getattr(entry, "identity", NO_IDENTITY)
    if claim is None:
        return Refused(batch.journal, entry.path, identity, reason, False)
    size = entry.size if isinstance(entry, Same) and entry.claim not in _NO_CLAIM else claim.size
    return Refused(
        batch.journal,
        entry.path,
        identity,
        reason,
        names=claim.names,
        links=claim.links,
        number=entry.number if isinstance(entry, Digests | Begun) else 0,
        blocks=claim.blocks,
        size=size,
        begun=claim.begun,
    )


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _copy_content(source: int, descriptor: int, size: int) -> None:
    """A copy on the same file system: shared blocks where it can, else extent by extent, holes left out."""
    if not clone(source, descriptor):
        os.ftruncate(descriptor, size)
        copy_on(source, descriptor, 0, size, size)


def _make_object(directory: int, name: bytes, entry: Object, text: bytes) -> None:
    mode = entry.attributes.mode
    if stat.S_ISLNK(mode):
        os.symlink(text, name, dir_fd=directory)
    elif stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        raise ReplicatorError("malformed piece: files and directories come otherwise")
    else:
        os.mknod(name, stat.S_IFMT(mode) | UNFINISHED_MODE, entry.attributes.rdev, dir_fd=directory)


def _is_like(directory: int, name: bytes, state: os.stat_result, entry: Object, text: bytes) -> bool:
    if stat.S_IFMT(state.st_mode) != stat.S_IFMT(entry.attributes.mode):
        return False
    if stat.S_ISLNK(state.st_mode):
        return os.readlink(name, dir_fd=directory) == text
    return state.st_rdev == entry.attributes.rdev
