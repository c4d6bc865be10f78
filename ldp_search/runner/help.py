"""What the command line answers without running: --help, --list, --print-config, --version."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ..config.overlay import ConfigError
from ..core.messages import did_you_mean

EXAMPLES = """\
Learn how many bits each layer of a network needs, at each moment of its training.

  python -m ldp_search.run                                     handwritten digits, offline, about a minute
  python -m ldp_search.run task=cifar10 recipe=quick           CIFAR-10 from the hub, minutes
  python -m ldp_search.run task=cifar10 data=FOLDER seed=1     ... from a folder of Parquet files, full recipe
  python -m ldp_search.run target_cost=0.3 bits=[2,8]          another budget, another range of bits
  python -m ldp_search.run space=cyclic policy.cycles=8        a rival: cyclic precision (CPT)
  python -m ldp_search.run model=timm:resnet18 task=./mine.yaml
  python -m ldp_search.run resume=runs/FOLDER                  go on after an interruption
  accelerate launch -m ldp_search.run task=cifar10             on several devices
  python -m ldp_search.run trials=30 storage=study.journal     a search: Optuna around it; the same command goes on with it
  optuna-dashboard study.journal --artifact-dir study/artifacts         ... to watch it
  python -m ldp_search.report runs/A runs/B                    runs side by side
  python -m ldp_search.bench model=timm:resnet18               what a step costs on this machine
  python -m ldp_search.profile model=resnet20 output=t.json    what each layer takes in inference on this machine; then search
  python -m ldp_search.run model=resnet20 bits=[8,16] latency=t.json target_latency=0.8         ... within 0.8 of the time

  --list tasks|spaces|models|policies|quantizers      --print-config [KEY=VALUE ...]      --version
"""


def answer(words: Sequence[str]) -> str | None:
    """The text that the options among `words` ask for; None when there are none and a run is wanted.

    Raises:
        ConfigError: an unknown option or list.
    """
    words = list(words)
    if any(word in ("-h", "--help", "help") for word in words):
        return help_text()
    if "--version" in words:
        from .. import __version__

        return f"ldp_search {__version__}"
    for place, word in enumerate(words):
        if word == "--list" or word.startswith("--list="):
            kind = word.partition("=")[2] or (words[place + 1] if place + 1 < len(words) else "")
            return listing(kind)
    if "--print-config" in words:
        from omegaconf import OmegaConf

        from ..config.resolve import resolve

        values = resolve([word for word in words if word != "--print-config"]).values
        return OmegaConf.to_yaml(OmegaConf.create(values)).rstrip()
    for word in words:
        if word.startswith("-"):
            known = did_you_mean(word, ["--help", "--list", "--print-config", "--version"])
            raise ConfigError(f"Unknown option {word!r}.{known} Settings are words such as seed=1, without dashes.")
    return None


def help_text() -> str:
    """Examples first, then every key with its default."""
    from ..config.presets import DEFAULT_SPACE, load
    from ..config.resolve import OPTION_FIELDS
    from ..config.settings import RUN_FIELDS, SPACE_FIELDS

    def rows(fields: dict[str, Any]) -> list[str]:
        return [f"  {_assignment(f):<28} {f.metadata.get('help', '')}".rstrip() for f in fields.values()]

    of_default = load("search_spaces", DEFAULT_SPACE)
    space = [_assignment(f, of_default.get(f.name, dataclasses.MISSING)) for f in SPACE_FIELDS.values()]
    lines = [EXAMPLES, "Keys and their defaults (a task's recipe may say otherwise: --print-config shows what holds):"]
    title = f"Keys of the search space, at the top level too, as space={DEFAULT_SPACE} has them (--list spaces):"
    of_space = ["", title, *_wrapped(space)]
    of_search = ["", "Keys of a search, which trials= begins:", *rows(OPTION_FIELDS)]
    return "\n".join([*lines, *rows(RUN_FIELDS), *of_space, *of_search])


def _assignment(f: dataclasses.Field, default: Any = dataclasses.MISSING) -> str:
    """NAME=DEFAULT; default: instead of the field's own."""
    if default is dataclasses.MISSING:
        default = f.default_factory() if f.default is dataclasses.MISSING else f.default
    if default is None or default == [] or default == {}:
        return f"{f.name}="
    text = str(default).replace("True", "true").replace("False", "false")
    return f"{f.name}={text}".replace("'", "").replace(" ", "").replace("(", "[").replace(")", "]")


def _wrapped(words: list[str], width: int = 100) -> list[str]:
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) + 2 > width:
            lines.append("")
        lines[-1] += f"  {word}"
    return lines


def listing(kind: str) -> str:
    """What there is of a kind. Raises ConfigError for an unknown one."""
    kinds: dict[str, Callable[[], str]] = {
        "tasks": lambda: _files("tasks"),
        "spaces": lambda: _files("search_spaces"),
        "models": _models,
        "policies": lambda: _components("policy"),
        "quantizers": lambda: _components("quantizer") + "\nof gradients (grad_quantizer=):\n" + _components("grad_quantizer"),
    }
    if kind not in kinds:
        raise ConfigError(f"--list needs one of its kinds; received {kind!r}.{did_you_mean(kind, kinds)}")
    return kinds[kind]()


def _files(kind: str) -> str:
    from ..config import presets

    return _table([(name, str(presets.load(kind, name).get("description", ""))) for name in presets.names(kind)])


def _models() -> str:
    from .models import ALIASES

    return (
        _table([(name, " ".join(filter(None, (alias.stands_for, alias.note)))) for name, alias in ALIASES.items()])
        + "\nand timm:NAME (all: python -c 'import timm; print(timm.list_models())'), hf:ID, module:function of your own"
    )


def _components(kind: str) -> str:
    from .. import core  # noqa: F401 (the import registers the components)
    from ..core.registry import component_class, names

    rows = []
    for name in names(kind):
        cls = component_class(kind, name)
        about = " ".join((cls.__doc__ or "").split()).partition(". ")[0]
        options = ", ".join(_assignment(f) for f in dataclasses.fields(cls) if f.init)
        rows.append((name, about + (f"  [{options}]" if options else "")))
    return _table(rows)


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {about}" for name, about in rows)
