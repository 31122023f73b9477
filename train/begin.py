"""An untrained SAE, ready for its first step."""

import torch

from saeflow.config import flag_of, require
from saeflow.harvest.store import Store
from saeflow.train.config import TrainConfig
from saeflow.train.initial import initial_parameters
from saeflow.train.kinds import check_kind
from saeflow.train.members import Member
from saeflow.train.normalisation import Normalisation
from saeflow.train.optimizer import UpdateSettings
from saeflow.train.overshoot import encoder_scale
from saeflow.train.penalised import bias_rate, decoder_norm, decoder_scale
from saeflow.train.plan import SaePlan
from saeflow.train.resample import Resampling
from saeflow.train.seeds.activation_resampler import ActivationResampler
from saeflow.train.trainer import Trainer

_RESAMPLING_SEED_STRIDE = 7_368_787
"""Keeps the resampler's draws apart from those of the initial weights."""


def begin_trainer(
    config: TrainConfig, plan: SaePlan, store: Store, device: torch.device
) -> Trainer:
    """An SAE whose units and `b_dec` come from the store's statistics.

    Args:
        config: of the run.
        plan: of the SAE.
        store: whose rows it will be trained on.
        device: where.

    Raises:
        BadInputError: what it is to begin with does not fit it.
    """
    return trainer_in_units(config, plan, _normalisation(plan.member, store), device)


def trainer_in_units(
    config: TrainConfig, plan: SaePlan, normalisation: Normalisation, device: torch.device
) -> Trainer:
    """The same, of rows whose units are known.

    Raises:
        BadInputError: what it is to begin with does not fit it.
    """
    own, architecture = plan.member.config, plan.architecture
    check_kind(own.arch, normalisation.kind)
    parameters = initial_parameters(
        normalisation,
        architecture,
        plan.member.d_sae,
        own.seed,
        b_dec=own.b_dec,
        skip=own.skip,
        init_from=own.init_from,
        encoder_scale=encoder_scale(own, plan.member.d_in, plan.member.d_sae),
        decoder_scale=decoder_scale(own),
    )
    settings = UpdateSettings(
        optimizer=own.optimizer,
        clip=own.clip,
        ema=own.ema,
        decoder=decoder_norm(own),
        bias_rate=bias_rate(own, plan.member.d_in),
        resettable=own.resample,
    )
    return Trainer(
        architecture,
        parameters.to(device),
        normalisation.to(device),
        plan.schedule,
        plan.dead_after,
        settings,
        _resampling(config, plan) if own.resample else None,
        config.accumulate,
        config.precision,
    )


def _normalisation(member: Member, store: Store) -> Normalisation:
    cpu = torch.device("cpu")
    statistics = [store.statistics(hook_point) for hook_point in member.inputs]
    if member.target is not None:
        return Normalisation.of_transcoder(statistics[0], store.statistics(member.target), cpu)
    if len(statistics) > 1:
        return Normalisation.of_crosscoder(statistics, cpu)
    return Normalisation.of_sae(statistics[0], cpu)


def _resampling(config: TrainConfig, plan: SaePlan) -> Resampling:
    own, d_sae = plan.member.config, plan.member.d_sae
    require(
        config.batch_size <= own.resample_every,
        f"--resample-every {own.resample_every} is less than a batch of {config.batch_size} rows: "
        "raise it",
    )
    for name in ("resample_window", "resample_rows"):
        value = getattr(own, name)
        require(
            value <= own.resample_every,
            f"{flag_of(name)} {value} is more than the rows between two resamplings, "
            f"--resample-every {own.resample_every}: lower it, or raise that",
        )
    require(
        own.resample_rows >= d_sae,
        f"--resample-rows {own.resample_rows} is less than the {d_sae} latents, all of which may "
        "need a row to be made of: raise it",
    )
    generator = torch.Generator().manual_seed(own.seed * _RESAMPLING_SEED_STRIDE + 1)
    resampler = ActivationResampler(
        n_learned_features=d_sae,
        n_components=None,
        resample_interval=own.resample_every,
        max_n_resamples=own.resample_most,
        n_activations_activity_collate=own.resample_window,
        resample_dataset_size=own.resample_rows,
        threshold_is_dead_portion_fires=own.resample_threshold,
        generator=generator,
    )
    return Resampling(resampler, plan.architecture.initial(d_sae))
