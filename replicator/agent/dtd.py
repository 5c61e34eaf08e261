"""`dtd`: the agent of a host, in the foreground.

Everything is assembled in `run_agent`; it ends in the reverse order. The processes that move data are its
children and are not ended with it unless that is asked for.
"""

import argparse
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module

import trio

from replicator import events, limits
from replicator.addresses import Address, parse_host_port
from replicator.agent import fork_server
from replicator.agent.children import Children
from replicator.agent.core import Core
from replicator.agent.eventlog import EventLog
from replicator.agent.launcher import Launcher, code_version
from replicator.agent.listener import Greeter, PortInUseError, note_other_port, open_listeners, permitted
from replicator.agent.peers import EVERYBODY, Peers, make_identity, settings_of
from replicator.agent.process import NOTIFY_VARIABLE, Process
from replicator.agent.service import Service
from replicator.agent.state import State, load_identity, load_state
from replicator.agent.supervisor import Supervisor, stop_serving
from replicator.agent.watch import Watch
from replicator.config import Config, load
from replicator.errors import ExitCode, NotPermittedError, ReplicatorError, UsageError
from replicator.events import EventRing
from replicator.fs import mounts as fs_mounts
from replicator.net import congestion
from replicator.paths import (
    HOME_VARIABLE,
    ROLES,
    Home,
    Role,
    create_memory_directory,
    default_home,
    memory_directory,
    remove_if_empty,
)

_DESCRIPTION = (
    "The replication agent of a host, in the foreground. SIGTERM ends it cleanly; mounts go on serving."
)

_EXAMPLES = f"""\
examples:
  dtd                                            home {HOME_VARIABLE}, else /var/lib/replicator
  dtd --home /srv/agent --listen 127.0.0.1:1600  a second agent on the same host
  dtd --home /srv/agent --stop-mounts            stop everything, mounts too
"""


class LockedError(ReplicatorError):
    """Another agent has this home."""


# --- command line ---


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with a code of `errors.ExitCode`; users' mistakes are one line on stderr."""
    options = _parser().parse_args(arguments)
    os.umask(0o077)  # what an agent keeps is root's, whatever it was started with
    try:
        if os.geteuid() != 0:
            raise NotPermittedError("dtd must run as root: it mounts file systems and keeps owners of files")
        home = Home(os.path.abspath(options.home))
        if options.stop_mounts:
            stop_mounts(home, force=options.force)
        else:
            run(home, options)
    except ReplicatorError as error:
        print(f"dtd: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(int(error.exit_code))
    except KeyboardInterrupt:
        sys.exit(int(ExitCode.FAILED))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "dtd",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--home", metavar="DIR", default=default_home(), help="everything of this agent lives there"
    )
    parser.add_argument(
        "--name", help="how others see this agent (default: as before, at first the host name)"
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help=f"for sources (default: {limits.LISTEN})")
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="speak plain text with everybody: nobody is authenticated, nothing encrypted",
    )
    parser.add_argument("--config", metavar="FILE", help="instead of DIR/replicator.toml")
    parser.add_argument(
        "--stop-mounts", action="store_true", help="stop the agent of DIR and unmount what it captures"
    )
    parser.add_argument(
        "--force", action="store_true", help="with --stop-mounts: detach mounts that are in use"
    )
    return parser


def run(home: Home, options: argparse.Namespace) -> None:
    """Be the agent of `home` until a signal. Raises ReplicatorError if it cannot be."""
    code = code_version()
    config = load(home.path, options.config)
    listen = _listen_address(config, options)
    congestion.check(config.connection.congestion_control)
    _create(home)
    with locked(home):
        state = load_state(home.state)
        os.chdir("/")  # whatever was the current directory must not be kept busy
        launcher = Launcher(fork_server.start(home, _expected(home, state)), code)
        name = options.name or config.agent.name
        insecure = options.insecure or config.agent.insecure
        trio.run(run_agent, home, config, listen, name, state, launcher, insecure)


def _expected(home: Home, state: State) -> list[Role]:
    """Roles of the children that will be started at once."""
    there = {"capture": state.mounts, "sender": state.connections, "receiver": os.listdir(home.targets)}
    return [role for role in ROLES if there[role]]


def _create(home: Home) -> None:
    try:
        home.create()
    except OSError as error:
        raise ReplicatorError(f"home directory {home.path}: {error.strerror} ({error.filename})") from error


def _listen_address(config: Config, options: argparse.Namespace) -> Address:
    return parse_host_port(options.listen or config.agent.listen)


@contextmanager
def locked(home: Home) -> Iterator[None]:
    """Hold the lock of `home`. Raises LockedError if another agent has it."""
    descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise LockedError(
                f"another agent{f' (pid {owner})' if owner else ''} runs with the home {home.path}: use"
                " that one, or"
                f" another --home"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


# --- the agent ---


async def run_agent(
    home: Home,
    config: Config,
    listen: Address,
    name: str,
    state: State,
    launcher: Launcher,
    insecure: bool,
) -> None:
    """The whole agent, until SIGTERM, SIGINT or a request to stop."""
    log = EventLog(home.event_log, config.log.size_max, config.log.files)
    ring = EventRing(time.time_ns, log.write)
    identity = load_identity(home.identity, name)
    memory = memory_directory(config.queue.memory_directory, identity.uuid)
    settings = settings_of(home, config, insecure=insecure)
    fingerprint = make_identity(home, identity)
    peers = Peers(home, identity, settings, ring, lambda: listen.port)
    peers.check_files()
    asked, listen = listen, permitted(listen)
    try:
        listeners = await open_listeners(listen)
    except PortInUseError:
        ring.add(events.PORT_IN_USE, listen=listen)
        raise
    create_memory_directory(memory)  # after what may be refused: nobody would remove it
    listen = Address(listen.host, listeners[0].socket.getsockname()[1])
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(launcher.run)
            supervisor = Supervisor(home, ring, launcher, nursery)
            children = Children(
                home, identity, config, listen, ring, supervisor, lambda: core.state, settings
            )
            peers.drop = children.drop_peer
            core = Core(home, identity, config, state, listen, ring, children, peers)
            service = Service(core)
            nursery.start_soon(_stop_on_signal, signals, service)
            ring.add(events.AGENT_STARTED, name=identity.name, pid=os.getpid(), home=home.path, listen=listen)
            if fingerprint is not None:
                ring.add(events.IDENTITY_MADE, fingerprint=fingerprint)
            if settings.allow_plain:
                ring.add(events.PLAIN_ALLOWED, peers=_plain_text(settings.allow_plain))
            note_other_port(ring, asked, listen)
            async with trio.open_nursery() as answering:  # ends once the last answer is given
                async with trio.open_nursery() as starting:
                    starting.start_soon(_cancel_on_stop, service, starting.cancel_scope)
                    async with trio.open_nursery() as both:
                        both.start_soon(answering.start, _serve_api, service, home)
                        await service.start()
                        # Data goes first: sources are let in while all else is still being loaded.
                        greeter = Greeter(children.adopt, service.answering, ring, peers, service.pairing)
                        await nursery.start(greeter.serve, listeners)
                    nursery.start_soon(peers.run, service.other_agents)
                    nursery.start_soon(
                        Watch(core, service.connections, service.queues, service.ownership.guards.learn).run
                    )
                    nursery.start_soon(service.recovery.run)
                    nursery.start_soon(service.restores.run)
                    nursery.start_soon(service.run_failover)
                    _notify_systemd("READY=1")
                    starting.cancel_scope.cancel()
                await service.stop_requested.wait()
                _notify_systemd("STOPPING=1")
            await children.stop_flows()
            remove_if_empty(memory)
            ring.add(events.AGENT_STOPPED, name=identity.name)
            nursery.cancel_scope.cancel()


async def _serve_api(
    service: Service, home: Home, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """What it needs takes as long to import as to start the children, and nobody's data waits for it."""
    with trio.move_on_after(limits.API_PATIENCE_S):
        await service.running()
    await service.load_failover()
    api = await trio.to_thread.run_sync(import_module, "replicator.agent.api")
    await api.serve(service, home.api_socket, task_status=task_status)


async def _stop_on_signal(signals: AsyncIterator[int], service: Service) -> None:
    async for _ in signals:
        service.stop_requested.set()


async def _cancel_on_stop(service: Service, scope: trio.CancelScope) -> None:
    await service.stop_requested.wait()
    scope.cancel()


def _plain_text(peers: tuple[str, ...]) -> str:
    return "everybody" if set(EVERYBODY) <= set(peers) else ", ".join(peers)


def _notify_systemd(text: str) -> None:
    """Tell systemd, if it started us, that mounts are up (Type=notify)."""
    address = os.environ.get(NOTIFY_VARIABLE, "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        try:
            notifier.sendto(text.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            pass  # systemd will wait in vain and say so; nothing of ours depends on it


# --- taking everything down ---


def stop_mounts(home: Home, *, force: bool) -> None:
    """Stop the agent of `home`, if it runs, and all its children. What journals hold in memory goes to disk.

    Raises ReplicatorError if a mount is in use; the others are down then.
    """
    if not os.path.isdir(home.path):
        raise UsageError(f"{home.path}: no such home directory")
    _stop_agent(home)
    with locked(home):
        trio.run(partial(_stop_children, home, force=force))


def _stop_agent(home: Home) -> None:
    deadline_s = time.monotonic() + limits.AGENT_STOP_TIMEOUT_S
    while True:
        try:
            with locked(home):
                return
        except LockedError:
            if time.monotonic() > deadline_s:
                raise ReplicatorError(
                    f"the agent of {home.path} did not stop within {limits.AGENT_STOP_TIMEOUT_S:.0f} s"
                ) from None
        with open(home.lock) as file:
            pid = int(file.read() or 0)
        process = Process.open(pid) if pid > 0 else None
        if process is not None:
            process.send(signal.SIGTERM)
            process.wait(limits.AGENT_STOP_TIMEOUT_S)
            process.close()
        time.sleep(limits.CHILD_POLL_S)


async def _stop_children(home: Home, *, force: bool) -> None:
    errors: list[str] = []

    async def stop(role: Role, identifier: str) -> None:
        arguments = {"persist": True, "force": force} if role == "capture" else {}
        try:
            await stop_serving(home, role, identifier, **arguments)
        except ReplicatorError as error:
            errors.append(str(error))

    for roles in (("sender", "receiver"), ("capture",)):  # first those that read, then those that write
        async with trio.open_nursery() as nursery:
            for role, identifier in home.children():
                if role in roles:
                    nursery.start_soon(stop, role, identifier)
    replica_tree = import_module("replicator.receiver.replica_tree")  # a running agent needs none of it
    errors += replica_tree.release_all(home)
    for mount in load_state(home.state).mounts:
        try:
            fs_mounts.clear_stale(mount.mountpoint)  # of a capture that was killed
        except UsageError:
            pass  # it is served: why was said above
        except OSError as error:
            errors.append(f"{mount.mountpoint}: {error.strerror}")
    if errors:
        raise ReplicatorError("; ".join(dict.fromkeys(errors)))


if __name__ == "__main__":
    main()
