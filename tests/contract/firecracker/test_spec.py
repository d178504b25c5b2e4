"""The stub's tables and Firecracker's OpenAPI file agree: on every field, and on requests that are right or wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.firecracker.test_faults import BODIES
from tests.contract.firecracker.vmm import running
from tests.fakes.firecracker import schema, spec
from tests.fakes.firecracker.install import Stub
from tests.fakes.firecracker.schema import OPERATIONS, Array, Boolean, Enum, Operation, String, Struct, Unsigned

NEWEST = (1, 16)
LOOSER = {"PATCH /machine-config"}
"""Where the file has required fields that Firecracker does not require."""
BODY_OPERATIONS = [operation for operation in OPERATIONS if operation.body]
NAMES = [f"{operation.method} {operation.path}" for operation in BODY_OPERATIONS]


@pytest.fixture(autouse=True)
def document() -> dict[str, Any]:
    return spec.load()


def resolve(part: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference."""
    if "$ref" in part:
        resolved: dict[str, Any] = spec.load()["definitions"][part["$ref"].rpartition("/")[2]]
        return resolved
    return part


def assert_same(kind: Any, part: dict[str, Any], *, name: str, required: bool = True) -> None:
    """Assert that a type of the tables is that of the file."""
    part = resolve(part)
    match kind:
        case Struct():
            assert part["type"] == "object", name
            assert kind.fields.keys() == part["properties"].keys(), name
            if required:
                needed = {field for field, value in kind.fields.items() if value.required}
                assert needed == set(part.get("required", ())), name
            for field, value in kind.fields.items():
                assert_same(value.type, part["properties"][field], name=f"{name}.{field}")
        case Enum():
            assert (part["type"], set(part["enum"])) == ("string", set(kind.values)), name
        case Unsigned():
            assert part["type"] == "integer", name
            assert part.get("minimum", kind.minimum) == kind.minimum, name
            assert part.get("maximum", kind.maximum) == kind.maximum, name
        case Array():
            assert part["type"] == "array", name
            assert_same(kind.item, part["items"], name=f"{name}[]")
        case Boolean():
            assert part["type"] == "boolean", name
        case String():
            assert (part["type"], "enum" in part) == ("string", False), name


def test_every_operation_is_in_the_file_with_the_same_fields(document: dict[str, Any]) -> None:
    for operation in OPERATIONS:
        name = f"{operation.method} {operation.path}"
        found = spec.body_schema(operation.method, operation.path)
        assert (found is None) == (operation.body is None), name
        assert operation.path in document["paths"]
        if operation.body and found:
            assert_same(operation.body, found, name=name, required=name not in LOOSER)


def sample(kind: Any, *, full: bool) -> Any:
    """Return a value of a type, with all fields or with those that are required."""
    match kind:
        case Struct():
            return {
                name: sample(field.type, full=full) for name, field in kind.fields.items() if full or field.required
            }
        case Enum():
            return kind.values[0]
        case Unsigned():
            return max(kind.minimum, 1)
        case Array():
            return [sample(kind.item, full=full)]
        case Boolean():
            return True
        case _:
            return "disk"


def wrong_values(kind: Any) -> list[Any]:
    """Return values that are not of a type."""
    values: list[Any] = [None, 5, 1.5, True, "nonsense", [], [5], {"nonsense": 1}]
    match kind:
        case Struct():
            return [value for value in values if value != {}]
        case Enum():
            return values
        case Unsigned():
            beyond = [kind.minimum - 1] if kind.minimum else []
            return [value for value in values if value != 5] + beyond + ([33] if kind.maximum == 32 else [])
        case Array():
            return [value for value in values if value != []]
        case Boolean():
            return [value for value in values if value is not True]
        case _:
            return [value for value in values if value != "nonsense"]


def mutations(kind: Struct) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Yield bodies of a type, and whether they are right."""
    whole = sample(kind, full=True)
    yield True, whole
    yield True, sample(kind, full=False)
    yield False, whole | {"nonsense": 1}
    for name, field in kind.fields.items():
        rest = {other: value for other, value in whole.items() if other != name}
        yield not field.required, rest
        for value in wrong_values(field.type):
            yield False, rest | {name: value}
        if isinstance(field.type, Enum):
            for value in field.type.values:
                yield True, rest | {name: value}
        if isinstance(field.type, Unsigned):
            yield True, rest | {name: field.type.minimum}
        if isinstance(field.type, Struct):
            for right, inner in mutations(field.type):
                yield right, rest | {name: inner}


def judged_by_the_stub(operation: Operation, body: Any) -> bool:
    path = operation.path.replace("{drive_id}", "disk")
    try:
        schema.check(operation.method, path, json.dumps(body).encode(), NEWEST)
    except schema.Invalid:
        return False
    return True


def judged_by_the_file(operation: Operation, body: Any) -> bool:
    try:
        spec.validate(operation.method, operation.path.replace("{drive_id}", "disk"), body)
    except spec.NotInTheFile:
        return False
    return True


@pytest.mark.parametrize("operation", BODY_OPERATIONS, ids=NAMES)
def test_right_and_wrong_requests_are_judged_alike(operation: Operation) -> None:
    assert operation.body
    name = f"{operation.method} {operation.path}"
    judged = 0
    for right, body in mutations(operation.body):
        if not body and name == "PATCH /machine-config":
            continue
        assert judged_by_the_stub(operation, body) == right, (name, body)
        if name in LOOSER:
            body = sample(schema.MACHINE, full=False) | body
            if not right and judged_by_the_stub(operation, body):
                continue
        assert judged_by_the_file(operation, body) == right, (name, body)
        judged += 1
    assert judged >= 3


def test_paths_and_methods_are_judged_alike() -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        for path in ("/vsock", "/actions", "/vm", "/entropy", "/version", "/nothing", "/drives", "/machine-config/x"):
            body = None if method == "GET" else {}
            known = any(entry.method == method and entry.path == path for entry in OPERATIONS)
            try:
                spec.body_schema(method, path)
                found = True
            except spec.NotInTheFile:
                found = False
            assert found == known, (method, path, body)


def test_a_field_newer_than_the_version_is_unknown() -> None:
    newer = {"PUT /balloon": (1, 13), "PUT /serial": (1, 15)}
    for name, version in newer.items():
        method, path = name.split()
        kind = next(entry.body for entry in OPERATIONS if (entry.method, entry.path) == (method, path))
        assert kind
        body = json.dumps(sample(kind, full=True)).encode()
        schema.check(method, path, body, NEWEST)
        with pytest.raises(schema.Invalid, match="unknown field"):
            schema.check(method, path, body, version)


def test_answers_are_those_of_the_file(stub: Stub, tmp_path: Path) -> None:
    with running(stub.firecracker, "1.16.1", tmp_path) as vmm:
        for call in ("PUT /boot-source", "PUT /vsock", "PUT /balloon", "PUT /machine-config", "PUT /actions"):
            method, path = call.split()
            spec.validate(method, path, BODIES[call])
            spec.validate_answer(method, path, *vmm.call(method, path, BODIES[call]))
        for path in ("/", "/version", "/machine-config", "/balloon", "/balloon/statistics"):
            spec.validate_answer("GET", path, *vmm.call("GET", path))
        spec.validate_answer("PUT", "/actions", *vmm.call("PUT", "/actions", BODIES["PUT /actions"]))


def test_the_judge_itself_rejects() -> None:
    spec.validate("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v"})
    for method, path, body in [
        ("PUT", "/vsock", {"guest_cid": 3}),
        ("PUT", "/vsock", {"guest_cid": "3", "uds_path": "v"}),
        ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v", "x": 1}),
        ("PUT", "/vsock", None),
        ("GET", "/", {}),
        ("POST", "/vsock", {}),
    ]:
        with pytest.raises(spec.NotInTheFile):
            spec.validate(method, path, body)
