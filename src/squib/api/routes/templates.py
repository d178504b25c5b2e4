"""``/v1/templates``: saved VMs that new ones are cloned from."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse

from squib.api.context import EngineDep, Ref
from squib.api.routes.vms import check_jailer
from squib.api.schema import ProgressEvent, PrunedTemplates, PruneRequest, TemplateList, TemplateRequest
from squib.api.streams import NDJSON, ProgressResponse
from squib.core.snapshots import manage
from squib.models import OnProgress

router = APIRouter(tags=["templates"])


@router.get("/templates")
async def list_templates(engine: EngineDep) -> TemplateList:
    """List the templates, the one used last first."""
    return TemplateList(templates=manage.list_templates(engine))


@router.post("/templates", response_class=StreamingResponse, responses={200: {"content": {NDJSON: {}}}})
async def build_template(engine: EngineDep, request: Request, body: TemplateRequest) -> StreamingResponse:
    """Make the template of a configuration, unless there is one.

    The response has a `ProgressEvent` a line; the last one holds the template or the error.
    """
    check_jailer(body.config, request)

    async def work(on_progress: OnProgress) -> ProgressEvent:
        made = await manage.build_template(
            engine, body.config, boot_timeout_s=body.boot_timeout_s, on_progress=on_progress
        )
        return ProgressEvent(template=made)

    return ProgressResponse(work)


@router.delete("/templates/{ref}", status_code=204)
async def remove_template(engine: EngineDep, ref: Ref) -> None:
    """Remove a template. VMs that were cloned from it go on."""
    manage.remove_template(engine, ref)


@router.post("/templates/prune")
async def prune_templates(engine: EngineDep, body: PruneRequest | None = None) -> PrunedTemplates:
    """Remove the templates that were not used for two weeks, or take too much space, or all."""
    return PrunedTemplates(removed=manage.prune_templates(engine, everything=body is not None and body.all))
