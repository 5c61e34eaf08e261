"""Arguments and options that several commands share, written once."""

import os
from typing import Annotated, cast

import typer

from replicator.cli import complete
from replicator.cli.client import Client
from replicator.errors import UsageError
from replicator.transmission import MAXIMUM

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Connection = Annotated[
    str,
    typer.Argument(
        metavar="CON",
        help="Connection: its id, its uuid or the name of its replication set.",
        autocompletion=complete.connections,
    ),
]
RepsetName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name of a replication set.", autocompletion=complete.repsets),
]
NewName = Annotated[str, typer.Argument(metavar="NEW_NAME", help="Name that no replication set has yet.")]
MirrorKind = Annotated[
    str | None,
    typer.Option(
        "--mirror",
        metavar="full|difference",
        help="What the mirror sends: everything, or files whose size or mtime differ.",
    ),
]
NEWER_WARNING = "note: --newer is wrong for databases: they may change content without changing times"
Newer = Annotated[
    bool,
    typer.Option("--newer", help="Send only files that are newer on the source. Wrong for databases."),
]
Checksum = Annotated[
    bool,
    typer.Option("--checksum", help="Of files that differ, compare blocks and send only those that differ."),
]
Lock = Annotated[
    str | None,
    typer.Option(
        "--lock",
        metavar="read-only|locked|none",
        help="What others may do with the copy while it is kept: read it, nothing, or (default) everything.",
    ),
]
Route = Annotated[
    str | None,
    typer.Option(
        "--route", metavar="HOST[:PORT]", help="Another address of the target, for the data: its network."
    ),
]
Compression = Annotated[
    str | None,
    typer.Option(
        "--compression",
        metavar=f"off|auto|1…{MAXIMUM}",
        help="As `dtctl compression set` takes it. Default: that of the target, if it has one.",
    ),
]
Limit = Annotated[
    str | None,
    typer.Option(
        "--limit",
        metavar="LIMIT",
        help='Bandwidth, as `dtctl limit bandwidth` takes it: "1 MB/s", "10 % of T1", "19300, 5".',
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0.0, metavar="SECONDS", help="Give up after this time (exit code 1)."),
]


def agent(context: typer.Context) -> Client:
    """The client for the home given on the command line."""
    return cast(Client, context.obj)


def absolute(path: str) -> str:
    """What the user means by a path here, for an agent that runs in another directory.

    Raises UsageError if it is empty: a script's unset variable must not mean the current directory.
    """
    if not path:
        raise UsageError("a path is empty: name a directory")
    return os.path.abspath(path)
