"""Replication sets."""

from starlette.requests import Request

from replicator.agent.api_body import Body, Empty, Routes, read_body
from replicator.agent.routes.asked import generation_of
from replicator.agent.service import Service
from replicator.bounds import Size
from replicator.repset import DEFAULT_NAME, Rule


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


class RepsetRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def repsets(self, request: Request) -> object:
        return self._service.repsets.all()

    async def create_repset(self, request: Request) -> object:
        body = await read_body(request, RepsetBody)
        return await self._service.repsets.create(body.name, body.rules)

    async def repset(self, request: Request) -> object:
        return self._service.repsets.get(request.path_params["name"])

    async def set_rules(self, request: Request) -> object:
        body = await read_body(request, RulesBody)
        generation = generation_of(request, body.generation)
        return await self._service.repsets.set_rules(request.path_params["name"], body.rules, generation)

    async def delete_repset(self, request: Request) -> object:
        await read_body(request, Empty)
        return await self._service.repsets.delete(request.path_params["name"])

    async def add_rule(self, request: Request) -> object:
        body = await read_body(request, RuleBody)
        rule = Rule(body.path, body.include, body.recursive)
        generation = generation_of(request, body.generation)
        return await self._service.repsets.add_rule(request.path_params["name"], rule, generation)

    async def remove_rule(self, request: Request) -> object:
        body = await read_body(request, RuleBody)
        generation = generation_of(request, body.generation)
        return await self._service.repsets.remove_rule(request.path_params["name"], body.path, generation)

    async def rename_repset(self, request: Request) -> object:
        body = await read_body(request, NameBody)
        return await self._service.repsets.rename(request.path_params["name"], body.new_name)

    async def copy_repset(self, request: Request) -> object:
        body = await read_body(request, NameBody)
        return await self._service.repsets.copy(request.path_params["name"], body.new_name)

    async def size_of_repset(self, request: Request) -> object:
        await read_body(request, Empty)
        return await self._service.repsets.size(request.path_params["name"])

    def routes(self) -> Routes:
        return {
            "/v1/repsets": {"GET": self.repsets, "POST": self.create_repset},
            "/v1/repsets/{name}": {"GET": self.repset, "PUT": self.set_rules, "DELETE": self.delete_repset},
            "/v1/repsets/{name}/rules": {"POST": self.add_rule, "DELETE": self.remove_rule},
            "/v1/repsets/{name}/rename": {"POST": self.rename_repset},
            "/v1/repsets/{name}/copy": {"POST": self.copy_repset},
            "/v1/repsets/{name}/size": {"POST": self.size_of_repset},
        }
