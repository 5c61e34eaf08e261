"""Addresses and host name that this host takes for its groups, gives back, or drops.

As target, in a failover; as a source that is superseded (`drop`) or gets its group back (`put_back`). What
this host has is in a book (`replicator/failover/address_book.py`) before it is on an interface.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import trio

from replicator import events, limits
from replicator.agent.failover.procedure import Say, Taken
from replicator.errors import ReplicatorError
from replicator.events import EventType
from replicator.failover import addresses, host_name
from replicator.failover.address_book import AddressBook, Entry, HostName
from replicator.failover.addresses import ConflictError, Host, Place, Wanted
from replicator.failovers import Monitor
from replicator.world import Disk


class GroupAddresses:
    """`Service.failover.addresses`. `path`: of the book. `add_event`: see `EventRing.add`.

    OSError of the kernel or the disk becomes the error of whoever asked.
    """

    def __init__(self, disk: Disk, path: str, add_event: Callable[..., object]) -> None:
        self._disk = disk
        self._path = path
        self._add_event = add_event
        self._book: AddressBook | None = None
        self._clean: dict[tuple[Place, ...], float] = {}  # when nobody else had them; trio's time
        self._ahead: dict[tuple[Place, ...], float] = {}  # the same, before a failover
        self._probing: dict[str, trio.Lock] = {}  # by group
        self._announcing: trio.Nursery | None = None
        self._again: set[str] = set()  # groups whose addresses are being announced
        self._lock = trio.Lock()  # one changes addresses at a time

    async def run(self) -> None:
        """Announces again what was taken, for some seconds each."""
        async with trio.open_nursery() as nursery:
            self._announcing = nursery
            await trio.sleep_forever()

    # --- steps of procedures ---

    async def probe(self, monitor: Monitor, *, forced: bool, say: Say) -> None:
        """See `procedure.Addresses`."""
        wanted = addresses.wanted(monitor.settings)
        await self._refuse_own(monitor.uuid, wanted)
        async with self._probing.setdefault(monitor.uuid, trio.Lock()):  # what was begun ahead ends first
            found = await addresses.places(wanted, await addresses.look())
            if not self._were_free(found, self._ahead, limits.ADDRESS_AHEAD_S):
                found, _ = await self._probed(wanted, forced, say)
        self._clean[tuple(found)] = trio.current_time()

    async def probe_ahead(self, monitor: Monitor) -> None:
        """Of a source that will soon count as failed: then `probe` need not wait. Whatever else comes of it
        `probe` finds again.
        """
        with suppress(ReplicatorError, OSError):
            wanted = addresses.wanted(monitor.settings)
            async with self._probing.setdefault(monitor.uuid, trio.Lock()):
                found = await addresses.places(wanted, await addresses.look())
                if not _are_fresh(found, self._ahead, limits.ADDRESS_AHEAD_S / 2):
                    found, _ = await self._probed(wanted, False, lambda text: None)
                    self._ahead[tuple(found)] = trio.current_time()

    async def take(self, monitor: Monitor, *, forced: bool, say: Say) -> Taken:
        """See `procedure.Addresses`. What can be taken is taken, also if something else cannot."""
        wanted = addresses.wanted(monitor.settings)
        await self._refuse_own(monitor.uuid, wanted)
        return await self._take(monitor.uuid, wanted, forced, say)

    async def give_up(self, monitor: Monitor, say: Say) -> None:
        """See `procedure.Addresses`. Host name included."""
        await self._clear(monitor.uuid, say)
        await self.reset_host_name(monitor.uuid)

    async def set_host_name(self, monitor: Monitor) -> None:
        """Call this host as the monitor says."""
        name = monitor.settings.host_name
        host_name.check(name)
        book = await self._opened()
        former = book.host_name.former if book.host_name is not None else host_name.current()
        entry = HostName(group=monitor.uuid, name=name, former=former)
        await trio.to_thread.run_sync(book.set_host_name, entry)
        host_name.set_name(name)
        self._tell(events.HOST_NAME_TAKEN, name=name, former=former)

    async def reset_host_name(self, group: str) -> None:
        """Call this host what it was called before, if it was renamed for this group."""
        book = await self._opened()
        entry = book.host_name
        if entry is None or entry.group != group:
            return
        if host_name.current() == entry.name:
            host_name.set_name(entry.former)
            self._tell(events.HOST_NAME_TAKEN, name=entry.former, former=entry.name)
        await trio.to_thread.run_sync(book.set_host_name, None)

    # --- of a source ---

    async def drop(self, group: str, wanted: Iterable[str]) -> list[str]:
        """Remove these addresses (each with its prefix) from this host now, because another host has them.
        Returns those that were here, as ADDRESS on INTERFACE; nothing if they are gone already. Again after
        each start: the system puts its own up at boot.
        """
        async with self._lock:
            book = await self._opened()
            host = await addresses.look()
            unwanted = [addresses.parse(text) for text in wanted]
            unwanted += [entry.parsed for entry in book.of(group)]
            ips = {address.ip for address in unwanted}
            here = [  # with the prefix that they have here
                Entry(group=group, address=str(own.address), interface=link.name, dropped=True)
                for own in host.addresses
                if own.address.ip in ips and (link := host.link(own.ifindex)) is not None
            ]
            known = {entry.parsed.ip for entry in [*here, *book.of(group, dropped=True)]}
            gone = [  # this host has been started anew, and its system does not put them up
                Entry(group=group, address=str(address), interface="", dropped=True)
                for address in unwanted
                if address.ip not in known
            ]
            await trio.to_thread.run_sync(book.put, [*gone, *here])
            removed = await addresses.remove(unwanted)
            await trio.to_thread.run_sync(book.forget, group)
        for text in removed:
            self._tell(events.ADDRESS_DROPPED, address=text)
        return removed

    async def put_back(self, group: str, *, forced: bool, say: Say) -> Taken:
        """Take what was dropped: this host owns the group again. They are the system's from then on, which
        puts them up at boot, as it did before.
        """
        book = await self._opened()
        dropped = book.of(group, dropped=True)
        wanted = [Wanted(entry.parsed, entry.interface) for entry in dropped]
        taken = await self._take("", wanted, forced, say)
        await trio.to_thread.run_sync(functools.partial(book.forget, group, dropped=True))
        return taken

    async def returned(self, group: str) -> int:
        """See `AddressBook.returned`."""
        return (await self._opened()).returned(group)

    async def set_returned(self, group: str, epoch: int) -> None:
        book = await self._opened()
        await trio.to_thread.run_sync(book.set_returned, group, epoch)

    async def announce(self, group: str) -> None:
        """What this host has for a group, once more: somebody else has had it meanwhile."""
        if group in self._again:
            return
        book = await self._opened()
        host = await addresses.look()
        found = [
            Place(entry.parsed, link)
            for entry in book.of(group)
            if (link := host.has(entry.parsed)) is not None
        ]
        self._announce_for_a_while(group, found)

    def _announce_for_a_while(self, group: str, found: Sequence[Place]) -> None:
        if self._announcing is not None and found:
            self._announcing.start_soon(self._announce_again, group, found)

    async def _announce_again(self, group: str, found: Sequence[Place]) -> None:
        self._again.add(group)
        try:
            await addresses.announce_again(found)
        finally:
            self._again.discard(group)

    # --- at the start ---

    async def restore(self, group: str) -> Taken:
        """Put up again what this host has for a group that it owns: a reboot has taken it away. What is there
        is not announced again: others may have been told something else meanwhile. Raises ConflictError:
        somebody else has it now.
        """
        book = await self._opened()
        host = await addresses.look()
        gone = [entry for entry in book.of(group) if host.has(entry.parsed) is None]
        wanted = [Wanted(entry.parsed, entry.interface) for entry in gone]
        taken = await self._take(group, wanted, False, lambda text: None)
        entry = book.host_name
        if entry is not None and entry.group == group and host_name.current() != entry.name:
            host_name.set_name(entry.name)
            self._tell(events.HOST_NAME_TAKEN, name=entry.name, former=entry.former)
        return taken

    async def groups(self) -> list[str]:
        """For which this host has something, be it only a host name."""
        book = await self._opened()
        named = [book.host_name.group] if book.host_name is not None else []
        return sorted({*book.groups, *named})

    async def give_up_all(self, groups: Iterable[str]) -> None:
        """What is here for these groups: their procedure was taken back, or others own them."""
        for group in groups:
            await self._clear(group, lambda text: None)
            await self.reset_host_name(group)

    async def leave(self, group: str) -> None:
        """What is here for a group stays, host name included, and is this host's own from now on."""
        book = await self._opened()
        await trio.to_thread.run_sync(book.forget, group)
        if book.host_name is not None and book.host_name.group == group:
            await trio.to_thread.run_sync(book.set_host_name, None)

    async def held(self, group: str) -> list[str]:
        """What this host has for a group, as ADDRESS on INTERFACE."""
        return [f"{entry.address} on {entry.interface}" for entry in (await self._opened()).of(group)]

    # --- how ---

    async def _refuse_own(self, group: str, wanted: Sequence[Wanted]) -> None:
        """An address that was here before is none of the source's, and would be removed by a failback."""
        host = await addresses.look()
        known = {entry.parsed.ip for entry in (await self._opened()).of(group)}
        for item in wanted:
            link = host.has(item.address)
            if link is not None and item.address.ip not in known:
                raise ReplicatorError(f"{item.address} is an address of this host itself, on {link.name}")

    async def _probed(self, wanted: Sequence[Wanted], forced: bool, say: Say) -> tuple[list[Place], Host]:
        host = await addresses.look()
        found = await addresses.places(wanted, host)
        try:
            await addresses.probe(found, host)
        except ConflictError as error:
            if not forced:
                raise
            say(f"forced in spite of: {error}")
        return found, host

    async def _take(self, group: str, wanted: Sequence[Wanted], forced: bool, say: Say) -> Taken:
        """`group` "": not to be remembered."""
        if not wanted:
            return Taken()
        async with self._lock:
            book = await self._opened()
            host = await addresses.look()
            found = await addresses.places(wanted, host)
            if not self._were_free(found, self._clean, limits.ADDRESS_FREE_S):
                found, host = await self._probed(wanted, forced, say)
            entries = [
                Entry(group=group, address=str(place.address), interface=place.link.name) for place in found
            ]
            if group:
                await trio.to_thread.run_sync(book.put, entries)
            problems = []
            for place in found:
                try:
                    added = await addresses.add(place, host)
                except ReplicatorError as error:
                    problems.append(str(error))
                    continue
                except OSError as error:
                    problems.append(f"{place}: {error.strerror}")
                    continue
                say(f"{place}" if added else f"{place}: it was here already")
                self._tell(events.ADDRESS_TAKEN, address=str(place))
        self._announce_for_a_while(group, found)
        if problems:
            raise ReplicatorError("; ".join(problems))
        return Taken(taken=tuple(str(place) for place in found))

    def _were_free(self, found: Sequence[Place], asked: dict[tuple[Place, ...], float], old_s: float) -> bool:
        """A moment ago, in the same failover: asking once more would only cost time."""
        fresh = _are_fresh(found, asked, old_s)
        asked.pop(tuple(found), None)
        return fresh

    async def _clear(self, group: str, say: Say) -> None:
        async with self._lock:
            book = await self._opened()
            removed = await addresses.remove([entry.parsed for entry in book.of(group)])
            await trio.to_thread.run_sync(book.forget, group)
        for text in removed:
            say(text)
            self._tell(events.ADDRESS_GIVEN_UP, address=text)

    async def _opened(self) -> AddressBook:
        if self._book is None:
            self._book = await trio.to_thread.run_sync(AddressBook, self._disk, self._path)
        return self._book

    def _tell(self, type_: EventType, **fields: object) -> None:
        self._add_event(type_, **fields)


def _are_fresh(found: Sequence[Place], asked: dict[tuple[Place, ...], float], old_s: float) -> bool:
    asked_s = asked.get(tuple(found))
    return asked_s is not None and trio.current_time() - asked_s < old_s
