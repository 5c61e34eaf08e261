"""How and when data travels: compression, limits, schedules; and what a line could carry."""

from starlette.requests import Request

from replicator.agent.api_body import ActionBody, Routes, check_action, read_body
from replicator.agent.calendar_service import CalendarRequest, TargetCalendarRequest
from replicator.agent.routes.asked import target_named
from replicator.agent.schedule_service import ScheduleRequest, TargetScheduleRequest
from replicator.agent.service import Service
from replicator.agent.transmissions import TargetRequest, TransmissionRequest
from replicator.errors import UsageError


class TransmissionRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def transmissions(self, request: Request) -> object:
        return await self._service.transmissions.view()

    async def set_target_transmission(self, request: Request) -> object:
        body = await read_body(request, TargetRequest)
        return await self._service.transmissions.set_target(body.target, body)

    async def set_transmission(self, request: Request) -> object:
        body = await read_body(request, TransmissionRequest)
        return await self._service.transmissions.set(request.path_params["connection"], body)

    async def schedule(self, request: Request) -> object:
        return await self._service.schedules.show(request.path_params["connection"])

    async def set_schedule(self, request: Request) -> object:
        body = await read_body(request, ScheduleRequest)
        return await self._service.schedules.act(request.path_params["connection"], body)

    async def target_schedule(self, request: Request) -> object:
        return self._service.schedules.show_target(target_named(request))

    async def set_target_schedule(self, request: Request) -> object:
        return await self._service.schedules.act_on_target(await read_body(request, TargetScheduleRequest))

    async def calendar(self, request: Request) -> object:
        return await self._service.calendars.show(request.path_params["connection"])

    async def set_calendar(self, request: Request) -> object:
        body = await read_body(request, CalendarRequest)
        return await self._service.calendars.act(request.path_params["connection"], body)

    async def target_calendar(self, request: Request) -> object:
        return self._service.calendars.show_target(target_named(request))

    async def set_target_calendar(self, request: Request) -> object:
        return await self._service.calendars.act_on_target(await read_body(request, TargetCalendarRequest))

    async def diagnostics(self, request: Request) -> object:
        query = dict(request.query_params)
        line = query.pop("line", "")
        if query:
            raise UsageError("only a line can be asked for: ?line=50 Mbit/s")
        return await self._service.diagnostics.report(request.path_params["connection"], line=line)

    async def reset_diagnostics(self, request: Request) -> object:
        check_action(await read_body(request, ActionBody), "reset")
        return await self._service.diagnostics.report(request.path_params["connection"], reset=True)

    def routes(self) -> Routes:
        return {
            "/v1/connections/{connection}/transmission": {"POST": self.set_transmission},
            "/v1/connections/{connection}/schedule": {"GET": self.schedule, "POST": self.set_schedule},
            "/v1/connections/{connection}/calendar": {"GET": self.calendar, "POST": self.set_calendar},
            "/v1/connections/{connection}/diagnostics": {
                "GET": self.diagnostics,
                "POST": self.reset_diagnostics,
            },
            "/v1/transmission": {"GET": self.transmissions, "POST": self.set_target_transmission},
            "/v1/schedule": {"GET": self.target_schedule, "POST": self.set_target_schedule},
            "/v1/calendar": {"GET": self.target_calendar, "POST": self.set_target_calendar},
        }
