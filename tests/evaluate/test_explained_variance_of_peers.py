"""Explained variance of the same float32 rows by saeflow and by five others' formulas.

`pytest -n 0 -s` on this file prints the table. The formulas are written here from what the
projects document and discuss in public, batch by batch as they apply them:

- SAELens (PR #665): `1 - E|x - x_hat|^2 / (E|x|^2 - |E x|^2)`. Sums within a batch are in
  float32 and those over batches in float64, so a mean that is large costs digits.
- SAELens, legacy: the mean over rows of `1 - |x - x_hat|^2 / |x - mean|^2` with the batch's
  mean. A mean of ratios: another figure.
- dictionary_learning, `frac_variance_explained`: `1 - var(x - x_hat) / var(x)`, each summed
  over channels, of every batch, and the mean over batches.
- sparsify, FVU: `sum |x - x_hat|^2 / sum |x - mean|^2` of a batch.
- llamascopium: `1 - E|x - x_hat|^2 / E|x - mean|^2` of a batch, and the mean over batches.
- SAEBench core (SAELens before #665; issue #659): as SAELens, but E x is taken of the squares,
  and as one number over all channels: `E|x|^2 - (E x_c^2)^2`.
"""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from saeflow.evaluate.explained_variance import ExplainedVariance

BATCH = 500
Pairs = list[tuple[Tensor, Tensor]]


def saeflow(batches: Pairs) -> float:
    metric = ExplainedVariance(batches[0][0].shape[1])
    for x, x_hat in batches:
        metric.update(x, x_hat)
    return metric.compute().item()


def squares(rows: Tensor) -> Tensor:
    return rows.square().sum(1)


def saelens(batches: Pairs) -> float:
    n = sum(len(x) for x, _ in batches)
    norm = sum(x.square().sum().item() for x, _ in batches) / n
    error = sum((x - x_hat).square().sum().item() for x, x_hat in batches) / n
    mean = torch.stack([x.sum(0).double() for x, _ in batches]).sum(0) / n
    variance = norm - mean.square().sum().item()
    return 1 - error / variance if variance >= 1e-10 else float(error < 1e-10)


def saelens_legacy(batches: Pairs) -> float:
    ratios = [squares(x - x_hat) / squares(x - x.mean(0)) for x, x_hat in batches]
    return 1 - torch.cat(ratios).mean().item()


def dictionary_learning(batches: Pairs) -> float:
    return mean_over(batches, lambda x, x_hat: 1 - (x - x_hat).var(0).sum() / x.var(0).sum())


def sparsify(batches: Pairs) -> float:
    return mean_over(
        batches, lambda x, x_hat: 1 - squares(x_hat - x).sum() / squares(x - x.mean(0)).sum()
    )


def llamascopium(batches: Pairs) -> float:
    return mean_over(
        batches, lambda x, x_hat: 1 - squares(x_hat - x).mean() / squares(x - x.mean(0)).mean()
    )


def saebench_core(batches: Pairs) -> float:
    norm = torch.stack([squares(x).mean() for x, _ in batches]).mean()
    error = torch.stack([squares(x - x_hat).mean() for x, x_hat in batches]).mean()
    of_squares = torch.stack([x.square().mean() for x, _ in batches]).mean()
    return (1 - error / (norm - of_squares.square())).item()


def mean_over(batches: Pairs, formula: Callable[[Tensor, Tensor], Tensor]) -> float:
    return torch.stack([formula(x, x_hat) for x, x_hat in batches]).mean().item()


FORMULAS: Mapping[str, Callable[[Pairs], float]] = {
    "saeflow": saeflow,
    "SAELens": saelens,
    "SAELens, legacy": saelens_legacy,
    "dictionary_learning": dictionary_learning,
    "sparsify (1 - FVU)": sparsify,
    "llamascopium": llamascopium,
    "SAEBench core": saebench_core,
}


def batches_of(mean: float, drift: float = 0.0, bias: float = 0.0) -> Pairs:
    """2,000 rows of 16 channels, their deviation 1 and their error's 0.5: explained 0.75.

    `drift`: how far each batch's mean is from the last one's, as where batches are of
    one document; `bias`: what is added to every reconstruction.
    """
    draw = torch.Generator().manual_seed(0)
    x = mean + torch.randn(2000, 16, generator=draw)
    x = x + drift * torch.arange(4.0).repeat_interleave(BATCH)[:, None]
    x_hat = x + bias + 0.5 * torch.randn(2000, 16, generator=draw)
    return list(zip(x.split(BATCH), x_hat.split(BATCH), strict=True))


def closed_form(batches: Pairs) -> float:
    x, x_hat = (torch.cat(each).double() for each in zip(*batches, strict=True))
    return 1 - ((x - x_hat).var(0).sum() / x.var(0).sum()).item()


CASES = {
    "mean 0": batches_of(0),
    "mean 5": batches_of(5),
    "mean 1,000": batches_of(1000),
    "mean 100,000": batches_of(100_000),
    "batches drift": batches_of(5, drift=1),
    "all off by 0.5": batches_of(5, bias=0.5),
}


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, float]]:
    """Formula by case, how far each is from the closed form; printed, too."""
    true = {case: closed_form(batches) for case, batches in CASES.items()}
    found = {name: {c: formula(b) for c, b in CASES.items()} for name, formula in FORMULAS.items()}
    print("\n" + " " * 20 + "".join(f"{case:>16}" for case in CASES))
    for name, values in {"closed form": true, **found}.items():
        print(f"{name:20}" + "".join(f"{value:16.5f}" for value in values.values()))
    return {name: {c: abs(v[c] - true[c]) for c in CASES} for name, v in found.items()}


def test_ours_is_the_closed_form_in_every_case(table: dict[str, dict[str, float]]) -> None:
    assert max(table["saeflow"].values()) < 1e-12


def test_around_zero_most_are_right(table: dict[str, dict[str, float]]) -> None:
    """SAEBench takes 1 from the 16 channels' variance of 16 even there: 0.25 * (16/15 - 1) off."""
    for name in FORMULAS.keys() - {"SAELens, legacy", "SAEBench core"}:
        assert table[name]["mean 0"] < 0.001, name
    assert table["SAELens, legacy"]["mean 0"] > 0.03
    assert table["SAEBench core"]["mean 0"] == pytest.approx(0.25 / 15, abs=0.001)


def test_saebenchs_is_wrong_wherever_the_mean_is_not_zero(
    table: dict[str, dict[str, float]],
) -> None:
    for case in list(CASES)[1:]:
        assert table["SAEBench core"][case] > 0.1, case


def test_sums_of_float32_squares_lose_the_variance_under_a_large_mean(
    table: dict[str, dict[str, float]],
) -> None:
    """SAELens's sums over batches are float64, but those within are not."""
    around_zero, *_, under_1000, under_100_000 = (table["SAELens"][c] for c in list(CASES)[:4])
    assert 1e-5 < abs(under_1000 - around_zero) < 0.1
    assert under_100_000 > 0.1


def test_formulas_of_one_batch_are_off_where_batches_differ(
    table: dict[str, dict[str, float]],
) -> None:
    for name in ("dictionary_learning", "sparsify (1 - FVU)", "llamascopium"):
        assert table[name]["batches drift"] > 0.1, name
        assert table[name]["mean 1,000"] < 1e-3, name


def test_an_error_in_every_row_counts_in_fvu_and_not_in_explained_variance(
    table: dict[str, dict[str, float]],
) -> None:
    assert table["dictionary_learning"]["all off by 0.5"] < 1e-3
    for name in ("SAELens", "sparsify (1 - FVU)", "llamascopium"):
        assert table[name]["all off by 0.5"] > 0.2, name
