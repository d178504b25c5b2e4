"""``/v1/engine``, ``/v1/driver`` and ``/v1/doctor``."""

from __future__ import annotations

from fastapi import APIRouter

from squib.api.context import EngineDep
from squib.api.schema import CheckList
from squib.core import doctor
from squib.core.lifecycle.create import choose_driver
from squib.models import DriverChoice, EngineInfo, VMConfig

router = APIRouter(tags=["engine"])


@router.get("/engine")
async def get_engine(engine: EngineDep) -> EngineInfo:
    """Describe this engine: version, accelerator, number of VMs."""
    return engine.info()


@router.post("/driver")
async def find_driver(engine: EngineDep, config: VMConfig) -> DriverChoice:
    """Say which driver a new VM with this configuration would get, and why."""
    choice = choose_driver(engine, config)
    return DriverChoice(driver=choice.driver.name, accelerator=choice.driver.accelerator, reason=choice.reason)


@router.get("/doctor")
async def get_doctor(engine: EngineDep) -> CheckList:
    """Check whether the host can run VMs and the state directory is in order.

    This takes about a second.
    """
    return CheckList(checks=[*await doctor.check_host(engine.home), *doctor.check_engine(engine)])
