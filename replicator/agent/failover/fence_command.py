"""The fence command of a group (STONITH): it switches the source off before anything is taken over.

A line for /bin/sh, run as scripts are (`failover/scripts.py`): once per attempt, also over a restart of the
agent, bounded in time and output, with their environment. Nothing but exit code 0 means that the source is
off.
"""

from replicator import limits
from replicator.agent.failover.group_scripts import GroupScripts
from replicator.agent.failover.procedure import Say
from replicator.errors import ReplicatorError
from replicator.failovers import Monitor, OnFailure, Script

KIND = "fence"


class FenceCommand:
    """`procedure.Fence`."""

    def __init__(self, scripts: GroupScripts) -> None:
        self._scripts = scripts

    async def fence(self, monitor: Monitor, *, epoch: int, reason: str, attempt: str, say: Say) -> None:
        """See `procedure.Fence`."""
        command = monitor.settings.fence_command
        script = Script(
            path="/bin/sh",
            arguments=("-c", command),
            timeout_s=limits.FENCE_TIMEOUT_S,
            on_failure=OnFailure.STOP,
        )
        occasion = await self._scripts.occasion(monitor, KIND, epoch=epoch, reason=reason)
        result = await self._scripts.scripts.run(script, occasion, attempt)
        for line in result.output.splitlines():
            say(line)
        if not result.succeeded:
            source = monitor.source_name or monitor.settings.source_host
            raise ReplicatorError(
                f"the fence command did not say that {source} is off ({result.how()}): {command};"
                f" if it is off for certain, dtctl failover now {monitor.name} --force"
            )
        say(f"the source is off, says the fence command after {result.duration_s:.1f} s")
