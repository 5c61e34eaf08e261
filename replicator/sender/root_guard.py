"""RS-15: a root of a connected set was renamed or deleted. To ship that would empty the target: a person
decides.
"""

from replicator.errors import ReplicatorError
from replicator.mirror.order import is_below_or_equal
from replicator.ops import Kind, Record, shown
from replicator.sender.flow import Flow


class RootChanged(ReplicatorError):
    """What was changed is not shipped, nor anything after it."""

    def __init__(self, change: str) -> None:
        super().__init__(
            f"{change}; the target was left as it is: put it back and `dtctl transmit start`, or disconnect"
        )


def root_change(flow: Flow, record: Record) -> str:
    """What this record does to a root of the set, in words; "" for nothing."""
    if record.kind not in (Kind.RENAME, Kind.UNLINK, Kind.RMDIR):
        return ""
    for root in flow.filter.roots:
        if root and is_below_or_equal(root, record.path):
            what = "renamed" if record.kind == Kind.RENAME else "deleted"
            return f"the root {shown(root)!r} of the replication set was {what} on the source"
    return ""


def missing_root(flows: list[Flow]) -> str:
    """The first root that is not there now, in words; "" if all are."""
    for flow in flows:
        for root in flow.filter.roots:
            if root and not flow.source.exists(root):
                return f"the root {shown(root)!r} of the replication set is gone"
    return ""
