"""Orphans: what becomes of them."""

from starlette.requests import Request

from replicator.agent.api_body import RUN_ACTIONS, ActionBody, Body, Routes, check_action, read_body
from replicator.agent.service import Service
from replicator.bounds import Size


class OrphansBody(ActionBody, frozen=True, kw_only=True):
    dry_run: bool = False
    over_limit: bool = False


class OrphanSettingsBody(Body, frozen=True, kw_only=True):
    action: str | None = None
    directory: str | None = None
    older_than_days: float | None = None
    with_mirrors: bool | None = None
    log_names: bool | None = None
    limit_count: Size | None = None
    limit_percent: float | None = None


class OrphanRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def orphan_settings(self, request: Request) -> object:
        return self._service.orphans.settings()

    async def set_orphans(self, request: Request) -> object:
        body = await read_body(request, OrphanSettingsBody)
        given = {name: getattr(body, name) for name in body.__struct_fields__}
        return await self._service.orphans.set({n: v for n, v in given.items() if v is not None})

    async def orphans(self, request: Request) -> object:
        return await self._service.orphans.report(request.path_params["connection"])

    async def act_on_orphans(self, request: Request) -> object:
        body = await read_body(request, OrphansBody)
        return await self._service.orphans.act(
            request.path_params["connection"],
            check_action(body, *RUN_ACTIONS),
            dry_run=body.dry_run,
            over_limit=body.over_limit,
        )

    def routes(self) -> Routes:
        return {
            "/v1/connections/{connection}/orphans": {"GET": self.orphans, "POST": self.act_on_orphans},
            "/v1/targets/orphans": {"GET": self.orphan_settings, "POST": self.set_orphans},
        }
