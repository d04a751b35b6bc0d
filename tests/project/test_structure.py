"""The shape of the project: imports run one way, and files stay small enough to be read."""

import ast
from pathlib import Path

import pytest

from nanocode_core.config import PROJECT

# Lowest first. A package imports from itself and from what stands in an earlier row.
ROWS = (
    ("nanocode_core.errors",),
    ("nanocode_core.config",),
    ("nanocode_core.store",),
    ("nanocode_core.corpus",),
    ("nanocode_core.tokenizer",),
    ("nanocode_core.data", "nanocode_core.model"),
    ("nanocode_core.training",),
    ("nanocode_core.agent", "nanocode_core.export", "nanocode_core.planning", "nanocode_core.report"),
    ("nanocode_core.constitution",),
    ("nanocode_core.evals",),
    ("nanocode_core.jobs",),
    ("tasks",),
    ("flows",),
    ("cli",),
)
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
SOURCES = sorted(p for top in ("nanocode_core", "tasks", "flows", "cli") for p in (PROJECT / top).rglob("*.py"))


def package(module):
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "nanocode_core" else parts[0]


def imports(path):
    """(line, module) of every import that runs: those for the type checker alone don't."""
    todo = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
        todo.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_imports_run_one_way(path):
    own = package(".".join(path.relative_to(PROJECT).with_suffix("").parts))
    for line, module in imports(path):
        other = package(module)
        if other in RANK and own in RANK and other != own:
            assert RANK[other] < RANK[own], f"{path}:{line} imports {module}"


def test_only_flows_and_cli_know_prefect_and_only_launchers_kubernetes():
    for path in SOURCES:
        top = path.relative_to(PROJECT).parts[0]
        for line, module in imports(path):
            if module.split(".")[0] == "prefect":
                assert top in ("flows", "cli"), f"{path}:{line}"
            if module.split(".")[0] == "kubernetes":
                assert "jobs" in path.parts, f"{path}:{line}"


def test_the_prefect_pins_are_in_the_lock():
    lock = Path(PROJECT, "requirements.lock").read_text()
    version = {
        name: tuple(int(part) for part in lock.split(f"\n{name}==")[1].split()[0].split("."))
        for name in ("fastapi", "sqlalchemy")
    }
    assert "\nprefect==3.8.8 " in lock
    assert (0, 139) <= version["fastapi"] < (0, 151)
    assert (2, 0) <= version["sqlalchemy"] < (2, 1)
