"""A copy, and what is here: compared by listing both, in bounded memory. The bytes stay where they are."""

import os
from collections.abc import Callable, Iterator, Sequence

import trio

from replicator import limits
from replicator.addresses import Address, normalise_path
from replicator.agent.copy_keeper import open_sources
from replicator.agent.peers import Peers
from replicator.agent.restore_calls import Call, calling
from replicator.agent.restore_checks import Job
from replicator.errors import ReplicatorError
from replicator.mirror.inventory import Item, items
from replicator.mirror.restore_plan import Action, Change, changes, outermost
from replicator.ops import shown
from replicator.orphans import OrphanAction
from replicator.restores import Existing, Plan, RestoreRequest, Root, Step

Visit = Callable[[int, Change], bool]
"""(number of the root, what differs there): whether to look no further."""


async def compare(
    peers: Peers, address: Address, copy: str, job: Job, existing: Existing, visit: Visit, *, removes: bool
) -> None:
    """Call `visit`, in a thread, for all that differs, root by root. Raises ReplicatorError."""
    call = Call(action="inventory", repset=job.repset, roots=job.roots)
    async with calling(peers, address, copy, call) as (_, conversation):

        def there() -> Iterator[Item]:
            while part := trio.from_thread.run(conversation.receive_items):
                yield from part

        def work() -> None:
            for index, place in enumerate(job.places):
                for change in changes(there(), _here(job, index, place), existing, removes=removes):
                    if visit(index, change):
                        return

        await trio.to_thread.run_sync(work)


def _here(job: Job, index: int, place: str) -> Iterator[Item]:
    if not os.path.isdir(place):
        return
    (source,) = open_sources(job.repset, [Root(job.roots[index].source, place)], False)
    try:
        yield from items(source)
    except OSError as error:
        raise ReplicatorError(f"{place} cannot be looked through: {error.strerror}") from None
    finally:
        source.close()


async def first_newer(peers: Peers, address: Address, copy: str, job: Job, request: RestoreRequest) -> str:
    """A file here that is newer than in the copy, and would be overwritten; "": there is none."""
    found: list[str] = []

    def visit(index: int, change: Change) -> bool:
        if change.newer:
            found.append(_path(job.places[index], change))
        return bool(found)

    await compare(peers, address, copy, job, request.existing, visit, removes=False)
    return found[0] if found else ""


async def not_there(peers: Peers, address: Address, copy: str, job: Job, paths: Sequence[str]) -> list[str]:
    """Those of the `paths` asked for that the copy does not have. Raises ReplicatorError."""
    wanted = [normalise_path(path, "path") for path in paths]
    call = Call(action="inventory", repset=job.repset, roots=job.roots)
    async with calling(peers, address, copy, call) as (_, conversation):
        for root in job.roots:
            while wanted and (part := await conversation.receive_items()):
                found = {os.path.join(root.source, os.fsdecode(item.path)).rstrip("/") for item in part}
                wanted = [path for path in wanted if path not in found]
            if not wanted:
                break
    return wanted


async def plan_of(peers: Peers, address: Address, copy: str, job: Job, request: RestoreRequest) -> Plan:
    """All that a restore would do."""
    steps: list[Step] = []
    counts: dict[str, int] = {}
    size = 0

    def visit(index: int, change: Change) -> bool:
        nonlocal size
        counts[change.action] = counts.get(change.action, 0) + 1
        if change.action in (Action.CREATE, Action.OVERWRITE, Action.REPLACE):
            size += change.size
        if len(steps) < limits.RESTORE_STEPS_KEPT:
            path = _path(job.places[index], change)
            steps.append(Step(change.action, path, change.reason, change.size))
        return False

    removes = request.orphans not in (None, OrphanAction.KEEP)
    await compare(peers, address, copy, job, request.existing, visit, removes=removes)
    left_out = sum(counts.values()) - len(steps)
    return Plan(steps=tuple(steps), left_out=left_out, counts=counts, bytes=size)


async def what_differs(peers: Peers, address: Address, copy: str, job: Job) -> dict[str, list[bytes]]:
    """By the source's path of each root: paths below it that are here as they are not in the copy."""
    found: dict[str, list[bytes]] = {root.source: [] for root in job.roots}

    def visit(index: int, change: Change) -> bool:
        found[job.roots[index].source].append(change.path)
        return False

    await compare(peers, address, copy, job, Existing.OVERWRITE, visit, removes=False)
    return {source: list(outermost(paths)) for source, paths in found.items()}


def _path(place: str, change: Change) -> str:
    text = shown(change.path)
    path = f"{place.rstrip('/')}/{text}" if text else place
    return f"{path}/" if change.is_directory else path
