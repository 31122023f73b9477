"""One SAE, trained by SAELens's own trainer on given rows.

    python benchmarks/peer_saelens.py ROWS OUT --arch batchtopk --sparsity 32

To be run where SAELens is installed; `peer_cell.py` says what ROWS is and what is printed.
The settings are SAELens's defaults and, where it has none, those of its documentation: rows
scaled to a mean norm of sqrt(d_in), a rate that falls over the last fifth of the steps, a
sparsity penalty that rises over the first twentieth; JumpReLU with the tanh penalty, as
recommended there (with the default one, L0 stays in the hundreds in so few steps). Two are
shortened, which a run of some hundred steps needs: the estimate of the norm (of 10 batches,
not 1,000) and the memory of BatchTopK's threshold. `--centre` takes the rows' mean away
before SAELens sees them, which helps it where the mean is long.
"""

import math
from dataclasses import asdict
from itertools import chain, islice
from typing import Any

from peer_cell import Batches, Cell
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    __version__,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

NORM_BATCHES = 10


def make_sae(cell: Cell, batches: Batches) -> Any:
    """An untrained SAE of the architecture."""
    n_steps, s = len(batches), cell.sparsity
    rising = n_steps // 20
    threshold_lr = max(0.01, 10 / n_steps)
    widths = [cell.d_sae // part for part in (16, 8, 4, 2, 1)]
    sae_class, config_class, more = {
        "relu": (
            StandardTrainingSAE,
            StandardTrainingSAEConfig,
            {"l1_coefficient": s, "l1_warm_up_steps": rising},
        ),
        "gated": (
            GatedTrainingSAE,
            GatedTrainingSAEConfig,
            {"l1_coefficient": s, "l1_warm_up_steps": rising},
        ),
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": int(s)}),
        "batchtopk": (
            BatchTopKTrainingSAE,
            BatchTopKTrainingSAEConfig,
            {"k": s, "topk_threshold_lr": threshold_lr},
        ),
        "matryoshka": (
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            {"k": s, "topk_threshold_lr": threshold_lr, "matryoshka_widths": widths},
        ),
        "jumprelu": (
            JumpReLUTrainingSAE,
            JumpReLUTrainingSAEConfig,
            {
                "l0_coefficient": s,
                "l0_warm_up_steps": n_steps,
                "jumprelu_sparsity_loss_mode": "tanh",
                "jumprelu_bandwidth": 2.0,
                "jumprelu_init_threshold": 0.1,
                "pre_act_loss_coefficient": 3e-6,
            },
        ),
    }[cell.arch]
    config = config_class(
        d_in=batches.d_in,
        d_sae=cell.d_sae,
        normalize_activations="expected_average_only_in",
        **more,
    )
    return sae_class(config)


def main() -> None:
    cell = Cell.from_command_line()
    batches, shift = cell.batches()
    n_steps = len(batches)
    sae = make_sae(cell, batches)
    lr = cell.lr or SAETrainerConfig.lr
    n_norm = min(NORM_BATCHES, n_steps)
    config = SAETrainerConfig(
        total_training_samples=n_steps * batches.batch_size,
        train_batch_size_samples=batches.batch_size,
        lr=lr,
        lr_end=lr / 10,  # not used with a constant rate, but asked for
        lr_decay_steps=n_steps // 5,
        n_batches_for_norm_estimate=n_norm,
    )
    provider = chain(islice(batches, n_norm), batches)  # the estimate takes rows of its own
    SAETrainer(cfg=config, sae=sae, data_provider=provider).fit()
    scaled = sae.cfg.normalize_activations
    if scaled != "none" or not math.isfinite(float(sae.b_dec.norm())):
        raise RuntimeError(f"the SAE is not in the units of the rows: {scaled}, {sae.b_dec}")
    sae.b_dec.data += shift
    sae.save_inference_model(cell.out)
    cell.report(f"sae-lens {__version__}", lr, settings=asdict(config) | {"logger": None})


if __name__ == "__main__":
    main()
