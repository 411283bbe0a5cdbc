"""The arrows of the architecture, kept by reading the import statements."""

import ast
from pathlib import Path

import pytest

import neigenmaps

PACKAGE = Path(neigenmaps.__file__).parent
RANK = {
    "errors": 0, "types": 0, "console": 0, "files": 0.25, "freed_memory": 0.25, "provenance": 1, "__init__": 0.5,
    "functional": 1, "features": 1,
    "nn": 2, "data": 2, "spectral": 2, "alignment": 2, "graphs": 2,
    "retrieval": 3, "evaluation": 3,
    "training": 4, "reporting": 4,
    "cli": 5, "commands": 5, "__main__": 6,
}  # fmt: skip
SAME_RANK_ALLOWED = {("alignment", "spectral"), ("graphs", "spectral")}
HOME_OF = {
    "pytorch_lightning": {"training"},
    "lightning": set(),
    "matplotlib": {"reporting"},
    "timm": {"nn"},
    "lightly": {"nn", "training"},
    "torchvision": {"data", "nn"},
    "faiss": {"retrieval", "spectral"},
}
PURE = {"errors", "types", "functional"}
PURE_MAY_IMPORT = {"torch", "math", "typing", "collections", "functools", "difflib", "dataclasses", "__future__"}


def imports_of(tree: ast.AST) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write it in full"
            if node.module == "neigenmaps":  # `from neigenmaps import data` names a package
                found += [(f"neigenmaps.{alias.name}", node.lineno) for alias in node.names]
            else:
                found.append((node.module or "", node.lineno))
    return found


def violations(room: str, source: str) -> list[str]:
    """Every import in `source`, a module of package `room`, that breaks the direction of the arrows."""
    wrong = []
    for name, line in imports_of(ast.parse(source)):
        parts = name.split(".")
        if parts[0] != "neigenmaps":
            if room in PURE and parts[0] not in PURE_MAY_IMPORT:
                wrong.append(f"line {line}: {room} is pure and may not import {name}")
            if parts[0] in HOME_OF and room not in HOME_OF[parts[0]]:
                wrong.append(f"line {line}: {name} may be imported only in {sorted(HOME_OF[parts[0]])}, not in {room}")
            continue
        other = parts[1] if len(parts) > 1 else "errors"
        if other == room or (room, other) in SAME_RANK_ALLOWED or other == "__version__":
            continue
        if other not in RANK:
            wrong.append(f"line {line}: {name} has no rank; give it one in this test")
        elif RANK[other] >= RANK[room]:
            wrong.append(f"line {line}: {room} (rank {RANK[room]}) imports {other} (rank {RANK[other]})")
    return wrong


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    assert violations(room, path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("functional", "import numpy"),
        ("functional", "from neigenmaps.nn import losses"),
        ("nn", "from neigenmaps import data"),
        ("evaluation", "import pytorch_lightning as pl"),
        ("training", "import neigenmaps.reporting"),
        ("data", "def f():\n    from neigenmaps.training.module import EigenmapModule"),
    ],
)
def test_planted_violations_are_named(room: str, source: str) -> None:
    assert len(violations(room, source)) == 1
