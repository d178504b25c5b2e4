"""``squib env``: the environment variables of a VM."""

from __future__ import annotations

from typing import Annotated

import typer

from squib.cli.app import command, make_group
from squib.cli.args import options
from squib.cli.render import Output

env = make_group("env", "Manage the environment variables of a VM.")

_Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Names of the variables to remove.", show_default=False)
]


@command("set", group=env, examples=["squib env set web DEBUG=1 GREETING='good morning'", "squib env set web API_KEY"])
async def set_env(
    output: Output,
    vm: options.Ref,
    variables: Annotated[
        list[str],
        typer.Argument(metavar="K=V...", help="Variables to set. K alone copies the local value.", show_default=False),
    ],
) -> None:
    """Set environment variables for all commands in a VM.

    They apply to commands that start later, also after the VM restarts. Values are stored with the VM; only squib env
    list --show-values prints them.
    """
    from squib.sdk.env import AsyncEnv

    values = options.parse_env(variables)
    async with options.connect() as engine:
        _print_names(output, vm, list(await AsyncEnv(engine, vm).set(values)))


@command("list", group=env, aliases=["ls"], examples=["squib env list web", "squib env list web --show-values"])
async def list_env(
    output: Output,
    vm: options.Ref,
    show_values: Annotated[bool, typer.Option("--show-values", help="Print names and values, as K=V.")] = False,
) -> None:
    """List the names of a VM's environment variables."""
    from squib.sdk.env import AsyncEnv

    async with options.connect() as engine:
        found = await AsyncEnv(engine, vm).list()
    if not show_values:
        _print_names(output, vm, list(found))
    elif output.json:
        output.data({"vm": vm, "env": dict(found)})
    else:
        for name, value in found.items():
            output.line(f"{name}={value}")


@command("unset", group=env, examples=["squib env unset web DEBUG"])
async def unset_env(output: Output, vm: options.Ref, names: _Names) -> None:
    """Remove environment variables from a VM.

    Variables that are not set are ignored.
    """
    from squib.sdk.env import AsyncEnv

    async with options.connect() as engine:
        _print_names(output, vm, list(await AsyncEnv(engine, vm).unset(*names)))


def _print_names(output: Output, vm: str, names: list[str]) -> None:
    if output.json:
        output.data({"vm": vm, "env_names": names})
        return
    for name in names:
        output.line(name)
