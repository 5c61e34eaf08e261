"""The control API: HTTP and JSON. docs/developers/api.md describes it to those who write clients.

Here answers are encoded, refusals become statuses, and changes are noted with who made them. What can be
asked is in `routes`; who asks, and whether they may, is the gate's affair (`gate.py`, `api_rules.py`);
sockets are in `api_sockets.py`.
"""

import logging
import os
import traceback
from collections.abc import Awaitable, Callable

import msgspec
import trio
from hypercorn.config import Config as HypercornConfig
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from replicator import events, limits
from replicator.access import Access, LoginRequiredError, SlowDownError
from replicator.agent import api_rules
from replicator.agent.api_body import BodyTooLargeError, Handler, Routes
from replicator.agent.api_sockets import ApiSockets
from replicator.agent.control_tls import ControlTls, Tls
from replicator.agent.core import NotFoundError
from replicator.agent.failover.api import FailoverApi
from replicator.agent.gate import Gate
from replicator.agent.routes.access import AccessRoutes
from replicator.agent.routes.agent import AgentRoutes
from replicator.agent.routes.asked import peer_of, token_of
from replicator.agent.routes.connections import ConnectionRoutes
from replicator.agent.routes.mounts import MountRoutes
from replicator.agent.routes.orphans import OrphanRoutes
from replicator.agent.routes.recovery import RecoveryRoutes
from replicator.agent.routes.repsets import RepsetRoutes
from replicator.agent.routes.restores import RestoreRoutes
from replicator.agent.routes.targets import TargetRoutes
from replicator.agent.routes.transmission import TransmissionRoutes
from replicator.agent.routes.trust import TrustRoutes
from replicator.agent.routes.verification import VerificationRoutes
from replicator.agent.service import Service
from replicator.errors import ExitCode, ReplicatorError
from replicator.repset import StaleGenerationError

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

_METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]


# --- answers ---


def _endpoint(path: str, methods: dict[str, Handler], gate: Gate) -> Callable[[Request], Awaitable[Response]]:
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
    handler: Handler,
) -> object:
    """The answer of `handler`, if who asks may have it; what is changed is noted with who did it."""
    if rule.access is Access.NONE:
        return await handler(request)
    caller = await gate.caller(peer_of(request), token_of(request))
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
    routes = [
        Route(path, _endpoint(path, methods, gate), methods=_METHODS)
        for path, methods in _routes(service, gate).items()
    ]
    found = Starlette(routes=routes, exception_handlers={404: _unknown})
    found.router.redirect_slashes = False  # it would fail at a query that is no UTF-8
    return found


def _routes(service: Service, gate: Gate) -> Routes:
    return {
        **AccessRoutes(service, gate).routes(),
        **AgentRoutes(service).routes(),
        **MountRoutes(service).routes(),
        **RepsetRoutes(service).routes(),
        **ConnectionRoutes(service).routes(),
        **TargetRoutes(service).routes(),
        **RecoveryRoutes(service).routes(),
        **OrphanRoutes(service).routes(),
        **RestoreRoutes(service).routes(),
        **VerificationRoutes(service).routes(),
        **TransmissionRoutes(service).routes(),
        **TrustRoutes(service).routes(),
        **FailoverApi(service).routes(),
    }


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
