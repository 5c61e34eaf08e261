"""Tells a script that a person is asked whether to fail over (FO-09): it may page somebody."""

from replicator.agent.failover.group_scripts import GroupScripts
from replicator.failovers import Monitor, ScriptKind


async def tell_script(scripts: GroupScripts, monitor: Monitor, reason: str) -> None:
    """Once for each question, over restarts of the agent. What the script does changes nothing."""
    script = monitor.settings.scripts.get(ScriptKind.QUESTION)
    if script is None:
        return
    occasion = await scripts.occasion(monitor, ScriptKind.QUESTION, epoch=monitor.epoch, reason=reason)
    attempt = f"{monitor.uuid}-question-{monitor.since * 1000:.0f}"
    await scripts.scripts.run(script, occasion, attempt)
