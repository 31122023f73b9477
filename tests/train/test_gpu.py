"""The same runs on a GPU: the numbers of the CPU, nothing that waits for it, and what stops it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from saeflow.errors import SaeflowError
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.store import Store, open_store
from saeflow.train.architectures import MAKERS
from saeflow.train.begin import begin_trainer
from saeflow.train.choose import choose_order
from saeflow.train.config import TrainConfig
from saeflow.train.fill import Share
from saeflow.train.loader import Loader
from saeflow.train.plan import make_plan
from saeflow.train.reader_process import Kind
from saeflow.train.run import train_sae
from saeflow.train.shared import share_encoders
from saeflow.train.trainer import LOOK_EVERY, Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

Make = Callable[..., TrainConfig]
GPU = torch.device("cuda")
HOOKS = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z")
TRANSCODER = {"target_hook": HOOKS[1]}
VARIANTS: dict[str, dict[str, Any]] = {
    **{arch: {"arch": arch} for arch in MAKERS},
    "relu, unit norms": {"arch": "relu", "decoder_norm": "unit", "clip": 1.0},
    "jumprelu, tanh": {"arch": "jumprelu", "sparsity": "tanh"},
    "jumprelu, a target": {"arch": "jumprelu", "target_l0": 6.0},
    "matryoshka, topk": {"arch": "matryoshka", "base": "topk", "drawn_prefixes": 3},
    "matryoshka, relu": {"arch": "matryoshka", "base": "relu"},
    "topk, muon": {"optimizer": "muon"},
    "topk, schedule-free": {"optimizer": "schedule-free"},
    "topk, ema": {"ema": 0.9, "accumulate": 2},
    "topk, free norms": {"decoder_norm": "free"},
    "relu, resampler": {
        "arch": "relu",
        "resample": True,
        "resample_every": 1024,
        "resample_window": 512,
        "resample_rows": 512,
        "resample_threshold": 0.4,
    },
    "transcoder": TRANSCODER,
    "skip transcoder": {**TRANSCODER, "arch": "relu", "skip": True},
    "crosscoder": {"hook": HOOKS, "crosscoder": True},
    "crosscoder, relu": {"hook": HOOKS, "crosscoder": True, "arch": "relu"},
}
WITH_K = ("topk", "batchtopk", "matryoshka")


def options(given: dict[str, Any]) -> dict[str, Any]:
    """Those of a variant; k only where it is one of its options."""
    arch, base = given.get("arch", "topk"), given.get("base", "topk")
    has_k = arch in WITH_K and (arch != "matryoshka" or base != "relu")
    return {"k": 4 if has_k else None, "dead_after": 600, **given}


def weights(run: Path) -> dict[str, dict[str, Tensor]]:
    """Of every SAE of a run, by its name."""
    files = sorted(run.glob("sae/*/sae_weights.safetensors"))
    assert files
    return {file.parent.name: load_file(file) for file in files}


def assert_near(one: Path, other: Path, tolerance: float = 2e-3) -> None:
    """Weights of two runs differ by rounding: by less than that share of a tensor's norm."""
    ours, theirs = weights(one), weights(other)
    assert set(ours) == set(theirs)
    for name, tensors in ours.items():
        for key, tensor in tensors.items():
            far = (tensor - theirs[name][key]).norm() / theirs[name][key].norm().clamp(min=1e-3)
            assert far < tolerance, (name, key, far)


# The numbers.


@pytest.mark.parametrize("given", VARIANTS.values(), ids=list(VARIANTS))
def test_a_run_gives_the_cpus_weights(
    train_config: Make, tmp_path: Path, given: dict[str, Any]
) -> None:
    if given.get("optimizer") == "schedule-free":
        pytest.importorskip("schedulefree", reason="needs the extra [schedule-free]")
    own = options(given)
    for device in ("cpu", "cuda"):
        train_sae(train_config(out=tmp_path / device, device=device, **own))
    assert_near(tmp_path / "cuda", tmp_path / "cpu")


def test_a_sweep_gives_what_each_gives_alone(train_config: Make, tmp_path: Path) -> None:
    """Here their encoders' products are one."""
    train_sae(train_config(out=tmp_path / "sweep", device="cuda", k=None, sweep=("k=2,4,8",)))
    for k in (2, 4, 8):
        run = train_sae(train_config(out=tmp_path / f"{k}", device="cuda", k=k)).folder
        alone = load_file(run / "sae_weights.safetensors")
        (together,) = (w for n, w in weights(tmp_path / "sweep").items() if f"k={k}" in n)
        for key, tensor in alone.items():
            torch.testing.assert_close(together[key], tensor, rtol=1e-3, atol=1e-3)


def test_bfloat16_is_near(train_config: Make, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        train_sae(train_config(out=out, device="cuda", arch="relu", k=None, precision=precision))
    assert_near(tmp_path / "bfloat16", tmp_path / "float32", tolerance=0.2)
    with pytest.raises(AssertionError):
        assert_near(tmp_path / "bfloat16", tmp_path / "float32", tolerance=1e-6)


# Rows on their way.


@pytest.fixture(params=["bfloat16", "float32", "int8"])
def stored(request: pytest.FixtureRequest, tiny_config: Callable[..., Any]) -> Store:
    """A store of each precision."""
    config = tiny_config(dtype=request.param, tokens=None, hook=HOOKS)
    return open_store(harvest_activations(config).store.folder)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_rows_arrive_as_they_are(stored: Store, kind: Kind) -> None:
    """Batches that are kept aren't overwritten by those that follow."""
    hook_points = tuple(stored.hook_point(hook) for hook in HOOKS)
    order = choose_order(stored.layout, stored.train, hook_points[0], batch_size=300, seed=0)
    there, here = (
        Loader(stored, hook_points, order, Share(300), device, kind).all_batches(3, 40)
        for device in (GPU, torch.device("cpu"))
    )
    for ours, theirs in zip(list(there), here, strict=True):
        for mine, its in zip(ours, theirs, strict=True):
            assert mine.device.type == "cuda"
            torch.testing.assert_close(mine.cpu(), its, rtol=1e-6, atol=1e-6)


# What waits for the GPU, and what stops a run.


@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def trainers_of(config: TrainConfig) -> dict[str, Trainer]:
    store = open_store(config.store)
    plan = make_plan(config, store)
    return {sae.member.name: begin_trainer(config, sae, store, GPU) for sae in plan.saes}


@pytest.mark.parametrize("arch", MAKERS)
def test_a_step_waits_for_nothing(
    train_config: Make, sparse_rows: Callable[..., Tensor], unchecked: None, arch: str
) -> None:
    """Between two looks at the dead latents."""
    config = train_config(device="cuda", **options({"arch": arch}))
    (trainer,) = trainers_of(config).values()
    rows = sparse_rows(256).to(GPU)
    for step in range(2 * LOOK_EVERY):
        if step % LOOK_EVERY == 0:
            trainer.step((rows,), step)
            continue
        with nothing_waits():
            trainer.step((rows,), step)


def test_a_shared_product_waits_for_nothing(
    train_config: Make, sparse_rows: Callable[..., Tensor], unchecked: None
) -> None:
    config = train_config(device="cuda", k=None, sweep=("k=2,4",))
    trainers = trainers_of(config)
    (group,) = share_encoders(trainers, 256)
    rows = sparse_rows(256).to(GPU)
    batches = {name: trainer.batch((rows,), 1) for name, trainer in trainers.items()}
    group.with_known(batches)
    with nothing_waits():
        group.with_known(batches)


def test_what_is_not_finite_changes_no_weight(
    train_config: Make, sparse_rows: Callable[..., Tensor]
) -> None:
    (trainer,) = trainers_of(train_config(device="cuda")).values()
    rows = sparse_rows(256).to(GPU)
    for step in range(3):
        trainer.step((rows,), step)
    before = {
        name: tensor.detach().clone() for name, tensor in trainer.parameters.named_parameters()
    }
    bad = rows.clone()
    bad[7] = float("inf")
    trainer.step((bad,), 3)
    trainer.step((rows,), 4)
    assert trainer.first_bad_step() == 3
    for name, tensor in trainer.parameters.named_parameters():
        assert torch.equal(tensor, before[name])


def test_a_run_names_the_step_that_diverged(
    train_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it looks only every few steps."""
    real = Trainer.step_on

    def poisoned(trainer: Trainer, batch: Any) -> Any:
        spoilt = replace(batch, x=batch.x * float("nan")) if batch.step == 4 else batch
        return real(trainer, spoilt)

    monkeypatch.setattr(Trainer, "step_on", poisoned)
    with pytest.raises(SaeflowError, match="not finite at step 5"):
        train_sae(train_config(device="cuda", log_every=50))


@pytest.mark.parametrize("name", ["topk", "relu", "jumprelu, a target", "topk, muon"])
def test_a_stopped_run_goes_on(
    train_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    own = options(VARIANTS[name])
    train_sae(train_config(out=tmp_path / "whole", device="cuda", **own))
    real = Loader.all_batches

    def stopped(loader: Loader, first: int, last: int) -> Iterator[tuple[Tensor, ...]]:
        for step, batch in enumerate(real(loader, first, last), first):
            if step + 1 == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(Loader, "all_batches", stopped)
        with pytest.raises(SystemExit):
            train_sae(train_config(out=tmp_path / "run", device="cuda", **own))
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    train_sae(train_config(out=tmp_path / "run", device="cuda", **own))
    assert_near(tmp_path / "run", tmp_path / "whole")
