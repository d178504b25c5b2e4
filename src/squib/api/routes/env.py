"""``/v1/vms/{ref}/env``: the environment variables of all commands in a VM."""

from __future__ import annotations

import json

from fastapi import APIRouter
from starlette.responses import Response

from squib.api.context import EngineDep, Ref
from squib.api.schema import EnvChange, EnvVars
from squib.core.guestio.env import change_env, get_env

router = APIRouter(prefix="/vms/{ref}/env", tags=["env"])


@router.get("", response_model=EnvVars)
async def get(engine: EngineDep, ref: Ref) -> Response:
    """Return the VM-wide environment variables with their values.

    A caller of this route can also run ``env`` in the VM, so it learns nothing new.
    """
    return _answer(get_env(engine, ref))


@router.patch("", response_model=EnvVars)
async def change(engine: EngineDep, ref: Ref, body: EnvChange) -> Response:
    """Set and unset variables.

    Commands started later get them, also after a restart of the VM.
    """
    return _answer(await change_env(engine, ref, set=body.set, unset=body.unset))


def _answer(env: dict[str, str]) -> Response:
    """Return the variables as ASCII JSON.

    Values may hold lone surrogates, which pydantic's JSON encoder rejects.
    """
    return Response(json.dumps({"env": env}), media_type="application/json")
