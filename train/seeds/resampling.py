"""Which latents are dead, which rows they are to learn, and the weights that make them.

Bricken et al. 2023, "Towards Monosemanticity", appendix "Neuron resampling": a dead
latent becomes a detector of a row that the SAE reconstructs badly.
"""

import math

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor
from torch.nn import functional as F

from saeflow.errors import BadInputError
from saeflow.train.seeds.axes import widened
from saeflow.train.seeds.parameter_updates import ParameterUpdateResults

ENCODER_SCALE = 0.2
"""Norm of a new encoder row, as a multiple of the living ones' mean norm."""


def dead_latents(
    neuron_activity: Num[Tensor, " latents"],
    n_counted: int,
    threshold_is_dead_portion_fires: int | float = 0.0,
) -> Int64[Tensor, " dead"]:
    """Latents that fired in at most a portion of the rows, rounded down to whole rows.

    Args:
        neuron_activity: in how many rows each latent fired.
        n_counted: of how many.
        threshold_is_dead_portion_fires: the portion; 0 for those that never fired.

    >>> import torch
    >>> dead_latents(torch.tensor([3, 0, 1, 9]), n_counted=10, threshold_is_dead_portion_fires=0.1)
    tensor([1, 2])
    """
    most = math.floor(n_counted * threshold_is_dead_portion_fires)
    return (neuron_activity <= most).nonzero().flatten()


def assign_sampling_probabilities(
    loss: Float[Tensor, " rows *component"],
) -> Float[Tensor, " rows *component"]:
    """How likely each row is drawn: in proportion to the square of its loss.

    Where no row has a loss, all are equally likely.

    Raises:
        BadInputError: a loss is not finite.

    >>> import torch
    >>> assign_sampling_probabilities(torch.tensor([1.0, 2.0, 3.0]))
    tensor([0.0714, 0.2857, 0.6429])
    >>> assign_sampling_probabilities(torch.zeros(4))
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    loss = widened(loss)
    bad = int((~loss.isfinite()).sum())
    if bad:
        raise BadInputError(
            f"the loss of {bad} of the rows to resample from is not finite: "
            "nothing was resampled; try a smaller learning rate"
        )
    largest = loss.abs().amax(0, keepdim=True)
    square = (loss / torch.where(largest > 0, largest, 1.0)).square()
    square = torch.where(largest > 0, square, 1.0)
    return square / square.sum(0)


def sample_rows(
    probabilities: Float[Tensor, " rows"],
    n_samples: int,
    generator: torch.Generator | None = None,
) -> Int64[Tensor, " samples"]:
    """Different rows, drawn one after another by their probabilities; on the CPU.

    As torch.multinomial without replacement draws them, but of any number of rows, and
    rows of probability zero come only where all others are taken, equally likely.

    Args:
        probabilities: of the rows; they need not sum to 1.
        n_samples: how many rows, at most as many as there are.
        generator: on the CPU; None for torch's global one.

    >>> import torch
    >>> sample_rows(torch.tensor([0.0, 0.5, 0.5, 0.0]), 2).sort().values
    tensor([1, 2])
    """
    if n_samples == 0:  # and nothing is drawn from the generator
        return torch.zeros(0, dtype=torch.int64)
    chances = probabilities.cpu()
    waits = torch.empty_like(chances).exponential_(generator=generator)
    turns = torch.where(chances > 0, chances / waits, -waits)
    if n_samples == 1:
        return turns.argmax().reshape(1)
    return turns.topk(n_samples).indices


def sample_input(
    probabilities: Float[Tensor, " rows *component"],
    input_activations: Float[Tensor, "rows *component width"],
    n_samples: list[int],
    generator: torch.Generator | None = None,
) -> list[Float[Tensor, "_ width"]]:
    """For each component in turn, rows drawn by their probabilities.

    Args:
        probabilities: of the rows of each component.
        input_activations: the rows.
        n_samples: how many of each component.
        generator: on the CPU; None for torch's global one.

    Raises:
        BadInputError: there are fewer rows.

    >>> import torch
    >>> rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> sample_input(torch.tensor([0.0, 1.0]), rows, [1])
    [tensor([[3., 4.]])]
    """
    n_components = len(n_samples)
    chances = probabilities.reshape(len(probabilities), n_components)
    rows = input_activations.reshape(len(chances), n_components, input_activations.shape[-1])
    for component, wanted in enumerate(n_samples):
        check_enough(wanted, len(rows), component)
    return [
        rows[sample_rows(chances[:, component], wanted, generator).to(rows.device), component]
        for component, wanted in enumerate(n_samples)
    ]


def check_enough(n_dead: int, n_rows: int, component: int) -> None:
    """Refuse to give two latents the same row.

    Raises:
        BadInputError: there are more dead latents than rows.
    """
    if n_dead > n_rows:
        raise BadInputError(
            f"component {component} has {n_dead} dead latents and {n_rows} sampled rows to "
            "resample them from: nothing was changed; give a larger resample_dataset_size"
        )


def renormalize_and_scale(
    sampled_input: Float[Tensor, "dead width"],
    neuron_activity: Num[Tensor, " latents"],
    encoder_weight: Float[Tensor, "latents width"],
) -> Float[Tensor, "dead width"]:
    """Rows with the norm that a new latent's encoder gets: 0.2 times the living ones' mean.

    Args:
        sampled_input: the rows; one of zeros stays so.
        neuron_activity: how often each latent fired; one that fired at all is alive here.
        encoder_weight: a row for each latent.

    Raises:
        BadInputError: no latent is alive.

    >>> import torch
    >>> activity, weight = torch.tensor([3, 0, 5, 0, 1, 3]), torch.ones(6, 2)
    >>> renormalize_and_scale(torch.tensor([[3.0, 4.0]]), activity, weight)
    tensor([[0.1697, 0.2263]])
    """
    alive = neuron_activity > 0
    if not alive.any():
        raise BadInputError(
            "no latent is alive: there is no encoder norm to scale the dead ones' rows to"
        )
    norm = widened(encoder_weight)[alive].norm(dim=-1).mean()
    scaled: Tensor = F.normalize(widened(sampled_input), dim=-1) * (norm * ENCODER_SCALE)
    return scaled


def new_weights(
    dead: Int64[Tensor, " dead"],
    sampled_input: Float[Tensor, "dead width"],
    neuron_activity: Num[Tensor, " latents"],
    encoder_weight: Float[Tensor, "latents width"],
) -> ParameterUpdateResults:
    """The weights of one component's dead latents, each from one row.

    The decoder vector is the row's direction, the encoder row the same direction but
    short, the bias zero: the new latent fires weakly, and disturbs the others little.
    """
    encoder = widened(sampled_input)
    if len(dead):
        encoder = renormalize_and_scale(sampled_input, neuron_activity, encoder_weight)
    return ParameterUpdateResults(
        dead_neuron_indices=dead,
        dead_encoder_weight_updates=encoder,
        dead_encoder_bias_updates=torch.zeros_like(encoder[:, 0]),
        dead_decoder_weight_updates=F.normalize(widened(sampled_input), dim=-1).T,
    )
