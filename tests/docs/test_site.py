"""The site: built with every link checked, README and the tour are pages of it, and links lead to where the pages lie."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ldp_search

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")

ROOT = Path(ldp_search.__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "hooks" / "pages.py")
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    found = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    return folder


def test_every_page_is_there_and_readme_is_the_first(site):
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()
    first = (site / "index.html").read_text()
    assert 'href="method.html"' in first and 'src="images/schedule.png"' in first
    assert 'href="ldp_search/core/bits/policies/learned.py.html"' in first and 'href="examples/tour.html"' in first


def test_the_reference_has_the_docstrings(site):
    text = (site / "reference.html").read_text()
    for name in ("ldp_search.apply", "ldp_search.Controller", "ldp_search.GradQuantizer", "ldp_search.notebook.watch"):
        assert f'id="{name}"' in text
    assert "once per optimizer step" in text.lower() and "Make <code>model</code> a search space" in text


def test_the_tour_has_its_pictures_and_tables(site):
    text = (site / "examples" / "tour.html").read_text()
    assert text.count("data:image/png;base64,") == 4 and text.count("<table") >= 3 and "predictions are those" in text


def test_nothing_but_formulas_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        for source in re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?://[^"]+)', page.read_text()):
            assert "mathjax" in source, f"{page.name} loads {source}"


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("README.md", "index.md"), ("docs/method.md", "method.md"), ("docs/images/a.png", "images/a.png"),
        ("benchmarks/README.md", "benchmarks/README.md"), ("examples/tour.ipynb", "examples/tour.md"),
        ("examples/own_loop.py", "examples/own_loop.py.md"), ("benchmarks/results/a.png", "benchmarks/results/a.png"),
    ],
)  # fmt: skip
def test_where_files_lie(path, page):
    assert pages.page_of(path) == page
    if page.endswith(".md"):
        assert pages.file_of(page) == path


def test_a_notebook_as_a_page():
    outputs = [{"text": ["a\n"]}, {"data": {"text/html": ["<b>t</b>"], "text/plain": ["t"]}}, {"text": ["b\n"]}]
    cells = [{"cell_type": "markdown", "source": ["# T"]}, {"cell_type": "code", "source": ["1"], "outputs": outputs}]
    expected = "# T\n\n```python\n1\n```\n\n```text\na\nb\n```\n\n<b>t</b>"
    assert pages.from_notebook(json.dumps({"cells": cells})) == expected
