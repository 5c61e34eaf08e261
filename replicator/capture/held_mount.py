"""A mount that waits for a successor of its killed capture, as the agent sees it: see `resumption.py`."""

import os

from replicator.fs import holder

HOLDER = "holder"
"""Name of the note that says who holds its descriptors, beside the journal's memory tier."""


def is_held(memory_directory: str) -> bool:
    """Whether a mount whose capture was killed waits for a successor: calls there wait, too."""
    held = holder.find(os.path.join(memory_directory, HOLDER))
    return held is not None and not holder.is_owned(held)


def give_up(memory_directory: str) -> bool:
    """No successor is to come: what waits for one fails. Whether there was a mount that waited."""
    held = holder.find(os.path.join(memory_directory, HOLDER))
    if held is None or holder.is_owned(held):
        return False
    holder.end(held)
    return True
