"""How commands take several options as one value."""

import inspect
import subprocess
import sys
from typing import Annotated

import typer
from typer.models import OptionInfo
from typer.testing import CliRunner

from commands import EXCEPTIONS, commands_of, model_commands
from modelassay.cli import options
from modelassay.cli.main import app as modelassay_app
from modelassay.models import ModelRef

RUNNER = CliRunner()


def run(command, *arguments):
    app = typer.Typer()
    app.command()(options.grouped(command))
    return RUNNER.invoke(app, arguments)


def _size(width: Annotated[int, typer.Option(help="Wide.")] = 3, token: options.Token = None):
    return width, token


def test_a_command_is_given_values_made_of_options():
    seen = []

    def command(
        model: options.Model,
        loading: options.Loading,
        size: Annotated[tuple, options.From(_size)],
        token: options.Token = None,
        own: Annotated[bool, typer.Option("--own")] = False,
    ) -> None:
        """Does it."""
        seen.append((model, loading, size, token, own))

    done = run(
        command, "base", "--adapter", "a", "--width", "5", "--token", "t", "--load-4bit", "--own"
    )
    assert done.exit_code == 0, done.output
    loading = {
        "device": "auto",
        "dtype": "auto",
        "quantization": "4bit",
        "token": "t",
        "trust_remote_code": False,
        "chat_template": True,
    }
    assert seen == [(ModelRef("base", adapter="a"), loading, (5, "t"), "t", True)]
    shown = run(command, "--help").output
    assert "Does it." in shown
    assert shown.count("--token") == 1  # one option, though the command and two groups take it
    assert shown.index("--own") < shown.index("--adapter") < shown.index("--device")


def test_flags_that_exclude_each_other_are_told_before_the_command_runs(capsys):
    from modelassay.cli.main import run as modelassay

    assert modelassay(["scan", "embedded", "--load-8bit", "--load-4bit"]) == 64
    assert "one of --load-8bit and --load-4bit" in capsys.readouterr().err


def test_every_command_that_takes_a_model_has_the_whole_set_of_options():
    wanted = model_commands()
    assert {"scan", "diff compare", "triage", "probe eval", "sae label", "chat"} < wanted.keys()
    given = {
        name: {each.name for each in inspect.signature(command, eval_str=True).parameters.values()}
        for name, command in commands_of(modelassay_app)
    }
    missing = {name: options - given[name] for name, options in wanted.items()}
    assert {name: lacks for name, lacks in missing.items() if lacks} == {
        name: set(lacks) for name, lacks in EXCEPTIONS.items()
    }


def test_the_old_name_of_the_revision_of_a_base_works(capsys):
    from modelassay.cli.main import run as modelassay

    pair = ["diff", "organism:safe", "embedded", "--sae", "none", "--no-weights"]
    assert modelassay([*pair, "--revision", "main"]) == 64
    assert "organism:safe has one revision only" in capsys.readouterr().err
    assert modelassay([*pair, "--revision", "main", "--base-revision", "main"]) == 64
    assert "give one of them" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = "import sys, modelassay.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def own_options(command) -> list[str]:
    parameters = inspect.signature(inspect.unwrap(command), eval_str=True).parameters.values()
    return [
        each.name
        for each in parameters
        if each.name not in ("token", "quiet")
        and any(
            isinstance(mark, OptionInfo) for mark in getattr(each.annotation, "__metadata__", ())
        )
    ]


def test_no_command_has_more_than_fifteen_options_beside_the_shared_ones():
    own = {name: own_options(command) for name, command in commands_of(modelassay_app)}
    assert len(own) > 40
    assert "mode" in own["scan"]
    assert {name: found for name, found in own.items() if len(found) > 15} == {}
