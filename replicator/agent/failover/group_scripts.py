"""Scripts of the groups of this agent: chosen, tried, and run in their procedures (FO-10)."""

import os
from collections.abc import Callable

import msgspec
import trio

from replicator.agent.core import Core
from replicator.agent.failover.group_copies import GroupCopies
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.procedure import Facts
from replicator.agent.state import new_uuid
from replicator.errors import NotPermittedError, ReplicatorError, UsageError
from replicator.failover import scripts
from replicator.failover.occasion import Occasion, ScriptAddress, ScriptRoot
from replicator.failover.script_result import ScriptResult
from replicator.failover.scripts import Scripts
from replicator.failovers import Monitor, OnFailure, Script, ScriptKind
from replicator.repset import is_inside


class ScriptView(msgspec.Struct, frozen=True, kw_only=True):
    """A script as it is configured. `group` "": of monitors that are added from now on."""

    group: str
    kind: ScriptKind
    script: Script
    problems: tuple[str, ...] = ()


class ScriptRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A script as a user names it. What is None stays as it was, or is the default. `command` "": no script
    of that kind any more.
    """

    command: str | None = None
    wait: bool | None = None
    timeout_s: float | None = None
    on_failure: OnFailure | None = None


class GroupScripts:
    """`Service.failover.scripts`."""

    def __init__(self, core: Core, groups: Groups, copies: GroupCopies) -> None:
        self._core = core
        self._groups = groups
        self._copies = copies
        self.scripts = Scripts(os.path.join(core.home.failover, "scripts"), core.events.add)

    async def serve(self) -> None:
        """Tell how scripts end that nobody waits for."""
        await self.scripts.serve()

    # --- what is configured ---

    def defaults(self) -> dict[ScriptKind, Script]:
        """What a new monitor has. Raises UsageError: the configuration says what cannot be."""
        return scripts.defaults(self._core.config.failover)

    def views(self, key: str = "") -> list[ScriptView]:
        """Of one group, or of all and the defaults."""
        monitors = [self._groups.find(key)] if key else list(self._groups.all())
        found = [(m.name, kind, script) for m in monitors for kind, script in m.settings.scripts.items()]
        if not key:
            found += [("", kind, script) for kind, script in self.defaults().items()]
        return [
            ScriptView(group=name, kind=kind, script=script, problems=self._problems(kind, script))
            for name, kind, script in found
        ]

    def _problems(self, kind: ScriptKind, script: Script) -> tuple[str, ...]:
        if kind is ScriptKind.SOURCE_POST_FAILBACK:
            return ()  # it is on the source
        return tuple(scripts.problems(script))

    async def set(self, key: str, kind: ScriptKind, request: ScriptRequest) -> list[ScriptView]:
        """Choose, change or remove the script of a kind. Raises UsageError."""
        monitor = self._groups.find(key)
        chosen = dict(monitor.settings.scripts)
        if request.command == "":
            chosen.pop(kind, None)
        else:
            chosen[kind] = _changed(chosen.get(kind), request)
        settings = msgspec.structs.replace(monitor.settings, scripts=chosen)
        await self._groups.change(monitor.uuid, settings=settings)
        return self.views(key)

    # --- running them ---

    async def run(self, facts: Facts, attempt: str, say: Callable[[str], None]) -> None:
        """The script of a step: see `procedure.Scripts`."""
        result = await self._run(facts, attempt)
        say(f"{result.path}: {result.how()} after {result.duration_s:.1f} s")
        for line in result.output.splitlines():
            say(line)
        if not result.succeeded:
            text = f"the {facts.kind} script {result.path} failed: {result.how()}"
            await self._groups.note(facts.monitor, "script-failed", text)
            if result.stop:
                raise ReplicatorError(text)

    async def _run(self, facts: Facts, attempt: str) -> ScriptResult:
        script = facts.monitor.settings.scripts[facts.kind]
        point = min((c.applied_until for c in facts.copies if c.applied_until is not None), default=None)
        occasion = await self.occasion(
            facts.monitor, facts.kind, epoch=facts.epoch, reason=facts.reason, recovery_point=point
        )
        if facts.kind is ScriptKind.SOURCE_POST_FAILBACK:
            occasion = msgspec.structs.replace(occasion, roots=self._roots_at_home(facts))
        return await self.scripts.run(script, occasion, attempt)

    async def run_for_other(self, facts: Facts, attempt: str) -> ScriptResult:
        """The same for another agent, which has chosen the script: it may start what is in one directory, and
        nothing else. Raises ReplicatorError: it was not started, and may be later.
        """
        allowed = self._core.config.failover.scripts_for_others
        script = facts.monitor.settings.scripts[facts.kind]
        path = script.path
        if not allowed or not await trio.to_thread.run_sync(_is_below, path, allowed):
            raise NotPermittedError(
                f"{self._core.identity.name} runs no {path} for other agents: only what is in"
                f" {allowed or 'no directory at all'} (failover.scripts_for_others)"
            )
        if not self.scripts.has_begun(attempt) and (reason := scripts.obstacle(script)):
            raise ReplicatorError(reason)
        return await self._run(facts, attempt)

    def _roots_at_home(self, facts: Facts) -> tuple[ScriptRoot, ...]:
        """On the source, where the data is what it captures."""
        copies = facts.promotion.copies if facts.promotion is not None else facts.copies
        of_group = {copy.connection for copy in copies} | set(facts.monitor.settings.copies)
        return tuple(
            ScriptRoot(
                source=entry.source, replica=entry.source, connection=known.uuid, repset=known.repset.name
            )
            for known in self._core.state.connections
            if known.uuid in of_group
            for entry in known.maps
        )

    async def test(self, key: str, kind: ScriptKind) -> ScriptResult:
        """Run one with REPLICATOR_TEST=1, and wait for its end in any case. Raises UsageError."""
        monitor = self._groups.find(key)
        script = monitor.settings.scripts.get(kind)
        if script is None:
            have = ", ".join(monitor.settings.scripts) or "none"
            raise UsageError(f"{monitor.name} has no {kind} script; it has: {have}")
        if kind is ScriptKind.SOURCE_POST_FAILBACK:
            raise UsageError(f"the {kind} script is on {monitor.source_name or 'the source'}: run it there")
        occasion = await self.occasion(monitor, kind, epoch=monitor.epoch + 1, reason="test", test=True)
        waited = msgspec.structs.replace(script, wait=True)
        result = await self.scripts.run(waited, occasion, f"test-{new_uuid()}")
        await self._groups.note(monitor, "script-test", f"{kind} script {script.path}: {result.how()}")
        return result

    async def occasion(
        self,
        monitor: Monitor,
        kind: str,
        *,
        epoch: int,
        reason: str,
        recovery_point: float | None = None,
        test: bool = False,
    ) -> Occasion:
        settings = monitor.settings
        return Occasion(
            kind=kind,
            group=monitor.name,
            uuid=monitor.uuid,
            epoch=epoch,
            reason=reason,
            agent=self._core.identity.name,
            home=self._core.home.path,
            source=monitor.source_name or settings.source_host,
            source_uuid=monitor.source_uuid,
            source_host=settings.source_host,
            source_port=settings.source_port,
            addresses=tuple(ScriptAddress(a.address, a.interface) for a in settings.taken),
            roots=tuple(
                ScriptRoot(
                    source=root.source, replica=root.replica, connection=copy.connection, repset=copy.repset
                )
                for copy in await self._copies.of(monitor)
                for root in copy.roots
            ),
            recovery_point=recovery_point,
            test=test,
        )


def _is_below(path: str, directory: str) -> bool:
    return is_inside(os.path.realpath(path), os.path.realpath(directory))


def _changed(known: Script | None, request: ScriptRequest) -> Script:
    """Raises UsageError."""
    if known is None and request.command is None:
        raise UsageError("say which script it is")
    given = {
        name: value
        for name in ("wait", "timeout_s", "on_failure")
        if (value := getattr(request, name)) is not None
    }
    template = msgspec.structs.replace(known or Script(path=""), **given)
    if request.command is None:
        scripts.check(template)
        return template
    return scripts.from_command_line(request.command, template)
