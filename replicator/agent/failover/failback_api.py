"""Routes of failback. As in `agent/routes`, nothing is decided here."""

from enum import StrEnum
from typing import TypeVar

import msgspec
from starlette.requests import Request

from replicator.agent.api_body import Body, Handler, read_body
from replicator.agent.failover.failback import Failback
from replicator.agent.service import Service
from replicator.errors import UsageError
from replicator.failover.handback import Order, Preview, Then
from replicator.failover_reports import Report

E = TypeVar("E", bound=StrEnum)
_PATH = "/v1/failover/monitors/{name}/failback"


class FailbackBody(Body, frozen=True, kw_only=True):
    order: Order = Order.RESTORE_FIRST
    then: Then = Then.MONITOR
    reason: str = ""
    forced: bool = False


class FailbackView(msgspec.Struct, frozen=True, kw_only=True):
    """`report`: of the one under way, or the last; None: there was none."""

    preview: Preview
    report: Report | None = None


class FailbackApi:
    """Handlers, as in `agent.routes`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def _failback(self) -> Failback:
        return self._service.failover.failback

    def _group(self, request: Request) -> str:
        return self._service.failover.groups.find(request.path_params["name"]).uuid

    async def look(self, request: Request) -> object:
        order = _chosen(request, "order", Order.RESTORE_FIRST)
        then = _chosen(request, "then", Then.MONITOR)
        group = self._group(request)
        return FailbackView(
            preview=await self._failback.look(group, order, then), report=await self._failback.last(group)
        )

    async def begin(self, request: Request) -> object:
        """Returns at once; it goes on."""
        body = await read_body(request, FailbackBody)
        group = self._group(request)
        await self._failback.begin(
            group, order=body.order, then=body.then, reason=body.reason, forced=body.forced
        )
        return await self._failback.last(group)

    async def abandon(self, request: Request) -> object:
        """Take it back, if nothing of it is final."""
        group = self._group(request)
        await self._failback.abandon(group)
        return await self._failback.last(group)

    async def report(self, request: Request) -> object:
        """Of one that may be of a group that is gone from here: after a reversal."""
        return await self._failback.last(request.path_params["group"])

    def routes(self) -> dict[str, dict[str, Handler]]:
        return {
            _PATH: {"GET": self.look, "POST": self.begin, "DELETE": self.abandon},
            "/v1/failover/failbacks/{group}": {"GET": self.report},
        }


def _chosen(request: Request, name: str, otherwise: E) -> E:
    given = request.query_params.get(name, "")
    if not given:
        return otherwise
    try:
        return type(otherwise)(given)
    except ValueError:
        raise UsageError(f"{name}: must be one of {', '.join(type(otherwise))}") from None
