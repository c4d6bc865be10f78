"""What a run tells while it trains: metrics.jsonl, the trackers, the progress bar. Only the main process writes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..io.atomic import finite, write_whole


class Journal:
    """Rows of metrics, kept as text too, so that a checkpoint holds exactly the rows up to its step."""

    def __init__(self, path: Path, accelerator: Any, total_steps: int, quiet: bool = False):
        self.path, self.accelerator, self.quiet = path, accelerator, quiet
        self.text, self.seconds_before, self.started = "", 0.0, time.monotonic()
        self.bar = tqdm(
            total=total_steps, unit="step", dynamic_ncols=True, smoothing=0.1,
            disable=True if quiet or not accelerator.is_main_process else None,  # None: off where there is no terminal
        )  # fmt: skip

    @property
    def seconds(self) -> float:
        """Time spent in training, over all resumes."""
        return self.seconds_before + time.monotonic() - self.started

    def begin(self, text: str = "", seconds: float = 0.0, step: int = 0) -> None:
        """Start metrics.jsonl, or set it back to what it was at a checkpoint.

        Raises:
            OSError: it cannot be written.
        """
        self.text, self.seconds_before, self.started = text, seconds, time.monotonic()
        self.bar.initial = self.bar.n = step
        if self.accelerator.is_main_process:
            write_whole(self.path, text)

    def row(self, split: str, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """Write one line, and give it to the trackers."""
        row = {"split": split, "step": step} | values | {"seconds": round(self.seconds, 2)}
        line = json.dumps({key: finite(value) for key, value in row.items()}) + "\n"
        self.text += line
        if self.accelerator.is_main_process:
            with open(self.path, "a") as file:
                file.write(line)
        tracked = {f"{split}/{k}": v for k, v in values.items() if isinstance(v, int | float) and k != "progress"}
        self.accelerator.log(tracked, step=step)
        return row

    def show(self, row: dict[str, Any]) -> None:
        """The bar's figures."""
        self.bar.set_postfix_str(f"loss {row['loss']:.3f}, {row['mean_bits']:.2f} bits, cost {row['cost']:.3f}", refresh=False)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.accelerator.is_main_process and not self.quiet:
            self.bar.write(text)
            sys.stdout.flush()  # into a file or a pipe too, while the run goes on

    def close(self) -> None:
        """End the bar and the trackers; the process group stays, for whatever runs next."""
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
