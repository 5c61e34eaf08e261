"""Bodies of requests to the control API: read within bounds, and checked."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import trio
from starlette.requests import Request

from replicator import limits
from replicator.agent.wrong_values import in_words
from replicator.bounds import MALFORMED
from replicator.errors import UsageError

T = TypeVar("T", bound=msgspec.Struct)

Handler = Callable[[Request], Awaitable[object]]
"""Answers a request; what it returns becomes the JSON of the answer."""

Routes = dict[str, dict[str, Handler]]
"""By path, and then by method."""

RUN_ACTIONS = ("start", "stop", "pause", "resume")
"""What can be done with something that goes on for a while."""


class BodyTooLargeError(UsageError):
    """A request is larger than any sensible one."""


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all request bodies: what is not known is refused."""


class ActionBody(Body, frozen=True, kw_only=True):
    action: str


class Empty(Body, frozen=True, kw_only=True):
    pass


async def read_body(request: Request, type_: type[T]) -> T:
    """The checked body; an empty one stands for {}. Raises UsageError."""
    data = bytearray()  # of many small chunks: none is copied twice
    with trio.move_on_after(limits.API_BODY_TIMEOUT_S) as scope:
        async for chunk in request.stream():
            data += chunk
            if len(data) > limits.API_BODY_BYTES:
                raise BodyTooLargeError(f"request body: at most {limits.API_BODY_BYTES} bytes are allowed")
    if scope.cancelled_caught:
        raise UsageError(f"request body: it did not come within {limits.API_BODY_TIMEOUT_S:.0f} s")
    try:
        request.state.body = body = msgspec.json.decode(data or b"{}", type=type_)
        return body
    except msgspec.ValidationError as error:
        raise UsageError(in_words(error, type_)) from None
    except MALFORMED as error:
        raise UsageError(f"request body: not valid JSON: {error}") from None


def check_action(body: ActionBody, *allowed: str) -> str:
    """The action. Raises UsageError."""
    if body.action not in allowed:
        raise UsageError(f"action {body.action!r}: must be one of {', '.join(allowed)}")
    return body.action
