"""What may import what: downward only, core needs torch alone, and importing the package loads nothing heavy."""

import ast
import functools
import sys
from pathlib import Path

import pytest
import tiny

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


PROGRAM = f"""
import sys, torch, ldp_search, ldp_search.core
print([m for m in {HEAVY} if m in sys.modules])
ldp = ldp_search.controller(ldp_search.apply(torch.nn.Sequential(torch.nn.Linear(2, 2)), {{"policy": "static"}}))
for i in ldp_search.notebook.watch(range(4), ldp, every=0):
    ldp.step((i + 1) / 4)
print(i, [m for m in ("matplotlib", "IPython") if m in sys.modules])
ldp.plot("allocation").png()
print([m for m in ("matplotlib", "matplotlib.pyplot") if m in sys.modules])
"""


@pytest.fixture(scope="module")
def loaded() -> list[str]:
    """What is loaded, in a process of its own: after the import, after a training outside of a notebook, after drawing."""
    return tiny.printed(PROGRAM).splitlines()


def test_importing_the_package_loads_nothing_heavy(loaded):
    assert loaded[0] == "[]"


def test_outside_of_a_notebook_nothing_is_imported(loaded):
    assert loaded[1] == "3 []"


def test_drawing_loads_pyplot_never_and_matplotlib_late(loaded):
    assert loaded[2] == "['matplotlib']"


def test_public_names():
    assert set(ldp_search.__all__) <= set(dir(ldp_search)) and ldp_search.__all__ == sorted(ldp_search.__all__)
    for name in ldp_search.__all__:
        if name not in ldp_search._LAZY:
            assert getattr(ldp_search, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'aply'"):
        ldp_search.aply  # noqa: B018
