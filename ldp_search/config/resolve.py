"""The settings of a run: typed dataclasses are the only schema of YAML files and KEY=VALUE words.

Each layer lies over the one before:

    defaults here < the search space's YAML < the task's `recipe:` < its `quick:` (with recipe=quick) < config=FILE < the words

The fields of SearchSpace stand beside those of Config at the top level: `bits=[3,6]`, `policy.cycles=8`; so do those of
StudyOptions, which make a search of the run: `trials=20`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..core.bits.space import SearchSpace, current_words
from . import presets
from .overlay import EXCLUSIVE, ConfigError, overlay, parse_words
from .settings import COMPONENTS, LISTS, RUN_FIELDS, SPACE_FIELDS, Config, Settings
from .study import OPTION_FIELDS, StudyOptions
from .task_file import load_task
from .typed import check_components, typed


def resolve(words: list[str]) -> Settings:
    """The settings that the command line asks for. Reads files, writes none.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range, with the nearest names.
    """
    return resolve_mapping(parse_words(words, (*COMPONENTS, "sampler", "pruner"), LISTS))


def resolve_mapping(asked: dict[str, Any]) -> Settings:
    """The same from words that were parsed already. Raises ConfigError."""
    try:
        words, study = _study_options(current_words(asked))
        settings = _resolve(words)
        settings.study = study
        if study is not None and study.cost == "latency" and settings.space.latency is None:
            raise ConfigError(
                "cost=latency needs a table of the device, made by python -m ldp_search.profile: latency=TABLE.json."
            )
        if study is not None and settings.config.export:
            raise ConfigError("export= belongs to a single run; export a search's best: python -m ldp_search.export FOLDER.")
        return settings
    except ConfigError:
        raise
    except (TypeError, ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error


def _study_options(words: dict[str, Any]) -> tuple[dict[str, Any], StudyOptions | None]:
    """The words of a run, and the options of a study, None where no search is wanted."""
    given = {key: value for key, value in words.items() if key in OPTION_FIELDS}
    rest = {key: value for key, value in words.items() if key not in OPTION_FIELDS}
    options = StudyOptions(**{k: typed(StudyOptions, k, v, "on the command line") for k, v in given.items()})
    options.check()
    _checked(rest, "on the command line")  # first: trials= may be there, written wrongly
    if given and options.trials is None:
        raise ConfigError(f"{next(iter(given))}=... belongs to a search, which trials=N begins; received no trials=.")
    return rest, options if given else None


def _resolve(words: dict[str, Any]) -> Settings:
    asked = _checked(words, "on the command line")
    if asked.get("config") is not None:
        file = Path(asked.pop("config")).expanduser()
        if not file.is_file():
            raise ConfigError(f"config=FILE must be a YAML file of settings; there is no file {str(file)!r}.")
        asked = overlay(_checked(presets.read_yaml(file), f"in {file}"), asked, COMPONENTS)
    going_on = asked.get("resume", "auto") not in ("auto", "never")
    layers = [_saved(asked)] if going_on else _recipe_layers(asked)
    values = {name: _default(f) for name, f in (RUN_FIELDS | SPACE_FIELDS).items()}
    for layer in [*layers, asked]:
        for pair in EXCLUSIVE:
            if all(layer.get(key) is not None for key in pair):
                raise ConfigError(f"{pair[0]} and {pair[1]} exclude each other: give one of them.")
        values = overlay(values, layer, COMPONENTS)
    if values["epochs"] is None and values["steps"] is None:
        values["epochs"] = 10
    for key in ("task", "data", "tokenizer", "latency"):  # absolute, so that a saved configuration holds wherever it is read
        if isinstance(values[key], str) and _is_place(key, values[key]):
            values[key] = str(Path(values[key]).expanduser().resolve())
    check_components(values, [name for name in COMPONENTS if name in SPACE_FIELDS])
    config = Config(**{name: values[name] for name in RUN_FIELDS})
    config.check()
    space = SearchSpace.from_dict({name: values[name] for name in SPACE_FIELDS} | {"seed": config.seed})
    return Settings(config, space, load_task(config.task, config.name, config.dataset), values, asked)


def _is_place(key: str, value: str) -> bool:
    """Whether a setting names a place on this machine."""
    return key == "data" or (presets.is_path(value) if key == "task" else Path(value).expanduser().exists())


def _recipe_layers(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers below the command line: search space, recipe, quick recipe."""
    name = asked.get("task", Config.task)
    where = f"in the recipe of task {name!r}"
    task = load_task(name, asked.get("name"))
    recipe = _checked(task.recipe, where)
    if asked.get("recipe", recipe.get("recipe")) == "quick":
        if not task.quick:
            raise ConfigError(f"recipe=quick needs a `quick:` block in the task's file; {name!r} has none.")
        recipe = overlay(recipe, _checked(task.quick, where), COMPONENTS)
    space = presets.space_of_policy(asked.get("space", recipe.get("space", Config.space)), asked.get("policy"))
    if space != recipe.get("space", Config.space):  # what a recipe says about bits belongs to the space it was made for
        recipe = {key: value for key, value in recipe.items() if key not in SPACE_FIELDS}
    content = presets.load("search_spaces", space)
    shown = {key: value for key, value in content.items() if key not in ("description", "outer")}
    return [_checked(shown, f"in search space {space!r}"), recipe]


def _saved(asked: dict[str, Any]) -> dict[str, Any]:
    """The settings of the run to go on from, so that nobody types them twice."""
    folder = Path(asked["resume"]).expanduser()
    run = next((p for p in (folder, *list(folder.parents)[:2]) if (p / "config.yaml").is_file()), None)
    if run is None:
        raise ConfigError(f"resume=... must be auto, never, or a run's folder (or a checkpoint in it) with a config.yaml; "
                          f"there is none in {str(folder)!r}.")  # fmt: skip
    return _checked(presets.read_yaml(run / "config.yaml"), f"in {run / 'config.yaml'}") | {"output": str(run)}


def _checked(layer: dict[str, Any], where: str) -> dict[str, Any]:
    """A layer with known keys and values of the right type. Raises ConfigError."""
    known = [*RUN_FIELDS, *SPACE_FIELDS, *OPTION_FIELDS]
    return {
        key: typed(SearchSpace if key in SPACE_FIELDS else Config, key, value, where, known=known)
        for key, value in current_words(layer).items()
    }


def _default(f: dataclasses.Field) -> Any:
    value = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    return list(value) if isinstance(value, tuple) else value
