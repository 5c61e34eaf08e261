"""What of the settings of a monitor its source has to know, to stop by itself: its **terms**. Pure.

Each change of them gets a number. A lease is asked for under the number that the source knows, so that nobody
counts on a source to obey what it has not heard of yet.
"""

from typing import NamedTuple

from replicator import limits
from replicator.failover.lease import timers
from replicator.failovers import Lapse, MonitorSettings


class Terms(NamedTuple):
    """`lease_s`: seconds."""

    witness: str
    lapse: Lapse
    lease_s: float


def terms_of(settings: MonitorSettings) -> Terms:
    """A lease ends before the shortest countdown of the group does."""
    lapse = settings.lapse
    if lapse is None:
        lapse = Lapse.SUSPEND if settings.witness else Lapse.NONE
    watched = [address for address in settings.addresses if address.monitored]
    lease_s = min(
        (timers(address.interval_s, address.misses_min).lease_s for address in watched),
        default=timers(limits.MONITOR_INTERVAL_S, limits.MONITOR_MISSES).lease_s,
    )
    return Terms(settings.witness, lapse, lease_s)
