"""Routes of failover. As in `agent/routes`, nothing is decided here."""

from starlette.requests import Request

from replicator.addresses import parse_host_port
from replicator.agent.api_body import ActionBody, Body, Handler, check_action, read_body
from replicator.agent.failover.divergence_api import DivergenceApi
from replicator.agent.failover.failback_api import FailbackApi
from replicator.agent.failover.guard_api import GuardApi
from replicator.agent.failover.monitors import MonitorRequest
from replicator.agent.failover.siblings_api import SiblingsApi
from replicator.agent.failover.trials_api import TrialsApi
from replicator.agent.failover.witness_api import WitnessApi
from replicator.agent.service import Service


class MonitorActionBody(ActionBody, frozen=True, kw_only=True):
    forced: bool = False
    source_is_off: bool = False


class RemoveMonitorBody(Body, frozen=True, kw_only=True):
    even_if_owner: bool = False


class FailoverApi:
    """Handlers, as in `agent.routes`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def monitors(self, request: Request) -> object:
        return self._service.failover.monitors.all()

    async def monitor(self, request: Request) -> object:
        return self._service.failover.monitors.get(request.path_params["name"])

    async def add_monitor(self, request: Request) -> object:
        return await self._service.failover.monitors.add(await read_body(request, MonitorRequest))

    async def edit_monitor(self, request: Request) -> object:
        wanted = await read_body(request, MonitorRequest)
        return await self._service.failover.monitors.edit(request.path_params["name"], wanted)

    async def remove_monitor(self, request: Request) -> object:
        body = await read_body(request, RemoveMonitorBody)
        name = request.path_params["name"]
        return await self._service.failover.monitors.remove(name, even_if_owner=body.even_if_owner)

    async def act_on_monitor(self, request: Request) -> object:
        body = await read_body(request, MonitorActionBody)
        name, monitors = request.path_params["name"], self._service.failover.monitors
        action = check_action(body, "yes", "no", "now", "abandon", "start", "stop")
        if action == "now":
            return await self._service.failover.taking_back.now(
                name, forced=body.forced, source_is_off=body.source_is_off
            )
        if action == "abandon":
            await self._service.failover.procedure.abandon(self._service.failover.groups.find(name).uuid)
            return monitors.get(name)
        if action in ("start", "stop"):
            return await monitors.set_watching(name, on=action == "start")
        return await monitors.answer(
            name, yes=action == "yes", forced=body.forced, source_is_off=body.source_is_off
        )

    async def addresses(self, request: Request) -> object:
        source = parse_host_port(request.query_params.get("source", ""))
        return await self._service.failover.source_addresses.of(source)

    async def history(self, request: Request) -> object:
        return await self._service.failover.groups.history(request.query_params.get("group", ""))

    async def reports(self, request: Request) -> object:
        monitor = self._service.failover.groups.find(request.path_params["name"])
        return await self._service.failover.procedures.reports(monitor.uuid)

    def routes(self) -> dict[str, dict[str, Handler]]:
        """(path: (method: handler)). Each needs its row in `agent/api_rules.py`."""
        return {
            "/v1/failover/monitors": {"GET": self.monitors, "POST": self.add_monitor},
            "/v1/failover/monitors/{name}": {
                "GET": self.monitor,
                "PUT": self.edit_monitor,
                "DELETE": self.remove_monitor,
                "POST": self.act_on_monitor,
            },
            "/v1/failover/monitors/{name}/reports": {"GET": self.reports},
            "/v1/failover/addresses": {"GET": self.addresses},
            "/v1/failover/history": {"GET": self.history},
            **FailbackApi(self._service).routes(),
            **DivergenceApi(self._service).routes(),
            **SiblingsApi(self._service).routes(),
            **GuardApi(self._service).routes(),
            **TrialsApi(self._service).routes(),
            **WitnessApi(self._service).routes(),
        }
