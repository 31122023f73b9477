"""How an untrained SAE begins: drawn at random around the rows' centre, or from an SAE folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from saeflow.config import require
from saeflow.errors import BadInputError
from saeflow.train.architecture import Architecture
from saeflow.train.folder import load_sae
from saeflow.train.normalisation import Kind, Normalisation
from saeflow.train.parameters import Parameters
from saeflow.train.sae import SAE

Start = Literal["mean", "geometric-median", "zero"]
"""Where b_dec begins."""

INITIAL_READ = 0.3
"""Length of a transcoder's encoder rows in the beginning."""

_CPU = torch.device("cpu")
_WORDS: Mapping[tuple[Kind, bool], str] = {
    ("sae", False): "an SAE",
    ("transcoder", False): "a transcoder",
    ("transcoder", True): "a skip transcoder",
    ("crosscoder", False): "a crosscoder",
}


def initial_parameters(
    normalisation: Normalisation,
    architecture: Architecture,
    d_sae: int,
    seed: int,
    *,
    b_dec: Start = "mean",
    skip: bool = False,
    init_from: Path | None = None,
    encoder_scale: float = 1.0,
    decoder_scale: float = 1.0,
) -> Parameters:
    """An untrained SAE, transcoder or crosscoder in normalised units, on the CPU.

    Args:
        normalisation: the units; they say which of the three.
        architecture: which tensors it has beside the four.
        d_sae: latents.
        seed: of the draw, which is on the CPU, so that it means the same on every device.
        b_dec: where b_dec begins; of a transcoder, among the targets.
        skip: a transcoder has a linear path, which begins at zero.
        init_from: an SAE folder whose tensors are the initial ones; seed and `b_dec`
            then have no say.
        encoder_scale: the encoder's rows as a multiple of the decoder's; not of a
            transcoder, where neither is the other's transpose.
        decoder_scale: length of decoder rows.

    Raises:
        BadInputError: the folder is none, or its tensors don't fit.
    """
    units = normalisation.to(_CPU)
    if init_from is not None:
        return _from_folder(units, architecture, d_sae, init_from, skip=skip)
    start = _start(units, b_dec)
    if units.source is not None:
        return _transcoder(
            units.source, start, architecture, d_sae, seed, skip=skip, decoder_scale=decoder_scale
        )
    return Parameters.initial(
        start,
        d_sae,
        seed,
        architecture.initial(d_sae),
        architecture.rules,
        blocks=units.blocks,
        encoder_scale=encoder_scale,
        decoder_scale=decoder_scale,
    )


def _start(units: Normalisation, b_dec: Start) -> Float[Tensor, " d_out"]:
    if b_dec == "zero":
        return torch.zeros_like(units.mean)
    if b_dec == "mean":
        return units.centre
    assert units.median is not None  # every store has it
    return units.median * units.scale


def _transcoder(
    source: Normalisation,
    b_dec: Float[Tensor, " d_out"],
    architecture: Architecture,
    d_sae: int,
    seed: int,
    *,
    skip: bool,
    decoder_scale: float,
) -> Parameters:
    """Random decoder rows of one length, and small encoder rows that are drawn on their own.

    What a latent of a transcoder writes is not what it reads, even where both are in
    the residual stream: there is no transpose to begin with. SAELens draws both on
    their own, too; sparsify begins with a decoder of zeros, which can't have unit
    rows. With a small encoder, either way the outputs begin near `b_dec`.
    """
    generator = torch.Generator().manual_seed(seed)
    d_in, d_out = len(source.mean), len(b_dec)
    W_dec = F.normalize(torch.randn(d_sae, d_out, generator=generator), dim=1)
    read = F.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    return Parameters(
        INITIAL_READ * read,
        torch.zeros(d_sae),
        decoder_scale * W_dec,
        b_dec.clone(),
        architecture.initial(d_sae),
        architecture.rules,
        centre=source.centre,
        W_skip=torch.zeros(d_out, d_in) if skip else None,
    )


def _from_folder(
    units: Normalisation, architecture: Architecture, d_sae: int, folder: Path, *, skip: bool
) -> Parameters:
    """The folder's tensors, in normalised units and with unit decoder rows."""
    sae = load_sae(folder)
    _check_widths(sae, units, d_sae, folder, skip=skip)
    unit = units.unfolded(sae.parameters).with_unit_decoder()
    if units.source is None and unit.centre is not None:
        unit = unit.centred_by_b_dec()  # as every SAE in training is
    tensors = _tensors(unit, sae, architecture, folder)
    begins = torch.zeros(unit.d_out, unit.d_in) if skip and unit.W_skip is None else None
    return unit.with_more(tensors, architecture.rules, W_skip=begins).requires_grad_(True)


def _check_widths(sae: SAE, units: Normalisation, d_sae: int, folder: Path, *, skip: bool) -> None:
    if sae.row_scaling is not None:
        raise BadInputError(
            f"--init-from {folder} normalises every row by itself ({sae.row_scaling.name}), which "
            "training does not: give a folder whose normalize_activations is another"
        )
    require(
        sae.kind == units.kind and skip >= sae.form.skip,
        f"--init-from {folder} is {_WORDS[sae.kind, sae.form.skip]}, but "
        f"{_WORDS[units.kind, skip]} is to be trained: give a folder of that kind",
    )
    source = units if units.source is None else units.source
    theirs = {"d_in": sae.d_in, "d_out": sae.d_out, "d_sae": sae.d_sae, "d_ins": sae.d_ins}
    d_ins = units.blocks or (len(source.mean),)
    ours = {"d_in": len(source.mean), "d_out": len(units.mean), "d_sae": d_sae, "d_ins": d_ins}
    for name, width in ours.items():
        require(
            theirs[name] == width,
            f"--init-from {folder} has {name} {theirs[name]}, but {width} is to be trained: "
            "give a folder of that shape, or change the options",
        )


def _tensors(
    unit: Parameters, sae: SAE, architecture: Architecture, folder: Path
) -> dict[str, Tensor]:
    """What the architecture has beside the four: the folder's; state that it lacks, as ever."""
    theirs, rules = set(sae.architecture.rules), architecture.rules
    missing = {name for name, rule in rules.items() if rule.trained} - theirs
    if missing or theirs - set(rules):
        told = f"lacks {_list(missing)}" if missing else f"also has {_list(theirs - set(rules))}"
        raise BadInputError(
            f"--init-from {folder} is of architecture {sae.form.activation}, which for --arch "
            f"{architecture.name} {told}: give a folder of an architecture that fits"
        )
    tensors = dict(architecture.initial(unit.d_sae))
    for name in theirs:
        # A BatchTopK SAE has one threshold for all; as a JumpReLU SAE, each latent its own.
        tensors[name] = unit.more(name).mean() if rules[name].axes == () else unit.more(name)
    return tensors


def _list(names: set[str]) -> str:
    return " and ".join(sorted(names))
