"""``/v1/engine`` and ``/v1/doctor``."""

from __future__ import annotations

from fastapi import APIRouter

from squib.api.context import EngineDep
from squib.api.schema import CheckList
from squib.core import doctor
from squib.models import EngineInfo

router = APIRouter(tags=["engine"])


@router.get("/engine")
async def get_engine(engine: EngineDep) -> EngineInfo:
    """Describe this engine: version, accelerator, number of VMs."""
    return engine.info()


@router.get("/doctor")
async def get_doctor(engine: EngineDep) -> CheckList:
    """Check whether the host can run VMs and the state directory is in order.

    This takes about a second.
    """
    return CheckList(checks=[*await doctor.check_host(engine.home), *doctor.check_engine(engine)])
