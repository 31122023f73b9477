"""The settings of the seed's training module; they need nothing of Lightning."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from saeflow.config import require
from saeflow.train.config import TrainConfig

_STATISTICS = ("mean", "std", "geometric_median")


@dataclass(frozen=True, kw_only=True)
class LitSparseAutoencoderConfig:
    """The seed's settings, and below them those that only saeflow has.

    The latter have the names and the defaults of `saeflow train`.

    Attributes:
        n_input_features: width of a row.
        n_learned_features: latents of a component.
        n_components: SAEs that are trained side by side, one for each place of the source
            model; None for one, whose batches have no component axis.
        component_names: what they are called, in the order of the axis.
        l1_coefficient: weight of the L1 norm of a row's latents, where its squared error
            is a mean over the width: `--l1` divided by `n_input_features`.
        resample_interval: rows between two resamplings, `--resample-every`.
        max_n_resamples: resamplings at most, `--resample-most`; 0 for none at all.
        resample_dead_neurons_dataset_size: rows before a resampling in which a dead
            latent did not fire, `--resample-window`.
        resample_loss_dataset_size: rows before a resampling that new weights are made
            of, `--resample-rows`.
        resample_threshold_is_dead_portion_fires: share of the window's rows in which a
            dead latent fired at most, `--resample-threshold`.
        statistics: of each component's rows, as `Store.statistics` has them: `mean`,
            `std` and `geometric_median`, (n_input_features,). Rows are trained on in
            units in which their mean squared distance from the mean is
            `n_input_features`, and losses are of these. None if rows come in such
            units, with a mean of zero. A row three times as far from the mean as is
            ordinary counts less.
        b_dec: where the tied bias begins.
        lr: peak learning rate; chosen by `n_learned_features` if None.
        schedule: of the learning rate after the warm-up; its length is Lightning's
            `max_steps`, or `max_epochs` times the batches of an epoch.
        warm_up: share of the steps over which the rate rises.
        decay: share of the steps, at the end, over which it falls to zero; None for 0.2
            if it is constant before, else 0.
        sparsity_warm_up: share of the steps over which the L1 term rises; None for
            `warm_up`.
        clip: largest norm of a component's gradient; None for no limit.
        ema: decay of a running mean of the weights, which is what training leaves.
        seed: of the initial weights, and of what is drawn in resampling. Components begin
            alike, each as it would alone.
        precision: of matrix products; Lightning's own is left at "32-true".

    Raises:
        BadInputError: a setting makes no sense, or two contradict each other.

    >>> config = LitSparseAutoencoderConfig(
    ...     n_input_features=512, n_learned_features=4096, component_names=["mlp_out"]
    ... )
    >>> config.resample_interval, config.train_config.lr
    (200000000, None)
    >>> round(config.train_config.l1, 3)
    0.512
    """

    n_input_features: int
    n_learned_features: int
    n_components: int | None = None
    component_names: Sequence[str]
    l1_coefficient: float = 0.001
    resample_interval: int = 200_000_000
    max_n_resamples: int = 4
    resample_dead_neurons_dataset_size: int = 100_000_000
    resample_loss_dataset_size: int = 819_200
    resample_threshold_is_dead_portion_fires: float = 0.0
    statistics: Sequence[Mapping[str, Any]] | None = field(default=None, compare=False, repr=False)
    b_dec: Literal["mean", "geometric-median", "zero"] = "mean"
    lr: float | None = None
    schedule: Literal["constant", "linear", "cosine", "restarts"] = "constant"
    warm_up: float = 0.05
    decay: float | None = None
    sparsity_warm_up: float | None = None
    clip: float | None = None
    ema: float | None = None
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_components()
        assert self.train_config.resample == (self.max_n_resamples > 0)  # it checks the others

    @property
    def train_config(self) -> TrainConfig:
        """What `saeflow train` calls these settings; of each component.

        Rows come from a DataLoader, and files go where Lightning wants them.
        """
        resampling: dict[str, Any] = {
            "resample": True,
            "resample_every": self.resample_interval,
            "resample_window": self.resample_dead_neurons_dataset_size,
            "resample_rows": self.resample_loss_dataset_size,
            "resample_threshold": self.resample_threshold_is_dead_portion_fires,
            "resample_most": self.max_n_resamples,
        }
        return TrainConfig(
            store=Path(),
            out=Path(),
            arch="relu",
            decoder_norm="unit",  # as the seed's, where nothing but resampling revives
            d_sae=self.n_learned_features,
            revive=0.0,
            l1=self.l1_coefficient * self.n_input_features,
            b_dec=self.b_dec,
            lr=self.lr,
            schedule=self.schedule,
            warm_up=self.warm_up,
            decay=self.decay,
            sparsity_warm_up=self.sparsity_warm_up,
            clip=self.clip,
            ema=self.ema,
            seed=self.seed,
            precision=self.precision,
            batch_size=1,  # not known here: the resampler refuses one that is too large for it
            **(resampling if self.max_n_resamples else {}),
        )

    def _check_ranges(self) -> None:
        interval = self.resample_interval
        ranges: dict[str, tuple[float, float]] = {
            "n_input_features": (1, math.inf),
            "n_learned_features": (1, math.inf),
            "l1_coefficient": (0, math.inf),
            "resample_interval": (1, math.inf),
            "max_n_resamples": (0, math.inf),
            "resample_dead_neurons_dataset_size": (1, interval),
            "resample_loss_dataset_size": (1, interval),
            "resample_threshold_is_dead_portion_fires": (0, 1),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            limit = f" and at most {most:,}" if most < math.inf else ""
            why = ", the resample_interval" if most == interval else ""
            require(
                least <= value <= most and value < math.inf,
                f"{name} is {value:,}: give at least {least}{limit}{why}",
            )

    def _check_components(self) -> None:
        expected, names = self.n_components or 1, list(self.component_names)
        require(
            len(names) == expected == len(set(names)),
            f"component_names are {names}, and n_components is {self.n_components}: "
            "give each component a name of its own",
        )
        require("mean" not in names, "a component is called mean, as their mean is: rename it")
        if self.statistics is None:
            return
        require(
            len(self.statistics) == expected,
            f"statistics are of {len(self.statistics)} components, and n_components is "
            f"{self.n_components}: give those of each",
        )
        for name, figures in zip(names, self.statistics, strict=True):
            for key in _STATISTICS:
                require(
                    key in figures and len(figures[key]) == self.n_input_features,
                    f"the statistics of {name} have no {key} of {self.n_input_features} "
                    "numbers: give what Store.statistics gives",
                )
