"""The control API: HTTP and JSON. docs/developers/api.md describes it to those who write clients.

Here requests are decoded and checked, handed to the service, and answers encoded; nothing is decided. Who
asks, and whether they may, is the gate's affair (`gate.py`, `api_rules.py`); sockets are in `api_sockets.py`.
"""

import logging
import os
import re
import traceback
from collections.abc import Awaitable, Callable

import msgspec
import trio
from hypercorn.config import Config as HypercornConfig
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from replicator import events, limits
from replicator.access import Access, AccessView, Caller, LoginRequiredError, SlowDownError
from replicator.agent import api_rules
from replicator.agent.api_body import ActionBody, Body, BodyTooLargeError, Empty
from replicator.agent.api_body import check_action as _action
from replicator.agent.api_body import read_body as _body
from replicator.agent.api_sockets import ApiSockets
from replicator.agent.calendar_service import CalendarRequest, TargetCalendarRequest
from replicator.agent.connections import ConnectRequest
from replicator.agent.control_tls import ControlTls, Tls
from replicator.agent.core import NotFoundError
from replicator.agent.failover.api import FailoverApi
from replicator.agent.gate import Gate, Peer
from replicator.agent.protect import ProtectRequest
from replicator.agent.schedule_service import ScheduleRequest, TargetScheduleRequest
from replicator.agent.service import Service
from replicator.agent.transmissions import TargetRequest, TransmissionRequest
from replicator.agent.verify_service import VerifyRequest
from replicator.bounds import Size
from replicator.errors import ExitCode, ReplicatorError, UsageError
from replicator.repset import DEFAULT_NAME, Rule, StaleGenerationError
from replicator.restores import RestoreRequest

_STATUS_OF_TYPE: dict[type[ReplicatorError], int] = {
    NotFoundError: 404,
    StaleGenerationError: 412,
    BodyTooLargeError: 413,
    LoginRequiredError: 401,
    SlowDownError: 429,
}
_STATUS_OF_CODE: dict[ExitCode, int] = {
    ExitCode.FAILED: 409,
    ExitCode.USAGE: 400,
    ExitCode.UNREACHABLE: 503,
    ExitCode.NOT_PERMITTED: 403,
}

_LIVE_ACTIONS = ("start", "stop", "pause", "resume")


class StopBody(Body, frozen=True, kw_only=True):
    mounts: bool = False
    force: bool = False


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


class RepsetBody(Body, frozen=True, kw_only=True):
    name: str = DEFAULT_NAME
    rules: tuple[Rule, ...] = ()


class RulesBody(Body, frozen=True, kw_only=True):
    rules: tuple[Rule, ...]
    generation: Size | None = None


class RuleBody(Body, frozen=True, kw_only=True):
    path: str
    include: bool = True
    recursive: bool = True
    generation: Size | None = None


class NameBody(Body, frozen=True, kw_only=True):
    new_name: str


class MirrorBody(ActionBody, frozen=True, kw_only=True):
    kind: str = "difference"
    newer: bool = False
    checksum: bool = False
    orphans: str = "keep"


class SpeedBody(Body, frozen=True, kw_only=True):
    speed: str


class PriorityBody(Body, frozen=True, kw_only=True):
    priority: str


class ForceBody(Body, frozen=True, kw_only=True):
    survivor: str
    confirm: str = ""


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


class WaitBody(Body, frozen=True, kw_only=True):
    timeout_s: float | None = None


class TargetsBody(ActionBody, frozen=True, kw_only=True):
    uuid: str | None = None


class CopiesBody(Body, frozen=True, kw_only=True):
    source: str = ""


class PairBody(Body, frozen=True, kw_only=True):
    host: str
    code: str


class PeerBody(ActionBody, frozen=True, kw_only=True):
    peer: str


class LoginBody(Body, frozen=True, kw_only=True):
    user: str
    password: str


class Api:
    """Handlers of all resources. Each takes a request and returns what becomes the JSON of the answer."""

    def __init__(self, service: Service, gate: Gate) -> None:
        self._service = service
        self._gate = gate

    # --- access ---

    async def ping(self, request: Request) -> object:
        gate = self._gate
        return {
            "agent": self._service.agent().name,
            "control": gate.control,
            "fingerprint": gate.tls.fingerprint if gate.tls is not None else "",
        }

    async def access(self, request: Request) -> object:
        return self._access(await self._gate.caller(_peer(request), _token(request)))

    async def login(self, request: Request) -> object:
        body = await _body(request, LoginBody)
        token, caller = await self._gate.log_in(_peer(request), body.user, body.password)
        return {"token": token, **msgspec.to_builtins(self._access(caller))}

    async def logout(self, request: Request) -> object:
        await _body(request, Empty)
        self._gate.log_out(_peer(request), _token(request))
        return {}

    def _access(self, caller: Caller) -> AccessView:
        return AccessView(
            agent=self._service.agent().name,
            user=caller.user,
            origin=caller.origin,
            how=caller.how,
            access=caller.access,
            level=caller.access.label,
        )

    # --- agent ---

    async def agent(self, request: Request) -> object:
        return self._service.agent()

    async def stop_agent(self, request: Request) -> object:
        body = await _body(request, StopBody)
        await self._service.stop(mounts=body.mounts, force=body.force)
        return {"stopping": True}

    async def events(self, request: Request) -> object:
        return self._service.events.since(*_since(request, limits.EVENTS_KEPT))

    async def queues(self, request: Request) -> object:
        return await self._service.queues.all()

    # --- mounts ---

    async def mounts(self, request: Request) -> object:
        return await self._service.mounts.all()

    async def add_mount(self, request: Request) -> object:
        body = await _body(request, MountBody)
        return await self._service.mounts.add(body.path, body.mountpoint, body.binding, body.options)

    async def remove_mount(self, request: Request) -> object:
        body = await _body(request, UnmountBody)
        return await self._service.mounts.remove(body.path, force=body.force)

    async def set_mount_options(self, request: Request) -> object:
        body = await _body(request, OptionsBody)
        return await self._service.mounts.set_options(body.path, body.options)

    async def reload_mount(self, request: Request) -> object:
        body = await _body(request, ReloadBody)
        return await self._service.mounts.reload(body.path)

    # --- replication sets ---

    async def repsets(self, request: Request) -> object:
        return self._service.repsets.all()

    async def create_repset(self, request: Request) -> object:
        body = await _body(request, RepsetBody)
        return await self._service.repsets.create(body.name, body.rules)

    async def repset(self, request: Request) -> object:
        return self._service.repsets.get(request.path_params["name"])

    async def set_rules(self, request: Request) -> object:
        body = await _body(request, RulesBody)
        generation = _generation(request, body.generation)
        return await self._service.repsets.set_rules(request.path_params["name"], body.rules, generation)

    async def delete_repset(self, request: Request) -> object:
        await _body(request, Empty)
        return await self._service.repsets.delete(request.path_params["name"])

    async def add_rule(self, request: Request) -> object:
        body = await _body(request, RuleBody)
        rule = Rule(body.path, body.include, body.recursive)
        generation = _generation(request, body.generation)
        return await self._service.repsets.add_rule(request.path_params["name"], rule, generation)

    async def remove_rule(self, request: Request) -> object:
        body = await _body(request, RuleBody)
        generation = _generation(request, body.generation)
        return await self._service.repsets.remove_rule(request.path_params["name"], body.path, generation)

    async def rename_repset(self, request: Request) -> object:
        body = await _body(request, NameBody)
        return await self._service.repsets.rename(request.path_params["name"], body.new_name)

    async def size_of_repset(self, request: Request) -> object:
        await _body(request, Empty)
        return await self._service.repsets.size(request.path_params["name"])

    async def copy_repset(self, request: Request) -> object:
        body = await _body(request, NameBody)
        return await self._service.repsets.copy(request.path_params["name"], body.new_name)

    # --- recovery ---

    async def recovery(self, request: Request) -> object:
        return self._service.recovery.view()

    async def set_speed(self, request: Request) -> object:
        return await self._service.recovery.set_speed((await _body(request, SpeedBody)).speed)

    async def set_priority(self, request: Request) -> object:
        body = await _body(request, PriorityBody)
        return await self._service.recovery.set_priority(request.path_params["name"], body.priority)

    async def act_on_recovery(self, request: Request) -> object:
        action = _action(await _body(request, ActionBody), "pause", "resume", "automatic", "manual")
        return await self._service.recovery.act(request.path_params["connection"], action)

    async def force(self, request: Request) -> object:
        body = await _body(request, ForceBody)
        return await self._service.recovery.force(
            request.path_params["connection"], body.survivor, body.confirm
        )

    # --- orphans ---

    async def orphan_settings(self, request: Request) -> object:
        return self._service.orphans.settings()

    async def set_orphans(self, request: Request) -> object:
        body = await _body(request, OrphanSettingsBody)
        given = {name: getattr(body, name) for name in body.__struct_fields__}
        return await self._service.orphans.set({n: v for n, v in given.items() if v is not None})

    async def orphans(self, request: Request) -> object:
        return await self._service.orphans.report(request.path_params["connection"])

    async def act_on_orphans(self, request: Request) -> object:
        body = await _body(request, OrphansBody)
        return await self._service.orphans.act(
            request.path_params["connection"],
            _action(body, *_LIVE_ACTIONS),
            dry_run=body.dry_run,
            over_limit=body.over_limit,
        )

    # --- restores ---

    async def copies(self, request: Request) -> object:
        return await self._service.restores.copies((await _body(request, CopiesBody)).source)

    async def restores(self, request: Request) -> object:
        return self._service.restores.all()

    async def start_restore(self, request: Request) -> object:
        return await self._service.restores.start(await _body(request, RestoreRequest))

    async def restore(self, request: Request) -> object:
        return self._service.restores.get(request.path_params["restore"])

    async def act_on_restore(self, request: Request) -> object:
        action = _action(await _body(request, ActionBody), "pause", "resume", "stop")
        return await self._service.restores.act(request.path_params["restore"], action)

    # --- verification ---

    async def verification(self, request: Request) -> object:
        return await self._service.verify.report(request.path_params["connection"])

    async def act_on_verification(self, request: Request) -> object:
        return await self._service.verify.act(
            request.path_params["connection"], await _body(request, VerifyRequest)
        )

    async def runs(self, request: Request) -> object:
        query = dict(request.query_params)
        kind, count = query.pop("kind", ""), query.pop("count", str(limits.RUNS_KEPT))
        if query or not count.isdecimal() or not 1 <= int(count) <= limits.RUNS_ASKED:
            raise UsageError(f"only kind and count (from 1 to {limits.RUNS_ASKED}) can be asked for")
        return await self._service.verify.runs(request.path_params["connection"], kind, int(count))

    # --- compression and bandwidth ---

    async def transmissions(self, request: Request) -> object:
        return await self._service.transmissions.view()

    async def set_target_transmission(self, request: Request) -> object:
        body = await _body(request, TargetRequest)
        return await self._service.transmissions.set_target(body.target, body)

    async def set_transmission(self, request: Request) -> object:
        body = await _body(request, TransmissionRequest)
        return await self._service.transmissions.set(request.path_params["connection"], body)

    # --- connections ---

    async def connections(self, request: Request) -> object:
        return await self._service.connections.all()

    async def connect(self, request: Request) -> object:
        return await self._service.connections.connect(await _body(request, ConnectRequest))

    async def connection(self, request: Request) -> object:
        return await self._service.connections.get(request.path_params["connection"])

    async def story(self, request: Request) -> object:
        since, count = _since(request, limits.STORY_KEPT)
        return await self._service.connections.story(request.path_params["connection"], since, count)

    async def why(self, request: Request) -> object:
        path = request.query_params.get("path")
        if path is None or len(request.query_params) != 1:
            raise UsageError("say which path: ?path=/absolute/path, and nothing else")
        return await self._service.connections.why(path)

    async def lag(self, request: Request) -> object:
        return await self._service.connections.lag(request.path_params["connection"])

    async def disconnect(self, request: Request) -> object:
        await _body(request, Empty)
        return await self._service.connections.disconnect(request.path_params["connection"])

    async def mirror(self, request: Request) -> object:
        body = await _body(request, MirrorBody)
        return await self._service.connections.mirror(
            request.path_params["connection"],
            _action(body, *_LIVE_ACTIONS),
            kind=body.kind,
            newer=body.newer,
            checksum=body.checksum,
            orphans=body.orphans,
        )

    async def replicate(self, request: Request) -> object:
        action = _action(await _body(request, ActionBody), "start", "stop")
        return await self._service.connections.replicate(request.path_params["connection"], action)

    async def transmit(self, request: Request) -> object:
        action = _action(await _body(request, ActionBody), *_LIVE_ACTIONS)
        return await self._service.connections.transmit(request.path_params["connection"], action)

    async def schedule(self, request: Request) -> object:
        return await self._service.schedules.show(request.path_params["connection"])

    async def set_schedule(self, request: Request) -> object:
        body = await _body(request, ScheduleRequest)
        return await self._service.schedules.act(request.path_params["connection"], body)

    async def target_schedule(self, request: Request) -> object:
        return self._service.schedules.show_target(_target(request))

    async def set_target_schedule(self, request: Request) -> object:
        return await self._service.schedules.act_on_target(await _body(request, TargetScheduleRequest))

    async def target_calendar(self, request: Request) -> object:
        return self._service.calendars.show_target(_target(request))

    async def set_target_calendar(self, request: Request) -> object:
        return await self._service.calendars.act_on_target(await _body(request, TargetCalendarRequest))

    async def calendar(self, request: Request) -> object:
        return await self._service.calendars.show(request.path_params["connection"])

    async def set_calendar(self, request: Request) -> object:
        body = await _body(request, CalendarRequest)
        return await self._service.calendars.act(request.path_params["connection"], body)

    async def diagnostics(self, request: Request) -> object:
        return await self._service.diagnostics.report(request.path_params["connection"])

    async def reset_diagnostics(self, request: Request) -> object:
        _action(await _body(request, ActionBody), "reset")
        return await self._service.diagnostics.report(request.path_params["connection"], reset=True)

    async def target(self, request: Request) -> object:
        action = _action(await _body(request, ActionBody), "pause", "resume")
        key = request.path_params["connection"]
        await self._service.targets.act(key, action)
        return {"connection": key, "action": action}

    async def wait(self, request: Request) -> object:
        body = await _body(request, WaitBody)
        if body.timeout_s is not None and not 0 <= body.timeout_s <= limits.WAIT_TIMEOUT_MAX_S:
            raise UsageError(
                f"timeout_s {body.timeout_s:g}: must be from 0 to {limits.WAIT_TIMEOUT_MAX_S:.0f} seconds"
            )
        answer: object = None
        failure: ReplicatorError | None = None
        async with trio.open_nursery() as nursery:
            # Nobody waits for ever for a client that is gone.
            nursery.start_soon(_cancel_when_gone, request, nursery.cancel_scope)
            try:
                answer = await self._service.connections.wait(
                    request.path_params["connection"], body.timeout_s
                )
            except ReplicatorError as error:
                failure = error  # kept from becoming a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if answer is None:
            raise ClientDisconnect
        return answer

    async def protect(self, request: Request) -> object:
        return await self._service.protect(await _body(request, ProtectRequest))

    # --- identity and trust ---

    async def identity(self, request: Request) -> object:
        return self._service.peers.view()

    async def act_on_identity(self, request: Request) -> object:
        _action(await _body(request, ActionBody), "renew")
        view = await trio.to_thread.run_sync(self._service.peers.renew)
        self._service.peers.wake()
        return view

    async def peers(self, request: Request) -> object:
        return self._service.peers.peers()

    async def act_on_peers(self, request: Request) -> object:
        body = await _body(request, PeerBody)
        return await self._service.act_on_peer(
            _action(body, "revoke", "restores-all", "restores-own"), body.peer
        )

    async def pairing(self, request: Request) -> object:
        return self._service.pairing.view()

    async def act_on_pairing(self, request: Request) -> object:
        action = _action(await _body(request, ActionBody), "open", "close")
        return self._service.pairing.open() if action == "open" else self._service.pairing.close()

    async def pair(self, request: Request) -> object:
        body = await _body(request, PairBody)
        return await self._service.pair(body.host, body.code)

    # --- targets ---

    async def targets(self, request: Request) -> object:
        return await self._service.targets.all()

    async def act_on_targets(self, request: Request) -> object:
        body = await _body(request, TargetsBody)
        action = _action(body, "pause", "resume", "use", "forget")
        if action in ("use", "forget") and body.uuid is None:
            raise UsageError(f"{action}: name the connection's uuid")
        return {"count": await self._service.targets.act(body.uuid, action)}

    def routes(self) -> list[BaseRoute]:
        table: dict[str, dict[str, Callable[[Request], Awaitable[object]]]] = {
            "/v1/ping": {"GET": self.ping},
            "/v1/access": {"GET": self.access},
            "/v1/login": {"POST": self.login},
            "/v1/logout": {"POST": self.logout},
            "/v1/agent": {"GET": self.agent},
            "/v1/agent/stop": {"POST": self.stop_agent},
            "/v1/events": {"GET": self.events},
            "/v1/mounts": {"GET": self.mounts, "POST": self.add_mount, "DELETE": self.remove_mount},
            "/v1/mounts/options": {"POST": self.set_mount_options},
            "/v1/mounts/reload": {"POST": self.reload_mount},
            "/v1/repsets": {"GET": self.repsets, "POST": self.create_repset},
            "/v1/repsets/{name}": {"GET": self.repset, "PUT": self.set_rules, "DELETE": self.delete_repset},
            "/v1/repsets/{name}/rules": {"POST": self.add_rule, "DELETE": self.remove_rule},
            "/v1/repsets/{name}/rename": {"POST": self.rename_repset},
            "/v1/repsets/{name}/copy": {"POST": self.copy_repset},
            "/v1/repsets/{name}/size": {"POST": self.size_of_repset},
            "/v1/connections": {"GET": self.connections, "POST": self.connect},
            "/v1/connections/{connection}": {"GET": self.connection, "DELETE": self.disconnect},
            "/v1/connections/{connection}/lag": {"GET": self.lag},
            "/v1/connections/{connection}/story": {"GET": self.story},
            "/v1/connections/{connection}/disconnect": {"POST": self.disconnect},
            "/v1/connections/{connection}/mirror": {"POST": self.mirror},
            "/v1/connections/{connection}/verify": {
                "GET": self.verification,
                "POST": self.act_on_verification,
            },
            "/v1/connections/{connection}/runs": {"GET": self.runs},
            "/v1/connections/{connection}/recovery": {"POST": self.act_on_recovery},
            "/v1/connections/{connection}/force": {"POST": self.force},
            "/v1/connections/{connection}/replicate": {"POST": self.replicate},
            "/v1/connections/{connection}/transmit": {"POST": self.transmit},
            "/v1/connections/{connection}/transmission": {"POST": self.set_transmission},
            "/v1/connections/{connection}/schedule": {"GET": self.schedule, "POST": self.set_schedule},
            "/v1/connections/{connection}/calendar": {"GET": self.calendar, "POST": self.set_calendar},
            "/v1/connections/{connection}/diagnostics": {
                "GET": self.diagnostics,
                "POST": self.reset_diagnostics,
            },
            "/v1/connections/{connection}/target": {"POST": self.target},
            "/v1/connections/{connection}/orphans": {"GET": self.orphans, "POST": self.act_on_orphans},
            "/v1/connections/{connection}/wait": {"POST": self.wait},
            "/v1/restores": {"GET": self.restores, "POST": self.start_restore},
            "/v1/restores/copies": {"POST": self.copies},
            "/v1/restores/{restore}": {"GET": self.restore, "POST": self.act_on_restore},
            "/v1/recovery": {"GET": self.recovery, "POST": self.set_speed},
            "/v1/repsets/{name}/priority": {"POST": self.set_priority},
            "/v1/identity": {"GET": self.identity, "POST": self.act_on_identity},
            "/v1/peers": {"GET": self.peers, "POST": self.act_on_peers},
            "/v1/pairing": {"GET": self.pairing, "POST": self.act_on_pairing},
            "/v1/pair": {"POST": self.pair},
            "/v1/transmission": {"GET": self.transmissions, "POST": self.set_target_transmission},
            "/v1/schedule": {"GET": self.target_schedule, "POST": self.set_target_schedule},
            "/v1/calendar": {"GET": self.target_calendar, "POST": self.set_target_calendar},
            "/v1/why": {"GET": self.why},
            "/v1/protect": {"POST": self.protect},
            "/v1/queues": {"GET": self.queues},
            "/v1/targets/orphans": {"GET": self.orphan_settings, "POST": self.set_orphans},
            "/v1/targets": {"GET": self.targets, "POST": self.act_on_targets},
            **FailoverApi(self._service).routes(),
        }
        return [
            Route(path, _endpoint(path, methods, self._gate), methods=_METHODS)
            for path, methods in table.items()
        ]


# --- requests ---

_METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
_ETAG = re.compile(r'(?:W/)?"(\d{1,9})"')


async def _cancel_when_gone(request: Request, scope: trio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _target(request: Request) -> str:
    target = request.query_params.get("target")
    if target is None or len(request.query_params) != 1:
        raise UsageError("say which target: ?target=HOST, and nothing else")
    return target


def _generation(request: Request, given: int | None) -> int | None:
    """The generation a change was made from: of the body, else of If-Match (RS-12)."""
    header = request.headers.get("if-match")
    if given is not None or header is None or header.strip() == "*":
        return given
    match = _ETAG.fullmatch(header.strip())
    if match is None:
        raise UsageError(f'If-Match: {header!r} is no generation; write it as "3", with the quotes')
    return int(match[1])


def _since(request: Request, most: int) -> tuple[int, int]:
    """What of a row is wanted: (sequence of the last one known, at most so many)."""
    known = {"since", "limit"}
    for name in request.query_params:
        if name not in known:
            raise UsageError(f"query parameter {name!r}: must be one of {', '.join(sorted(known))}")
    return _number(request, "since", 0), _number(request, "limit", most)


def _number(request: Request, name: str, otherwise: int) -> int:
    text = request.query_params.get(name, str(otherwise))
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UsageError(f"{name}={text}: must be a whole number")
    return int(text)


def _peer(request: Request) -> Peer:
    peer: Peer = request.state.peer
    return peer


def _token(request: Request) -> str | None:
    """Of a login: what follows `Authorization: Bearer`."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


# --- answers ---


def _endpoint(
    path: str, methods: dict[str, Callable[[Request], Awaitable[object]]], gate: Gate
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        handler = methods.get(request.method)
        if handler is None:
            allowed = ", ".join(methods)
            return _error(
                405,
                f"{request.method} {request.scope['path']}: must be {allowed}",
                ExitCode.USAGE,
                Allow=allowed,
            )
        try:
            answer = await _allowed(gate, request, api_rules.rule(request.method, path), handler)
        except ReplicatorError as error:
            status = _STATUS_OF_TYPE.get(type(error)) or _STATUS_OF_CODE[error.exit_code]
            # Of a body that is too large the rest is not read.
            headers = {"Connection": "close"} if isinstance(error, BodyTooLargeError) else {}
            return _error(status, " ".join(str(error).split()), error.exit_code, **headers)
        except ClientDisconnect:
            return _error(400, "the client left", ExitCode.USAGE)
        except Exception as error:
            traceback.print_exc()
            text = f"unexpected {type(error).__name__}: a bug of the agent; its log has the details"
            return _error(500, text, ExitCode.FAILED)
        generation = getattr(answer, "generation", None)
        headers = {"ETag": f'"{generation}"'} if generation is not None else {}
        return _json(200, answer, **headers)

    return endpoint


async def _allowed(
    gate: Gate,
    request: Request,
    rule: api_rules.Rule,
    handler: Callable[[Request], Awaitable[object]],
) -> object:
    """The answer of `handler`, if who asks may have it; what is changed is noted with who did it."""
    if rule.access is Access.NONE:
        return await handler(request)
    caller = await gate.caller(_peer(request), _token(request))
    gate.require(caller, rule.access, f"{request.method} {request.scope['path']}")
    if not rule.words:
        return await handler(request)
    failure = "the agent broke it off"
    try:
        answer = await handler(request)
        failure = ""
    except ReplicatorError as error:
        failure = str(error)
        raise
    except Exception as error:
        failure = f"unexpected {type(error).__name__}"
        raise
    finally:
        body = getattr(request.state, "body", None)
        gate.audit.changed(caller, api_rules.spoken(rule.words, request.path_params, body), failure)
    return answer


def _json(status: int, value: object, **headers: str) -> Response:
    return Response(msgspec.json.encode(value) + b"\n", status, headers, "application/json")


def _error(status: int, text: str, exit_code: ExitCode, **headers: str) -> Response:
    return _json(status, {"error": text, "exit_code": int(exit_code)}, **headers)


async def _unknown(request: Request, error: Exception) -> Response:
    return _error(
        404, f"{request.scope['path']}: no such resource; see docs/developers/api.md", ExitCode.USAGE
    )


# --- serving ---


def application(service: Service, gate: Gate) -> Starlette:
    found = Starlette(routes=Api(service, gate).routes(), exception_handlers={404: _unknown})
    found.router.redirect_slashes = False  # it would fail at a query that is no UTF-8
    return found


async def serve(
    service: Service, path: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer on the Unix socket `path`, and on the port for other hosts if there is one, until the service is
    to stop. Started when clients can connect.
    """
    config = HypercornConfig()
    config.h11_max_incomplete_size = limits.API_HEAD_BYTES
    config.include_server_header = False
    config.errorlog = logging.getLogger("replicator.api")
    config.accesslog = None
    settings = service.access.settings
    remote: tuple[str, ControlTls] | None = None
    if settings.listen:
        try:
            remote = settings.listen, Tls(settings, service.peers.home.credentials)
        except ReplicatorError as error:  # on this host the agent can still be used
            service.events.add(events.REMOTE_CONTROL_FAILED, reason=str(error))
    sockets = ApiSockets(application(service, service.access), config, service.access, service.events)
    try:
        await sockets.serve(path, remote, service.stop_requested.wait, task_status=task_status)
    finally:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
