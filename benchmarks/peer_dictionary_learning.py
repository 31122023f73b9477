"""One SAE, trained by dictionary_learning's own trainers and training loop on given rows.

    python benchmarks/peer_dictionary_learning.py ROWS OUT --arch batchtopk --sparsity 32

To be run where dictionary-learning is installed (`pip install dictionary-learning`; beside
a torch without CUDA the torchvision that comes with it has to go). `peer_cell.py` says what
ROWS is and what is printed. The settings are the library's defaults, with rows scaled to a
mean square norm of one as it recommends. Its numbers of steps are for runs a thousand times
as long, and are put in proportion: the rate rises over a twentieth of the steps and falls
over the last fifth, the penalty rises over a twentieth, BatchTopK's threshold is measured
from the decay on, p falls from a third of the steps on.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE
from peer_cell import Cell
from torch import Tensor


def trainer_config(cell: Cell, d_in: int, n_steps: int) -> dict[str, Any]:
    """The arguments of the architecture's trainer, its class among them."""
    rising, falls = max(1, n_steps // 20), n_steps - n_steps // 5
    k = {"k": int(cell.sparsity)}
    threshold = {"threshold_start_step": falls, "threshold_beta": 0.9}
    penalty = {"l1_penalty": cell.sparsity, "sparsity_warmup_steps": rising}
    trainer, more = {
        "relu": (StandardTrainer, penalty),
        "relu-april": (StandardTrainerAprilUpdate, penalty),
        "gated": (GatedSAETrainer, penalty),
        "topk": (TopKTrainer, k | {"threshold_start_step": falls}),
        "batchtopk": (BatchTopKTrainer, k | threshold),
        "matryoshka": (
            MatryoshkaBatchTopKTrainer,
            k | threshold | {"group_fractions": [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]},
        ),
        "jumprelu": (
            JumpReluTrainer,
            {"target_l0": cell.sparsity, "sparsity_warmup_steps": rising},
        ),
        "p-anneal": (
            PAnnealTrainer,
            {
                "initial_sparsity_penalty": cell.sparsity,
                "sparsity_warmup_steps": rising,
                "sparsity_function": "Lp^p",
                "anneal_start": n_steps // 3,
                "anneal_end": n_steps - 1,
                "p_end": 0.2,
            },
        ),
    }[cell.arch]
    config = {
        "trainer": trainer,
        "steps": n_steps,
        "activation_dim": d_in,
        "dict_size": cell.d_sae,
        "layer": 0,
        "lm_name": "-",
        "warmup_steps": rising,
        "decay_start": falls,
        "device": "cpu",
        "seed": 0,
        **more,
    }
    return config if cell.lr is None else config | {"lr": cell.lr}


def folder_of(sae: Any) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """A trained dictionary as SAELens lays it out: its cfg.json, and its tensors."""
    kind = type(sae).__name__
    if kind in ("AutoEncoder", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE"):
        tensors = {"W_enc": sae.encoder.weight.t(), "W_dec": sae.decoder.weight.t()}
    else:
        tensors = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    if kind == "AutoEncoder":
        return {"architecture": "standard"}, tensors | {
            "b_enc": sae.encoder.bias,
            "b_dec": sae.bias,
        }
    if kind == "GatedAutoEncoder":
        biases = {"b_gate": sae.gate_bias, "b_mag": sae.mag_bias, "r_mag": sae.r_mag}
        return {"architecture": "gated"}, tensors | biases | {"b_dec": sae.decoder_bias}
    if kind in ("AutoEncoderTopK", "BatchTopKSAE"):
        tensors |= {"b_enc": sae.encoder.bias, "b_dec": sae.b_dec}
    if kind == "AutoEncoderTopK":
        k = int(sae.k)
        return {"architecture": "topk", "k": k, "rescale_acts_by_decoder_norm": False}, tensors
    if kind == "JumpReluAutoEncoder":  # it does not subtract b_dec: the bias makes up for that
        bias = sae.b_enc + sae.b_dec @ sae.W_enc
        return {"architecture": "jumprelu"}, tensors | {"threshold": sae.threshold, "b_enc": bias}
    if float(sae.threshold) < 0:
        raise RuntimeError("the threshold was never measured: train for more steps")
    return {"architecture": "jumprelu"}, tensors | {
        "threshold": sae.threshold * torch.ones_like(tensors["b_enc"])
    }


def main() -> None:
    cell = Cell.from_command_line()
    batches, shift = cell.batches()
    config = trainer_config(cell, batches.d_in, len(batches))
    made: list[Any] = []
    trainer_class = config["trainer"]

    def keep(**arguments: Any) -> Any:
        """The trainer, which `trainSAE` makes and does not give back."""
        made.append(trainer_class(**arguments))
        return made[0]

    config["trainer"] = keep
    trainSAE(batches, [config], len(batches), normalize_activations=True, device="cpu")
    cfg, tensors = folder_of(made[0].ae)
    cell.save(cfg, {**tensors, "b_dec": tensors["b_dec"] + shift})
    cell.report(f"dictionary-learning {version('dictionary-learning')}", made[0].lr)


if __name__ == "__main__":
    main()
