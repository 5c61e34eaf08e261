"""What a verification asks the orders for: that what differs is brought (VF-03)."""

from collections.abc import Iterable

from replicator.mirror.checks import Aspect
from replicator.mirror.mirroring import MirrorRun
from replicator.sender.flow import Flow
from replicator.sender.mirrors import Mirrors
from replicator.sender.verify_run import Difference

_WHOLE = frozenset({Aspect.MISSING, Aspect.TYPE, Aspect.LINK_TEXT, Aspect.DEVICE})


def bring(mirrors: Mirrors, flows: list[Flow], wanted: Iterable[Difference], *, checksum: bool) -> None:
    """A run of some paths. `checksum`: of files that differ it is known which blocks do."""
    for difference in wanted:
        flow = flows[difference.flow]
        run = mirrors.recovering(flow, exact=False)
        run.by_itself = False
        mirrors.dirt.add(flow, difference.path)
        with run.expecting(flow.order):
            _require(flow, run, difference, checksum=checksum)
    mirrors.wake_workers()


def _require(flow: Flow, run: MirrorRun, difference: Difference, *, checksum: bool) -> None:
    order, path, identity, aspects = flow.order, difference.path, difference.identity, difference.aspects
    multilink = difference.links > 1 and not difference.is_directory
    if Aspect.HARD_LINK in aspects:
        # Which other names are wrong on the target is not known: each may be of another file there.
        flow.require_all(run)
        order.require(path, touched=identity)
    elif aspects & _WHOLE:
        order.require_replaced(path)
    elif difference.is_directory or not aspects & {Aspect.SIZE, Aspect.MTIME, Aspect.CONTENT}:
        order.require_regions(path, identity, (), multilink=multilink)
    elif checksum:
        order.require_regions(path, identity, difference.blocks, multilink=multilink)
    else:
        order.require(path, touched=identity)
