"""The sender as a process: one per connection, on the source. Its control calls, and its main."""

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import msgspec
import trio

from replicator.child import control, interpreter
from replicator.diagnostics import is_nowhere
from replicator.paths import Home
from replicator.security import tls
from replicator.sender.arguments import SenderArguments
from replicator.sender.copies import Adoption, open_copies, stream_of
from replicator.sender.dialler import Dialler
from replicator.sender.journals import open_flows
from replicator.sender.nowhere import Nowhere
from replicator.sender.sender import Sender
from replicator.world import World


def handlers(sender: Sender) -> dict[str, Callable[..., Awaitable[object]]]:
    """Control calls of a sender."""

    def plain(function: Callable[..., object]) -> Callable[..., Awaitable[object]]:
        async def call(**arguments: object) -> object:
            return function(**arguments)

        return call

    async def wait(sequences: dict[str, int], timeout_s: float | None = None) -> bool:
        return await sender.wait(sequences, timeout_s)

    names = (
        "status mirror_start mirror_stop mirror_pause mirror_resume replicate_start replicate_stop "
        "supersede transmit_start transmit_stop transmit_pause transmit_resume set_schedule set_transmission "
        "set_limit_calendar stop lag configure set_recovery drop_peer recovering force_source "
        "orphans_start orphans "
        "verify_start verify_act verify_schedule verify_background verify_progress runs"
    )
    calls = {name: plain(getattr(sender, name)) for name in names.split()}
    story = plain(sender.story.since)
    calls["orphans_act"] = sender.orphans_act
    calls["tail"] = sender.tail
    return calls | {"wait": wait, "disconnect": sender.disconnect, "story": story, "why": sender.why}


async def serve(world: World, arguments: SenderArguments) -> None:
    """The whole process: flows, control socket, sender."""
    if arguments.is_restore:
        await _serve_restore(world, arguments)
        return
    if is_nowhere(arguments.target_host):
        await _serve_nowhere(world, arguments)
        return
    world = replace(world, connect=Dialler(arguments, world.connect).dial)
    flows = await open_flows(world, arguments)
    sender = Sender(world, arguments, flows)
    await _run(sender, arguments, handlers(sender))


async def _serve_restore(world: World, arguments: SenderArguments) -> None:
    adoption = Adoption()
    world = replace(world, connect=adoption.dial)
    flows, writers = open_copies(world, arguments)
    sender = Sender(world, arguments, flows)

    async def adopt(descriptors: Sequence[int] = (), handover: object = None) -> None:
        adoption.give(stream_of(descriptors, handover))
        sender.begin_session()

    await _run(sender, arguments, handlers(sender) | {"adopt": adopt})
    for writer in writers:
        writer.close(persist=False)


async def _serve_nowhere(world: World, arguments: SenderArguments) -> None:
    nowhere = Nowhere(world, Home(arguments.home).diagnostics(arguments.connection_uuid))
    world = replace(world, connect=nowhere.dial)
    sender = Sender(world, arguments, await open_flows(world, arguments))

    async def diagnostics(*, reset: bool = False, lines: Mapping[str, int] | None = None) -> object:
        if reset:
            nowhere.reset()
        return nowhere.report(lines)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(nowhere.run)
        await _run(sender, arguments, handlers(sender) | {"diagnostics": diagnostics})
        nursery.cancel_scope.cancel()


async def _run(
    sender: Sender, arguments: SenderArguments, calls: dict[str, Callable[..., Awaitable[object]]]
) -> None:
    socket_path = Home(arguments.home).socket("sender", arguments.connection_uuid)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(control.serve, socket_path, calls))
        await sender.run()
        nursery.cancel_scope.cancel()


def preload() -> None:
    """Import what nearly every session uses: for whoever forks these, so that none of them has to."""
    tls.preload()


def run(arguments_file: str) -> None:
    """`python -m replicator.sender.process --arguments FILE`."""
    with open(arguments_file, "rb") as file:
        arguments = msgspec.json.decode(file.read(), type=SenderArguments)
    interpreter.tune()
    trio.run(serve, World(), arguments)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--arguments":
        raise SystemExit("usage: python -m replicator.sender.process --arguments FILE")
    run(sys.argv[2])
