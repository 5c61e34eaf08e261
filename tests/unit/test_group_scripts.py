"""Scripts of groups: chosen, tried, run for a procedure, and for another agent."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from replicator.agent.core import Core
from replicator.agent.failover.group_copies import GroupCopies, GroupCopy
from replicator.agent.failover.group_scripts import GroupScripts, ScriptRequest
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.procedure import Facts
from replicator.config import Config, Failover
from replicator.errors import NotPermittedError, ReplicatorError, UsageError
from replicator.failover.script_result import Outcome
from replicator.failovers import (
    CopyReport,
    Monitor,
    MonitorSettings,
    OnFailure,
    Script,
    ScriptKind,
    Take,
    WatchedAddress,
)
from replicator.paths import Home
from replicator.restores import Root

UUID = "6f1c7b1e-0f3e-4e0a-b1d1-1d9d7c1b2a11"
POST, HOME = ScriptKind.POST_FAILOVER, ScriptKind.SOURCE_POST_FAILBACK
ADDRESSES = (
    WatchedAddress(address="10.0.0.5/24", interface="eth0"),
    WatchedAddress(address="10.0.0.6/24", monitored=False),
)


class Setting:
    """An agent's part that scripts need."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path
        self.for_others = tmp_path / "for others"
        self.for_others.mkdir()
        self.monitor = Monitor(
            uuid=UUID,
            name="web",
            epoch=4,
            settings=MonitorSettings(source_host="alpha", addresses=ADDRESSES, take=Take.ALL),
        )
        self.notes: list[str] = []
        failover = Failover(pre_failback="/etc/x", scripts_for_others=str(self.for_others))
        entry = SimpleNamespace(source="/srv/data", target="/srv/copies/data")
        connection = SimpleNamespace(uuid="c", repset=SimpleNamespace(name="data"), maps=(entry,))
        core = SimpleNamespace(
            home=Home(str(tmp_path / "home")),
            identity=SimpleNamespace(name="beta"),
            config=Config(failover=failover),
            events=SimpleNamespace(add=lambda *_, **__: None),
            state=SimpleNamespace(connections=(connection,)),
        )
        groups = SimpleNamespace(
            find=lambda key: self.monitor, all=lambda: (self.monitor,), change=self._change, note=self._note
        )
        self.scripts = GroupScripts(
            cast(Core, core), cast(Groups, groups), cast(GroupCopies, SimpleNamespace(of=self._copies))
        )

    async def _change(self, uuid: str, **fields: Any) -> Monitor:
        self.monitor = msgspec.structs.replace(self.monitor, **fields)
        return self.monitor

    async def _note(self, monitor: Monitor, what: str, text: str) -> None:
        self.notes.append(text)

    async def _copies(self, monitor: Monitor) -> list[GroupCopy]:
        roots = (Root("/srv/data", "/srv/copies/data"),)
        return [GroupCopy(connection="c", repset="data", roots=roots)]

    def write(self, text: str, directory: Path | None = None) -> str:
        path = (directory or self.directory) / "script"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def facts(self, kind: ScriptKind, script: Script) -> Facts:
        settings = msgspec.structs.replace(self.monitor.settings, scripts={kind: script})
        return Facts(
            monitor=msgspec.structs.replace(self.monitor, settings=settings),
            kind=kind,
            epoch=5,
            reason="it is dead",
            forced=False,
            copies=(CopyReport(connection="c", applied_until=2.5), CopyReport(connection="d")),
        )


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


async def test_a_script_is_chosen_changed_and_removed(setting: Setting) -> None:
    scripts = setting.scripts
    await scripts.set("web", POST, ScriptRequest(command="/bin/true 'a b'", timeout_s=9))
    (view,) = await scripts.set("web", POST, ScriptRequest(on_failure=OnFailure.STOP))
    assert view.script == Script(path="/bin/true", arguments=("a b",), timeout_s=9, on_failure=OnFailure.STOP)
    assert view.problems == ()
    (view,) = await scripts.set("web", POST, ScriptRequest(command="/no/such"))
    assert view.problems == ("/no/such: No such file or directory",) and view.script.timeout_s == 9
    assert {v.group: v.kind for v in scripts.views()} == {"web": POST, "": ScriptKind.PRE_FAILBACK}
    assert await scripts.set("web", POST, ScriptRequest(command="")) == []
    with pytest.raises(UsageError, match="which script"):
        await scripts.set("web", POST, ScriptRequest(wait=False))
    with pytest.raises(UsageError, match="absolute"):
        await scripts.set("web", POST, ScriptRequest(command="true"))


async def test_one_is_tried(setting: Setting) -> None:
    path = setting.write('echo "$REPLICATOR_TEST $REPLICATOR_EPOCH $REPLICATOR_ROOT_1"; exit 2')
    with pytest.raises(UsageError, match="has no post-failover script; it has: none"):
        await setting.scripts.test("web", POST)
    await setting.scripts.set("web", POST, ScriptRequest(command=path, wait=False))
    result = await setting.scripts.test("web", POST)
    assert (result.outcome, result.output) == (Outcome.FAILED, "1 5 /srv/copies/data\n")
    assert setting.notes == [f"post-failover script {path}: exit code 2"]
    await setting.scripts.set("web", HOME, ScriptRequest(command=path))
    with pytest.raises(UsageError, match="run it there"):
        await setting.scripts.test("web", HOME)


async def test_a_step_of_a_procedure(setting: Setting) -> None:
    path = setting.write(
        'echo "$REPLICATOR_REASON $REPLICATOR_RECOVERY_POINT_S $REPLICATOR_ADDRESSES"; exit 1'
    )
    said: list[str] = []
    await setting.scripts.run(setting.facts(POST, Script(path=path)), "one", said.append)
    assert said[1:] == ["it is dead 2.500000 2"] and "exit code 1" in said[0]
    stops = Script(path=path, on_failure=OnFailure.STOP)
    with pytest.raises(ReplicatorError, match=r"the post-failover script .* failed: exit code 1"):
        await setting.scripts.run(setting.facts(POST, stops), "two", said.append)
    assert setting.notes == 2 * [f"the post-failover script {path} failed: exit code 1"]


async def test_another_agent_starts_what_lies_in_one_directory_and_nothing_else(setting: Setting) -> None:
    allowed = setting.write('echo "$REPLICATOR_ROOT_1 $REPLICATOR_SOURCE_ROOT_1"', setting.for_others)
    ran = await setting.scripts.run_for_other(setting.facts(HOME, Script(path=allowed)), "one")
    assert ran.output == "/srv/data /srv/data\n"  # on the source the data is where it captures it
    elsewhere = setting.write(f"touch {setting.directory}/ran")
    (setting.for_others / "link").symlink_to(elsewhere)
    for path in (
        elsewhere,
        f"{setting.for_others}/../script",
        f"{setting.for_others}/link",
        f"{setting.for_others} 2/script",
        "/bin/sh",
    ):
        with pytest.raises(NotPermittedError, match="scripts_for_others"):
            await setting.scripts.run_for_other(setting.facts(HOME, Script(path=path)), "two")
    assert not (setting.directory / "ran").exists()


async def test_another_agent_is_told_how_it_failed_and_asks_again_for_what_did_not_start(
    setting: Setting,
) -> None:
    script = Script(path=setting.write("exit 3", setting.for_others), on_failure=OnFailure.STOP)
    facts = setting.facts(HOME, script)
    setting.for_others.joinpath("script").chmod(0o644)
    with pytest.raises(ReplicatorError, match="not executable: chmod"):
        await setting.scripts.run_for_other(facts, "one")
    setting.for_others.joinpath("script").chmod(0o755)
    assert (await setting.scripts.run_for_other(facts, "one")).how() == "exit code 3"
    setting.for_others.joinpath("script").unlink()
    assert (await setting.scripts.run_for_other(facts, "one")).how() == "exit code 3"  # it did run
