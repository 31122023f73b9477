"""What a peer's training script is given, and what it leaves: one SAE and what it cost.

Needs numpy, torch and safetensors only, so that every peer's own environment has it.
Each script beside this one is called as

    python peer_X.py ROWS OUT --arch topk --sparsity 32 --d-sae 2304 [--lr 1e-3] [--centre]

where ROWS is the folder that `peers_rows.py` wrote. It trains once over its batches,
writes `OUT/cfg.json` and `OUT/sae_weights.safetensors` as SAELens lays them out, and
prints one line of JSON.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor


class Batches:
    """The training batches, in order; every iteration begins at the first.

    Args:
        folder: what `peers_rows.py` wrote.
        shift: (d_in,), subtracted from every row; None for nothing.
    """

    def __init__(self, folder: Path, shift: Tensor | None = None) -> None:
        about = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        self.d_in, self.batch_size, self.steps = (
            about[key] for key in ("d_in", "batch_size", "steps")
        )
        self._rows = np.load(folder / "rows.npy", mmap_mode="r")
        self._shift = shift

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        """Batches of float32, (batch_size, d_in), in memory of their own."""
        for step in range(self.steps):
            part = self._rows[step * self.batch_size : (step + 1) * self.batch_size]
            rows = torch.from_numpy(np.array(part))
            batch = rows.view(torch.bfloat16).float() if rows.dtype == torch.uint16 else rows
            yield batch if self._shift is None else batch - self._shift


@dataclass
class Cell:
    """One training run.

    Attributes:
        rows, out: folders.
        arch, sparsity, d_sae: k, the L1 or L0 coefficient or the target L0 is `sparsity`.
        lr: learning rate; None for the library's own.
        centre: train on rows less their mean, which is put into b_dec afterwards.
        schedule: steps of warm-up, and the step at which the decay begins.
    """

    rows: Path
    out: Path
    arch: str
    sparsity: float
    d_sae: int
    lr: float | None
    centre: bool
    started: float = field(default_factory=time.perf_counter)
    ready: float = field(default_factory=time.process_time)

    @staticmethod
    def from_command_line() -> "Cell":
        """The arguments as a cell; torch is seeded."""
        parser = argparse.ArgumentParser(description="Train one SAE.")
        parser.add_argument("rows", type=Path)
        parser.add_argument("out", type=Path)
        parser.add_argument("--arch", default="topk")
        parser.add_argument("--sparsity", type=float, default=32.0)
        parser.add_argument("--d-sae", type=int, default=2304)
        parser.add_argument("--lr", type=float)
        parser.add_argument("--centre", action="store_true")
        torch.manual_seed(0)
        return Cell(**vars(parser.parse_args()))

    def batches(self) -> tuple[Batches, Tensor]:
        """The batches, and what was subtracted from their rows: the first one's mean, or zero."""
        batches = Batches(self.rows)
        if not self.centre:
            return batches, torch.zeros(batches.d_in)
        shift = next(iter(batches)).mean(0)
        return Batches(self.rows, shift), shift

    def save(self, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write the SAE folder, in the units of the rows."""
        self.out.mkdir(parents=True, exist_ok=True)
        weights = {
            name: tensor.detach().float().contiguous().clone() for name, tensor in tensors.items()
        }
        save_file(weights, self.out / "sae_weights.safetensors")
        whole = {
            "d_in": weights["W_dec"].shape[1],
            "d_sae": weights["W_dec"].shape[0],
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {"sae_lens_version": "6.0.0"},
            **cfg,
        }
        (self.out / "cfg.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")

    def report(self, library: str, lr: float, **more: Any) -> None:
        """Print what it took; CPU seconds are of the process, imports included."""
        figures = {
            "library": library,
            "lr": lr,
            "cpu_seconds": time.process_time(),
            "cpu_seconds_of_training": time.process_time() - self.ready,
            "wall_seconds_of_training": time.perf_counter() - self.started,
            **more,
        }
        print(json.dumps(figures), flush=True)
