"""How the sessions of one sender transmit: what the agent has ordered, put into force.

A limit has a full-time value, as ordered, and maybe one of a calendar, which is in force until it is taken
away. Both are texts as people type them (see `replicator.transmission`); so is what is shown.
"""

import os

from replicator.net.frames import PACKED_FEATURE
from replicator.net.limiter import PAGE_BYTES, SharedBucket
from replicator.net.session import Session
from replicator.net.transmission import Transmission
from replicator.transmission import (
    Limit,
    TransmissionOrders,
    TransmissionSettings,
    TransmissionStatus,
    parse_limit,
)
from replicator.world import World


class TransmissionControl:
    """See the module. Everything holds at once, also for a frame that is being written."""

    def __init__(self, world: World, orders: TransmissionOrders) -> None:
        self._world = world
        self._orders = orders
        self._transmission = Transmission(world.clock, world.in_thread)
        self._own_calendar = self._target_calendar = ""
        self._shared: SharedBucket | None = None
        self._page = ""
        self._lifted = False
        self._apply()

    def obey(self, orders: TransmissionOrders) -> None:
        """What holds from now on. What a calendar says stays in force."""
        self._orders = orders
        self._apply()

    def set_bandwidth(self, text: str, *, target: bool = False) -> None:
        """For a calendar of limits: `text` is in force in place of the full-time limit of this connection, or
        with `target` of the limit that all connections to the target share (all of their senders have to say
        the same, at about the same time). "": the full-time limit again; "unlimited": none. Kept and without
        effect while limiting is switched off.

        Raises UsageError if it is no limit, and changes nothing.
        """
        parse_limit(text)
        if target:
            self._target_calendar = text
        else:
            self._own_calendar = text
        self._apply()

    def lift(self) -> None:
        """The connection ends for good: what is being written is not to hold that up."""
        self._lifted = True
        self._apply()

    def close(self) -> None:
        if self._shared is not None:
            self._transmission.limiter.set_limits(None, None, None)
            self._shared.close()
            self._shared = None

    # --- sessions ---

    def session_begins(self, session: Session, features: frozenset[str]) -> None:
        """From here on; before, nothing may be held up: the peer would lose patience."""
        session.use(self._transmission, packing=PACKED_FEATURE in features)

    def session_over(self) -> None:
        self._transmission.over()

    # --- what is shown ---

    def status(self) -> TransmissionStatus:
        transmission = self._transmission
        texts = [self._text(self._orders.own, self._own_calendar)]
        texts.append(self._text(self._orders.target, self._target_calendar))
        return TransmissionStatus(
            compression=self._orders.compression,
            level=transmission.level,
            ratio=round(transmission.ratio, 3) if transmission.packing else 1.0,
            limit=" and ".join(text for text in texts if parse_limit(text) is not None),
            limit_bytes_per_s=transmission.limiter.bytes_per_s,
            peer_understands=transmission.packing,
        )

    # --- in force ---

    def _apply(self) -> None:
        self._transmission.compression = self._orders.compression
        own = self._limit(self._orders.own, self._own_calendar)
        target = self._limit(self._orders.target, self._target_calendar)
        self._transmission.limiter.set_limits(own, target, self._bucket() if target is not None else None)

    def _limit(self, settings: TransmissionSettings, calendar: str) -> Limit | None:
        return None if self._lifted else parse_limit(self._text(settings, calendar))

    def _text(self, settings: TransmissionSettings, calendar: str) -> str:
        return (calendar or settings.bandwidth) if settings.limiting else ""

    def _bucket(self) -> SharedBucket | None:
        """Of the target; kept while this process lives, for another limit may come."""
        page = self._orders.target_page
        if page != self._page and self._shared is not None:
            self._transmission.limiter.set_limits(None, None, None)
            self._shared.close()
            self._shared = None
        if self._shared is None and page:
            self._world.disk.makedirs(os.path.dirname(page))
            memory = self._world.shared_memory(page, PAGE_BYTES, True)
            self._shared, self._page = SharedBucket(memory, self._world.clock.boot_id()), page
        return self._shared
