"""The plain loop: a TopK SAE in forty lines of PyTorch, the yardstick of CPU time.

    python benchmarks/peer_plain_loop.py ROWS OUT --sparsity 32 --d-sae 4608

It is what a careful person writes in an afternoon: the encoder is dense, and
everything after the selection of the k largest is done for those k only
(`embedding_bag` to decode, `index_add_` for the encoder's gradient). Fused Adam, rows
divided by one number, `b_dec` from a mean, unit decoder rows. No dead latents are
revived, nothing is logged. `peer_cell.py` says what ROWS is and what is printed.
"""

import math
from typing import Any

import torch
from peer_cell import Cell
from torch import Tensor
from torch.nn import functional as F


class Encode(torch.autograd.Function):
    """The k largest pre-activations of each row, with a gradient through those only."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor, k: int, by_column: bool
    ) -> tuple[Tensor, Tensor]:
        """Values and latents, (batch, k)."""
        values, latents = F.linear(x, W, b).topk(k, dim=1, sorted=False)
        ctx.save_for_backward(x, W, values, latents)
        ctx.by_column = by_column
        ctx.mark_non_differentiable(latents)
        return values.relu(), latents

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of W and b; x needs none."""
        x, W, values, latents = ctx.saved_tensors
        grad, flat, grad_W = grad * (values > 0), latents.flatten(), torch.zeros_like(W)
        if ctx.by_column:
            for j in range(latents.shape[1]):
                grad_W.index_add_(0, latents[:, j], grad[:, j, None] * x)
        else:
            grad_W.index_add_(0, flat, (grad[:, :, None] * x[:, None, :]).flatten(0, 1))
        grad_b = W.new_zeros(len(W)).index_add_(0, flat, grad.flatten())
        return None, grad_W, grad_b, None, None


def main() -> None:
    cell = Cell.from_command_line()
    batches, _ = cell.batches()
    by_column = cell.arch == "topk-by-column"
    k, n_steps = int(cell.sparsity), len(batches)
    lr = cell.lr or 2e-4 * math.sqrt(2**14 / cell.d_sae)  # Gao et al. 2024, figure 3
    first = next(iter(batches))
    mean = first.mean(0)
    scale = math.sqrt(first.shape[1]) / (first - mean).norm(dim=1).median().item()

    W_dec = F.normalize(torch.randn(cell.d_sae, batches.d_in), dim=1)
    tensors = W_dec.clone(), torch.zeros(cell.d_sae), W_dec, mean * scale
    W_enc, b_enc, W_dec, b_dec = parameters = [torch.nn.Parameter(t) for t in tensors]
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    warm_up, decay = max(1, n_steps // 20), max(1, n_steps // 5)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm_up, (n_steps - step) / decay)
    )
    for batch in batches:
        x = batch * scale
        values, latents = Encode.apply(x - b_dec.detach(), W_enc, b_enc, k, by_column)
        decoded = F.embedding_bag(latents, W_dec, per_sample_weights=values, mode="sum")
        loss = (decoded + b_dec - x).square().sum(1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            F.normalize(W_dec, dim=1, out=W_dec)

    cell.save(
        {"architecture": "topk", "k": k, "rescale_acts_by_decoder_norm": False},
        {"W_enc": W_enc.t(), "b_enc": b_enc / scale, "W_dec": W_dec, "b_dec": b_dec / scale},
    )
    cell.report(f"torch {torch.__version__}", lr)


if __name__ == "__main__":
    main()
