"""Takes and gives up addresses on the host that it runs on: a network namespace.

    with driver(host, tmp_path) as there:
        there.ask("take", monitor, forced=False)      # {"result": ..., "error": ..., "said": [...], ...}

A process, because the namespaces of a process are those in which it was started. One JSON value a line.
"""

import functools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from kit.hosts import Host
from replicator import limits
from replicator.agent.failover.addresses import GroupAddresses
from replicator.errors import ReplicatorError
from replicator.events import EventType
from replicator.failovers import Monitor
from replicator.world import RealDisk

ROOT = Path(__file__).parents[2]
_ANSWER_S = 30


class Driver:
    """Use `driver`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, what: str, *arguments: object, **options: object) -> dict[str, Any]:
        """A method of GroupAddresses: "probe", "take", … A Monitor comes first where it wants one."""
        assert self._process.stdin is not None and self._process.stdout is not None
        line = json.dumps([what, msgspec.to_builtins(arguments), options])
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def kill(self) -> None:
        self._process.kill()


@contextmanager
def driver(
    host: Host, directory: Path, announced_s: Sequence[float] = limits.ADDRESS_ANNOUNCED_S
) -> Iterator[Driver]:
    """`announced_s`: when it announces again what it has taken."""
    command = [*host.command, sys.executable, "-m", "kit.address_driver", str(directory)]
    command.append(json.dumps(announced_s))
    environment = {"PYTHONPATH": f"{ROOT}/tests:{ROOT}", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield Driver(process)
    finally:
        process.stdin.close() if process.stdin else None
        try:
            process.wait(_ANSWER_S)
        finally:
            process.kill()
            process.stdout.close() if process.stdout else None


async def _main(directory: str) -> None:
    told: list[str] = []

    def add_event(type_: EventType, **fields: object) -> None:
        told.append(f"{type_.id} {type_.text.format(**fields)}")

    group = GroupAddresses(RealDisk(), f"{directory}/addresses.json", add_event)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(group.run)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            told.clear()
            print(json.dumps(await _answer(group, *json.loads(line)) | {"events": list(told)}), flush=True)
        nursery.cancel_scope.cancel()


async def _answer(
    group: GroupAddresses, what: str, arguments: list[Any], options: dict[str, Any]
) -> dict[str, Any]:
    said: list[str] = []
    call = getattr(group, what)
    if what in ("probe", "take", "give_up", "set_host_name"):
        arguments[0] = msgspec.convert(arguments[0], Monitor)
    if what in ("probe", "take", "give_up", "put_back"):
        call = functools.partial(call, say=said.append)
    if what in ("probe", "take", "put_back"):
        options.setdefault("forced", False)
    began_s = trio.current_time()
    try:
        result, error = msgspec.to_builtins(await call(*arguments, **options)), ""
    except (ReplicatorError, OSError) as failure:
        result, error = None, str(failure)
    return {"result": result, "error": error, "said": said, "seconds": trio.current_time() - began_s}


if __name__ == "__main__":
    limits.ADDRESS_ANNOUNCED_S = tuple(json.loads(sys.argv[2]))
    trio.run(_main, sys.argv[1])
