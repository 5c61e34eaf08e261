"""`dtctl failover`: monitors of sources, and taking their place."""

from typing import Annotated, Any

import msgspec
import typer

from replicator.addresses import parse_host_port
from replicator.cli import complete, failover_addresses, failover_trials, output
from replicator.cli.client import Client
from replicator.cli.following import until_over
from replicator.cli.monitor_options import (
    Addresses,
    Also,
    Automatic,
    Checks,
    Copies,
    Drain,
    EvenIfSilent,
    FenceCommand,
    HostName,
    Interval,
    LapseOption,
    MaxLag,
    Misses,
    NewName,
    Partitioned,
    PolicyOption,
    PreferNode,
    Scripts,
    Taken,
    When,
    Witness,
)
from replicator.cli.monitor_settings import (
    chosen,
    monitored_addresses,
    other_addresses,
    readdressed,
    scripted,
    timed,
)
from replicator.cli.options import Json, agent
from replicator.errors import ReplicatorError, UsageError
from replicator.failovers import MonitorSettings, Phase, Take

app = typer.Typer(help="Monitors of sources, and taking their place when they fail.")

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a monitor.", autocompletion=complete.monitors)
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Also if a fence command fails, the witness is away, or an address is still in use."
    ),
]
SourceIsOff = Annotated[
    bool,
    typer.Option(
        "--source-is-off",
        help="You know that the source is switched off: neither its leases nor the witness are waited for.",
    ),
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it is over.")]


@app.command(
    "add", epilog="Example: dtctl failover add alpha --address 10.0.0.5/24@eth0 --interval 1 --misses 3"
)
def add(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE[:PORT]", help="Host of the source, and its agent.")
    ],
    name: NewName = "",
    address: Addresses = None,
    also: Also = None,
    interval: Interval = None,
    misses: Misses = None,
    check: Checks = None,
    fail_when: When = None,
    take: Taken = None,
    automatic: Automatic = None,
    witness: Witness = None,
    fence_command: FenceCommand = None,
    lapse: LapseOption = None,
    even_if_partitioned: Partitioned = None,
    script: Scripts = None,
    host_name: HostName = None,
    drain: Drain = None,
    max_lag: MaxLag = None,
    policy: PolicyOption = None,
    prefer_node: PreferNode = None,
    copy: Copies = None,
    even_if_silent: EvenIfSilent = False,
    json: Json = False,
) -> None:
    """Watch a source, to take its place when it fails. It goes on whether anybody looks or not."""
    host = parse_host_port(source)
    if not address:
        raise UsageError(failover_addresses.which(agent(context), source))
    address = failover_addresses.with_prefixes(agent(context), source, address)
    also = failover_addresses.with_prefixes(agent(context), source, also or [])
    settings = MonitorSettings(
        source_host=host.host,
        source_port=host.port,
        addresses=(*monitored_addresses(address), *other_addresses(also)),
        take=Take.ALL if also else Take.MONITORED,
    )
    settings = timed(settings, "", interval, misses, check)
    settings = chosen(
        settings,
        fail_when=fail_when,
        take=take,
        automatic=automatic,
        witness=witness,
        fence_command=fence_command,
        lapse=lapse,
        even_if_partitioned=even_if_partitioned,
        host_name=host_name,
        drain_s=drain,
        lag_max_s=max_lag,
        policy=policy,
        prefer_node=prefer_node,
        copies=tuple(copy) if copy else None,
    )
    settings = scripted(settings, script)
    client = agent(context)
    made = client.post("failover", "monitors", body=_body(settings, name, even_if_silent))
    _emit(made, json)
    if not json:
        failover_trials.advise(client, made["uuid"])


@app.command("edit", epilog="Example: dtctl failover edit alpha --for 10.0.0.5 --interval 1 --check ping")
def edit(
    context: typer.Context,
    monitor: Name,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Another name.")] = "",
    source: Annotated[
        str | None, typer.Option("--source", metavar="SOURCE[:PORT]", help="Where its agent is now.")
    ] = None,
    address: Addresses = None,
    also: Also = None,
    only: Annotated[
        str, typer.Option("--for", metavar="IP", help="Interval, misses and checks are for this one only.")
    ] = "",
    interval: Interval = None,
    misses: Misses = None,
    check: Checks = None,
    fail_when: When = None,
    take: Taken = None,
    automatic: Automatic = None,
    witness: Witness = None,
    fence_command: FenceCommand = None,
    lapse: LapseOption = None,
    even_if_partitioned: Partitioned = None,
    script: Scripts = None,
    host_name: HostName = None,
    drain: Drain = None,
    max_lag: MaxLag = None,
    policy: PolicyOption = None,
    prefer_node: PreferNode = None,
    copy: Copies = None,
    even_if_silent: EvenIfSilent = False,
    json: Json = False,
) -> None:
    """Change a monitor while it watches. What is not named stays; named addresses are all of them."""
    client = agent(context)
    known = client.get("failover", "monitors", monitor)
    settings = msgspec.convert(known["settings"], MonitorSettings)
    if source is not None:
        host = parse_host_port(source)
        settings = msgspec.structs.replace(settings, source_host=host.host, source_port=host.port)
    settings = readdressed(settings, address, also)
    settings = timed(settings, only, interval, misses, check)
    settings = chosen(
        settings,
        fail_when=fail_when,
        take=take,
        automatic=automatic,
        witness=witness,
        fence_command=fence_command,
        lapse=lapse,
        even_if_partitioned=even_if_partitioned,
        host_name=host_name,
        drain_s=drain,
        lag_max_s=max_lag,
        policy=policy,
        prefer_node=prefer_node,
        copies=tuple(copy) if copy else None,
    )
    settings = scripted(settings, script)
    _emit(client.put("failover", "monitors", known["uuid"], body=_body(settings, name, even_if_silent)), json)


@app.command("list", epilog="Example: dtctl failover list")
def list_(context: typer.Context, json: Json = False) -> None:
    """Show all monitors of this host, and what they ask."""
    _show(agent(context).get("failover", "monitors"), json, "monitors")


@app.command("show", epilog="Example: dtctl failover show alpha")
def show(context: typer.Context, monitor: Name, json: Json = False) -> None:
    """Show everything about one: countdowns, settings, what is under way."""
    _emit(agent(context).get("failover", "monitors", monitor), json)


@app.command("remove", epilog="Example: dtctl failover remove alpha")
def remove(
    context: typer.Context,
    monitor: Name,
    even_if_owner: Annotated[
        bool, typer.Option("--even-if-owner", help="Also if this host has taken over: it stays so for good.")
    ] = False,
    json: Json = False,
) -> None:
    """Stop watching a source, and forget it."""
    found = agent(context).delete("failover", "monitors", monitor, body={"even_if_owner": even_if_owner})
    text = f"monitor {found['name']} is removed"
    if found["phase"] == Phase.ACTIVE:
        text += (
            "; this host stays the owner: write its addresses into the network configuration (they go with"
            f" the next boot), and end the connections to {found['source']} (dtctl status, dtctl disconnect)"
        )
    _say(found, json, text)


@app.command("stop", epilog="Example: dtctl failover stop alpha")
def stop(context: typer.Context, monitor: Name, json: Json = False) -> None:
    """Do not watch for a while; everything else of the monitor stays."""
    _act(context, monitor, "stop", json)


@app.command("start", epilog="Example: dtctl failover start alpha")
def start(context: typer.Context, monitor: Name, json: Json = False) -> None:
    """Watch again."""
    _act(context, monitor, "start", json)


@app.command("now", epilog="Example: dtctl failover now alpha")
def now(
    context: typer.Context,
    monitor: Name,
    force: Force = False,
    source_is_off: SourceIsOff = False,
    wait: Wait = True,
    json: Json = False,
) -> None:
    """Take over without waiting for a countdown; also what was begun and waits for a person."""
    _begin(context, monitor, "now", force, source_is_off, wait, json)


@app.command("abandon", epilog="Example: dtctl failover abandon alpha")
def abandon(context: typer.Context, monitor: Name, json: Json = False) -> None:
    """Take back a failover that is under way, as long as nothing of it is final."""
    found = agent(context).post("failover", "monitors", monitor, body={"action": "abandon"})
    _say(found, json, f"monitor {found['name']}: what was begun is taken back")


@app.command("answer", epilog="Example: dtctl failover answer alpha yes")
def answer(
    context: typer.Context,
    monitor: Name,
    yes: Annotated[str, typer.Argument(metavar="yes|no")],
    force: Force = False,
    source_is_off: SourceIsOff = False,
    wait: Wait = True,
    json: Json = False,
) -> None:
    """Answer the question whether this host shall take over. After a no, yes can still be said."""
    if yes not in ("yes", "no"):
        raise UsageError(f"{yes!r}: must be yes or no")
    _begin(context, monitor, yes, force, source_is_off, wait and yes == "yes", json)


@app.command("history", epilog="Example: dtctl failover history alpha")
def history(
    context: typer.Context,
    monitor: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One monitor; its uuid if it was removed.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what happened to monitors, oldest first."""
    _show(agent(context).get("failover", "history", group=monitor), json, "history")


@app.command("reports", epilog="Example: dtctl failover reports alpha --last 5")
def reports(
    context: typer.Context,
    monitor: Annotated[str, typer.Argument(metavar="NAME", help="Which one.")],
    last: Annotated[int, typer.Option("--last", metavar="N", min=1, help="How many of them.")] = 1,
    json: Json = False,
) -> None:
    """Show step by step what failovers and failbacks of a monitor did, or are doing, oldest first."""
    found = agent(context).get("failover", "monitors", monitor, "reports")
    if json:
        output.print_json(found[-last:])
        return
    from replicator.cli import render, render_failover_reports

    render.show(render_failover_reports.failover_reports(found[-last:]))


def _body(settings: MonitorSettings, name: str, even_if_silent: bool) -> dict[str, object]:
    return {"name": name, "settings": msgspec.to_builtins(settings), "even_if_silent": even_if_silent}


# --- doing it ---


def _act(context: typer.Context, monitor: str, action: str, json: bool) -> None:
    found = agent(context).post("failover", "monitors", monitor, body={"action": action})
    _say(found, json, f"monitor {found['name']}: {found['doing']}")


def _begin(
    context: typer.Context,
    monitor: str,
    action: str,
    force: bool,
    source_is_off: bool,
    wait: bool,
    json: bool,
) -> None:
    client = agent(context)
    body = {"action": action, "forced": force, "source_is_off": source_is_off}
    found = client.post("failover", "monitors", monitor, body=body)
    if wait:
        found = _over(client, found["uuid"], quiet=json)
    _say(found, json, f"monitor {found['name']}: {found['doing']}")
    if wait and found["phase"] != Phase.ACTIVE:
        raise ReplicatorError(f"this host has not taken over: dtctl failover history {found['name']}")


def _over(client: Client, uuid: str, *, quiet: bool) -> Any:
    """Its view when nothing is under way any more, or waits for a person; what each step says is told as it
    comes.
    """
    told: set[str] = set()

    def tell(found: Any) -> None:
        for line in _lines(found["report"]):
            if not quiet and line not in told:
                told.add(line)
                output.say(line)

    return until_over(
        lambda: client.get("failover", "monitors", uuid),
        lambda found: found["phase"] != Phase.TAKING_OVER or found["halted"],
        tell,
    )


def _lines(report: Any) -> list[str]:
    """What the steps of a procedure under way have said, or why they failed."""
    steps = report["steps"] if report is not None else []
    return [f"  {step['name']}: {text}" for step in steps for text in (*step["said"], step["text"]) if text]


def _emit(document: Any, as_json: bool) -> None:
    _show(document, as_json, "monitor")


def _show(document: Any, as_json: bool, view: str) -> None:
    if as_json:
        output.print_json(document)
        return
    from replicator.cli import render, render_failover

    render.show(getattr(render_failover, view)(document))


def _say(document: Any, as_json: bool, text: str) -> None:
    if as_json:
        output.print_json(document)
    else:
        output.say(text)
