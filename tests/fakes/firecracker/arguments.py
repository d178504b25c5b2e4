"""The command lines of Firecracker and its jailer, parsed by the same rules."""

from __future__ import annotations

from typing import NamedTuple

UNEXPECTED = "UnexpectedArgument"


class Argument(NamedTuple):
    """One argument; ``since`` is the version that has it first."""

    value: bool = False
    multiple: bool = False
    required: bool = False
    default: str | None = None
    requires: str | None = None
    forbids: str | None = None
    since: tuple[int, int] = (1, 0)


class ArgumentError(Exception):
    """``kind`` and ``names`` are those of the real parser's error."""

    def __init__(self, kind: str, message: str, *names: str) -> None:
        super().__init__(message)
        self.kind, self.names = kind, names

    def debug(self) -> str:
        """Return the error as Rust's ``{:?}`` prints it."""
        names = ", ".join(f'"{name}"' for name in self.names)
        return f"{self.kind}({names})"


class Parsed(NamedTuple):
    """The values by name (a list if there may be several, ``""`` for a flag) and what follows ``--``."""

    values: dict[str, str | list[str]]
    extra: list[str]

    def single(self, name: str) -> str | None:
        """Return an argument's value, or ``None``."""
        value = self.values.get(name)
        return value if isinstance(value, str) else None

    def several(self, name: str) -> list[str]:
        """Return all values of an argument."""
        value = self.values.get(name, [])
        return value if isinstance(value, list) else [value]


def parse(argv: list[str], table: dict[str, Argument], version: tuple[int, int]) -> Parsed:
    """Parse the arguments after the program's name; raise `ArgumentError`."""
    end = argv.index("--") if "--" in argv else len(argv)
    argv, extra = argv[:end], argv[end + 1 :]
    for flag, name in (("--help", "help"), ("-h", "help"), ("--version", "version")):
        if flag in argv:
            return Parsed({name: ""}, extra)
    known = {name: argument for name, argument in table.items() if argument.since <= version}
    given = _populate(argv, known)
    for name, argument in sorted(known.items()):
        _check(name, argument, given, argv)
    defaults = {name: argument.default for name, argument in known.items() if argument.default is not None}
    return Parsed(defaults | given, extra)


def _populate(argv: list[str], known: dict[str, Argument]) -> dict[str, str | list[str]]:
    given: dict[str, str | list[str]] = {}
    words = iter(argv)
    for word in words:
        name = word.removeprefix("--")
        if not word.startswith("--") or name not in known:
            raise ArgumentError(
                UNEXPECTED, f"Found argument '{name}' which wasn't expected, or isn't valid in this context.", name
            )
        argument = known[name]
        if name in given and not argument.multiple:
            raise ArgumentError("DuplicateArgument", f"The argument '{name}' was provided more than once.", name)
        if not argument.value:
            given[name] = ""
            continue
        value = next(words, "--")
        if value.startswith("--"):
            raise ArgumentError("MissingValue", f"The argument '{name}' requires a value, but none was supplied.", name)
        given[name] = [*given.get(name, []), value] if argument.multiple else value
    return given


def _check(name: str, argument: Argument, given: dict[str, str | list[str]], argv: list[str]) -> None:
    """Check what an argument demands of the others."""
    if argument.required and name not in given:
        raise ArgumentError("MissingArgument", f"Argument '{name}' required, but not found.", name)
    if name not in given:
        return
    if argument.requires and f"--{argument.requires}" not in argv:
        other = argument.requires
        raise ArgumentError("MissingArgument", f"Argument '{other}' required, but not found.", other)
    if argument.forbids and f"--{argument.forbids}" in argv:
        other = argument.forbids
        message = f"Argument '{other}' cannot be used together with argument '{name}'."
        raise ArgumentError("ForbiddenArgument", message, name, other)


def invalid_id(name: str) -> str | None:
    """Return what is wrong with the ID of a microVM, as the real programs say it."""
    if not 1 <= len(name.encode()) <= 64:
        return f"Invalid len ({len(name.encode())});  the length must be between 1 and 64"
    for position, char in enumerate(name):
        if char != "-" and not char.isalnum():
            return f"Invalid char ({char}) at position {position}"
    return None


def parse_version(text: str) -> tuple[int, int]:
    """Return major and minor of ``1.16.1``."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
