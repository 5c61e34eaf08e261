"""Replication sets: made, changed, deleted."""

from collections.abc import Callable, Sequence

import msgspec

from replicator import events
from replicator import repset as sets
from replicator.agent.core import Change, Core, NotFoundError
from replicator.agent.set_size import SetSize, size_of
from replicator.repset import ReplicationSet, Rule


class RepsetView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    generation: int
    rules: tuple[Rule, ...]
    connections: tuple[int, ...]
    advice: str = ""


class Repsets:
    """The replication sets of an agent."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def all(self) -> list[RepsetView]:
        return [self._view(repset) for repset in self._core.state.repsets]

    def get(self, name: str) -> RepsetView:
        return self._view(self.find(name))

    async def size(self, name: str) -> SetSize:
        """Counted now."""
        return await size_of(self.find(name))

    async def create(self, name: str, rules: Sequence[Rule]) -> RepsetView:
        async with self._core.change() as change:
            return self._view(await self.make(change, name, rules))

    async def make(self, change: Change, name: str, rules: Sequence[Rule]) -> ReplicationSet:
        """A step of a change."""
        sets.check_name(name)
        sets.check_unique(name, self.names())
        stored = await self._store(change, None, ReplicationSet(name, 0, tuple(rules)))
        change.undo(self._delete, change, name)
        return stored

    async def set_rules(self, name: str, rules: Sequence[Rule], generation: int | None) -> RepsetView:
        return await self._alter(name, generation, lambda current: sets.with_rules(current, rules))

    async def add_rule(self, name: str, rule: Rule, generation: int | None) -> RepsetView:
        return await self._alter(name, generation, lambda current: sets.add_rule(current, rule))

    async def remove_rule(self, name: str, path: str, generation: int | None) -> RepsetView:
        return await self._alter(name, generation, lambda current: sets.remove_rule(current, path))

    async def _alter(
        self, name: str, generation: int | None, alter: Callable[[ReplicationSet], ReplicationSet]
    ) -> RepsetView:
        async with self._core.change() as change:
            current = self.find(name)
            changed = alter(current)
            if generation is not None:
                changed = msgspec.structs.replace(changed, generation=generation)
            if changed == current:
                return self._view(current)
            stored = await self._store(change, current, changed)
            view = self._view(stored)
            return msgspec.structs.replace(view, advice=sets.advice_after_save(stored, view.connections))

    async def copy(self, name: str, new_name: str) -> RepsetView:
        async with self._core.change() as change:
            copy = sets.renamed(self.find(name), new_name, self.names())
            return self._view(await self._store(change, None, copy))

    async def rename(self, name: str, new_name: str) -> RepsetView:
        async with self._core.change() as change:
            current = self.find(name)
            sets.check_deletable(current, self._connection_ids(name))
            renamed = sets.renamed(current, new_name, self.names())
            return self._view(await self._store(change, current, renamed, replaces=name))

    async def delete(self, name: str) -> RepsetView:
        async with self._core.change() as change:
            return await self._delete(change, name)

    async def _delete(self, change: Change, name: str) -> RepsetView:
        current = self.find(name)
        sets.check_deletable(current, self._connection_ids(name))
        priorities = {n: p for n, p in self._core.state.priorities.items() if n != name}
        repsets = tuple(s for s in self._core.state.repsets if s.name != name)
        await change.save(repsets=repsets, priorities=priorities)
        self._core.events.add(events.REPSET_DELETED, repset=name)
        return self._view(current)

    async def _store(
        self, change: Change, current: ReplicationSet | None, changed: ReplicationSet, *, replaces: str = ""
    ) -> ReplicationSet:
        stored = sets.save(None if replaces else current, changed)
        others = [s for s in self._core.state.repsets if s.name != (replaces or changed.name)]
        priorities = {
            stored.name if name == replaces else name: priority
            for name, priority in self._core.state.priorities.items()
        }
        repsets = tuple(sorted([*others, stored], key=lambda s: s.name))
        await change.save(repsets=repsets, priorities=priorities)
        self._core.events.add(events.REPSET_MODIFIED, repset=stored.name, generation=stored.generation)
        return stored

    def find(self, name: str) -> ReplicationSet:
        for repset in self._core.state.repsets:
            if repset.name == name:
                return repset
        known = ", ".join(sorted(self.names())) or "none"
        raise NotFoundError(f"no replication set {name!r}; sets: {known}")

    def names(self) -> set[str]:
        return {repset.name for repset in self._core.state.repsets}

    def _connection_ids(self, repset: str) -> list[int]:
        return [c.id for c in self._core.state.connections if c.repset.name == repset]

    def _view(self, repset: ReplicationSet) -> RepsetView:
        return RepsetView(
            name=repset.name,
            generation=repset.generation,
            rules=repset.rules,
            connections=tuple(self._connection_ids(repset.name)),
        )
