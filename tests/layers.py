"""Check that imports inside the package go down only, and that nobody imports its root."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

FLOORS = (
    ("errors", "settings", "processor", "wording"),
    ("folders",),
    ("data",),
    ("model", "grn"),
    ("training",),
    ("atlas", "record"),
    ("storage",),
    ("tasks",),
    ("evaluate",),
    ("report", "files", "interruption", "assignments", "options"),
    ("terminal",),
    ("fitting", "mapping", "questions", "contrasts", "networks"),
    ("cli",),
)
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
FORBIDDEN_IN_MODEL = {"anndata", "pandas", "numpy", "scipy", "scanpy"}


def find_breaches(package: Path) -> list[str]:
    """Every import that goes up, sideways to an unknown floor, or to the package root."""
    breaches = []
    for file in sorted(package.rglob("*.py")):
        module = file.relative_to(package).with_suffix("").parts
        if module == ("__init__",):
            continue
        for line, name in imported_names(file):
            parts = name.split(".")
            place = f"{file.relative_to(package.parent)}:{line}"
            if name.startswith("."):
                breaches.append(f"{place}: a relative import; name the module in full")
                continue
            if module[0] == "model" and parts[0] in FORBIDDEN_IN_MODEL:
                breaches.append(f"{place}: the model floor knows torch only, not {parts[0]}")
            if parts[0] != package.name:
                continue
            if len(parts) == 1:
                breaches.append(f"{place}: imports the package root")
            elif module[0] not in HEIGHT or parts[1] not in HEIGHT:
                breaches.append(f"{place}: {module[0]} or {parts[1]} stands on no floor")
            elif HEIGHT[parts[1]] > HEIGHT[module[0]]:
                breaches.append(f"{place}: {module[0]} imports up from {parts[1]}")
    return breaches


def imported_names(file: Path) -> list[tuple[int, str]]:
    """Line and full name of every module a file imports."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append((node.lineno, "." * node.level + (node.module or "")))
    return names


if __name__ == "__main__":
    found = find_breaches(Path(__file__).parent.parent / "src" / "invatlas")
    sys.stderr.write("".join(f"{breach}\n" for breach in found))
    sys.exit(bool(found))
