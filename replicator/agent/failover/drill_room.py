"""The room of a drill: `python -m replicator.agent.failover.drill_room DIRECTORY LOCK LIFELINE`.

A process with a view of this host that is its own: mounts, network, processes, host name. At the places where
the source has its data it sees the copies; whatever it writes, there or anywhere else, goes to layers beside
(overlayfs) and vanishes with it. Its network is `lo`, which also has the addresses of the group. What it
does not see: file systems that are no storage of this host, and anything that runs here.

DIRECTORY is the drill's, with the files of `drill_order.py`. LOCK is the number of a descriptor whose file is
locked as long as the room is there; LIFELINE that of a pipe's end: when its agent closes the other one, the
room ends. Everything in it ends with its first process, see pid_namespaces(7).

overlayfs mounts its lower layers read-only, and without access times, for itself (ovl_get_layers in
fs/overlayfs/super.c). So a copy is not changed, whatever root does in the room.
"""

import ctypes
import errno
import os
import select
import signal
import socket
import sys

import msgspec

from replicator import limits
from replicator.agent.failover import drill_mounts
from replicator.agent.failover.drill_mounts import mount, overlay
from replicator.agent.failover.drill_order import (
    COPIED,
    ORDER,
    READY,
    RESULT,
    Changes,
    Command,
    CommandEnd,
    Findings,
    Order,
)
from replicator.failover.supervised import supervise

_NAMESPACES = 0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000  # CLONE_NEW NS, UTS, IPC, PID, NET
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Room:
    """What its first process does."""

    def __init__(self, directory: str, lifeline: int) -> None:
        with open(os.path.join(directory, ORDER), "rb") as file:
            self._order = msgspec.json.decode(file.read(), type=Order)
        self._path = directory
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lifeline = lifeline
        self._layers: list[int] = []  # what was written over each copy

    def run(self) -> None:
        """Everything, from the view to the result. Returns when the room is not needed any more."""
        ends: list[CommandEnd] = []
        try:
            self._make_view()
            self._make_network()
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            self._tell(RESULT, Findings(problem=f"{error.strerror}{where}"))
            return
        self._tell(READY, Findings())
        for command in self._order.commands:
            ends.append(self._run(command))
            if not ends[-1].succeeded:
                break
        changes = Changes() if self._order.duplicate else drill_mounts.changes_of(self._layers)
        self._tell(RESULT, Findings(ends=tuple(ends), changes=changes))
        if self._order.keep_s:
            select.select([self._lifeline], [], [], self._order.keep_s)

    def _tell(self, name: str, findings: Findings) -> None:
        """Its directory is out of sight by now."""
        at = self._directory
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with open(name + ".new", "wb", opener=lambda path, _: os.open(path, flags, 0o600, dir_fd=at)) as file:
            file.write(msgspec.json.encode(findings))
        os.replace(name + ".new", name, src_dir_fd=at, dst_dir_fd=at)

    def _run(self, command: Command) -> CommandEnd:
        ended, output = supervise(
            command.command, command.environment, command.timeout_s, stop=self._lifeline
        )
        if output >= 0:
            _drain(output)
        return CommandEnd(
            name=command.name,
            command=" ".join(command.command),
            how=ended.how,
            code=ended.code,
            duration_s=ended.duration_s,
            output=ended.output,
            output_bytes=ended.output_bytes,
            reason=ended.reason,
        )

    def _make_view(self) -> None:
        mount("none", "/", flags=drill_mounts.REC | drill_mounts.PRIVATE)
        order = self._order
        for place in order.places:
            drill_mounts.uncover(place.copy)
        host, *others = drill_mounts.storage()
        run_directories = drill_mounts.run_directories()
        copies = [os.open(p.copy, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for p in order.places]
        uppers = [self._layer("changes", number) for number in range(len(copies))]
        works = [self._layer("work", number) for number in range(len(copies))]
        if order.duplicate:
            for copy, upper in zip(copies, uppers, strict=True):
                drill_mounts.copied(copy, upper)
            self._tell(COPIED, Findings())
        # What is written to the rest of the host: not much, and never inside of what it lies over.
        base = os.path.join(self._path, "room")
        os.makedirs(base, mode=0o700, exist_ok=True)
        mount("drill", base, "tmpfs", drill_mounts.NODEV, f"mode=755,size={limits.DRILL_HOST_BYTES}")
        layers = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        root = os.path.join(base, "root")
        os.mkdir(root)
        overlay(host.descriptor, *drill_mounts.new_layers(layers, "root"), root)
        # It becomes the root of this namespace, so that whoever enters it sees just that.
        os.chdir(root)
        mount(root, "/", flags=drill_mounts.MOVE)
        os.chroot(".")
        os.chdir("/")
        mount("proc", "/proc", "proc", drill_mounts.NOSUID | drill_mounts.NODEV | drill_mounts.NOEXEC)
        for number, other in enumerate(others, 1):
            drill_mounts.show(other, layers, number)
        drill_mounts.make_devices()
        drill_mounts.make_run(run_directories)
        for number, place in enumerate(order.places):
            os.makedirs(place.at, exist_ok=True)
            if order.duplicate:
                mount(f"/proc/self/fd/{uppers[number]}", place.at, flags=drill_mounts.BIND)
                continue
            try:
                overlay(copies[number], uppers[number], works[number], place.at)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # The agent's home is on a file system that takes no such layers, as in a container.
                uppers[number], works[number] = drill_mounts.new_layers(layers, f"copy-{number}")
                overlay(copies[number], uppers[number], works[number], place.at)
        self._layers = uppers

    def _layer(self, kind: str, number: int) -> int:
        path = os.path.join(self._path, kind, str(number))
        os.makedirs(path, mode=0o700, exist_ok=True)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _make_network(self) -> None:
        if self._order.host_name:
            socket.sethostname(self._order.host_name)
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        with IPRoute() as route:
            (loopback,) = route.link_lookup(ifname="lo")
            route.link("set", index=loopback, state="up")
            for address in self._order.addresses:
                host, _, prefix = address.partition("/")
                try:
                    route.addr("add", index=loopback, address=host, prefixlen=int(prefix or 32))
                except NetlinkError as error:
                    raise OSError(error.code, os.strerror(error.code), address) from None


def _drain(output: int) -> None:
    """A service that was started in the background may go on printing."""
    if os.fork() == 0:
        try:
            while os.read(output, 1 << 16):
                pass
        finally:
            os._exit(0)
    os.close(output)


def main() -> None:
    directory, lifeline = sys.argv[1], int(sys.argv[3])
    for number in (lifeline, int(sys.argv[2])):
        os.set_inheritable(number, False)  # of what runs in the room
    if _libc.unshare(_NAMESPACES) < 0:
        raise SystemExit(f"no namespaces: {os.strerror(ctypes.get_errno())}")
    first = os.fork()
    if first == 0:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        Room(directory, lifeline).run()
        sys.stdout.flush()
        os._exit(0)
    with open(os.path.join(directory, "room.pid"), "w") as file:
        file.write(str(first))
    os.close(lifeline)
    os.waitpid(first, 0)


if __name__ == "__main__":
    main()
