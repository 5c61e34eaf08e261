"""Who this agent is, and whom it trusts."""

import trio
from starlette.requests import Request

from replicator.agent.api_body import ActionBody, Body, Routes, check_action, read_body
from replicator.agent.service import Service


class PairBody(Body, frozen=True, kw_only=True):
    host: str
    code: str


class PeerBody(ActionBody, frozen=True, kw_only=True):
    peer: str


class TrustRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def identity(self, request: Request) -> object:
        return self._service.peers.view()

    async def act_on_identity(self, request: Request) -> object:
        check_action(await read_body(request, ActionBody), "renew")
        view = await trio.to_thread.run_sync(self._service.peers.renew)
        self._service.peers.wake()
        return view

    async def peers(self, request: Request) -> object:
        return self._service.peers.peers()

    async def act_on_peers(self, request: Request) -> object:
        body = await read_body(request, PeerBody)
        return await self._service.act_on_peer(
            check_action(body, "revoke", "restores-all", "restores-own"), body.peer
        )

    async def pairing(self, request: Request) -> object:
        return self._service.pairing.view()

    async def act_on_pairing(self, request: Request) -> object:
        action = check_action(await read_body(request, ActionBody), "open", "close")
        return self._service.pairing.open() if action == "open" else self._service.pairing.close()

    async def pair(self, request: Request) -> object:
        body = await read_body(request, PairBody)
        return await self._service.pair(body.host, body.code)

    def routes(self) -> Routes:
        return {
            "/v1/identity": {"GET": self.identity, "POST": self.act_on_identity},
            "/v1/peers": {"GET": self.peers, "POST": self.act_on_peers},
            "/v1/pairing": {"GET": self.pairing, "POST": self.act_on_pairing},
            "/v1/pair": {"POST": self.pair},
        }
