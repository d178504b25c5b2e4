"""Describe an invalid request in one line."""

from __future__ import annotations

from collections.abc import Collection, Mapping

_MESSAGES = {
    "extra_forbidden": "unknown field",
    "missing": "this field is required",
    "json_invalid": "invalid JSON",
    "dict_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "list_type": "must be a JSON array",
}
"""Plain text for pydantic's error types whose own message does not fit a JSON request."""


def describe_validation(problems: Collection[Mapping[str, object]]) -> str:
    """Return validation errors as one line of fields, problems and values.

    It names each field, what is wrong with it, and its value. Long values and values of an environment are left out.
    """
    return "; ".join(map(_describe_problem, problems))


def _describe_problem(problem: Mapping[str, object]) -> str:
    loc = problem.get("loc", ())
    place, *fields = loc if isinstance(loc, tuple) and loc else ("",)
    kind = str(problem.get("type"))
    if kind == "json_invalid":
        fields = []  # the location is a position in the text
    message = _MESSAGES.get(kind) or str(problem.get("msg", "")).removeprefix("Value error, ")
    value = problem.get("input") if kind != "extra_forbidden" else None
    short = isinstance(value, str | int | float) and len(str(value)) <= 80
    shown = short and repr(value) not in message and not {"env", "env_vars", "set"}.intersection(fields)
    name = ".".join(map(str, fields)) or f"the {place}"
    return f"{name}: {message}" + (f" (got {value!r})" if shown else "")
