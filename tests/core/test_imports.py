"""What may import what: downward only, core needs torch alone, and importing the package loads nothing heavy."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import ldp_search

ROOT = Path(ldp_search.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
CORE = [path for path in FILES if path.is_relative_to(ROOT / "core")]
HEAVY = ("torch._dynamo", "timm", "transformers", "accelerate", "optuna", "datasets", "matplotlib", "pandas", "omegaconf")
HEAVY += ("safetensors",)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(tree: ast.Module) -> list[tuple[str, str]]:
    """(name of the enclosing function or '', absolute module) of every import; relative ones as '.' and their path."""
    found = []

    def visit(node, function):
        for child in ast.iter_child_nodes(node):
            inside = child.name if isinstance(child, ast.FunctionDef) else function
            if isinstance(child, ast.Import):
                found.extend((inside, alias.name) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                found.append((inside, "." * child.level + (child.module or "")))
            visit(child, inside)

    visit(tree, "")
    return found


def test_core_needs_the_standard_library_and_torch():
    for path in CORE:
        depth = len(path.relative_to(ROOT / "core").parts)  # dots that stay within core
        for function, module in imports(tree(path)):
            if (path.name, function, module) == ("trajectory.py", "_pandas", "pandas"):
                continue
            if path.name.startswith("triton_") and module.partition(".")[0] == "triton":
                continue  # it comes with torch for CUDA, and only native/cuda.py imports these files, once a CUDA tensor asks
            if module.startswith("."):
                assert len(module) - len(module.lstrip(".")) <= depth, f"{path} reaches out of core: {module}"
            else:
                top = module.partition(".")[0]
                assert top in sys.stdlib_module_names or top == "torch", f"{path} imports {module}"


FLOORS = {"core": 0, "config": 1, "runner": 2, "notebook": 2, "integrations": 3, "run": 3, "report": 3, "bench": 3}
"""A floor imports those below and itself. The door (`ldp_search`, its api) stands on core and config."""


def floor_of(module: str) -> int | None:
    """Of a module of the package by its full name; None: of another package, or the package itself."""
    package, _, rest = module.partition(".")
    return FLOORS.get(rest.partition(".")[0]) if package == "ldp_search" else None


def test_imports_run_downward():
    for path in FILES:
        parts = ("ldp_search", *path.relative_to(ROOT).with_suffix("").parts)
        if (own := floor_of(".".join(parts))) is None:
            continue
        for node in ast.walk(tree(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                start = ".".join(parts[: -node.level]) if node.level else ""
                module = ".".join(filter(None, [start, node.module]))
                names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            for name in names:
                assert (floor_of(name) or 0) <= own, f"{path} reaches up to {name}"


def test_errors_are_never_asserts():
    for path in FILES:
        if path.name != "testing.py":  # which is tests
            assert not [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Assert)], path


def test_importing_the_package_loads_nothing_heavy():
    program = f"import sys, ldp_search, ldp_search.core; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names():
    assert set(ldp_search.__all__) <= set(dir(ldp_search)) and ldp_search.__all__ == sorted(ldp_search.__all__)
    for name in ldp_search.__all__:
        if name not in ldp_search._LAZY:
            assert getattr(ldp_search, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'aply'"):
        ldp_search.aply  # noqa: B018
