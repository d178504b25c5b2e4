"""What is wrong with a request, in one line."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def describe_validation(problems: Collection[Mapping[str, object]]) -> str:
    """Validation errors as one line: the field, what is wrong with it, and its value where that is short and no part
    of an environment.
    """
    return "; ".join(map(_describe_problem, problems))


def _describe_problem(problem: Mapping[str, object]) -> str:
    loc = problem.get("loc", ())
    place, *fields = loc if isinstance(loc, tuple) and loc else ("",)
    if problem.get("type") == "json_invalid":
        fields = []  # it is where in the text
    message = str(problem.get("msg", "")).removeprefix("Value error, ")
    value = problem.get("input")
    short = isinstance(value, str | int | float) and len(str(value)) <= 80
    shown = short and repr(value) not in message and not {"env", "env_vars", "set"}.intersection(fields)
    name = ".".join(map(str, fields)) or f"the {place}"
    return f"{name}: {message}" + (f" (got {value!r})" if shown else "")
