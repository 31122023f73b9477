"""The cells of the table that `train_table.py` prints: who trains what, how, and what came of it.

A cell is one SAE. What came of it is kept as JSON in its folder, so that a stopped table
goes on where it was. Sparsities are in each library's own units, found by trial so that
the L0s of an architecture overlap; a comparison is made at equal L0, not at equal units.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeflow.train.config import TrainConfig
from saeflow.train.penalised import rate_factor
from saeflow.train.schedule import default_rate

OURS, SAELENS, DL, LOOP = "ours", "saelens", "dl", "loop"
TITLES = {OURS: "saeflow", SAELENS: "SAELens", DL: "dictionary_learning", LOOP: "plain loop"}
_SCRIPTS = {
    OURS: "peer_saeflow.py",
    SAELENS: "peer_saelens.py",
    DL: "peer_dictionary_learning.py",
    LOOP: "peer_plain_loop.py",
}

_BY_K = dict.fromkeys(("topk", "batchtopk", "matryoshka"), (32.0, 64.0))
SPARSITIES: dict[str, dict[str, tuple[float, ...]]] = {
    OURS: {
        **_BY_K,
        "relu": (2, 4, 6),
        "gated": (4, 7, 12),
        "p-anneal": (1, 3),
        "jumprelu": (0.4, 1.2, 2.5),
    },
    SAELENS: {**_BY_K, "relu": (4, 10), "gated": (5, 12), "jumprelu": (2, 5)},
    DL: {
        **_BY_K,
        "relu": (0.02, 0.05),
        "relu-april": (0.05, 0.1),
        "gated": (0.05, 0.12),
        "p-anneal": (0.015, 0.03),
        "jumprelu": (40, 80),
    },
    LOOP: dict.fromkeys(("topk", "topk-by-column"), _BY_K["topk"]),
}
"""What each library trains, and the sparsities: k, the penalty's weight, or the target L0."""

AT_OUR_RATE: dict[str, dict[str, tuple[float, ...]]] = {
    SAELENS: {"relu": (1, 2, 4), "gated": (3, 6, 12), "jumprelu": (1.5, 3, 5)},
    DL: {
        "relu": (0.01, 0.02, 0.05),
        "relu-april": (0.05, 0.1, 0.2),
        "gated": (0.05, 0.12),
        "jumprelu": (40, 80),
    },
}
"""Those at the rate that saeflow gives the same architecture, where it is not TopK's."""

FAMILY = {"relu-april": "relu", "topk-by-column": "topk"}
"""A library's second version of an architecture, and what it is compared with."""


@dataclass(frozen=True)
class Cell:
    """One SAE of the table.

    Attributes:
        library: who trains it.
        arch, sparsity: what.
        variant: `own` is the library's own learning rate; `helped` is what saeflow gives
            TopK at this width, and rows less their mean; `our-rate` is what saeflow gives
            the same architecture, and rows less their mean.
    """

    library: str
    arch: str
    sparsity: float
    variant: str = "own"

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.library}-{self.variant}-{self.arch}-{self.sparsity:g}"

    @property
    def family(self) -> str:
        """The architecture that it is compared in."""
        return FAMILY.get(self.arch, self.arch)


@dataclass(frozen=True)
class Bench:
    """What all cells have in common.

    Attributes:
        store: path of the store.
        rows: folder that `peers_rows.py` wrote.
        cells: folder of the cells' folders.
        n_rows, batch_size, d_sae: of each run.
        pythons: interpreter of each peer's own environment.
    """

    store: Path
    rows: Path
    cells: Path
    n_rows: int
    batch_size: int
    d_sae: int
    pythons: dict[str, str]

    def command(self, cell: Cell, out: Path) -> list[str]:
        """How the cell is run."""
        what = ["--arch", cell.arch, "--sparsity", f"{cell.sparsity:g}", "--d-sae", str(self.d_sae)]
        script = str(Path(__file__).with_name(_SCRIPTS[cell.library]))
        if cell.library == OURS:
            size = ["--rows", str(self.n_rows), "--batch-size", str(self.batch_size)]
            return [sys.executable, script, str(self.store), str(out), *what, *size]
        rate = default_rate(self.d_sae) * (_factor(cell) if cell.variant == "our-rate" else 1)
        how = [] if cell.variant == "own" and cell.library != LOOP else ["--lr", f"{rate:.3e}"]
        how += [] if cell.variant == "own" else ["--centre"]
        python = self.pythons.get(cell.library, sys.executable)
        return [python, script, str(self.rows), str(out), *what, *how]

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What came of the cell; None if it has not been run."""
        path = self.cells / cell.name / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def keep(self, cell: Cell, result: dict[str, Any]) -> None:
        """Write what came of the cell."""
        path = self.cells / cell.name / "result.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        partial.rename(path)

    def train(self, cell: Cell) -> dict[str, Any]:
        """Run the cell on one thread: what its script printed, and the whole process's cost.

        The CPU seconds are those of the process and all that it started, from its first
        instruction to its last: imports, reading, training, saving.

        Raises:
            RuntimeError: the script failed; its last lines are told.
        """
        folder = self.cells / cell.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        started = time.perf_counter()
        with (folder / "printed").open("w") as printed, (folder / "log").open("w") as log:
            process = subprocess.Popen(
                self.command(cell, folder / "run"),
                stdout=printed,
                stderr=log,
                env={**os.environ, **threads},
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            told = (folder / "log").read_text(encoding="utf-8").splitlines()[-5:]
            raise RuntimeError(f"{cell.name} failed: " + "\n".join(told))
        lines = (folder / "printed").read_text(encoding="utf-8").splitlines()
        return {
            "printed": json.loads(lines[-1]),
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "wall_seconds": time.perf_counter() - started,
            "peak_mb": usage.ru_maxrss / 1024,
        }


def _factor(cell: Cell) -> float:
    """The rate that saeflow gives an architecture, as a multiple of TopK's."""
    arch: Any = cell.family
    return rate_factor(TrainConfig(store=Path(), out=Path(), d_sae=1, arch=arch))
