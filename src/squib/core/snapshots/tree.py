"""Who was made from whom."""

from __future__ import annotations

from squib.core.engine import Engine
from squib.core.snapshots import catalog
from squib.models import TreeKind, TreeNode


def tree(engine: Engine) -> list[TreeNode]:
    """Return all VMs and snapshots with what they were made from, parents first.

    What was deleted is there as long as something made from it is left.
    """
    nodes = [
        TreeNode(
            id=vm.vm_id,
            name=vm.name,
            kind=TreeKind.VM,
            parent_id=_id_of(vm.spec.parent),
            state=vm.state,
            ephemeral=vm.spec.ephemeral,
            created_at=vm.created_at,
        )
        for vm in engine.store.list_vms()
    ] + [
        TreeNode(
            id=snapshot.id,
            name=snapshot.name,
            kind=TreeKind.SNAPSHOT,
            parent_id=_id_of(snapshot.manifest.parent),
            created_at=snapshot.manifest.created_at,
        )
        for snapshot in catalog.all_snapshots(engine.home)
    ]
    return in_order(nodes)


def _id_of(key: str) -> str | None:
    return key.partition("/")[2] or None


def in_order(nodes: list[TreeNode]) -> list[TreeNode]:
    """Return the nodes with each parent before its children, and a `TreeKind.DELETED` node for each that is gone."""
    known = {node.id for node in nodes}
    gone = sorted({node.parent_id for node in nodes if node.parent_id and node.parent_id not in known})
    nodes = [*nodes, *(TreeNode(id=id, name=id, kind=TreeKind.DELETED, parent_id=None) for id in gone)]
    children: dict[str | None, list[TreeNode]] = {}
    for node in nodes:
        children.setdefault(node.parent_id, []).append(node)
    ordered: list[TreeNode] = []
    waiting = list(reversed(children.get(None, [])))
    while waiting:
        node = waiting.pop()
        ordered.append(node)
        waiting += reversed(children.get(node.id, []))
    placed = {node.id for node in ordered}
    return ordered + [node.model_copy(update={"parent_id": None}) for node in nodes if node.id not in placed]
