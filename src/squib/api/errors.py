"""The API's error responses: the HTTP status of each code, and the body."""

from __future__ import annotations

import json

from starlette.responses import Response

from squib.errors import InternalError, SquibError
from squib.protocol.errors import ERROR_CODE_HEADER, to_wire

HTTP_STATUS = {
    "invalid_argument": 400,
    "unauthorized": 401,
    "host_not_allowed": 403,
    "permission_denied": 403,
    "not_found": 404,
    "no_such_process": 404,
    "no_such_file": 404,
    "conflict": 409,
    "name_taken": 409,
    "wrong_state": 409,
    "superseded": 409,
    "stdin_closed": 409,
    "no_terminal": 409,
    "file_exists": 409,
    "not_a_file": 409,
    "is_a_directory": 409,
    "not_a_directory": 409,
    "directory_not_empty": 409,
    "archive_refused": 409,
    "transfer_failed": 409,
    "body_too_large": 413,
    "unsupported": 422,
    "command_not_found": 422,
    "not_executable": 422,
    "arguments_too_long": 422,
    "no_shell": 422,
    "bad_cwd": 422,
    "no_such_user": 422,
    "command_failed": 422,
    "command_timeout": 422,
    "output_too_large": 422,
    "internal": 500,
    "tool_failed": 500,
    "image_corrupt": 500,
    "record_corrupt": 500,
    "download_failed": 502,
    "boot_failed": 502,
    "agent_unreachable": 502,
    "agent_lost": 502,
    "agent_protocol_error": 502,
    "agent_version_mismatch": 502,
    "guest_failed": 502,
    "database_failed": 503,
    "engine_unavailable": 503,
    "engine_start_failed": 503,
    "dependency_missing": 503,
    "boot_timeout": 504,
    "agent_timeout": 504,
    "disk_full": 507,
    "guest_disk_full": 507,
}
"""The status of every error code of `squib.errors`."""


def http_status(error: SquibError) -> int:
    """Return the HTTP status that reports an error."""
    return HTTP_STATUS[error.code or InternalError.code]


def error_response(error: SquibError) -> Response:
    """Return the response that reports an error.

    The body is ASCII: a message may quote bytes that are not UTF-8. If older clients do not know the error's code, the
    body has one that they know, and a header has the error's own.
    """
    wire, headers = to_wire(error), {}
    if error.older_code:
        headers[ERROR_CODE_HEADER], wire["code"] = error.code, error.older_code
    body = json.dumps({"error": wire}).encode("ascii")
    return Response(body, status_code=http_status(error), headers=headers, media_type="application/json")
