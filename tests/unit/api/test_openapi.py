"""The API describes itself, all of it."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.dependencies.models import Dependant

from squib.api import routes
from tests.fakes.asgi import Request

METHODS = {"get", "post", "put", "delete", "patch"}


@pytest.fixture
def document(answer: Callable[..., Request]) -> Any:
    request = answer("GET", "/v1/openapi.json")
    assert request.status == 200
    return request.json


def operations(document: Any) -> Iterator[tuple[str, Any]]:
    for path, item in document["paths"].items():
        for method in item.keys() & METHODS:
            yield f"{method} {path}", item[method]


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for child in value.values():
            yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


def test_every_route_is_there(document: Any) -> None:
    assert {name for name, _ in operations(document)} == {
        "get /v1/engine", "post /v1/driver", "get /v1/engine/logs", "get /v1/doctor", "post /v1/listeners",
        "get /v1/vms", "post /v1/vms", "get /v1/vms/{ref}",
        "get /v1/vms/{ref}/details", "delete /v1/vms/{ref}", "post /v1/vms/{ref}/start",
        "post /v1/vms/{ref}/stop", "post /v1/vms/{ref}/hold", "delete /v1/vms/{ref}/hold",
        "post /v1/vms/{ref}/pause", "post /v1/vms/{ref}/resume", "post /v1/vms/{ref}/exec", "get /v1/vms/{ref}/logs",
        "get /v1/vms/{ref}/env", "patch /v1/vms/{ref}/env",
        "get /v1/vms/{ref}/processes", "get /v1/vms/{ref}/processes/{process_id}",
        "delete /v1/vms/{ref}/processes/{process_id}", "get /v1/vms/{ref}/processes/{process_id}/output",
        "post /v1/vms/{ref}/processes/{process_id}/resize",
        "post /v1/vms/{ref}/processes/{process_id}/stdin", "post /v1/vms/{ref}/processes/{process_id}/signal",
        "get /v1/vms/{ref}/files", "put /v1/vms/{ref}/files", "delete /v1/vms/{ref}/files",
        "get /v1/vms/{ref}/files/stat", "get /v1/vms/{ref}/files/list", "post /v1/vms/{ref}/files/mkdir",
        "post /v1/vms/{ref}/files/rename", "get /v1/vms/{ref}/files/watch",
        "get /v1/vms/{ref}/files/tar", "put /v1/vms/{ref}/files/tar",
        "get /v1/vms/{ref}/account",
        "get /v1/images", "post /v1/images", "delete /v1/images/{ref}", "get /v1/kernels", "post /v1/kernels",
        "delete /v1/kernels/{kernel}",
        "post /v1/vms/{ref}/suspend", "post /v1/vms/{ref}/fork", "post /v1/vms/{ref}/rollback", "get /v1/snapshots",
        "post /v1/snapshots", "get /v1/snapshots/{ref}", "delete /v1/snapshots/{ref}", "get /v1/tree",
        "post /v1/snapshots/import", "get /v1/snapshots/{ref}/export",
        "get /v1/templates", "post /v1/templates", "delete /v1/templates/{ref}", "post /v1/templates/prune",
    }  # fmt: skip


def test_every_route_says_what_it_does_and_how_it_fails(document: Any) -> None:
    for name, operation in operations(document):
        assert operation["description"], name
        assert operation["tags"], name
        schema = operation["responses"]["default"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}, name
        assert "422" not in operation["responses"], name
        assert any(status.startswith("2") for status in operation["responses"]), name


def test_the_error_schema_is_that_of_the_errors(document: Any) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["ErrorBody"]["properties"] == {"error": {"$ref": "#/components/schemas/WireError"}}
    assert schemas["WireError"]["properties"].keys() == {"code", "message", "hint", "detail"}


def test_every_reference_leads_somewhere_and_every_id_is_one(document: Any) -> None:
    schemas = document["components"]["schemas"]
    found = set(references(document))
    assert {ref.removeprefix("#/components/schemas/") for ref in found} <= schemas.keys()
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(ids)) == len(ids) and len(found) > 10


def test_parameters_in_paths_are_declared(document: Any) -> None:
    for name, operation in operations(document):
        declared = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
        assert {part.strip("{}") for part in name.split("/") if part.startswith("{")} == declared, name


def test_streams_say_what_they_are(document: Any) -> None:
    kinds = {
        name: set(operation["responses"].get("200", {}).get("content", {})) for name, operation in operations(document)
    }
    assert kinds["post /v1/vms/{ref}/exec"] == {"application/vnd.squib.frames"}
    assert kinds["get /v1/vms/{ref}/processes/{process_id}/output"] == {"application/vnd.squib.frames"}
    assert kinds["post /v1/images"] == kinds["post /v1/kernels"] == {"application/x-ndjson"}
    assert kinds["post /v1/vms"] == {"application/x-ndjson"}
    created = document["paths"]["/v1/vms"]["post"]["responses"]["201"]["content"]
    assert created == {"application/json": {"schema": {"$ref": "#/components/schemas/VMInfo"}}}
    assert kinds["get /v1/vms/{ref}/files"] == {"application/octet-stream"}
    assert kinds["get /v1/vms/{ref}/files/list"] == kinds["get /v1/vms/{ref}/files/watch"] == {"application/x-ndjson"}
    assert kinds["get /v1/vms/{ref}/files/tar"] == {"application/x-tar"}
    assert kinds["get /v1/vms/{ref}/logs"] == {"text/plain"}


def test_files_say_what_they_take(document: Any) -> None:
    put, tar = (document["paths"]["/v1/vms/{ref}/files" + more]["put"] for more in ("", "/tar"))
    assert put["requestBody"]["content"].keys() == {"application/octet-stream"}
    assert tar["requestBody"]["content"].keys() == {"application/x-tar"}
    assert {"path", "mode", "user", "parents", "mtime_ns"} < {each["name"] for each in put["parameters"]}
    assert {"path", "user", "keep_owner", "create"} < {each["name"] for each in tar["parameters"]}
    assert "percent-encoded" in str(put["parameters"])


def test_no_schema_offers_values_of_the_environment(document: Any) -> None:
    assert "env_vars" not in document["components"]["schemas"]["VMInfo"]["properties"]


def test_no_request_waits_for_a_thread() -> None:
    def called(dependant: Dependant) -> Iterator[object]:
        yield dependant.call
        for each in dependant.dependencies:
            yield from called(each)

    modules = [
        importlib.import_module(f"{routes.__name__}.{each.name}") for each in pkgutil.iter_modules(routes.__path__)
    ]
    functions = {call for module in modules for route in module.router.routes for call in called(route.dependant)}
    assert len(functions) > len(modules)
    assert [call for call in functions if not inspect.iscoroutinefunction(call)] == []
