"""How the package is built: what the linters do not see."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import squib

SOURCE = Path(squib.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MAX_LINES = 400
DOCUMENTED = ("__init__", "api/", "core/", "errors", "models", "sdk/", "store/")
"""Where everything public has a docstring: the front door and what lies under it."""

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def public(tree: ast.Module) -> Iterator[Documented]:
    """The public functions and classes of a module, and the public methods of those classes, but properties (whose
    name and type say it).
    """
    for node in tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    child
                    for child in node.body
                    if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                    and not child.name.startswith("_")
                    and not child.decorator_list
                )


def test_there_is_something_to_look_at() -> None:
    assert len(FILES) > 50


def test_files_stay_short() -> None:
    assert [name_of(path) for path in FILES if len(path.read_text().splitlines()) >= MAX_LINES] == []


def test_one_module_starts_processes() -> None:
    starters = {name_of(path) for path in FILES if "subprocess" in imports(ast.parse(path.read_text()))}
    assert starters == {"host/proc.py"}


def test_no_other_module_starts_processes_by_another_name() -> None:
    words = ("create_subprocess", "os.system(", "os.popen(", "os.spawn", "os.fork(", "os.posix_spawn", "os.execv")
    found = {name_of(path) for path in FILES if any(word in path.read_text() for word in words)}
    # Two programs of their own: the jailer becomes the VMM that it confined, the watchdog starts the next engine.
    assert found == {"host/proc.py", "host/jailer.py", "host/watchdog.py"}


def test_nothing_is_caught_that_was_not_expected() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or "Exception" in [getattr(leaf, "id", "") for leaf in ast.walk(node.type)])
    ]
    assert found == []


def test_what_catches_everything_raises_it_again_or_is_a_boundary() -> None:
    """``except BaseException`` is for clean-up."""
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and "BaseException" in [getattr(leaf, "id", "") for leaf in ast.walk(node.type or node)][:1]
        and not any(isinstance(leaf, ast.Raise) for leaf in ast.walk(node))
    ]
    assert found == []


def test_modules_say_what_they_are() -> None:
    trees = {name_of(path): ast.parse(path.read_text()) for path in FILES}
    assert [name for name, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []


def test_what_is_public_is_documented() -> None:
    undocumented = [
        f"{name_of(path)}: {node.name}"
        for path in FILES
        if name_of(path).startswith(DOCUMENTED)
        for node in public(ast.parse(path.read_text()))
        if not ast.get_docstring(node)
    ]
    assert undocumented == []


def test_the_public_names_are_sorted_and_can_be_imported() -> None:
    constants_classes_rest = sorted(squib.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert squib.__all__ == constants_classes_rest
    assert len(set(squib.__all__)) == len(squib.__all__)
    for name in squib.__all__:
        assert getattr(squib, name) is not None
    with pytest.raises(AttributeError, match="nosuch"):
        squib.nosuch  # noqa: B018


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse(Path(squib.__file__).read_text())
    seen = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("squib")
        for alias in node.names
    }
    assert seen == set(squib.__all__)
    assert (SOURCE / "py.typed").exists()


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    code = "import sys, squib.cli.main; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "squib" in done.stdout.split()
    assert {"httpx", "pydantic", "rich", "fastapi", "uvicorn", "starlette"}.isdisjoint(done.stdout.split())


def test_no_private_attributes_of_the_http_libraries() -> None:
    """Nothing below ``httpx`` or ``httpcore`` with an underscore."""
    private = re.compile(r"\b(httpx|httpcore)\.(\w+\.)*_\w|\b_pool\._")
    assert [name_of(path) for path in FILES if private.search(path.read_text())] == []
