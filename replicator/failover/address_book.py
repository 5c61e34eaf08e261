"""Which addresses, and which host name, this host has for which group, or has given up for it: a small file.

Durable before anything changes on the host. So after a crash nothing is left that nobody knows of; after a
reboot, with which all of it goes, it can be put up again for the groups that this host owns.
"""

import ipaddress
from collections.abc import Iterable

import msgspec

from replicator.bounds import MALFORMED
from replicator.errors import ReplicatorError
from replicator.failover.netlink import IpInterface
from replicator.queue.durable_file import replace_durably
from replicator.world import Disk


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """`dropped`: this host had it, and another one has it now."""

    group: str
    address: str  # with its prefix
    interface: str
    dropped: bool = False

    @property
    def parsed(self) -> IpInterface:
        return ipaddress.ip_interface(self.address)


class HostName(msgspec.Struct, frozen=True, kw_only=True):
    """`former`: what this host is called by itself."""

    group: str
    name: str
    former: str


class _Contents(msgspec.Struct, frozen=True, kw_only=True):
    entries: tuple[Entry, ...] = ()
    returned: dict[str, int] = {}  # by group: the epoch of another owner who has given them back since
    host_name: HostName | None = None


class AddressBook:
    """Blocks. OSError. Raises ReplicatorError if the file is damaged."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path
        self._contents = self._load()

    @property
    def host_name(self) -> HostName | None:
        return self._contents.host_name

    def of(self, group: str, *, dropped: bool = False) -> list[Entry]:
        """What this host has for a group, or (`dropped`) has given up."""
        return [e for e in self._contents.entries if e.group == group and e.dropped == dropped]

    @property
    def groups(self) -> list[str]:
        """With addresses that this host has."""
        return sorted({e.group for e in self._contents.entries if not e.dropped})

    def put(self, entries: Iterable[Entry]) -> None:
        """Each address is there once per group: what is put replaces what was known of it."""
        kept = {(e.group, e.parsed.ip): e for e in self._contents.entries}
        kept |= {(e.group, e.parsed.ip): e for e in entries}
        self._save(msgspec.structs.replace(self._contents, entries=tuple(kept.values())))

    def forget(self, group: str, *, dropped: bool = False) -> None:
        gone = self.of(group, dropped=dropped)
        left = tuple(e for e in self._contents.entries if e not in gone)
        self._save(msgspec.structs.replace(self._contents, entries=left))

    def returned(self, group: str) -> int:
        """The epoch of another owner who has given this group's addresses back; 0: of none."""
        return self._contents.returned.get(group, 0)

    def set_returned(self, group: str, epoch: int) -> None:
        others = {key: value for key, value in self._contents.returned.items() if key != group}
        returned = {**others, group: epoch} if epoch else others
        self._save(msgspec.structs.replace(self._contents, returned=returned))

    def set_host_name(self, name: HostName | None) -> None:
        self._save(msgspec.structs.replace(self._contents, host_name=name))

    def _load(self) -> _Contents:
        if not self._disk.exists(self._path):
            return _Contents()
        handle = self._disk.open_read(self._path)
        try:
            data = self._disk.read(handle, self._disk.size(self._path), 0)
        finally:
            self._disk.close(handle)
        try:
            return msgspec.json.decode(data, type=_Contents)
        except MALFORMED:
            raise ReplicatorError(
                f"{self._path} is damaged: look which addresses this host should have (ip address), then"
                " remove it"
            ) from None

    def _save(self, contents: _Contents) -> None:
        if contents == self._contents:
            return
        self._disk.makedirs(self._path.rpartition("/")[0])
        replace_durably(self._disk, self._path, [msgspec.json.encode(contents)])
        self._contents = contents
