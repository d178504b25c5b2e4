"""``squib tree``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output

if TYPE_CHECKING:
    from squib.models import TreeNode


@command("tree", examples=["squib tree"])
async def tree(output: Output) -> None:
    """Show which VMs and snapshots were made from which."""
    async with options.connect() as engine:
        nodes = await engine.tree()
    if output.json:
        output.data(nodes)
    else:
        for line in draw(nodes):
            output.line(line)


def draw(nodes: list[TreeNode]) -> list[str]:
    """Return the lines of the tree. ``nodes`` has each node after its parent."""
    children: dict[str | None, list[TreeNode]] = {}
    for node in nodes:
        children.setdefault(node.parent_id, []).append(node)
    lines: list[str] = []
    waiting = [(node, "", "") for node in reversed(children.get(None, []))]
    while waiting:
        node, first, rest = waiting.pop()
        lines.append(f"{first}{_label(node)}")
        below = children.get(node.id, [])
        for number, child in reversed(list(enumerate(below, 1))):
            last = number == len(below)
            waiting.append((child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")))
    return lines


def _label(node: TreeNode) -> str:
    name = node.name if node.name == node.id else f"{node.name} ({node.id})"
    what = f"{node.kind} {name}"
    details = ", ".join(filter(None, (str(node.state), "ephemeral" if node.ephemeral else "")))
    return f"{what}: {details}" if details else what
