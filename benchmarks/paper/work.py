"""Workers: take the next cell that is free, train it, write its line; go on until nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch

from .cells import Cell
from .lease import Lease
from .store import ATTEMPTS, TRAINED, Store
from .training import Training

WAIT = 10.0  # seconds between looks at cells that others are at


class Worker:
    """One process's work on `cells`, in their order. options: see `__main__`."""

    def __init__(self, cells: list[Cell], store: Store, options):
        self.cells, self.store, self.options = cells, store, options
        self.device = torch.device(options.device)
        if self.device.type == "cuda":  # products in fp32, as on a CPU; the fastest convolution of each shape
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.benchmark = True
        self.told_to_end = False
        self.failed: set[str] = set()  # here, in this command

    def run(self) -> None:
        """Until every cell is done, has failed or cannot begin, or until the deadline."""
        before = {name: signal.signal(name, self._end) for name in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._run()
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _run(self) -> None:
        while not self._late():
            left = [cell for cell in self.cells if not self._settled(cell)]
            if not left:
                return
            if not any([self._try(cell) for cell in left if not self._late()]):
                if self._stuck(left):
                    return
                time.sleep(WAIT)

    def _end(self, *_) -> None:
        self.told_to_end = True

    def _late(self) -> bool:
        return self.told_to_end or (self.options.until is not None and time.time() >= self.options.until)

    def _settled(self, cell: Cell) -> bool:
        """Whether it is done, or has failed and is not to be tried again (in one command only once)."""
        line = self.store.found().get(cell.fingerprint)
        if line is None or line["status"] == "done":
            return line is not None
        return not self.options.retry or cell.fingerprint in self.failed or line["date"] >= self.options.begun

    def _stuck(self, left: list[Cell]) -> bool:
        """Whether all that is left replays cells that are not done and that nobody is at."""
        for cell in left:
            source = cell.replayed
            if source is None or self._settled(cell) or self._allocation_of(source) is not None:
                return False
            lease = Lease.take(self.store.cell_folder(source) / "lease")
            if lease is None:
                return False
            lease.release()
        for cell in left:
            print(f"{cell.name} cannot begin: it replays {cell.replayed.name}, which is not done.", flush=True)
        return True

    def _allocation_of(self, cell: Cell) -> str | None:
        """The final allocation of a cell that is done."""
        line = self.store.found().get(cell.fingerprint)
        done = line is not None and line["status"] == "done"
        return str(self.store.cell_folder(cell) / "allocation.json") if done else None

    def _try(self, cell: Cell) -> bool:
        """Train a cell, if it is free and can begin; whether anything was done."""
        replayed = None
        if cell.replayed is not None:
            replayed = self._allocation_of(cell.replayed)
            if replayed is None:
                return False
        if self._settled(cell):
            return False
        lease = Lease.take(self.store.cell_folder(cell) / "lease")
        if lease is None:
            return False
        try:
            if not self._settled(cell):  # another one may have done it a moment ago
                self._train(cell, lease, replayed)
            return True
        finally:
            lease.release()

    def _train(self, cell: Cell, lease: Lease, replayed: str | None) -> None:
        folder, options = self.store.cell_folder(cell), self.options
        checkpoint = folder / "checkpoint.pt"
        try:
            training = Training(cell, options.data, self.device, replayed, options.graph)
            training.load(checkpoint)
            if self.store.count_attempt(cell, training.step) > ATTEMPTS:
                raise RuntimeError(f"It died {ATTEMPTS} times without a word after step {training.step}.")
            print(f"{cell.name}: from step {training.step} of {training.data.steps}", flush=True)
            if not training.run(self._pause(checkpoint, lease)):
                return
            values = training.result()
            training.save(folder / TRAINED)
            _save_bits(training, folder)
        except Exception as error:
            traceback.print_exc()
            self.failed.add(cell.fingerprint)
            self.store.record(cell, "failed", {"error": f"{type(error).__name__}: {error}"[:2000]}, options.commit)
            return
        if not lease.lost:
            line = self.store.record(cell, "done", values, options.commit)
            score = line[training.data.metric]
            said = f"{training.data.metric} {score:.2f}, cost {line['cost']:.4f}, {line['seconds']} s, {line['loop']}"
            print(f"{cell.name}: {said}", flush=True)
            checkpoint.unlink(missing_ok=True)

    def _pause(self, checkpoint: Path, lease: Lease):
        """Saves every few minutes, and when the work has to end. Asked before every step."""
        saved = time.monotonic()

        def pause(training: Training) -> bool:
            nonlocal saved
            if lease.lost:
                return True
            late = self._late()
            if late or time.monotonic() - saved >= self.options.checkpoint:
                training.save(checkpoint)
                saved = time.monotonic()
            return late

        return pause


def _save_bits(training: Training, folder: Path) -> None:
    if training.ldp is None:
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(training.ldp.trajectory.columns()), folder / "schedule.parquet")
    training.allocation.save(folder / "allocation.json")


def spread(words: list[str], workers: int) -> int:
    """Run `workers` processes of this command side by side, one thread each; their worst exit status."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "benchmarks.paper", *words, "workers=1"]
    processes = [subprocess.Popen(command, env=environment) for _ in range(workers)]

    def end_all(*_) -> None:  # they save what they are at
        for process in processes:
            process.terminate()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, end_all)
    return max(process.wait() for process in processes)
