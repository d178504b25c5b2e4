"""Each route once, with a valid request."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from squib.api.schema import CheckList
from squib.artifacts.cache import Entry
from squib.core import doctor
from squib.core.engine import Engine
from squib.images.store import Image
from squib.kernels.catalog import Kernel
from squib.models import Check, CheckStatus, Fix, OnProgress, VMInfo
from squib.store.database import now
from squib.version import VERSION
from tests.fakes.engine import Rig

pytestmark = pytest.mark.anyio

OverHttp = Callable[[], contextlib.AbstractAsyncContextManager[tuple[Engine, httpx.AsyncClient]]]


def body(rig: Rig, *, start: bool = False, **fields: object) -> dict[str, object]:
    return {"config": rig.config.model_dump(exclude_unset=True) | fields, "start": start}


def vm_of(response: httpx.Response, status: int = 200) -> VMInfo:
    assert response.status_code == status, response.text
    return VMInfo.model_validate(response.json())


async def test_the_whole_life_of_a_vm(rig: Rig, over_http: OverHttp) -> None:
    async with over_http() as (engine, http):
        made = vm_of(await http.post("/v1/vms", json=body(rig, name="web", env_vars={"TOKEN": "hunter2"})), 201)
        assert (made.name, made.state, made.env_names, made.pid) == ("web", "created", ["TOKEN"], None)
        started = vm_of(await http.post("/v1/vms/web/start", json={}))
        assert (started.state, [started.pid]) == ("running", rig.vmms())
        assert vm_of(await http.post("/v1/vms/web/start", json={"boot_timeout_s": 5})) == started
        assert vm_of(await http.get("/v1/vms/web")) == vm_of(await http.get(f"/v1/vms/{made.vm_id}")) == started
        stopped = vm_of(await http.post("/v1/vms/web/stop", json={"timeout_s": 5}))
        assert (stopped.state, stopped.reason) == ("stopped", "stopped")
        assert vm_of(await http.post("/v1/vms/web/stop", json={})) == stopped
        gone = await http.delete("/v1/vms/web")
        assert (gone.status_code, gone.content) == (204, b"")
        assert (await http.get("/v1/vms/web")).status_code == 404
        assert (engine.store.list_vms(), engine.store.leases()) == ([], [])


async def test_create_with_start_answers_when_the_vm_is_ready(rig: Rig, over_http: OverHttp) -> None:
    async with over_http() as (_, http):
        made = vm_of(await http.post("/v1/vms", json=body(rig, start=True, vm_id="one", vcpu_count=2)), 201)
        assert (made.vm_id, made.state, made.vcpu_count) == ("one", "running", 2)
        assert rig.driver.launched[0].vcpu_count == 2


async def test_vms_are_listed_oldest_first_and_by_project(rig: Rig, over_http: OverHttp) -> None:
    async with over_http() as (_, http):
        assert (await http.get("/v1/vms")).json() == {"vms": []}
        for name, project in (("z", "lab"), ("a", None), ("m", "lab")):
            vm_of(await http.post("/v1/vms", json=body(rig, name=name, project=project)), 201)
        assert [vm["name"] for vm in (await http.get("/v1/vms")).json()["vms"]] == ["z", "a", "m"]
        assert [vm["name"] for vm in (await http.get("/v1/vms?project=lab")).json()["vms"]] == ["z", "m"]
        assert (await http.get("/v1/vms?project=other")).json() == {"vms": []}


async def test_values_of_the_environment_are_in_no_answer(rig: Rig, over_http: OverHttp) -> None:
    async with over_http() as (_, http):
        answers = [await http.post("/v1/vms", json=body(rig, name="web", env_vars={"TOKEN": "hunter2"}))]
        answers += [await http.get("/v1/vms"), await http.get("/v1/vms/web")]
        answers += [await http.post("/v1/vms", json=body(rig, name="web", env_vars={"TOKEN": "hunter2"}))]
        assert [answer.status_code for answer in answers] == [201, 200, 200, 409]
        assert "hunter2" not in "".join(answer.text for answer in answers)


async def test_the_engine_says_what_it_is(rig: Rig, over_http: OverHttp) -> None:
    async with over_http() as (_, http):
        await http.post("/v1/vms", json=body(rig))
        info = (await http.get("/v1/engine")).json()
        assert (info["version"], info["driver"], info["home"]) == (VERSION, "fake", str(rig.home.root))
        assert (info["vm_count"], info["running_count"]) == (1, 0)


async def test_doctor_looks_at_host_and_engine(over_http: OverHttp, monkeypatch: pytest.MonkeyPatch) -> None:
    on_host = Check(
        name="moon", status=CheckStatus.FAIL, detail="wrong phase", fix=Fix(argv=("wait", "a week"), as_root=True)
    )
    in_engine = Check(name="leases", status=CheckStatus.OK, detail="all owned")

    async def check_host(home: object) -> list[Check]:
        return [on_host]

    monkeypatch.setattr(doctor, "check_host", check_host)
    monkeypatch.setattr(doctor, "check_engine", lambda engine: [in_engine])

    async with over_http() as (_, http):
        assert CheckList.model_validate((await http.get("/v1/doctor")).json()).checks == [on_host, in_engine]


async def test_logs_are_the_bytes_that_were_written(rig: Rig, over_http: OverHttp) -> None:
    async with over_http() as (_, http):
        vm = vm_of(await http.post("/v1/vms", json=body(rig, name="web")), 201)
        rig.console_log(vm.vm_id).write_bytes(b"one\r\n\xff\x1b[0m two\nthree\n")
        rig.home.engine_log.write_bytes(b"first\nlast\n")
        answer = await http.get("/v1/vms/web/logs")
        assert answer.content == b"one\r\n\xff\x1b[0m two\nthree\n"
        assert answer.headers["content-type"].startswith("text/plain")
        assert (await http.get("/v1/vms/web/logs?lines=1")).content == b"three\n"
        assert (await http.get("/v1/vms/web/logs?lines=2&follow=true")).content == b"\xff\x1b[0m two\nthree\n"
        assert (await http.get("/v1/engine/logs?lines=1")).content == b"last\n"
        assert (await http.get("/v1/engine/logs")).content == b"first\nlast\n"


async def test_images_and_kernels_are_listed_with_their_users(
    rig: Rig, over_http: OverHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with over_http() as (engine, http):
        built_at = now()
        image = Entry("base", "sha256:1", 7, built_at, {})
        kernel = Entry("debian-cloud", "sha256:2", 8, built_at, {"version": "6.1"}, damage="torn")
        monkeypatch.setattr(engine.images, "list", lambda: [image])
        monkeypatch.setattr(engine.kernels, "list", lambda: [kernel])
        await http.post("/v1/vms", json=body(rig, name="web"))
        engine.store._db.execute(
            'UPDATE vms SET spec = json_set(spec, \'$.rootfs\', json(\'{"kind": "cached", "digest": "sha256:1"}\'))'
        )
        [found] = (await http.get("/v1/images")).json()["images"]
        assert (found["name"], found["digest"], found["size_bytes"], found["in_use_by"]) == (
            "base",
            "sha256:1",
            7,
            ["web"],
        )
        [found] = (await http.get("/v1/kernels")).json()["kernels"]
        assert (found["version"], found["digest"], found["size_bytes"]) == ("6.1", "sha256:2", 8)
        assert (found["in_use_by"], found["damage"]) == ([], "torn")
        removed: list[str] = []
        monkeypatch.setattr(engine.images, "remove", removed.append)
        refused = await http.delete("/v1/images/base")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
        assert "web" in refused.json()["error"]["message"] and removed == []
        await http.delete("/v1/vms/web")
        assert (await http.delete("/v1/images/base")).status_code == 204
        assert removed == ["base"]
        monkeypatch.setattr(engine.kernels, "remove", removed.append)
        assert (await http.delete("/v1/kernels/6.1")).status_code == 204
        assert removed == ["base", "sha256:2"]
        assert (await http.delete("/v1/kernels/6.2")).status_code == 404


async def test_the_results_of_builds_have_the_fields_of_the_first_version(
    rig: Rig, over_http: OverHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with over_http() as (engine, http):

        async def build_kernel(on_progress: OnProgress, *, rebuild: bool) -> Kernel:
            return Kernel("6.1", "sha256:2", Path("/k"), None, None, (), 8, now())

        async def build_image(name: str, on_progress: OnProgress, *, rebuild: bool) -> Image:
            return Image(name, "sha256:1", Path("/i"), 7, now())

        monkeypatch.setattr(engine.kernels, "ensure", build_kernel)
        monkeypatch.setattr(engine.images, "build", build_image)
        kernel = (await http.post("/v1/kernels")).json()["kernel"]
        assert kernel.keys() == {"version", "digest", "size_bytes", "built_at"}
        image = (await http.post("/v1/images", json={"name": "base"})).json()["image"]
        assert image.keys() == {"name", "digest", "size_bytes", "built_at", "in_use_by"}


async def test_the_engine_is_busy_while_a_request_or_a_vm_needs_it(
    rig: Rig, over_http: OverHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with over_http() as (engine, http):
        entered, go_on = asyncio.Event(), asyncio.Event()

        async def check_host(home: object) -> list[Check]:
            entered.set()
            await go_on.wait()
            return []

        monkeypatch.setattr(doctor, "check_host", check_host)
        assert engine.idle_s > 0
        request = asyncio.create_task(http.get("/v1/doctor"))
        await entered.wait()
        assert engine.idle_s == 0
        go_on.set()
        await request
        assert 0 < engine.idle_s < 10
        await http.post("/v1/vms", json=body(rig, name="web"))
        assert engine.idle_s > 0, "a VM that does not run needs no engine"
        await http.post("/v1/vms/web/start", json={})
        assert engine.idle_s == 0
        await http.post("/v1/vms/web/stop", json={})
        assert engine.idle_s > 0
