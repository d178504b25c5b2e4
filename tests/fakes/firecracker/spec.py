"""Firecracker's own OpenAPI file as a judge of requests, where that file is at hand. It is not part of squib."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

VARIABLE = "SQUIB_TEST_FIRECRACKER_SPEC"
"""Names the file, Firecracker's ``src/firecracker/swagger/firecracker.yaml``."""
_DEFAULT = Path(__file__).parents[4] / "shared/specs/firecracker-v1.16.1.yaml"


class _Loader(yaml.SafeLoader):
    """Knows only ``true`` and ``false`` as truth values: ``Off`` is a log level."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (pyyaml's)
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":bool") or first in "tf"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class NotInTheFile(Exception):
    """A request that the OpenAPI file does not have, and why."""


def find() -> Path | None:
    """Return where the file is."""
    path = Path(os.environ.get(VARIABLE) or _DEFAULT)
    return path if path.is_file() else None


@functools.cache
def load() -> dict[str, Any]:
    """Return the file; skip the test if it is not there."""
    path = find()
    if path is None:
        pytest.skip(f"{VARIABLE} names no OpenAPI file of Firecracker, and {_DEFAULT.name} is not at hand")
    document: dict[str, Any] = yaml.load(path.read_text(), Loader=_Loader)
    for definition in document["definitions"].values():
        if definition["type"] == "object":
            definition.setdefault("additionalProperties", False)
    return document


def validate(method: str, path: str, body: Any = None) -> None:
    """Check a request against the file; fields that it does not name are wrong. Raises `NotInTheFile`.

    ``body`` is JSON as Python has it, or ``None`` for a request without one.
    """
    schema = body_schema(method, path)
    if schema is None or body is None:
        if (schema is None) != (body is None):
            raise NotInTheFile(f"{method} {path} {'needs a' if schema else 'has no'} body")
        return
    definitions = load()["definitions"]
    validator = jsonschema.Draft4Validator(schema | {"definitions": definitions})
    for error in validator.iter_errors(body):
        raise NotInTheFile(f"{method} {path}: {error.message}")


def validate_answer(method: str, path: str, status: int, body: Any) -> None:
    """Check an answer against the file. Raises `NotInTheFile`."""
    response = _operation(method, path)["responses"].get(status)
    if response is None or ("schema" in response) != (body is not None):
        raise NotInTheFile(f"{method} {path} is not answered with {status} and {body}")
    if body is not None:
        schema = response["schema"] | {"definitions": load()["definitions"]}
        for error in jsonschema.Draft4Validator(schema).iter_errors(body):
            raise NotInTheFile(f"{method} {path} -> {status}: {error.message}")


def body_schema(method: str, path: str) -> dict[str, Any] | None:
    """Return the schema of a request's body. Raises `NotInTheFile`."""
    parameters = _operation(method, path).get("parameters", ())
    schemas: list[dict[str, Any]] = [entry["schema"] for entry in parameters if entry["in"] == "body"]
    return schemas[0] if schemas else None


def _operation(method: str, path: str) -> dict[str, Any]:
    words = path.split("/")
    for template, operations in load()["paths"].items():
        expected = template.split("/")
        same = len(expected) == len(words) and all(
            word == want or (want.startswith("{") and word) for word, want in zip(words, expected, strict=True)
        )
        if same and method.lower() in operations:
            operation: dict[str, Any] = operations[method.lower()]
            return operation
    raise NotInTheFile(f"{method} {path} is no operation")
