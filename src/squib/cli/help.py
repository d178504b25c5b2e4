"""The help of a command: arguments as they are typed, without Python types."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand


class HelpCommand(TyperCommand):
    """A command whose arguments appear as metavars: ``VM...``, ``[ID]``."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the words after the command's name in the usage line."""
        return ["[OPTIONS]", *(argument.metavar or "" for argument in self._arguments())]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the sections on arguments and options."""
        arguments = [((argument.metavar or "").strip("[]"), argument.help or "") for argument in self._arguments()]
        options = [
            record
            for parameter in self.get_params(ctx)
            if not isinstance(parameter, TyperArgument) and (record := parameter.get_help_record(ctx))
        ]
        for title, records in (("Arguments", arguments), ("Options", options)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def _arguments(self) -> list[TyperArgument]:
        return [parameter for parameter in self.params if isinstance(parameter, TyperArgument)]
