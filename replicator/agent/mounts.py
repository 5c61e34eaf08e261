"""Captured directories: mounted, listed, removed."""

import os
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from replicator import events, mount_options
from replicator.addresses import normalise_path
from replicator.agent import planning
from replicator.agent.core import Change, Core, NotFoundError, real_path
from replicator.agent.state import Connection, Mount, new_uuid
from replicator.capture.binding_choice import choose
from replicator.errors import ReplicatorError
from replicator.fences import FenceState
from replicator.synchrony import SyncView


class MountView(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    path: str
    mountpoint: str
    binding: str
    pid: int | None
    state: str  # serving, starting, failed
    problem: str
    options: dict[str, str]  # those that are not the default
    synchrony: tuple[SyncView, ...] = ()  # of the connections that its programs wait for
    fence: FenceState | None = None  # until when its programs may change something; None: without end


class Mounts:
    """The mounts of an agent."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def all(self) -> list[MountView]:
        return [await self._view(mount) for mount in self._core.state.mounts]

    async def add(
        self, path: str, mountpoint: str | None, binding: str, options: Mapping[str, str]
    ) -> MountView:
        """`options`: by name, as texts: see `mount_options`."""
        async with self._core.change() as change:
            mount = await self.make(change, path, mountpoint, binding, options)
        return await self._view(mount)

    async def make(
        self,
        change: Change,
        path: str,
        mountpoint: str | None,
        binding: str,
        options: Mapping[str, str] = MappingProxyType({}),
    ) -> Mount:
        """A step of a change."""
        path = await real_path(path, "path")
        mountpoint = path if mountpoint is None else await real_path(mountpoint, "mountpoint")
        wanted = mount_options.changed(mount_options.DEFAULTS, options)
        mount_options.check(wanted, choose(binding), os.uname().release)
        queue = self._core.config.queue
        private = [self._core.home.path, queue.memory_directory, *filter(None, [queue.disk_directory])]
        planning.check_new_mount(path, mountpoint, self._core.state.mounts, private)
        mount = Mount(id=new_uuid(), path=path, mountpoint=mountpoint, binding=binding, options=wanted)
        change.undo(self._take_back, change, mount)
        await self._core.children.start_capture(mount)
        await change.save(mounts=(*self._core.state.mounts, mount))
        self._core.events.add(events.MOUNT_ADDED, path=path, mountpoint=mountpoint)
        return mount

    async def _take_back(self, change: Change, mount: Mount) -> None:
        if mount in self._core.state.mounts:
            await self._remove(change, mount, force=False)  # somebody may use it already
        else:
            await self._core.children.stop_capture(mount, force=True, persist=False)
            await self._core.children.discard_mount(mount)

    async def remove(self, path: str, *, force: bool) -> MountView:
        async with self._core.change() as change:
            return await self._remove(change, self._find(path), force=force)

    async def _remove(self, change: Change, mount: Mount, *, force: bool) -> MountView:
        used = [c for c in self._core.state.connections if self._needs(c, mount)]
        if used:
            numbers = ", ".join(str(c.id) for c in used)
            raise ReplicatorError(
                f"{mount.path} is needed by connection {numbers}: dtctl disconnect {used[0].id} first"
            )
        view = await self._view(mount)
        await self._core.children.stop_capture(mount, force=force, persist=False)
        await change.save(mounts=tuple(m for m in self._core.state.mounts if m.id != mount.id))
        await self._core.children.discard_mount(mount)
        self._core.events.add(events.MOUNT_REMOVED, path=mount.path)
        return view

    async def reload(self, path: str) -> MountView:
        """Serve it by the software as it is on disk now, without unmounting: programs wait a moment."""
        async with self._core.change():
            mount = self._find(path)
            await self._core.children.reload_capture(mount)
            view = await self._view(mount)
            self._core.events.add(events.MOUNT_RELOADED, path=mount.path, pid=view.pid)
            return view

    async def set_options(self, path: str, options: Mapping[str, str]) -> MountView:
        """Change some options, and reload the mount with them. Raises UsageError, ReplicatorError; then
        nothing has changed.
        """
        async with self._core.change() as change:
            mount = self._find(path)
            wanted = mount_options.changed(mount.options, options)
            names = mount_options.differing(mount.options, wanted)
            if not names:
                return await self._view(mount)
            mount_options.check(wanted, choose(mount.binding), os.uname().release)
            for name in names:
                if mount_options.OPTIONS[name].at_mount_only:
                    raise ReplicatorError(
                        f"{name} is agreed with the kernel when a directory is mounted: dtctl mount remove"
                        f" {mount.path}, and add it with --option {name}={options[name]}"
                    )
            child = self._core.children.capture(mount)
            live = all(mount_options.OPTIONS[name].live for name in names)
            if child is not None and child.pid is not None and not live:
                await child.call("check_options", options=mount_options.shown(wanted))
            new = msgspec.structs.replace(mount, options=wanted)
            change.undo(self._replace, change, mount)
            await self._replace(change, new)
            if child is not None and live:
                await child.call("set_synchrony", options=mount_options.shown(wanted))
            elif child is not None:
                await self._core.children.reload_capture(new)
            self._core.events.add(
                events.MOUNT_OPTIONS,
                path=mount.path,
                options=", ".join(f"{n}={mount_options.text_of(getattr(wanted, n))}" for n in names),
            )
            return await self._view(new)

    async def _replace(self, change: Change, mount: Mount) -> None:
        """Of the stored mount of that id."""
        await change.save(
            mounts=tuple(mount if known.id == mount.id else known for known in self._core.state.mounts)
        )

    def _find(self, path: str) -> Mount:
        path = normalise_path(path, "path")
        for mount in self._core.state.mounts:
            if path in (mount.path, mount.mountpoint):
                return mount
        known = ", ".join(mount.path for mount in self._core.state.mounts) or "none"
        raise NotFoundError(f"{path} is not captured; captured directories: {known}")

    async def _view(self, mount: Mount) -> MountView:
        child = self._core.children.capture(mount)
        pid = child.pid if child is not None else None
        problem = child.problem if child is not None else ""
        binding = mount.binding
        views: list[SyncView] = []
        try:
            if child is not None and pid is not None:
                status = await child.call("status")
                binding = status["binding"]
                views = msgspec.convert(status.get("synchrony", []), list[SyncView])
        except ReplicatorError as error:
            problem = str(error)
        return MountView(
            id=mount.id,
            path=mount.path,
            mountpoint=mount.mountpoint,
            binding=binding,
            pid=pid,
            state="serving" if pid is not None else "failed" if problem else "starting",
            problem=problem,
            options=mount_options.shown(mount.options),
            synchrony=tuple(views),
            fence=self._core.fence_state(mount.id),
        )

    def _needs(self, connection: Connection, mount: Mount) -> bool:
        return any(journal.mount.id == mount.id for journal in self._core.children.journals(connection))

    async def tell_active(self, mount: Mount) -> None:
        child = self._core.children.capture(mount)
        if child is not None:
            await child.call("set_active", **self._core.children.arguments.active(mount))
