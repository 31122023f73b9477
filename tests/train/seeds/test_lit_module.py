"""The seed's training module under Lightning's own Trainer."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

pytest.importorskip("lightning", reason="the module is made with an optional extra")

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger

import saeflow
from saeflow import LitSparseAutoencoder, LitSparseAutoencoderConfig, train_sae
from saeflow.errors import BadInputError, SaeflowError
from saeflow.harvest.store import Store
from saeflow.train.config import TrainConfig
from saeflow.train.fill import Share
from saeflow.train.folder import load_sae, save_sae
from saeflow.train.loader import Loader
from saeflow.train.plan import make_plan
from saeflow.train.resample import Resampling
from saeflow.train.seeds.collection import training_metrics

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec",  # what Lightning 2.6 uses of torch 2.13
    # Lightning's advice, on what a test has no use for.
    "ignore:.*does not have many workers",
    "ignore:.*dataloader.*__len__",
    "ignore:Checkpoint directory",
    "ignore:Be aware that when using .ckpt_path., callbacks",
    "ignore:.*can be set to .* for faster",
)

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z")
WIDTH, LATENTS, BATCH, N_STEPS = 32, 48, 128, 12
PREFIXES = (
    *("train/l0_norm", "train/neuron_activity"),
    *("loss/l1_learned_activations", "loss/l2_reconstruction", "loss/total"),
)
RESAMPLING = {
    "resample_interval": 256,
    "max_n_resamples": 2,
    "resample_dead_neurons_dataset_size": 128,
    "resample_loss_dataset_size": 128,
    "resample_threshold_is_dead_portion_fires": 0.5,
}
Make = Callable[..., TrainConfig]


class Kept(DummyLogger):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.lines.append((step, dict(metrics)))


class Batches(IterableDataset[Tensor]):
    """A run's batches, in its order, as (batch, components, width)."""

    def __init__(self, store: Store, config: TrainConfig) -> None:
        plan = make_plan(config, store)
        share, device = Share(config.batch_size), torch.device("cpu")
        self.loader = Loader(store, plan.hook_points, plan.order, share, device)
        self.n_steps = plan.n_steps

    def __iter__(self) -> Iterator[Tensor]:
        with closing(self.loader.all_batches(0, self.n_steps)) as batches:
            for batch in batches:
                yield torch.stack(batch, 1)


def settings(**changed: Any) -> LitSparseAutoencoderConfig:
    """Of one component, that is never resampled."""
    options: dict[str, Any] = {
        "n_input_features": WIDTH,
        "n_learned_features": LATENTS,
        "component_names": ["a"],
        "max_n_resamples": 0,
    }
    return LitSparseAutoencoderConfig(**{**options, **changed})


def two(**changed: Any) -> LitSparseAutoencoderConfig:
    """Of two components."""
    return settings(**{"n_components": 2, "component_names": ["a", "b"], **changed})


def lightning(folder: Path, **changed: Any) -> Trainer:
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "max_epochs": 2,
        "log_every_n_steps": 5,
    }
    return Trainer(**{**options, **changed})


def batches_of(rows: Tensor) -> Any:
    """64 rows each, the last of which may be short; not shuffled."""
    return DataLoader(rows, batch_size=64)  # type: ignore[arg-type]  # a tensor is a dataset


def draw(n: int, n_components: int | None = 2) -> Tensor:
    axis = () if n_components is None else (n_components,)
    return torch.randn(n, *axis, WIDTH, generator=torch.Generator().manual_seed(0))


def weights_of(module: LitSparseAutoencoder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert list(first) == list(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many latents each resampling of a test gave new weights."""
    counts: list[int] = []
    replace_dead = Resampling.replace

    def counted(self: Resampling, *args: Any) -> Tensor:
        latents = replace_dead(self, *args)
        counts.append(len(latents))
        return latents

    monkeypatch.setattr(Resampling, "replace", counted)
    return counts


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"ema": 0.9, "clip": 0.5, "schedule": "cosine", "seed": 3, "lr": 2e-3},
        {"precision": "bfloat16", "sparsity_warm_up": 0.5, "b_dec": "geometric-median"},
    ],
    ids=["defaults", "ema, clip, cosine", "bfloat16"],
)
def test_lightning_leaves_the_weights_that_saeflow_train_leaves(
    store: Store,
    train_config: Make,
    tmp_path: Path,
    replaced: list[int],
    more: dict[str, Any],
) -> None:
    """Both components, to the bit, with resampling."""
    config = settings(
        n_components=2,
        component_names=HOOKS,
        statistics=[store.statistics(store.hook_point(name)) for name in HOOKS],
        **{**RESAMPLING, **more},
    )
    options = train_config(
        arch="relu",
        decoder_norm="unit",
        revive=0.0,
        k=None,
        hook=HOOKS,
        d_sae=LATENTS,
        l1=0.001 * WIDTH,
        batch_size=BATCH,
        tokens=N_STEPS * BATCH,
        resample=True,
        resample_every=256,
        resample_most=2,
        resample_window=128,
        resample_rows=128,
        resample_threshold=0.5,
        **more,
    )
    module = LitSparseAutoencoder(config)
    batches = DataLoader(Batches(store, options), batch_size=None)
    lightning(tmp_path, max_steps=N_STEPS).fit(module, batches)
    ours = train_sae(options).saes
    assert len(replaced) == 8
    assert all(0 < n < LATENTS for n in replaced)
    assert len(ours) == 2
    for name in HOOKS:
        (expected,) = (sae for sae in ours.values() if sae.hook_point == name)
        assert_same(module.sae(name).parameters.state_dict(), expected.parameters.state_dict())


@pytest.mark.parametrize("n_components", [None, 1])
def test_one_component_may_come_without_the_axis(n_components: int | None, tmp_path: Path) -> None:
    left = []
    for axis in (None, 1):
        module = LitSparseAutoencoder(settings(n_components=n_components))
        lightning(tmp_path).fit(module, batches_of(draw(200, axis)))
        left.append(weights_of(module))
    assert_same(*left)


def test_a_component_does_not_feel_the_others(tmp_path: Path) -> None:
    """The seed's gradients shrink with their number, and so do its initial weights."""
    rows = draw(320)
    both = LitSparseAutoencoder(two(**RESAMPLING, clip=1.0))
    begun = weights_of(both)["components.1.encoder"]
    lightning(tmp_path).fit(both, batches_of(rows))
    alone = LitSparseAutoencoder(settings(**RESAMPLING, clip=1.0))
    assert torch.equal(weights_of(alone)["components.0.encoder"], begun)
    lightning(tmp_path).fit(alone, batches_of(rows[:, 1]))
    assert_same(alone.components[0].state_dict(), both.components[1].state_dict())


def test_the_seeds_names_are_logged_at_the_steps_that_lightning_logs(tmp_path: Path) -> None:
    kept = Kept()
    module = LitSparseAutoencoder(two())
    lightning(tmp_path, logger=kept).fit(module, batches_of(draw(64 * 5)))
    assert [step for step, _ in kept.lines] == [4, 9]
    names = {f"{prefix}/{name}" for prefix in PREFIXES for name in ("a", "b", "mean")}
    for _, values in kept.lines:
        assert set(values) - {"epoch"} == names


def test_what_is_logged_is_of_the_batch_before_it_is_trained_on(
    store: Store, tmp_path: Path
) -> None:
    kept = Kept()
    statistics = [store.statistics(store.hook_point(HOOKS[0]))]
    module = LitSparseAutoencoder(settings(statistics=statistics, l1_coefficient=0.25))
    (unit,) = [trainer.normalisation for trainer in module.trainers]
    rows = store.rows(store.hook_point(HOOKS[0]), store.train, [range(128)]).float()
    first = rows[:64]
    learned, decoded = (part.detach() for part in module(first))
    expected = training_metrics(["a"], LATENTS, 0.25)(
        source_activations=first * unit.scale,
        learned_activations=learned * unit.latents,
        decoded_activations=decoded * unit.scale,
    )
    trainer = lightning(tmp_path, logger=kept, log_every_n_steps=1, max_epochs=1)
    trainer.fit(module, batches_of(rows))
    step, values = kept.lines[0]
    assert step == 0
    for name, value in expected.items():
        assert values[name] == pytest.approx(float(value), rel=1e-5), name
    assert values["loss/total/a"] == pytest.approx(
        0.25 * values["loss/l1_learned_activations/a"] + values["loss/l2_reconstruction/a"]
    )
    assert kept.lines[1][1]["loss/total/a"] != values["loss/total/a"]


def test_callbacks_see_the_learning_rate_and_the_number_of_steps(tmp_path: Path) -> None:
    kept = Kept()
    module = LitSparseAutoencoder(settings(lr=0.5, warm_up=0.0, decay=0.5))
    trainer = lightning(
        tmp_path,
        logger=kept,
        log_every_n_steps=1,
        callbacks=[LearningRateMonitor(logging_interval="step")],
    )
    trainer.fit(module, batches_of(draw(64 * 4, None)))
    assert trainer.global_step == 8
    rates = [value for _, line in kept.lines for n, value in line.items() if n.startswith("lr-")]
    assert rates == pytest.approx([0.5] * 5 + [0.375, 0.25, 0.125])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LitSparseAutoencoder]:
    """The checkpoint of the first of two epochs, 4 steps each, and what the run has left."""
    folder = tmp_path_factory.mktemp("lightning")
    saving = ModelCheckpoint(folder, filename="{epoch}-{step}", every_n_epochs=1, save_top_k=-1)
    module = LitSparseAutoencoder(two(**RESAMPLING, ema=0.9))
    trainer = lightning(folder, callbacks=[saving], enable_checkpointing=True)
    trainer.fit(module, batches_of(draw(250)))
    names = sorted(file.name for file in folder.glob("*.ckpt"))
    assert names == ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt"]
    return folder / names[0], module


def test_a_run_goes_on_from_lightnings_checkpoint_to_the_bit(
    finished: tuple[Path, LitSparseAutoencoder], tmp_path: Path, replaced: list[int]
) -> None:
    file, straight = finished
    again = LitSparseAutoencoder(straight.config)
    trainer = lightning(tmp_path)
    trainer.fit(again, batches_of(draw(250)), ckpt_path=file)
    assert trainer.global_step == 8
    assert len(replaced) == 2  # of each component once, since the checkpoint
    assert all(0 < n < LATENTS for n in replaced)
    assert_same(weights_of(again), weights_of(straight))
    for ours, theirs in zip(again.trainers, straight.trainers, strict=True):
        first, second = ours.state_dict(), theirs.state_dict()
        assert list(first) == list(second)
        for name, value in first.items():
            same = torch.equal(value, second[name]) if isinstance(value, Tensor) else None
            assert value == second[name] if same is None else same, name
    assert torch.equal(again.sae("b").parameters.encoder, straight.sae("b").parameters.encoder)


def test_a_checkpoint_is_tensors_and_plain_values(
    finished: tuple[Path, LitSparseAutoencoder],
) -> None:
    file, straight = finished
    checkpoint = torch.load(file, weights_only=True)
    state = checkpoint["saeflow"]["trainers"][1]
    assert all(isinstance(value, Tensor | int | float) for value in state.values())
    assert not any(name.startswith("parameters.") for name in state)
    tied = [name for name in checkpoint["state_dict"] if "b_dec" in name]
    assert tied == ["components.0.b_dec", "components.1.b_dec"]
    norms = checkpoint["state_dict"]["components.0.W_dec"].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(LATENTS))
    opened = LitSparseAutoencoder.load_from_checkpoint(
        file, config=straight.config, weights_only=True
    )
    assert_same(weights_of(opened), checkpoint["state_dict"])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lr": 0.1}, "lr"),
        ({"l1_coefficient": 0.5}, "l1_coefficient"),
        ({"statistics": True}, "statistics"),
    ],
    ids=["lr", "l1_coefficient", "statistics"],
)
def test_a_checkpoint_of_other_settings_is_refused(
    finished: tuple[Path, LitSparseAutoencoder],
    changed: dict[str, Any],
    named: str,
    store: Store,
    tmp_path: Path,
) -> None:
    file, straight = finished
    if "statistics" in changed:
        changed = {"statistics": [store.statistics(store.hook_point(name)) for name in HOOKS]}
    module = LitSparseAutoencoder(replace(straight.config, **changed))
    with pytest.raises(BadInputError, match=rf"run with other settings \({named}\)"):
        lightning(tmp_path).fit(module, batches_of(draw(250)), ckpt_path=file)


def test_a_longer_run_does_not_go_on_from_a_shorter_one_but_may_begin_with_its_weights(
    finished: tuple[Path, LitSparseAutoencoder], tmp_path: Path
) -> None:
    file, straight = finished
    longer = LitSparseAutoencoder(straight.config)
    with pytest.raises(BadInputError, match=r"\(n_steps\): go on with those that it had, or begin"):
        lightning(tmp_path, max_epochs=3).fit(longer, batches_of(draw(250)), ckpt_path=file)
    begun = LitSparseAutoencoder.load_from_checkpoint(file, config=straight.config)
    before = weights_of(begun)
    trainer = lightning(tmp_path, max_epochs=1)
    trainer.fit(begun, batches_of(draw(128)))
    assert trainer.global_step == 2
    assert begun.trainers[0].schedule.n_steps == 2
    moved = (weights_of(begun)["components.0.encoder"] - before["components.0.encoder"]).abs()
    assert 0 < moved.max() < 0.1


def test_another_modules_checkpoint_is_refused(tmp_path: Path) -> None:
    module = LitSparseAutoencoder(two())
    with pytest.raises(BadInputError, match="checkpoint is of no LitSparseAutoencoder"):
        module.on_load_checkpoint({"state_dict": {}})


def test_forward_gives_what_the_trained_sae_gives_on_raw_rows(store: Store, tmp_path: Path) -> None:
    statistics = [store.statistics(store.hook_point(HOOKS[0]))]
    module = LitSparseAutoencoder(settings(statistics=statistics, component_names=[HOOKS[0]]))
    rows = store.rows(store.hook_point(HOOKS[0]), store.train, [range(256)]).float()
    lightning(tmp_path).fit(module, batches_of(rows))
    sae = module.sae(HOOKS[0])
    learned, decoded = (part.detach() for part in module(rows))
    assert learned.shape == (256, LATENTS)
    torch.testing.assert_close(learned, sae.encode(rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoded, sae.decode(learned), rtol=1e-4, atol=1e-5)
    assert module(rows[:, None]).learned_activations.shape == (256, 1, LATENTS)
    save_sae(sae, tmp_path / "sae", rows[:8])
    assert load_sae(tmp_path / "sae").hook_point == HOOKS[0]


def test_the_tied_bias_is_a_copy_of_the_rows_mean(store: Store, tmp_path: Path) -> None:
    """The seed trains the median that it was given."""
    for start, key in (("mean", "mean"), ("geometric-median", "geometric_median")):
        statistics = store.statistics(store.hook_point(HOOKS[0]))
        before = {name: statistics[name].copy() for name in ("mean", "std", "geometric_median")}
        module = LitSparseAutoencoder(settings(statistics=[statistics], b_dec=start))
        (trainer,) = module.trainers
        b_dec = trainer.parameters.b_dec.detach() / trainer.normalisation.scale
        torch.testing.assert_close(b_dec, torch.as_tensor(statistics[key]).float())
        lightning(tmp_path).fit(module, batches_of(draw(128, None)))
        assert all((statistics[name] == value).all() for name, value in before.items())


def test_a_decoder_row_of_zeros_stays_finite(tmp_path: Path) -> None:
    module = LitSparseAutoencoder(two())
    with torch.no_grad():
        module.trainers[1].parameters.W_dec[3] = 0.0
    lightning(tmp_path).fit(module, batches_of(draw(128)))
    assert all(value.isfinite().all() for value in weights_of(module).values())


def test_a_loss_that_is_not_finite_is_refused_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    rows = draw(64 * 20, None)
    rows[64 * 2] = float("nan")
    module = LitSparseAutoencoder(settings())
    with pytest.raises(SaeflowError, match="the loss of a is not finite at step 3;"):
        lightning(tmp_path).fit(module, batches_of(rows))
    assert all(value.isfinite().all() for value in weights_of(module).values())
    with pytest.raises(SaeflowError, match="not finite"):
        module.on_save_checkpoint({})


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"max_epochs": -1}, "no last step, by which the learning rate is scheduled: give it"),
        ({"devices": 2, "strategy": "ddp"}, "has 2 processes, and components are trained by one"),
        ({"precision": "bf16-mixed"}, "has precision 'bf16-mixed': leave it out"),
    ],
    ids=["endless", "two devices", "precision"],
)
def test_what_is_not_lightnings_part_is_refused(
    tmp_path: Path, changed: dict[str, Any], line: str
) -> None:
    module = LitSparseAutoencoder(two())
    trainer = lightning(tmp_path, **changed)
    if "devices" in changed:  # without starting the other
        module._trainer = trainer
        with pytest.raises(BadInputError, match=line):
            module.setup("fit")
        return
    with pytest.raises(BadInputError, match=line):
        trainer.fit(module, batches_of(draw(128)))


def test_rows_may_come_as_a_tensor_dataset_gives_them_and_in_another_precision(
    tmp_path: Path,
) -> None:
    rows, left = draw(128).bfloat16(), []
    for batches in (batches_of(rows.float()), DataLoader(TensorDataset(rows), batch_size=64)):
        module = LitSparseAutoencoder(two())
        lightning(tmp_path).fit(module, batches)
        left.append(weights_of(module))
    assert_same(*left)


def test_a_batch_of_more_than_rows_is_refused(tmp_path: Path) -> None:
    pairs = DataLoader(TensorDataset(draw(128), torch.zeros(128)), batch_size=64)
    with pytest.raises(BadInputError, match="a batch is a list of 2: give rows alone"):
        lightning(tmp_path).fit(LitSparseAutoencoder(two()), pairs)


def test_a_batch_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"do not hold 2 component\(s\)"):
        lightning(tmp_path).fit(LitSparseAutoencoder(two()), batches_of(draw(128, 3)))


def test_without_the_extra_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "saeflow.train.seeds.lit_module")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    assert "LitSparseAutoencoder" not in saeflow.__all__  # so that a star import goes on
    with pytest.raises(BadInputError) as refused:
        saeflow.LitSparseAutoencoder  # noqa: B018  # the access is what is tested
    expected = "LitSparseAutoencoder needs the extra: pip install 'saeflow[lightning]'"
    assert str(refused.value) == expected


def test_the_defaults_are_the_seeds_and_those_of_saeflow_train() -> None:
    config = LitSparseAutoencoderConfig(
        n_input_features=4, n_learned_features=8, component_names=["a"]
    )
    assert config.l1_coefficient == 0.001
    assert config.resample_interval == 200_000_000
    assert config.max_n_resamples == 4
    assert config.resample_dead_neurons_dataset_size == 100_000_000
    assert config.resample_loss_dataset_size == 819_200
    assert config.resample_threshold_is_dead_portion_fires == 0.0
    own = TrainConfig(
        store=Path(),
        out=Path(),
        arch="relu",
        decoder_norm="unit",
        revive=0.0,
        d_sae=8,
        l1=0.004,
        resample=True,
        batch_size=1,
    )
    assert config.train_config == own


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"component_names": ["a", "b", "c"]}, "n_components is None: give each component a name"),
        ({"n_components": 2, "component_names": ["a", "a"]}, "give each component a name of its"),
        ({"component_names": ["mean"]}, "a component is called mean, as their mean is: rename it"),
        ({"l1_coefficient": -1.0}, "l1_coefficient is -1.0: give at least 0"),
        ({"n_learned_features": 0}, "n_learned_features is 0: give at least 1"),
        (
            {"resample_interval": 100},
            "is 100,000,000: give at least 1 and at most 100, the resample_interval",
        ),
        ({"resample_threshold_is_dead_portion_fires": 2.0}, "give at least 0 and at most 1"),
        ({"warm_up": 2.0}, "--warm-up is 2.0: it is a share"),
        ({"statistics": []}, "statistics are of 0 components"),
        ({"statistics": [{"mean": [0.0] * 31}]}, "the statistics of a have no mean of 32 numbers"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInputError, match=line.replace("(", r"\(")):
        settings(**changed)
