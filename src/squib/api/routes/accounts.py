"""``/v1/vms/{ref}/account``: the users of a running guest."""

from __future__ import annotations

import json

from fastapi import APIRouter
from starlette.responses import Response

from squib.api.context import EngineDep, Ref
from squib.api.routes.files import User
from squib.core.guestio import files
from squib.models import Account

router = APIRouter(prefix="/vms/{ref}/account", tags=["files"])


@router.get("", response_model=Account)
async def get(engine: EngineDep, ref: Ref, user: User) -> Response:
    """Describe a guest user, by default the VM's user, with home directory."""
    account = await files.account(engine, ref, user)
    return Response(json.dumps(account.model_dump(mode="json")).encode("ascii"), media_type="application/json")
