"""The report from the command line.

    python -m ldp_search.report RUN [RUN ...] [output=FOLDER]

RUN is a folder that `python -m ldp_search.run` wrote, finished or not. The page on one run goes into its folder;
several runs come out side by side, in the folder `report`. `output=FOLDER` puts the page and its PNGs elsewhere.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

USAGE = "Usage: python -m ldp_search.report RUN [RUN ...] [output=FOLDER]"


def main(words: Sequence[str] | None = None) -> int:
    """Write the report that the words ask for. Exit status: 0 done, 2 wrong words, folders or files."""
    words = list(sys.argv[1:] if words is None else words)
    if any(word in ("-h", "--help", "help") for word in words):
        print(__doc__.strip())
        return 0
    try:
        runs, output = parse(words)
        from .runner.report import write_report  # here, so that --help needs no matplotlib

        path = write_report(runs, output)
    except (ValueError, OSError) as error:
        print(f"ldp_search.report: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"ldp_search.report: {error}. The figures need: pip install matplotlib pyarrow pyyaml", file=sys.stderr)
        return 2
    print(path)
    return 0


def parse(words: Sequence[str]) -> tuple[list[str], str | None]:
    """(run folders, output folder) from the command line.

    Raises:
        ValueError: no run, an unknown word, or an output given twice or empty.
    """
    runs, output = [], None
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            raise ValueError(f"Unknown option {word!r}.{_near(word.strip('-').partition('=')[0])} {USAGE}")
        if not equals or Path(word).is_dir():  # a run folder may well be called lr=0.1
            runs.append(word)
        elif key != "output":
            raise ValueError(f"Unknown word {word!r}, and no such folder.{_near(key)} {USAGE}")
        elif not value or output is not None:
            raise ValueError(f"output=FOLDER takes one folder, once; received {word!r}.")
        else:
            output = value
    if not runs:
        raise ValueError(f"No run given. {USAGE}")
    return runs, output


def _near(key: str) -> str:
    return " Did you mean 'output=FOLDER'?" if difflib.get_close_matches(key, ["output", "out"], cutoff=0.5) else ""


if __name__ == "__main__":
    sys.exit(main())
