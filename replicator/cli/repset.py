"""`dtctl repset`: replication sets, the named lists of rules that say what is protected."""

from typing import Annotated

import typer

from replicator.cli import output
from replicator.cli.options import Json, NewName, RepsetName, absolute, agent
from replicator.errors import UsageError

app = typer.Typer(help="Replication sets: what is protected.", no_args_is_help=False)

_ACTIONS = ("add", "remove")


@app.command("create", epilog="Example: dtctl repset create web")
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name that no replication set has yet.")],
    json: Json = False,
) -> None:
    """Create an empty set; add rules to it next."""
    output.emit(agent(context).post("repsets", body={"name": name}), json, "repset")


@app.command(
    "rule",
    epilog="Example: dtctl repset rule web add '/srv/www/*.tmp' --exclude",
)
def rule(
    context: typer.Context,
    name: RepsetName,
    action: Annotated[str, typer.Argument(metavar="add|remove", help="What to do with the rule.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Absolute path; may hold * ? [ ] wildcards.")],
    exclude: Annotated[bool, typer.Option("--exclude", help="Leave out what the rule names.")] = False,
    no_recurse: Annotated[bool, typer.Option("--no-recurse", help="That directory level only.")] = False,
    generation: Annotated[
        int | None,
        typer.Option(
            "--generation", metavar="N", help="Refuse if somebody changed the set since this generation."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Add a rule to a set or remove one. Upper rules go before lower ones of the same kind."""
    if action not in _ACTIONS and name in _ACTIONS:  # `rule add web PATH` is as clear
        name, action = action, name
    if action not in _ACTIONS:
        raise UsageError(f"'{action}' is neither add nor remove; see 'dtctl repset rule --help'")
    body: dict[str, object] = {"path": absolute(path), "include": not exclude, "recursive": not no_recurse}
    if generation is not None:
        body["generation"] = generation
    request = agent(context).post if action == "add" else agent(context).delete
    output.emit(request("repsets", name, "rules", body=body), json, "repset")


@app.command("list", epilog="Example: dtctl repset list")
def list_(context: typer.Context, json: Json = False) -> None:
    """Show all sets."""
    output.emit(agent(context).get("repsets"), json, "repsets")


@app.command("show", epilog="Example: dtctl repset show web")
def show(context: typer.Context, name: RepsetName, json: Json = False) -> None:
    """Show one set with its rules."""
    output.emit(agent(context).get("repsets", name), json, "repset")


@app.command("delete", epilog="Example: dtctl repset delete web")
def delete(context: typer.Context, name: RepsetName, json: Json = False) -> None:
    """Delete a set that is not connected. No file is touched."""
    deleted = agent(context).delete("repsets", name)
    if json:
        output.print_json(deleted)
    else:
        output.say(f"replication set {name} is deleted")


@app.command("rename", epilog="Example: dtctl repset rename web website")
def rename(context: typer.Context, name: RepsetName, new_name: NewName, json: Json = False) -> None:
    """Give a set another name."""
    output.emit(agent(context).post("repsets", name, "rename", body={"new_name": new_name}), json, "repset")


@app.command("size", epilog="Example: dtctl repset size web")
def size(context: typer.Context, name: RepsetName, json: Json = False) -> None:
    """Count the files of a set and their bytes, as they are now."""
    found = agent(context).post("repsets", name, "size", timeout_s=None)
    if json:
        output.print_json(found)
        return
    from replicator.cli.units import bytes_text, count_text, seconds_text

    output.say(
        f"{name}: {count_text(found['files'])} files, {bytes_text(found['bytes'])};"
        f" counted in {seconds_text(found['elapsed_s'])}"
    )


@app.command("copy", epilog="Example: dtctl repset copy web web-test")
def copy(context: typer.Context, name: RepsetName, new_name: NewName, json: Json = False) -> None:
    """Create a set with the same rules."""
    output.emit(agent(context).post("repsets", name, "copy", body={"new_name": new_name}), json, "repset")
