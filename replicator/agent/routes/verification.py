"""Verifications, and how runs of all kinds ended."""

from starlette.requests import Request

from replicator import limits
from replicator.agent.api_body import Routes, read_body
from replicator.agent.service import Service
from replicator.agent.verify_service import VerifyRequest
from replicator.errors import UsageError


class VerificationRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def verification(self, request: Request) -> object:
        return await self._service.verify.report(request.path_params["connection"])

    async def act_on_verification(self, request: Request) -> object:
        return await self._service.verify.act(
            request.path_params["connection"], await read_body(request, VerifyRequest)
        )

    async def runs(self, request: Request) -> object:
        query = dict(request.query_params)
        kind, count = query.pop("kind", ""), query.pop("count", str(limits.RUNS_KEPT))
        if query or not count.isdecimal() or not 1 <= int(count) <= limits.RUNS_ASKED:
            raise UsageError(f"only kind and count (from 1 to {limits.RUNS_ASKED}) can be asked for")
        return await self._service.verify.runs(request.path_params["connection"], kind, int(count))

    def routes(self) -> Routes:
        return {
            "/v1/connections/{connection}/verify": {
                "GET": self.verification,
                "POST": self.act_on_verification,
            },
            "/v1/connections/{connection}/runs": {"GET": self.runs},
        }
