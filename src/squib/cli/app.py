"""The app, the flags of every command, and the decorator for commands.

Commands are functions in `squib.cli.commands`, one file each. They import what they need inside the function, so that
``squib --help``, which loads all of them, stays fast.
"""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from squib.cli.exit_codes import exit_code
from squib.cli.help import HelpCommand
from squib.cli.render import Output
from squib.errors import SquibError

P = ParamSpec("P")
Result = int | None | Coroutine[Any, Any, int | None]
"""What a command's function returns: the exit status, ``None`` for 0, or a coroutine that returns one of them."""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print results as JSON, and errors as JSON on standard error.")]
VerboseFlag = Annotated[bool, typer.Option("--verbose", "-v", help="Print more details.")]

SIGPIPE_STATUS = 128 + signal.SIGPIPE

HELP = """Create and run Linux microVMs.

VMs are given by ID or by name. --json and --verbose work before and after the command.
"""

app = typer.Typer(
    name="squib",
    help=HELP,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def make_group(name: str, help: str) -> typer.Typer:
    """Declare a command that only has subcommands, such as ``squib image``."""
    group = typer.Typer(name=name, help=help, rich_markup_mode=None)
    group.callback()(_global_flags)
    app.add_typer(group)
    return group


def _global_flags(context: typer.Context, json: JsonFlag = False, verbose: VerboseFlag = False) -> None:
    context.obj = _merge(context.obj, json, verbose)


def _show_version(wanted: bool) -> None:
    if wanted:
        from squib.version import VERSION

        typer.echo(f"squib {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    json: JsonFlag = False,
    verbose: VerboseFlag = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    _global_flags(context, json, verbose)


def _merge(before: Output | None, json: bool, verbose: bool) -> Output:
    before = before or Output()
    return Output(json=before.json or json, verbose=before.verbose or verbose)


def command(
    name: str,
    *,
    aliases: Sequence[str] = (),
    examples: Sequence[str] = (),
    group: typer.Typer = app,
    takes_command: bool = False,
) -> Callable[[Callable[Concatenate[Output, P], Result]], Callable[Concatenate[Output, P], Result]]:
    """Declare a function as the command ``name``.

    Its parameters after the first are the command's flags.

    ``--json`` and ``--verbose`` are added. With ``takes_command``, everything after the first argument is an argument
    too, even if it looks like a flag.
    """

    def declare(function: Callable[Concatenate[Output, P], Result]) -> Callable[Concatenate[Output, P], Result]:
        settings = {"allow_interspersed_args": not takes_command}
        for spelling in (name, *aliases):
            group.command(
                spelling,
                cls=HelpCommand,
                help=_help(function, [other for other in (name, *aliases) if other != spelling]),
                short_help=_short_help(function, aliases),
                epilog=_epilog(examples),
                hidden=spelling != name,
                context_settings=settings,
            )(_entry(function))
        return function

    return declare


def _entry(function: Callable[..., Result]) -> Callable[..., None]:
    """Return the function that typer calls, with the common flags as well.

    It exits with the status that ``function`` returns, or with the status of its error.
    """

    def entry(context: typer.Context, *, json: bool, verbose: bool, **flags: object) -> None:
        output = context.obj = _merge(context.obj, json, verbose)
        try:
            result = function(output, **flags)
            if inspect.iscoroutine(result):
                from squib.cli.runner import run

                result = run(result)
        except SquibError as error:
            output.error(error)
            raise typer.Exit(exit_code(error)) from None
        except BrokenPipeError:
            raise typer.Exit(SIGPIPE_STATUS) from None  # typer would exit with 1
        raise typer.Exit(result or 0)  # type: ignore[arg-type]

    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        *(parameter.replace(kind=keyword) for parameter in own),
        inspect.Parameter("json", keyword, annotation=JsonFlag, default=False),
        inspect.Parameter("verbose", keyword, annotation=VerboseFlag, default=False),
    ]
    entry.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    entry.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return entry


def _help(function: Callable[..., Result], other_names: Sequence[str]) -> str:
    text = inspect.getdoc(function) or ""
    return f"{text}\n\nAlias: {', '.join(other_names)}" if other_names else text


def _short_help(function: Callable[..., Result], aliases: Sequence[str]) -> str:
    sentence = (inspect.getdoc(function) or "").partition("\n")[0].partition(". ")[0].rstrip(".")
    return f"{sentence} ({', '.join(aliases)})" if aliases else sentence


def _epilog(examples: Sequence[str]) -> str | None:
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples) if examples else None
