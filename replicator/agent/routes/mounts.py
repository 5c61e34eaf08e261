"""Mounts."""

import msgspec
from starlette.requests import Request

from replicator.agent.api_body import Body, Routes, read_body
from replicator.agent.service import Service


class MountBody(Body, frozen=True, kw_only=True):
    path: str
    mountpoint: str | None = None
    binding: str = "auto"
    options: dict[str, str] = msgspec.field(default_factory=dict)


class OptionsBody(Body, frozen=True, kw_only=True):
    path: str
    options: dict[str, str]


class UnmountBody(Body, frozen=True, kw_only=True):
    path: str
    force: bool = False


class ReloadBody(Body, frozen=True, kw_only=True):
    path: str


class MountRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def mounts(self, request: Request) -> object:
        return await self._service.mounts.all()

    async def add_mount(self, request: Request) -> object:
        body = await read_body(request, MountBody)
        return await self._service.mounts.add(body.path, body.mountpoint, body.binding, body.options)

    async def remove_mount(self, request: Request) -> object:
        body = await read_body(request, UnmountBody)
        return await self._service.mounts.remove(body.path, force=body.force)

    async def set_mount_options(self, request: Request) -> object:
        body = await read_body(request, OptionsBody)
        return await self._service.mounts.set_options(body.path, body.options)

    async def reload_mount(self, request: Request) -> object:
        body = await read_body(request, ReloadBody)
        return await self._service.mounts.reload(body.path)

    def routes(self) -> Routes:
        return {
            "/v1/mounts": {"GET": self.mounts, "POST": self.add_mount, "DELETE": self.remove_mount},
            "/v1/mounts/options": {"POST": self.set_mount_options},
            "/v1/mounts/reload": {"POST": self.reload_mount},
        }
