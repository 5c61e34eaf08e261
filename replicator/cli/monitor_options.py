"""Options of `dtctl failover add` and `edit`; `monitor_settings.py` says what they mean."""

from typing import Annotated

import typer

from replicator.failovers import FailWhen, Lapse, Policy, ScriptKind, Take

NewName = Annotated[
    str, typer.Option("--name", metavar="NAME", help="Name of the monitor (default: its source).")
]
Addresses = Annotated[
    list[str] | None,
    typer.Option(
        "--address",
        metavar="IP/PREFIX[@INTERFACE]",
        help="An address of the source that is monitored and taken, and this host's interface for it."
        " Repeatable.",
    ),
]
Also = Annotated[
    list[str] | None,
    typer.Option(
        "--also", metavar="IP/PREFIX[@INTERFACE]", help="Taken as well, and not monitored. Repeatable."
    ),
]
Interval = Annotated[
    float | None, typer.Option("--interval", metavar="SECONDS", help="Between two signs of life (5).")
]
Misses = Annotated[
    int | None, typer.Option("--misses", metavar="N", min=1, help="How many of them may be missing (5).")
]
Checks = Annotated[
    list[str] | None,
    typer.Option(
        "--check",
        metavar="[N*]agent|ping|tcp:PORT|http:URL|command:LINE",
        help="Sign of life; default: of its agent. Of agent and ping one is enough, each other one has to be"
        " there. N of its answers may be missing, if not as many as --misses says. Repeatable.",
    ),
]
When = Annotated[
    str | None,
    typer.Option("--fail-when", metavar="|".join(FailWhen), help="Which addresses have to be silent (all)."),
]
Taken = Annotated[
    str | None,
    typer.Option("--take", metavar="|".join(Take), help="Which addresses are taken (all, with --also)."),
]
Automatic = Annotated[
    bool | None,
    typer.Option("--automatic/--manual", help="Take over without asking a person. Default: ask."),
]
Witness = Annotated[
    str | None,
    typer.Option(
        "--witness",
        metavar="HOST[:PORT]|etcd://…",
        help="A third agent, or etcd, that says whose turn it is. Empty: none.",
    ),
]
FenceCommand = Annotated[
    str | None,
    typer.Option("--fence-command", metavar="LINE", help="Switches the source off before it is replaced."),
]
LapseOption = Annotated[
    str | None,
    typer.Option(
        "--lapse",
        metavar="|".join(Lapse),
        help="What the source's mounts do while neither this host nor the witness can be reached.",
    ),
]
Partitioned = Annotated[
    bool | None,
    typer.Option(
        "--even-if-partitioned/--not-if-partitioned",
        help="Automatic without a witness or fence command: both hosts may write.",
    ),
]
Scripts = Annotated[
    list[str] | None,
    typer.Option(
        "--script", metavar="KIND=COMMAND", help=f"Run at {', '.join(ScriptKind)}. Empty: none. Repeatable."
    ),
]
HostName = Annotated[
    str | None, typer.Option("--host-name", metavar="NAME", help="This host takes that name. Empty: none.")
]
Drain = Annotated[
    float | None,
    typer.Option("--drain", metavar="SECONDS", help="For the copies to apply what has arrived (30)."),
]
MaxLag = Annotated[
    float | None,
    typer.Option(
        "--max-lag", metavar="SECONDS", help="Automatic only if the copies lack no more than that (0: any)."
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option("--policy", metavar="|".join(Policy), help="Which side survives when both wrote (manual)."),
]
PreferNode = Annotated[
    str | None,
    typer.Option("--prefer-node", metavar="AGENT", help="Name of the one that --policy prefer-node prefers."),
]
Copies = Annotated[
    list[str] | None,
    typer.Option(
        "--copy", metavar="UUID", help="Connection whose copy fails over; default: all of the source."
    ),
]
EvenIfSilent = Annotated[bool, typer.Option("--even-if-silent", help="Its addresses need not answer now.")]
