"""Where the results of the benchmark of rates are kept: one JSON line a run, written as it ends."""

from __future__ import annotations

import fcntl
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Key:
    """Which run: a task, its length, seed and schedule, and how its rate was chosen."""

    task: str
    steps: int
    seed: int
    schedule: str
    column: str
    variant: str = ""


@dataclass(frozen=True)
class Run:
    """What came of it."""

    key: Key
    loss: float  # validation loss at the end, inf where it diverged
    start: float  # validation loss before the first update
    spent: int  # optimizer steps, those of a search before the run included
    seconds: float  # processor time of all that
    extra: dict[str, Any] = field(default_factory=dict)


class Store:
    """Runs by key, kept in a file that only grows; several processes may append to it.

    Args:
        path: The file of JSON lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[Key, Run] = {}
        self._read_bytes = 0
        self.refresh()

    def refresh(self) -> None:
        """Read what was appended since the last reading."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_bytes += len(line)
                run = _decode(json.loads(line))
                self.runs[run.key] = run

    def add(self, run: Run) -> None:
        record = {**asdict(run.key), **{k: v for k, v in asdict(run).items() if k != "key"}}
        record["loss"] = None if not math.isfinite(run.loss) else float(f"{run.loss:.6g}")
        record["start"], record["seconds"] = float(f"{run.start:.6g}"), round(run.seconds, 2)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(record) + "\n")
        self.refresh()

    def sweep(self, task: str, steps: int, seed: int, schedule: str) -> dict[float, float]:
        """Losses of a sweep by rate."""
        return {
            float(key.variant): run.loss
            for key, run in self.runs.items()
            if (key.task, key.steps, key.seed, key.schedule, key.column) == (task, steps, seed, schedule, "sweep")
        }

    def best(self, task: str, steps: int, seed: int, schedule: str) -> float | None:
        """Lowest loss of a sweep, None where its best rate is at an edge of what was tried."""
        losses = self.sweep(task, steps, seed, schedule)
        rates = sorted(losses)
        if len(rates) < 3:
            return None
        best = min(rates, key=losses.__getitem__)
        return None if best in (rates[0], rates[-1]) else losses[best]


def _decode(record: dict[str, Any]) -> Run:
    names = ("task", "steps", "seed", "schedule", "column", "variant")
    loss = math.inf if record["loss"] is None else record["loss"]
    return Run(
        Key(*(record[name] for name in names)), loss, record["start"], record["spent"], record["seconds"],
        record.get("extra", {}),
    )  # fmt: skip
