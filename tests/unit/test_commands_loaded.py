"""Which commands of `dtctl` are loaded for a command line."""

import subprocess
import sys

import pytest
import typer

from replicator.cli import main
from replicator.cli.commands import add_commands

_VALUES = frozenset({"--home"})


def _loaded(*words: str) -> set[str]:
    app = typer.Typer()
    app.callback()(lambda: None)
    add_commands(app, words, _VALUES)
    return set(typer.main.get_group(app).commands)


EVERYTHING = _loaded()


@pytest.mark.parametrize("name", sorted(EVERYTHING - {"console"}))
def test_each_is_found_by_its_name(name: str) -> None:
    loaded = _loaded("--home", "status", name, "--help")
    assert name in loaded
    assert len(loaded) <= 5


@pytest.mark.parametrize(
    "words",
    [[], ["--help"], ["console"], ["--home=/x", "console"], ["statsu"], ["--home", "lag"], ["-h", "lag"]],
)
def test_all_are_there_where_any_may_be_needed(words: list[str]) -> None:
    assert _loaded(*words) == EVERYTHING


def test_an_option_with_its_value_is_passed_over() -> None:
    assert _loaded("--home=/x", "lag", "1") == {"lag"}


def test_all_options_with_a_value_are_known() -> None:
    options = [option for option in main.command().params if not getattr(option, "is_flag", False)]
    names = {
        name
        for option in options
        for name in option.opts
        if getattr(option, "param_type_name", "") == "option"
    }
    assert names == main.VALUES


def test_other_modules_stay_away() -> None:
    code = (
        "import sys; from replicator.cli.main import command\ncommand(['wait', '1'])\n"
        "print([m for m in ('failover', 'verify', 'render') if f'replicator.cli.{m}' in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
