"""Divergence bundles of this agent: made for a branch that loses (`keep`), looked at, exported, dropped."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import msgspec
import trio

from replicator import events, limits
from replicator.agent.core import Core
from replicator.agent.state import Connection, Mount
from replicator.errors import JournalError, ReplicatorError, UsageError
from replicator.failover import bundle_compare, bundle_export
from replicator.failover.bundle_compare import Difference
from replicator.failover.bundle_export import Exported
from replicator.failover.bundle_format import BundleError, Manifest
from replicator.failover.divergence import Branch, Bundles, Tail
from replicator.failovers import Promotion
from replicator.fs.beneath import Root
from replicator.ops import Position
from replicator.queue.cursor import Cursor, Run
from replicator.queue.dirty import DirtyMap
from replicator.repset import compile_filter
from replicator.world import World


class BundleView(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle, as shown."""

    manifest: Manifest
    directory: str
    objects: int
    absent: int
    bytes: int


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """`differences`: the first `limits.BUNDLE_DIFFERENCES_KEPT`; `count`: all."""

    count: int
    differences: tuple[Difference, ...]


class Divergences:
    """`Service.failover.divergences`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._bundles = Bundles(core.home.divergence, core.config.failover.divergence_size_max)
        self._lock = trio.Lock()

    # --- for a branch that loses ---

    async def keep(self, record: Promotion, connection: str, tails: Mapping[str, DirtyMap | None]) -> None:
        """What this agent's branch has that `record` superseded, of one connection (its uuid): a bundle, if
        there is anything. `tails`: by mount id, as `former_owner.Tails`. Durable on return; again, it does
        nothing. Raises ReplicatorError: it cannot be kept, and nothing may be overwritten.
        """
        known = next((c for c in self._core.state.connections if c.uuid == connection), None)
        if known is None:
            raise BundleError(f"connection {connection} is gone: its tail cannot be kept")
        async with self._lock:
            with ExitStack() as stack:
                found = [
                    await self._tail(stack, record, known, mount, tails[mount.id])
                    for mount in self._core.state.mounts
                    if mount.id in tails
                ]
                if len(found) != len(tails):
                    raise BundleError(f"connection {known.id}: a mount of its tail is gone")
                branch = self._branch(record, known)
                before = {manifest.id for manifest in self._bundles.all()}
                manifest = await trio.to_thread.run_sync(self._bundles.save, branch, found)
        if manifest is not None and manifest.id not in before:
            self._core.events.add(
                events.DIVERGENCE_SAVED,
                group=manifest.group_name or manifest.group,
                winner=manifest.winner,
                id=manifest.id,
                objects=manifest.objects + manifest.absent,
                bytes=manifest.bytes,
            )

    def _branch(self, record: Promotion, connection: Connection) -> Branch:
        identity = self._core.identity
        return Branch(
            group=record.group,
            group_name=connection.repset.name,
            agent=identity.uuid,
            agent_name=identity.name,
            host=os.uname().nodename,
            epoch=record.parent_epoch,
            winner_epoch=record.epoch,
            winner=record.owner_name,
            reason=record.reason,
        )

    async def _tail(
        self,
        stack: ExitStack,
        record: Promotion,
        connection: Connection,
        mount: Mount,
        keys: DirtyMap | None,
    ) -> Tail:
        if keys is None:  # nobody knows: it may be anything
            keys = DirtyMap()
            keys.make_everything()
        root = stack.enter_context(await self._root(mount))
        fork = next((c.marks.get(mount.id) for c in record.copies if c.connection == connection.uuid), None)
        cursor = await trio.to_thread.run_sync(self._cursor, mount)
        head = None
        if cursor is not None:
            stack.callback(cursor.close)
            position = cursor.head()
            head = position.sequence, position.chain
        return Tail(
            journal=mount.id,
            root=root,
            keys=keys,
            fork=fork,
            head=head,
            records=_records(cursor, fork) if cursor is not None and fork is not None else (),
            rules=compile_filter(connection.repset, os.fsencode(mount.path)),
        )

    async def _root(self, mount: Mount) -> Root:
        """Beneath its mount if that is up, else what is there."""
        child = self._core.children.capture(mount)
        path = os.fsencode(mount.path)
        if child is not None:
            try:
                _, descriptors = await child.call_with_descriptors("root", limits.CONTROL_TIMEOUT_S, [])
                return Root(path, descriptor=descriptors[0])
            except ReplicatorError:
                pass
        try:
            return Root(path)
        except OSError as error:
            raise BundleError(f"{mount.path} cannot be read: {error.strerror}") from error

    def _cursor(self, mount: Mount) -> Cursor | None:
        try:
            return Cursor.open(World(), self._core.children.journal_settings(mount), mount.id, None)
        except JournalError:
            return None

    # --- for people ---

    async def all(self) -> list[BundleView]:
        return [self._view(manifest) for manifest in await trio.to_thread.run_sync(self._bundles.all)]

    async def get(self, key: str) -> BundleView:
        return self._view(await trio.to_thread.run_sync(self._bundles.find, key))

    async def compare(self, key: str, path: str) -> Comparison:
        """With what is here now: the surviving branch, once it has been brought. `path` "": all of it."""

        def work() -> Comparison:
            manifest = self._bundles.find(key)
            found: list[Difference] = []
            count = 0
            try:
                for difference in bundle_compare.differences(self._bundles.path(manifest), manifest, path):
                    count += 1
                    if len(found) < limits.BUNDLE_DIFFERENCES_KEPT:
                        found.append(difference)
            except OSError as error:
                raise BundleError(f"{error.filename or 'it'!r} cannot be read: {error.strerror}") from error
            return Comparison(count=count, differences=tuple(found))

        return await trio.to_thread.run_sync(work)

    async def export(self, key: str, directory: str) -> Exported:
        if not os.path.isabs(directory):
            raise UsageError(f"{directory}: must be an absolute path")

        def work() -> Exported:
            manifest = self._bundles.find(key)
            return bundle_export.export(self._bundles.path(manifest), manifest, directory)

        return await trio.to_thread.run_sync(work)

    async def drop(self, key: str, confirm: str) -> BundleView:
        """`confirm`: the whole id, so that nobody drops another one by a letter too few."""
        async with self._lock:
            manifest = await trio.to_thread.run_sync(self._bundles.find, key)
            if confirm != manifest.id:
                raise UsageError(f"to drop this bundle for good, confirm its id: {manifest.id}")
            await trio.to_thread.run_sync(self._bundles.drop, manifest.id)
        self._core.events.add(
            events.DIVERGENCE_DROPPED, id=manifest.id, group=manifest.group_name or manifest.group
        )
        return self._view(manifest)

    def _view(self, manifest: Manifest) -> BundleView:
        return BundleView(
            manifest=manifest,
            directory=self._bundles.path(manifest),
            objects=manifest.objects,
            absent=manifest.absent,
            bytes=manifest.bytes,
        )


def _records(cursor: Cursor, fork: tuple[int, int]) -> Iterator[Run]:
    """JournalError where the journal does not go on."""
    cursor.seek(Position(*fork))
    while (run := cursor.read()) is not None:
        yield run
