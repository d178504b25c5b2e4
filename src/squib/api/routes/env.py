"""``/v1/vms/{ref}/env``: the environment of every command of a VM."""

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
    """The VM-wide environment, values included: whoever may ask may also run ``env`` there."""
    return _answer(get_env(engine, ref))


@router.patch("", response_model=EnvVars)
async def change(engine: EngineDep, ref: Ref, body: EnvChange) -> Response:
    """Set and unset variables. It holds for every command that is started later, after a restart too."""
    return _answer(await change_env(engine, ref, set=body.set, unset=body.unset))


def _answer(env: dict[str, str]) -> Response:
    """In ASCII: bytes that are not UTF-8 are lone surrogates, which pydantic's JSON refuses."""
    return Response(json.dumps({"env": env}), media_type="application/json")
