"""Waiting until little is left to be brought home, while programs still write (FB-02).

Nobody is held up by that, so it may take as long as it likes; but what only a person can set going is said.
"""

from typing import Protocol

import trio

from replicator import limits
from replicator.agent.connections import WaitTimeoutError
from replicator.agent.failover.failback_parts import Say
from replicator.agent.state import Connection
from replicator.status import ConnectionStatus, MirrorStatus, TargetDataState, TargetStatus, TransmitMode


class Connections(Protocol):
    """`agent.connections.Connections`."""

    async def wait(self, key: str, timeout_s: float | None) -> ConnectionStatus: ...
    async def status(self, connection: Connection) -> ConnectionStatus: ...


_TRANSMISSION = {
    TransmitMode.PAUSED: "is paused",
    TransmitMode.STOPPED: "is stopped",
    TransmitMode.SCHEDULED: "waits for its schedule",
    TransmitMode.ERROR: "was ended by an error",
}


async def catch_up(connections: Connections, connection: Connection, say: Say) -> None:
    """Returns when what is queued takes less than `limits.FAILBACK_CLOSE_S` to be applied at home. Raises
    ReplicatorError: the connection is gone, or does not replicate.
    """
    before = said = ""
    while True:
        began_s = trio.current_time()
        try:
            status = await connections.wait(connection.uuid, limits.FAILBACK_SAY_S)
            if _is_level(status) and trio.current_time() - began_s < limits.FAILBACK_CLOSE_S:
                return
        except WaitTimeoutError:
            status = await connections.status(connection)
        held = held_up(status)
        if held == before != said:  # twice: one that was just made begins by itself
            said = held
            if held:
                say(held)
        before = held
        await trio.sleep(limits.FAILBACK_LOOK_S)


def _is_level(status: ConnectionStatus) -> bool:
    return status.target_data_state is TargetDataState.OK and status.mirror_status is MirrorStatus.IDLE


def held_up(status: ConnectionStatus) -> str:
    """Why nothing is brought home before a person does something; "": it is on its way, or the host that it
    goes to is not there.
    """
    if status.transmit_mode is not TransmitMode.STARTED:
        what, command = f"transmission {_TRANSMISSION[status.transmit_mode]}", "transmit start"
    elif status.mirror_status is MirrorStatus.PAUSED:
        what, command = "the mirror is paused", "mirror resume"
    elif (
        status.target_status is TargetStatus.OK
        and status.mirror_status is MirrorStatus.IDLE
        and status.target_data_state is not TargetDataState.OK
    ):
        what = f"the copy there is in state {status.target_data_state.value}, and no mirror runs"
        command = "mirror start"
    else:
        return ""
    return f"connection {status.id} brings nothing home: {what} (dtctl {command} {status.id})"
