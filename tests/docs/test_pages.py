"""README and docs/: their Python runs, their commands are understood, their links lead somewhere, every public name is told."""

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest
import timm
import torch
import transformers
from breadth import breadth
from tiny import Child
from torch import nn

import ldp_search
import ldp_search.core
import ldp_search.integrations
import ldp_search.testing
from ldp_search import report
from ldp_search.config.resolve import resolve

ROOT = Path(ldp_search.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- not run: (?P<why>[^>]+) -->\n)?```python\n(?P<code>.*?)^```$", re.M | re.S)
BASH = re.compile(r"^```bash\n(.*?)^```$", re.M | re.S)


def blocks(path: Path) -> list[tuple[str | None, str]]:
    """(why it is not run or None, code) of each Python block of a page."""
    return [(match["why"], match["code"]) for match in BLOCK.finditer(path.read_text())]


def commands(path: Path) -> list[tuple[str, list[str]]]:
    """(module, words) of each `python -m ldp_search.MODULE WORDS` and `accelerate launch -m ...` of a page."""
    lines = re.sub(r"\\\n", " ", "\n".join(BASH.findall(path.read_text()))).splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if "-m" in words and words[words.index("-m") + 1].startswith("ldp_search."):
            found.append((words[words.index("-m") + 1], words[words.index("-m") + 2 :]))
    return found


WITH_PYTHON = [path for path in PAGES if blocks(path)]
LONG = ("export.md", "notebook.md")
"""What they export and draw always is exported and drawn in tests of its own."""
WITH_COMMANDS = [path for path in PAGES if commands(path)]


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """The working directory is a fresh one, and modules that a page has put there are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def reader(fresh) -> dict:
    """Names that a reader of any page has: a model, data, a trained controller."""
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 4

    def model():
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 15 * 15, 10))

    def trained():
        ldp = ldp_search.controller(ldp_search.apply(model(), target_cost=0.5, example_inputs=x[:1]))
        nn.functional.cross_entropy(ldp.model(x), y).backward()
        ldp.step(0.1)
        return ldp

    ldp = trained()
    return {
        "torch": torch, "nn": nn, "ldp_search": ldp_search, "ldp": ldp, "other_ldp": trained(), "loader": [(x, y)] * 2,
        "loss_fn": nn.CrossEntropyLoss(), "total_steps": 2, "example_inputs": x, "model": ldp.model, "plain": model,
        "optimizer": torch.optim.SGD(ldp.model.parameters(), 0.01),
    }  # fmt: skip


def prepared(page: str, names: dict, monkeypatch) -> dict:
    """What a page takes for granted beyond that."""
    if page == "README.md":  # of every network each step is the same; of timm's own small one it takes a tenth of the time
        made, small = timm.create_model, {"resnet18": "test_resnet"}
        monkeypatch.setattr(timm, "create_model", lambda name, **options: made(small.get(name, name), **options))
    if page == "export.md":  # of a model that the packed file can say how to make
        model = timm.create_model("test_resnet", num_classes=10)
        ldp = ldp_search.controller(ldp_search.apply(model, target_cost=0.5, example_inputs=names["example_inputs"]))
        ldp.finalize(names["loader"])
        ldp_search.export(model, "model.pt2", names["example_inputs"], format="torch")
        ldp_search.export(model, "model.packed.safetensors", format="packed")
        names["model"] = model
        write_language_model("language_model.onnx")
    if page == "int8.md":
        names["model"] = names["plain"]()
    return names


def write_language_model(path: str) -> None:
    """The file of a small one, with a cache."""
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**small))
    inputs = {"input_ids": torch.arange(24).reshape(2, 12)}
    ldp_search.apply(model, policy="static", bits=8, example_inputs=inputs)
    ldp_search.controller(model).finalize([inputs], forward=lambda batch: model(**batch).logits)
    ldp_search.export(model, path, inputs, cache=True)


def modules(path: Path) -> dict[str, str]:
    """{file name: code} of the blocks that begin with a file's name, as `# mine.py`."""
    named = [(re.match(r"# (\w+\.py)\n", code), code) for why, code in blocks(path) if why is None]
    return {file[1]: code for file, code in named if file}


@breadth("path", WITH_PYTHON, always=[path for path in WITH_PYTHON if path.name not in LONG], ids=lambda path: path.name)
def test_python_runs(path, reader, tmp_path, monkeypatch):
    names, files = prepared(path.name, reader, monkeypatch), modules(path)
    for file, code in files.items():
        (tmp_path / file).write_text(code)
    for why, code in blocks(path):
        if why is not None or code in files.values():
            continue
        if path.name in ("policies.md", "quantizers.md"):  # each example takes a network that nothing was applied to
            names["model"] = names["plain"]()
        exec(compile(code, str(path), "exec"), names)
    for file in files:
        if file.startswith("test_"):
            words = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", ".", file]
            child = Child(tmp_path / "printed", pytest.main, words)
            assert child.wait() == 0 and " passed" in child.printed, child.printed


@pytest.mark.parametrize("path", WITH_PYTHON, ids=lambda path: path.name)
def test_what_is_not_run_is_python_and_says_where_it_is_tested(path):
    text = path.read_text()
    assert len(blocks(path)) == len(re.findall(r"^\s*```python$", text, re.M)), "a block that the pattern above misses"
    for why, code in blocks(path):
        if why is not None:
            assert (ROOT / why).is_file(), f"not run: {why}, which is no file"
            ast.parse(code)


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: path.name)
def test_commands_are_understood(path, fresh, tmp_path):
    for file, code in modules(path).items():
        (tmp_path / file).write_text(code)
    for module, words in commands(path):
        if "..." in " ".join(words) or any(word.startswith("--") for word in words):
            continue
        if module == "ldp_search.run":
            if not any(word.startswith(("config=", "latency=")) for word in words):  # a file that an earlier command leaves
                resolve(words)
        elif module == "ldp_search.report":
            assert report.parse(words)[0]
        else:
            assert (ROOT / "ldp_search" / f"{module.partition('.')[2]}.py").is_file(), module


@pytest.mark.parametrize("path", [*PAGES, *sorted((ROOT / "benchmarks").glob("*.md"))], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_front_page_is_short_and_leads_to_where_the_bits_move():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 120
    place = "ldp_search/core/bits/policies/learned.py"
    assert place in text and "Learned._decide" in text and "def _decide" in (ROOT / place).read_text()
    for page in (ROOT / "docs").glob("*.md"):
        if page.name not in ("tasks_text.md", "tasks_segmentation.md"):  # those are reached from tasks.md
            assert f"docs/{page.name}" in text, f"README does not lead to {page.name}"


def public_names() -> set[str]:
    """All that a user may import by name."""
    names = {f"ldp_search.{name}" for name in ldp_search.__all__}
    names |= {f"ldp_search.core.{name}" for name in ldp_search.core.__all__}
    names |= {f"ldp_search.integrations.{name}" for name in ldp_search.integrations.__all__}
    return names | {"ldp_search.notebook.watch", "ldp_search.testing", "ldp_search.packed.load", "ldp_search.int8.load"}


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text()
    told = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", text, re.M)}
    inner = {"find_controller", "integrations", "notebook"}  # the first is `controller`; of modules their names are told
    assert {name.rpartition(".")[2] for name in public_names()} - told <= inner


def test_every_public_function_has_an_example_that_runs():
    code = "\n".join(code for path in PAGES for why, code in blocks(path) if why is None)
    for name in ldp_search.__all__:
        if name != "push_to_hub":  # it needs a network; tests/runner/test_hub.py
            used = rf"\bldp_search\.{name}\b|^from ldp_search import .*\b{name}\b"
            assert re.search(used, code, re.M), f"no example of {name}"
