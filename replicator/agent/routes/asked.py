"""What a request says beside its body."""

import re

from starlette.requests import Request

from replicator.agent.gate import Peer
from replicator.errors import UsageError

_ETAG = re.compile(r'(?:W/)?"(\d{1,9})"')


def peer_of(request: Request) -> Peer:
    peer: Peer = request.state.peer
    return peer


def token_of(request: Request) -> str | None:
    """Of a login: what follows `Authorization: Bearer`."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def target_named(request: Request) -> str:
    target = request.query_params.get("target")
    if target is None or len(request.query_params) != 1:
        raise UsageError("say which target: ?target=HOST, and nothing else")
    return target


def generation_of(request: Request, given: int | None) -> int | None:
    """The generation a change was made from: of the body, else of If-Match (RS-12)."""
    header = request.headers.get("if-match")
    if given is not None or header is None or header.strip() == "*":
        return given
    match = _ETAG.fullmatch(header.strip())
    if match is None:
        raise UsageError(f'If-Match: {header!r} is no generation; write it as "3", with the quotes')
    return int(match[1])


def since_and_most(request: Request, most: int) -> tuple[int, int]:
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
