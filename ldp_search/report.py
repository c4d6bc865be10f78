"""The report from the command line, and in Python as `ldp_search.report([RUN or controller, ...], output=FOLDER)`.

    python -m ldp_search.report RUN [RUN ...] [output=FOLDER]
    python -m ldp_search.report STORAGE [study=NAME] [output=FOLDER]

RUN is a folder that `python -m ldp_search.run` wrote, finished or not. The page on one run goes into its folder;
several runs come out side by side, in the folder `report`. STORAGE is what `storage=` of a search was, a journal file or a
database's URL: the page on its study goes into the study's folder. `output=FOLDER` puts the page and its PNGs elsewhere.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

USAGE = "Usage: python -m ldp_search.report RUN [RUN ...] [output=FOLDER], or STORAGE [study=NAME] [output=FOLDER]"


def main(words: Sequence[str] | None = None) -> int:
    """Write the report that the words ask for. Exit status: 0 done, 2 wrong words, folders or files."""
    words = list(sys.argv[1:] if words is None else words)
    if any(word in ("-h", "--help", "help") for word in words):
        print(__doc__.strip())
        return 0
    try:
        runs, output, study = parse(words)
        path = _write(runs, output, study)
    except (ValueError, OSError) as error:
        print(f"ldp_search.report: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"ldp_search.report: {error}. The figures need: pip install matplotlib pyarrow pyyaml", file=sys.stderr)
        return 2
    print(path)
    return 0


def is_storage(word: str) -> bool:
    """Whether the word means an Optuna storage rather than a run folder."""
    return "://" in word or word.endswith(".journal") or Path(word).suffix in (".journal", ".log", ".db", ".sqlite3")


def _write(runs: list[str], output: str | None, study: str | None) -> Path:
    """The page on runs, or on the study of a storage. Imports here, so that --help needs neither matplotlib nor Optuna."""
    if not any(is_storage(word) for word in runs):
        if study is not None:
            raise ValueError(f"study=NAME goes with a storage; received the run folder {runs[0]!r}. {USAGE}")
        from .runner.report import write_report

        return write_report(runs, output)
    if len(runs) > 1:
        raise ValueError(f"A storage is reported on by itself; received {len(runs)} words: {' '.join(runs)}. {USAGE}")
    from .runner.report.study import write_study_report
    from .runner.search.best import load_study
    from .runner.search.command import quiet_libraries

    quiet_libraries()
    found = load_study(runs[0], study)
    return write_study_report(found, output or found.user_attrs.get("folder") or "report")


def parse(words: Sequence[str]) -> tuple[list[str], str | None, str | None]:
    """(run folders or a storage, output folder, name of a study) from the command line.

    Raises:
        ValueError: no run, an unknown word, or an output given twice or empty.
    """
    runs: list[str] = []
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            raise ValueError(f"Unknown option {word!r}.{_near(word.strip('-').partition('=')[0])} {USAGE}")
        if not equals or Path(word).is_dir() or "://" in key:  # a run folder may well be called lr=0.1
            runs.append(word)
        elif key not in ("output", "study"):
            raise ValueError(f"Unknown word {word!r}, and no such folder.{_near(key)} {USAGE}")
        elif not value or key in given:
            what = "output=FOLDER takes one folder" if key == "output" else "study=NAME takes one name"
            raise ValueError(f"{what}, once; received {word!r}.")
        else:
            given[key] = value
    if not runs:
        raise ValueError(f"No run given. {USAGE}")
    return runs, given.get("output"), given.get("study")


def _near(key: str) -> str:
    return " Did you mean 'output=FOLDER'?" if difflib.get_close_matches(key, ["output", "out"], cutoff=0.5) else ""


def report(runs, output=None) -> Path:
    """Write the page on one run, or on several side by side, and return its path.

    Args:
        runs: folders that `python -m ldp_search.run` wrote, finished or not, and controllers of models, trained or in training;
            or one of them.
        output: the folder of the page and its PNGs; by default that of the only run, or `report`.

    Raises:
        ValueError: a folder is missing or holds no run, or none was given. OSError: the output cannot be written.
    """
    from .runner.report import write_report

    return write_report(runs, output)


class _Callable(ModuleType):
    """A module that is called as its function `report`."""

    def __call__(self, runs, output=None) -> Path:
        return report(runs, output)

    __call__.__doc__ = report.__doc__


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
