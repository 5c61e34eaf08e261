"""What a verification asks: what is read of a source in one step, and the checks made of it."""

from dataclasses import dataclass, field, replace
from functools import cached_property

from replicator import limits
from replicator.mirror.check_scan import ListedDirectory, Looked, Reader, Unreadable, content_bytes
from replicator.mirror.checks import AnyCheck, Check, CheckNames, Finding
from replicator.mirror.links import LinkTable
from replicator.mirror.names import names_changed
from replicator.mirror.scan import join
from replicator.ops import Record, shown
from replicator.sender.flow import Flow
from replicator.sender.pace import Pace
from replicator.sender.verify_run import VerifyRun
from replicator.sender.verify_walk import Look, LookDirectory, LookFile, LookFiles, Recently, Walk


@dataclass
class Asked:
    """A batch on its way. `looks`: for each check, what was looked at."""

    flow: Flow
    place: int
    checks: list[AnyCheck]
    looked: list[Looked | None]
    looks: list[Look]
    weight: int
    read_s: float
    sent: bool = False

    @cached_property
    def paths(self) -> frozenset[bytes]:
        """Of what is no list of names."""
        return frozenset(check.path for check in self.checks if isinstance(check, Check))


@dataclass
class Doubt:
    """A finding, until it is known whether it counts."""

    asked: Asked
    finding: Finding
    ready_s: float


@dataclass
class Side:
    """What a run has of one journal."""

    flow: Flow
    reader: Reader
    links: LinkTable
    walk: Walk = field(default_factory=Walk)
    recently: Recently = field(default_factory=Recently)
    large: bytes | None = None  # the file whose parts are being read


def read(run: VerifyRun, side: Side, look: Look, pace: Pace) -> object:
    """Look at it: what `made` takes. In a thread."""
    reader, bytes_max = side.reader, pace.part_bytes * limits.COMPARE_WEIGHT
    checksum = run.options.checksum
    if isinstance(look, LookDirectory):
        listed = reader.directory(look.path)
        if listed is None and look.path:  # a root of the set may be a file
            return reader.file(look.path, bytes_max=bytes_max, checksum=checksum)
        return listed
    if isinstance(look, LookFiles):
        names = look.names[look.index : look.index + pace.step_files]
        return reader.files(look.directory, names, bytes_max=bytes_max, checksum=checksum)
    if look.apart:
        return reader.file(look.path, bytes_max=0, checksum=False), reader.same_object(look.path, look.apart)
    return reader.file(look.path, start=look.start, end=look.end, bytes_max=bytes_max, checksum=checksum)


def made(
    run: VerifyRun, side: Side, look: Look, found: object, changes: list[Record]
) -> tuple[list[AnyCheck], list[Looked | None], list[Look], int]:
    """The checks of what was read, for each what was looked at, and how much content they are of. What
    follows is put on the walk. `changes`: of names, since the place.
    """
    walk = side.walk
    checks: list[AnyCheck] = []
    looked: list[Looked | None] = []
    looks: list[Look] = []

    def add(check: AnyCheck, source: Looked | None, what: Look) -> None:
        checks.append(check)
        looked.append(source)
        looks.append(what)

    def add_file(item: Looked | Unreadable, tries: LookFile | None = None) -> None:
        if isinstance(item, Unreadable):
            run.problem(item.path, f"source: {item.reason}")
            return
        check = item.check
        start = check.content.start if check.content is not None else 0
        end = check.content.end if check.content is not None else None
        inode = check.identity.inode
        what = tries or LookFile(check.path)
        whole = start == 0 and item.rest is None
        if tries is not None and tries.inode not in (0, inode) and (tries.start or tries.end is not None):
            # Another file took the name of one that was read in part.
            if tries.tries + 1 < limits.CHECK_TRIES:
                walk.push(LookFile(check.path, tries=tries.tries + 1, counts=tries.counts))
            else:
                run.changing += 1
            return
        if tries is None or tries.end is None:
            what = replace(what, inode=inode, start=start, end=None if whole else end)
            if item.rest is not None:
                walk.push(LookFile(check.path, inode, item.rest, counts=False))
                side.large = check.path
            elif side.large == check.path:
                side.large = None
        add(check, item, what)

    if isinstance(found, ListedDirectory):
        assert isinstance(look, LookDirectory)
        path = look.path
        alone = replace(look, alone=True)
        add(found.looked.check, found.looked, alone)
        kept: set[bytes] = set()
        for record in changes:
            kept |= names_changed(record, path) or set()
        for check in _lists(path, sorted([*found.directories, *found.others]), sorted(kept)):
            add(check, None, alone)
        if not look.alone:
            for name in reversed(found.directories):
                walk.push(LookDirectory(join(path, name)))
            if found.others:
                walk.push(LookFiles(path, found.others))
        run.current = shown(path)
    elif isinstance(look, LookFiles):
        assert isinstance(found, tuple)
        items, count = found
        if look.index + count < len(look.names):
            walk.push(LookFiles(look.directory, look.names, look.index + count))
        for item in items:
            add_file(item)
    elif isinstance(found, Unreadable):
        run.problem(found.path, f"source: {found.reason}")
    elif isinstance(found, tuple) and not isinstance(found, Looked):
        item, same = found
        if isinstance(item, Looked) and same is not None and isinstance(look, LookFile):
            add(_with_peer(item.check, look.apart, same), item, look)
    elif isinstance(found, Looked):
        add_file(found, look if isinstance(look, LookFile) else None)
    return checks, looked, looks, sum(content_bytes(c) for c in checks if isinstance(c, Check))


def _lists(path: bytes, names: list[bytes], kept: list[bytes]) -> list[CheckNames]:
    """A directory's names, cut."""
    step = limits.NAMES_PER_PIECE
    found: list[CheckNames] = []
    after = b""
    for start in range(0, max(len(names), 1), step):
        chunk = names[start : start + step]
        until = chunk[-1] if start + step < len(names) else b""
        spared = tuple(name for name in kept if name > after and (not until or name <= until))
        found.append(CheckNames(path, after, until, tuple(chunk), spared))
        after = until
    return found


def _with_peer(check: Check, peer: bytes, same: bool) -> Check:
    return Check(
        check.path,
        check.identity,
        check.attributes,
        check.xattrs,
        check.size,
        check.links,
        check.link_text,
        None,
        peer,
        same,
    )
