"""``/v1/engine`` and ``/v1/doctor``."""

from __future__ import annotations

from fastapi import APIRouter

from squib.api.context import EngineDep
from squib.models import EngineInfo

router = APIRouter(tags=["engine"])


@router.get("/engine")
async def get_engine(engine: EngineDep) -> EngineInfo:
    """What this engine is: version, accelerator, how many VMs."""
    return engine.info()
