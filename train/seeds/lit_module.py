"""The seed's training module: our trainers, one for each component, under Lightning's Trainer."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from saeflow.config import require, to_plain
from saeflow.errors import BadInputError, SaeflowError
from saeflow.harvest.layout import HookPoint
from saeflow.train.begin import trainer_in_units
from saeflow.train.folder import metadata
from saeflow.train.kinds import cfg_of, hook_metadata
from saeflow.train.members import Member
from saeflow.train.normalisation import Normalisation
from saeflow.train.plan import plan_sae
from saeflow.train.sae import SAE
from saeflow.train.seeds.axes import with_component_axis
from saeflow.train.seeds.collection import training_metrics
from saeflow.train.seeds.lit_config import LitSparseAutoencoderConfig
from saeflow.train.trainer import LOOK_EVERY, Trainer

try:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.core.optimizer import LightningOptimizer
except ImportError:
    raise BadInputError(
        "LitSparseAutoencoder needs the extra: pip install 'saeflow[lightning]'"
    ) from None

_CPU = torch.device("cpu")
_STATE = "saeflow"
"""Our entry in Lightning's checkpoints."""


class ForwardPassResult(NamedTuple):
    """What `LitSparseAutoencoder` makes of rows, in their own units; the seed's names.

    Attributes:
        learned_activations: latents.
        decoded_activations: reconstructions.
    """

    learned_activations: Float[Tensor, " batch *component_latents"]
    decoded_activations: Float[Tensor, " batch *component_width"]


class LitSparseAutoencoder(LightningModule):
    """ReLU SAEs with an L1 penalty, one for each component, to train with Lightning.

    Each is what `saeflow train --arch relu --resample` trains, by the same code, and is
    left with the same weights by the same rows; Lightning brings batches, decides when
    it is over, logs and saves. Optimization is "manual": gradients, clipping, schedule
    and precision are ours. One device; Lightning's checkpoints hold all that training
    goes on from, as tensors and plain values.

    Batches are (batch, [components], n_input_features), in the source model's units;
    the axis is optional where there is one component. What is logged is of normalised
    rows, before they are trained on, at every step that Lightning logs (its
    `log_every_n_steps`), under the seed's names.

    Each `fit` without `ckpt_path` is a run of its own: the weights go on, the optimizer
    and its schedule begin.

    Args:
        config: the settings.

    Attributes:
        config: as given.
        components: each component's weights, in normalised units.
        trainers: what trains them.
        metrics: what is logged.

    >>> config = LitSparseAutoencoderConfig(
    ...     n_input_features=4, n_learned_features=6, component_names=["mlp_out"]
    ... )
    >>> learned, decoded = LitSparseAutoencoder(config)(torch.ones(2, 4))
    >>> learned.shape, decoded.shape
    (torch.Size([2, 6]), torch.Size([2, 4]))
    """

    def __init__(self, config: LitSparseAutoencoderConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.trainers = _begin(config, 0, _CPU)
        self.components = nn.ModuleList(trainer.parameters for trainer in self.trainers)
        self.metrics = training_metrics(
            config.component_names, config.n_learned_features, config.l1_coefficient
        )

    def forward(self, inputs: Float[Tensor, " batch *component_width"]) -> ForwardPassResult:
        """Latents and reconstructions, with a component axis if the rows have one."""
        rows = self._with_axis(inputs)
        results = []
        for trainer, own in zip(self.trainers, rows.unbind(1), strict=True):
            _, latents, reconstruction = _through(trainer, own)
            units = trainer.normalisation
            results.append((latents / units.latents, reconstruction / units.scale))
        learned, decoded = (torch.stack(parts, 1) for parts in zip(*results, strict=True))
        if inputs.ndim == 2:
            learned, decoded = learned.squeeze(1), decoded.squeeze(1)
        return ForwardPassResult(learned, decoded)

    def sae(self, component_name: str) -> SAE:
        """What training has left of a component; `saeflow.train.folder.save_sae` writes it.

        Raises:
            ValueError: there is no such component.
        """
        trainer = self.trainers[list(self.config.component_names).index(component_name)]
        hook_points = (HookPoint(component_name, (self.config.n_input_features,)),)
        with trainer.finished() as (inference, parameters):
            cfg = cfg_of(inference, hook_points, None, self.config.n_learned_features)
            cfg["metadata"] = metadata(**hook_metadata(hook_points, None))
            return SAE(inference, parameters.cpu(), cfg, trainer.normalisation.mean.cpu())

    def setup(self, stage: str) -> None:
        """Begin a run: on Lightning's device, as many steps as it will ask for.

        Raises:
            BadInputError: Lightning's Trainer is told to do what is not its part here.
        """
        if stage != "fit":
            return
        lightning = self.trainer
        require(
            lightning.world_size == 1,
            f"Lightning's Trainer has {lightning.world_size} processes, and components are "
            "trained by one: give it devices=1",
        )
        require(
            lightning.precision == "32-true",
            f"Lightning's Trainer has precision {lightning.precision!r}: leave it out, and give "
            "LitSparseAutoencoderConfig precision='bfloat16' if you like",
        )
        n_steps = lightning.estimated_stepping_batches
        require(
            0 <= n_steps < float("inf"),
            "Lightning's Trainer has no last step, by which the learning rate is scheduled: "
            "give it max_steps",
        )
        device = lightning.strategy.root_device
        self.trainers = [
            replace(new, parameters=begun.parameters.to(device))
            for new, begun in zip(
                _begin(self.config, int(n_steps), device), self.trainers, strict=True
            )
        ]

    def configure_optimizers(self) -> Optimizer:
        """What counts the steps for Lightning, and says their rate; our trainers take them."""
        return _Counter(self.components.parameters(), {"lr": self._rate(0)})

    def training_step(
        self,
        batch: Tensor | Sequence[Tensor],
        batch_idx: int = 0,  # noqa: ARG002  # as Lightning calls it
    ) -> Float[Tensor, ""]:
        """One step of every component; the sum of their losses.

        Raises:
            BadInputError: the batch is not rows of these components.
            SaeflowError: a loss was not finite, in this step or a few before.
        """
        rows, step = self._with_axis(_only(batch)).float(), self.global_step
        if (step + 1) % self._log_every == 0:
            self.log_dict(self._observed(rows))
        counter = self.optimizers()
        assert isinstance(counter, LightningOptimizer)
        loss: Tensor = counter.step(lambda: self._step(rows, step))
        counter.param_groups[0]["lr"] = self._rate(step + 1)
        if (step + 1) % LOOK_EVERY == 0:
            self._refuse_divergence()
        return loss

    def on_train_end(self) -> None:
        """Nothing is left that diverged."""
        self._refuse_divergence()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what training goes on from, beside the weights."""
        self._refuse_divergence()
        states = [trainer.state_dict() for trainer in self.trainers]
        checkpoint[_STATE] = {
            "settings": self._settings,
            "trainers": [
                {name: value for name, value in state.items() if not name.startswith("parameters.")}
                for state in states
            ],
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from it.

        Raises:
            BadInputError: it is of something else, or of other settings.
        """
        require(
            _STATE in checkpoint, "the checkpoint is of no LitSparseAutoencoder: give one that is"
        )
        self._refuse_other_settings(checkpoint[_STATE]["settings"])
        weights = checkpoint["state_dict"]
        for number, trainer in enumerate(self.trainers):
            own = {
                name.replace(f"components.{number}.", "parameters.", 1): value
                for name, value in weights.items()
                if name.startswith(f"components.{number}.")
            }
            trainer.load_state_dict({**own, **checkpoint[_STATE]["trainers"][number]})

    def _rate(self, step: int) -> float:
        """Learning rate of a step, the same for all components."""
        return self.trainers[0].schedule.rate(step)

    @property
    def _log_every(self) -> int:
        """Lightning's `log_every_n_steps`, which its class does not declare."""
        return int(getattr(self.trainer, "log_every_n_steps"))  # noqa: B009

    def _with_axis(self, rows: Tensor) -> Float[Tensor, "batch components width"]:
        return with_component_axis(rows, self.config.n_components)

    def _step(self, rows: Float[Tensor, "batch components width"], step: int) -> Tensor:
        losses = [
            trainer.step((own,), step).loss.detach()
            for trainer, own in zip(self.trainers, rows.unbind(1), strict=True)
        ]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _observed(self, rows: Float[Tensor, "batch components width"]) -> dict[str, Tensor]:
        """What the seed logs of a batch; of this batch alone, as Lightning takes it: as floats."""
        parts = [
            _through(trainer, own)
            for trainer, own in zip(self.trainers, rows.unbind(1), strict=True)
        ]
        x, learned, decoded = (torch.stack(part, 1) for part in zip(*parts, strict=True))
        values: dict[str, Tensor] = self.metrics(
            source_activations=x, learned_activations=learned, decoded_activations=decoded
        )
        self.metrics.reset()
        return {name: value.float() for name, value in values.items()}

    def _refuse_divergence(self) -> None:
        for name, trainer in zip(self.config.component_names, self.trainers, strict=True):
            step = trainer.first_bad_step()
            if step is not None:
                raise SaeflowError(
                    f"the loss of {name} is not finite at step {step + 1:,}; no weight was changed "
                    "by it; if its rows are finite, it has diverged: try a smaller lr, or clip"
                )

    @property
    def _settings(self) -> dict[str, Any]:
        """What a run may not change when it goes on, as plain values."""
        return {
            **to_plain(replace(self.config, statistics=None)),
            "component_names": list(self.config.component_names),
            "statistics": [_digest(trainer.normalisation) for trainer in self.trainers],
            "n_steps": self.trainers[0].schedule.n_steps,
        }

    def _refuse_other_settings(self, before: Mapping[str, Any]) -> None:
        """The number of steps counts only where there are any to take."""
        now = self._settings
        names = sorted({*before, *now} - ({"n_steps"} if not now["n_steps"] else set()))
        changed = [name for name in names if before.get(name) != now.get(name)]
        require(
            not changed,
            f"the checkpoint is of a run with other settings ({', '.join(changed)}): go on with "
            "those that it had, or begin a run with its weights, by load_from_checkpoint and fit",
        )


class _Counter(Optimizer):
    """An optimizer that does nothing but call what does; Lightning counts its steps."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return None if closure is None else closure()


def _begin(config: LitSparseAutoencoderConfig, n_steps: int, device: torch.device) -> list[Trainer]:
    """What `saeflow train` would begin with, of each component."""
    trainers, options = [], config.train_config
    for number, name in enumerate(config.component_names):
        hook_point = HookPoint(name, (config.n_input_features,))
        plan = plan_sae(Member(name, options, (hook_point,), None), n_steps)
        trainers.append(trainer_in_units(options, plan, _units(config, number), device))
    return trainers


def _units(config: LitSparseAutoencoderConfig, component: int) -> Normalisation:
    if config.statistics is None:
        centre = torch.zeros(config.n_input_features)
        return Normalisation(centre, scale=1.0, median=centre)
    return Normalisation.of_sae(config.statistics[component], _CPU)


def _only(batch: Tensor | Sequence[Tensor]) -> Tensor:
    """The rows of a batch, which a TensorDataset gives in a list."""
    rows = batch[0] if isinstance(batch, list | tuple) and len(batch) == 1 else batch
    if not isinstance(rows, Tensor):
        raise BadInputError(
            f"a batch is a {type(batch).__name__} of {len(batch)}: give rows alone, as one tensor"
        )
    return rows


def _digest(units: Normalisation) -> str:
    """What tells units apart; those of an SAE follow from the mean and the scale."""
    return f"{units.scale!r} {hashlib.sha256(units.mean.cpu().numpy().tobytes()).hexdigest()}"


def _through(
    trainer: Trainer, rows: Float[Tensor, "batch d_in"]
) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, "batch d_sae"], Float[Tensor, "batch d_in"]]:
    """Rows, their latents and their reconstructions, in normalised units."""
    x, _ = trainer.normalisation.pair((rows,))
    inference, p = trainer.architecture.trained(trainer.parameters)
    latents = inference.encode(p, x)
    return x, latents, latents @ p.W_dec + p.b_dec
