"""The seeds' losses as metrics: running means, or, with `keep_batch_dim`, the items themselves.

The three share their states' names, so that in a compute group led by
`SparseAutoencoderLoss` the other two read what it has summed.
"""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.train.lean import Metric
from saeflow.train.seeds.axes import at_the_edge, checked_components, with_component_axis
from saeflow.train.seeds.gather import gather_items
from saeflow.train.seeds.itemwise import absolute_sum, mean_square


class ItemwiseLoss(Metric):
    """What the three losses share: sums over items, or lists of items, per component.

    Args:
        num_components: length of the component axis; 1 and None take activations
            with and without the axis.
        keep_batch_dim: give the loss of every item, (batch, [components]), in the
            order of the updates, not the mean. They are kept until `reset`, without
            their graphs. One item of one component comes as a scalar, as torchmetrics
            has it; `itemwise.py` keeps every shape.
        kwargs: torchmetrics' own.

    Raises:
        BadInputError: `num_components` is not positive.
    """

    full_state_update = False
    higher_is_better = False
    num_activation_vectors: Tensor
    terms: ClassVar[tuple[str, ...]]

    def __init__(
        self, num_components: int | None = 1, *, keep_batch_dim: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**{"dist_sync_fn": gather_items} | kwargs)
        self.num_components = num_components
        self._keep_batch_dim = keep_batch_dim
        self.add_state(
            "num_activation_vectors", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum"
        )
        self._add_terms()

    def _add_terms(self) -> None:
        components = checked_components(self.num_components)
        for name in self.terms:
            if self._keep_batch_dim:
                self.add_state(name, [], dist_reduce_fx="cat")
            else:
                sums = torch.zeros(components, dtype=torch.float64, device=self.device)
                self.add_state(name, sums, dist_reduce_fx="sum")

    @property
    def keep_batch_dim(self) -> bool:
        """Whether the items are kept. Setting it to another value resets the metric."""
        return self._keep_batch_dim

    @keep_batch_dim.setter
    def keep_batch_dim(self, keep_batch_dim: bool) -> None:
        if keep_batch_dim != self._keep_batch_dim:
            self._keep_batch_dim = keep_batch_dim
            self._add_terms()
            self.reset()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of this batch alone, with its graph; what is kept of it has none."""
        value = super().forward(*args, **kwargs)
        if self._keep_batch_dim:
            for name in self.terms:
                kept = getattr(self, name)
                kept[-1] = kept[-1].detach()
        return value

    def add(self, **terms: Float[Tensor, " batch *component"]) -> None:
        """Add the terms of the same items.

        Raises:
            BadInputError: they are not of as many items, of other components, or in
                another form than those that are kept.
        """
        counts = {name: len(items) for name, items in terms.items()}
        if len(set(counts.values())) > 1:
            raise BadInputError(f"the terms are of different items, {counts}: give the same rows")
        for name, items in terms.items():
            by_component = with_component_axis(items, self.num_components, width_axes=0)
            if self._keep_batch_dim:
                kept = getattr(self, name)
                if kept and kept[-1].ndim != items.ndim:
                    raise BadInputError(
                        "some activations come with a component axis, some without: where "
                        "keep_batch_dim keeps the items, give all in one form"
                    )
                kept.append(items)
            else:
                total = by_component.sum(0, dtype=torch.float64)
                setattr(self, name, getattr(self, name) + total)
        self.num_activation_vectors += len(items)

    def term(self, name: str) -> Float[Tensor, "*items_or_component"]:
        """One term: its mean in float32, or its items."""
        state = getattr(self, name)
        if not self._keep_batch_dim:
            means = (state / self.num_activation_vectors).float()
            return at_the_edge(means, self.num_components)
        if isinstance(state, Tensor):  # as torchmetrics leaves it when processes have met
            return state
        return torch.cat(state) if state else torch.zeros(0, device=self.device)


class L1AbsoluteLoss(ItemwiseLoss):
    """Sum over the learned activations of their absolute values, a mean over items.

    Arguments are those of `ItemwiseLoss`. There is no coefficient here.

    >>> import torch
    >>> l1_loss = L1AbsoluteLoss()
    >>> l1_loss.forward(learned_activations=torch.tensor([[[1.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]]))
    tensor(1.5000)
    >>> two_components = L1AbsoluteLoss(num_components=2, keep_batch_dim=True)
    >>> two_components.forward(torch.tensor([[[1.0, 0.0], [3.0, -1.0]]]))
    tensor([[1., 4.]])
    """

    terms = ("absolute_loss",)
    absolute_loss: Tensor | list[Tensor]
    calculate_abs_sum = staticmethod(absolute_sum)

    def update(
        self, learned_activations: Float[Tensor, "batch *component learned"], **_unused: Any
    ) -> None:
        """Add items; other keywords are left to the other metrics of a collection."""
        self.add(absolute_loss=absolute_sum(learned_activations))

    def compute(self) -> Float[Tensor, "*items_or_component"]:
        """The mean per component, NaN before any update; or the items."""
        return self.term("absolute_loss")


class L2ReconstructionLoss(ItemwiseLoss):
    """Mean over the width of the squared error, a mean over items.

    The mean, not the sum: this sets the scale of an L1 coefficient beside it, which
    must be divided by the width when it was chosen for a summed error.
    Arguments are those of `ItemwiseLoss`.

    >>> import torch
    >>> loss = L2ReconstructionLoss(num_components=1)
    >>> source_activations = torch.tensor([[[4.0, 2.0]], [[2.0, 0.0]]])
    >>> decoded_activations = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]])  # items of 4 and 2
    >>> loss.forward(
    ...     decoded_activations=decoded_activations, source_activations=source_activations
    ... )
    tensor(3.)
    """

    terms = ("mse",)
    mse: Tensor | list[Tensor]
    calculate_mse = staticmethod(mean_square)

    def update(
        self,
        decoded_activations: Float[Tensor, "batch *component width"],
        source_activations: Float[Tensor, "batch *component width"],
        **_unused: Any,
    ) -> None:
        """Add items; other keywords are left to the other metrics of a collection."""
        self.add(mse=mean_square(decoded_activations, source_activations))

    def compute(self) -> Float[Tensor, "*items_or_component"]:
        """The mean per component, NaN before any update; or the items."""
        return self.term("mse")


class SparseAutoencoderLoss(ItemwiseLoss):
    """`l1_coefficient` times the L1 loss, plus the L2 loss.

    Args:
        num_components: as in `ItemwiseLoss`.
        l1_coefficient: weight of the L1 term, not negative.
        keep_batch_dim: as in `ItemwiseLoss`.
        kwargs: torchmetrics' own.

    Raises:
        BadInputError: the coefficient is negative or not finite.

    >>> import torch
    >>> loss = SparseAutoencoderLoss(l1_coefficient=0.5)
    >>> source, learned = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0, 2.0]])
    >>> loss.forward(source, learned, decoded_activations=torch.tensor([[1.0, 3.0]]))
    tensor(4.)
    """

    terms = ("absolute_loss", "mse")
    absolute_loss: Tensor | list[Tensor]
    mse: Tensor | list[Tensor]

    def __init__(
        self,
        num_components: int | None = 1,
        l1_coefficient: float = 0.001,
        *,
        keep_batch_dim: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_components, keep_batch_dim=keep_batch_dim, **kwargs)
        if not (math.isfinite(l1_coefficient) and l1_coefficient >= 0):
            raise BadInputError(f"l1_coefficient is {l1_coefficient}: give a number of at least 0")
        self.l1_coefficient = l1_coefficient

    def update(
        self,
        source_activations: Float[Tensor, "batch *component width"],
        learned_activations: Float[Tensor, "batch *component learned"],
        decoded_activations: Float[Tensor, "batch *component width"],
        **_unused: Any,
    ) -> None:
        """Add items; other keywords are left to the other metrics of a collection."""
        self.add(
            absolute_loss=absolute_sum(learned_activations),
            mse=mean_square(decoded_activations, source_activations),
        )

    def compute(self) -> Float[Tensor, "*items_or_component"]:
        """The mean per component, NaN before any update; or the items."""
        return self.l1_coefficient * self.term("absolute_loss") + self.term("mse")
