"""``squib template``, and ``--cold``."""

from squib.drivers.base import SavedMemory
from tests.fakes.served import Served
from tests.unit.cli.conftest import Squib


def launched(engine: Served) -> list[bool]:
    """Whether each VM so far was a clone."""
    return [isinstance(spec.memory, SavedMemory) for spec in engine.rig.driver.launched]


def test_templates_are_built_listed_used_and_removed(squib: Squib, engine: Served, host_files: list[str]) -> None:
    squib("template", "prune", "--all")
    assert squib("template", "ls").text.startswith("ID ")
    built = squib("template", "build", *host_files, "--memory", "200")
    assert (built.status, built.err) == (0, "squib: template: boot\n")
    template_id = built.text.strip()
    [listed] = squib("template", "ls", "--json").json
    assert (listed["template_id"], listed["mem_size_mib"], listed["driver"]) == (template_id, 200, "fake")
    row = squib("template", "ls").text.splitlines()[1]
    assert row.split()[:5] == [template_id, "own", "rootfs", "1", "200"]
    assert squib("template", "build", *host_files, "--memory", "200", "--json").json["template_id"] == template_id
    for cold in ([], ["--cold"]):
        assert squib("create", *host_files, "--memory", "200", *cold).status == 0
    assert launched(engine)[-2:] == [True, False]
    assert squib("template", "rm", template_id).text == f"{template_id}\n"
    missing = squib("template", "rm", template_id)
    assert (missing.status, missing.err) == (
        1, f"squib: there is no template {template_id}\nhint: squib template ls\n",
    )  # fmt: skip


def test_templates_are_pruned(squib: Squib, host_files: list[str]) -> None:
    template_id = squib("template", "build", *host_files, "--memory", "300").text.strip()
    assert squib("template", "prune").text == ""
    assert squib("template", "prune", "--all", "--json").json == {"removed": [template_id]}
    assert squib("template", "ls", "--json").json == []
