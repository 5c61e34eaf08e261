"""The spare of an agent: a process that has imported all that a sender or a receiver needs, and waits.

It holds nothing but the end of a pair of sockets (descriptor 3). An order in there makes it that child, which
then differs in nothing from one that was started as such, and outlives the agent. The end of the agent is the
end of the spare.
"""

import os
import sys
from importlib import import_module

import msgspec
from setproctitle import setproctitle, setthreadtitle

from replicator import limits
from replicator.agent.launcher import OF_SPARES, READY, Launch
from replicator.child.control import READY_VARIABLE


def wait(agent: int) -> Launch | None:
    """Say that everything is imported, and wait for the order. None: the agent has ended."""
    try:
        os.write(agent, READY)
        order = os.read(agent, limits.SPARE_ORDER_BYTES)
    except OSError:
        return None
    return msgspec.json.decode(order, type=Launch) if order else None


def become(launch: Launch) -> None:
    """Be that child from here on. Its control socket, once it answers, closes the pair of sockets."""
    log = os.open(launch.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    show(launch.command)
    import_module(f"replicator.{launch.role}.process").main(launch.arguments_file)


def show(command: list[str]) -> None:
    """What `ps` shows: the command line that would have started this process."""
    setproctitle(" ".join(command))
    setthreadtitle(os.path.basename(command[0]))  # the other one, of `ps -o comm`, was changed as well


def main() -> None:
    """`python -m replicator.agent.spare --home HOME [ROLE]`, with `READY_VARIABLE` in its environment.

    HOME only says to people whose it is. ROLE: imports only what that one needs, to be ready sooner.
    """
    for role in sys.argv[3:] or OF_SPARES:
        import_module(f"replicator.{role}.process")
    show([*sys.orig_argv, "(ready)"])
    launch = wait(int(os.environ[READY_VARIABLE]))
    if launch is not None:
        become(launch)


if __name__ == "__main__":
    main()
