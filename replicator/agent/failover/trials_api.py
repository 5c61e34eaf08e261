"""Routes of scripts, tests and drills. As in `agent/routes`, nothing is decided here."""

from starlette.requests import Request

from replicator.agent.api_body import Empty, Handler, read_body
from replicator.agent.failover.group_scripts import ScriptRequest
from replicator.agent.service import Service
from replicator.errors import UsageError
from replicator.failover_drills import DrillRequest
from replicator.failovers import ScriptKind

_MONITOR = "/v1/failover/monitors/{name}"


class TrialsApi:
    """Handlers, as in `agent.routes`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def scripts(self, request: Request) -> object:
        return self._service.failover.scripts.views(request.query_params.get("monitor", ""))

    async def set_script(self, request: Request) -> object:
        body = await read_body(request, ScriptRequest)
        return await self._service.failover.scripts.set(_name(request), _kind(request), body)

    async def test_script(self, request: Request) -> object:
        await read_body(request, Empty)
        return await self._service.failover.scripts.test(_name(request), _kind(request))

    async def drills(self, request: Request) -> object:
        return await self._service.failover.drills.all(_name(request))

    async def begin_drill(self, request: Request) -> object:
        body = await read_body(request, DrillRequest)
        return await self._service.failover.drills.begin(_name(request), body)

    async def end_drill(self, request: Request) -> object:
        await read_body(request, Empty)
        return await self._service.failover.drills.end(_name(request))

    async def test(self, request: Request) -> object:
        await read_body(request, Empty)
        return await self._service.failover.checkup.test(_name(request))

    def routes(self) -> dict[str, dict[str, Handler]]:
        """(path: (method: handler)). Each needs its row in `agent/api_rules.py`."""
        return {
            "/v1/failover/scripts": {"GET": self.scripts},
            _MONITOR + "/test": {"POST": self.test},
            _MONITOR + "/scripts/{kind}": {"POST": self.set_script},
            _MONITOR + "/scripts/{kind}/test": {"POST": self.test_script},
            _MONITOR + "/drills": {"GET": self.drills, "POST": self.begin_drill},
            _MONITOR + "/drills/end": {"POST": self.end_drill},
        }


def _name(request: Request) -> str:
    return str(request.path_params["name"])


def _kind(request: Request) -> ScriptKind:
    text = str(request.path_params["kind"])
    try:
        return ScriptKind(text)
    except ValueError:
        raise UsageError(f"script {text!r}: must be one of {', '.join(ScriptKind)}") from None
