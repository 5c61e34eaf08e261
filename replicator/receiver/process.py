"""The receiver as a process: one per connection, on the target. Its control calls, and its main."""

import base64
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec
import trio

from replicator.child import control, interpreter
from replicator.errors import ReplicatorError, UsageError
from replicator.failovers import Promotion
from replicator.fs import credentials
from replicator.fs.bare_files import BareFiles
from replicator.orphans import OrphanSettings
from replicator.paths import Home, remove_if_empty
from replicator.receiver.arguments import ReceiverArguments
from replicator.receiver.local_offers import serve_offers
from replicator.receiver.receiver import Receiver
from replicator.receiver.receiver_status import ReceiverStatus
from replicator.receiver.replica_tree import ReplicaTree
from replicator.security import tls
from replicator.security.channel import Handover, take_over
from replicator.world import World


def handlers(receiver: Receiver) -> dict[str, Callable[..., Awaitable[object]]]:
    """Control calls of a receiver."""

    async def adopt(
        first: str, other_targets: Sequence[str], handover: object = None, descriptors: Sequence[int] = ()
    ) -> None:
        """One descriptor, a TCP socket; `first`: what was read from it, in base64. `handover`: of a secured
        one.
        """
        if len(descriptors) != 1:
            for descriptor in descriptors:
                os.close(descriptor)
            raise UsageError("adopt needs one socket")
        stream = trio.SocketStream(trio.socket.socket(fileno=descriptors[0]))
        secured = None if handover is None else take_over(stream, msgspec.convert(handover, Handover))
        receiver.adopt(secured or stream, base64.b64decode(first), tuple(other_targets))

    async def status() -> ReceiverStatus:
        return receiver.status()

    async def pause() -> None:
        receiver.pause()

    async def resume() -> None:
        receiver.resume()

    async def use() -> None:
        await receiver.replica.ownership.take_into_use()

    async def set_orphans(settings: object) -> None:
        receiver.set_orphans(msgspec.convert(settings, OrphanSettings))

    async def restore_begins(restore: str) -> None:
        await receiver.restore_begins(restore)

    async def restore_ends(restore: str) -> None:
        await receiver.restore_ends(restore)

    async def drill_goes_on(restore: str) -> None:
        receiver.drill_hold.keep(restore)

    async def restored(restore: str, epoch: int, source_uuid: str = "") -> None:
        await receiver.restored(restore, epoch, source_uuid)

    async def shut(group: str) -> None:
        await receiver.shut(group)

    async def reopen(group: str) -> None:
        await receiver.reopen(group)

    async def promote(record: object) -> None:
        await receiver.promote(msgspec.convert(record, Promotion))

    async def learn(record: object) -> None:
        await receiver.learn(msgspec.convert(record, Promotion))

    async def seal() -> dict[str, bytes | None]:
        return await receiver.seal()

    async def drop_peer(uuid: str) -> None:
        receiver.drop_peer(uuid)

    async def stop() -> None:
        receiver.stop()

    async def forget() -> None:
        receiver.forget()

    return {
        "adopt": adopt,
        "status": status,
        "pause": pause,
        "resume": resume,
        "use": use,
        "set_orphans": set_orphans,
        "restore_begins": restore_begins,
        "restore_ends": restore_ends,
        "drill_goes_on": drill_goes_on,
        "restored": restored,
        "shut": shut,
        "reopen": reopen,
        "promote": promote,
        "learn": learn,
        "seal": seal,
        "drop_peer": drop_peer,
        "stop": stop,
        "forget": forget,
    }


async def serve(world: World, arguments: ReceiverArguments) -> None:
    """The whole process: control socket and receiver."""
    receiver = Receiver(
        world,
        arguments,
        partial(
            ReplicaTree,
            keeps_existing=arguments.keeps_existing,
            keep_deleted=arguments.keep_deleted,
            bare=BareFiles(Home(arguments.home).bare_files, world.clock.boot_id()),
        ),
    )
    socket_path = Home(arguments.home).socket("receiver", arguments.connection_uuid)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def stop_on_signal() -> None:
                async for _ in signals:
                    receiver.stop()

            nursery.start_soon(stop_on_signal)
            nursery.start_soon(serve_offers, arguments.connection_uuid, receiver.offer, receiver.own)
            await nursery.start(partial(control.serve, socket_path, handlers(receiver)))
            await receiver.run()
            nursery.cancel_scope.cancel()
    if receiver.forgotten:
        target = Home(arguments.home).target(arguments.connection_uuid)
        for directory in (arguments.memory_directory, arguments.disk_directory or target, target):
            shutil.rmtree(directory, ignore_errors=True)
        remove_if_empty(os.path.dirname(arguments.memory_directory))


def preload() -> None:
    """Import what nearly every session uses: for whoever forks these, so that none of them has to."""
    tls.preload()


def run(arguments_file: str) -> None:
    """`python -m replicator.receiver.process --arguments FILE`."""
    with open(arguments_file, "rb") as file:
        arguments = msgspec.json.decode(file.read(), type=ReceiverArguments)
    credentials.prepare_process()
    interpreter.tune()
    try:
        trio.run(serve, World(), arguments)
    except ReplicatorError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--arguments":
        raise SystemExit("usage: python -m replicator.receiver.process --arguments FILE")
    run(sys.argv[2])
