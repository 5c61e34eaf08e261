"""What an administrator reads about a recovery: the texts of DC-23, from facts."""

from replicator.mirror.mirroring import DIFFERENCE, FORCED, FULL, RECOVERY, MirrorRun

_WHAT = {FULL: "Full mirror", FORCED: "Forced recovery", DIFFERENCE: "Difference mirror"}
ENABLED = ", recovery enabled"
PENDING = "Recovery pending"


def recovery_text(run: MirrorRun | None, *, pending: bool, automatic: bool, share: float) -> str:
    """ "Log recovery paused, recovery enabled" and the like; "" if there is nothing to recover.

    `pending`: something has failed, and no run has begun yet. Enabled: recoveries begin by themselves;
    nothing of the kind is said of a mirror that somebody asked for.
    """
    enabled = ENABLED if automatic else ""
    if run is None:
        return PENDING + enabled if pending else ""
    if run.stopped:
        doing = "is being stopped"
    elif run.paused:
        doing = "paused"
    else:
        doing = "running" if share > 0 else "suspended"
    if run.kind == RECOVERY:
        what = "Log recovery" if run.some_paths else "Full recovery"
        return f"{what} {doing}{enabled}"
    return f"{_WHAT[run.kind]} {doing}"
