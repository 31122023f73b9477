"""Names for the values of several components, and their mean."""

from typing import Any

from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.train.lean import ClasswiseWrapper, Metric

_BOOKKEEPING = ("_computed", "_update_count")
"""What torchmetrics sets on each member of a compute group when their leader was updated."""


class ClasswiseWrapperWithMean(ClasswiseWrapper):
    """A metric whose result is `{prefix}/{component}` for each component, and `{prefix}/mean`.

    Args:
        metric: one value, or one tensor, per component. With `num_components` None it
            is one component.
        component_names: one for each component, in the order of the component axis;
            None names them 0, 1, 2, ...
        prefix: None for the metric's class name in lower case.

    Raises:
        BadInputError: the metric keeps items (`keep_batch_dim`), so that it has no
            value per component; or two components have one name, or are called "mean".
            And on a result with another number of components than names.

    >>> import torch
    >>> from saeflow import L0NormMetric
    >>> metric = ClasswiseWrapperWithMean(
    ...     L0NormMetric(num_components=2), ["layer_1", "layer_2"], prefix="l0"
    ... )
    >>> metric.forward(torch.tensor([[[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]))
    {'l0/layer_1': tensor(2.), 'l0/layer_2': tensor(1.), 'l0/mean': tensor(1.5000)}
    """

    def __init__(
        self, metric: Metric, component_names: list[str] | None = None, prefix: str | None = None
    ) -> None:
        if getattr(metric, "keep_batch_dim", False):
            raise BadInputError(
                f"{type(metric).__name__} keeps its items, so it has no value per component: "
                "wrap one without keep_batch_dim"
            )
        names = component_names or []
        if "mean" in names or len(set(names)) < len(names):
            raise BadInputError(
                f"component_names are {names}: give each component its own, and none 'mean', "
                "which is that of all"
            )
        super().__init__(metric, component_names, prefix=prefix)
        self.prefix = prefix or type(metric).__name__.lower()

    def __setattr__(self, name: str, value: Any) -> None:
        # A compute group's bookkeeping is for the metric inside. torchmetrics 1.9 leaves
        # it on the wrapper: the metric then warns that it was never updated, and gives
        # the values of an earlier `compute` again.
        if name in _BOOKKEEPING and "metric" in self.__dict__.get("_modules", {}):
            setattr(self.metric, name, value)
        super().__setattr__(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The values of this batch alone; it is accumulated too."""
        return self._named(self.metric(*args, **kwargs))

    def compute(self) -> dict[str, Tensor]:
        """The values since `reset`."""
        return self._named(self.metric.compute())

    def _named(self, value: Tensor) -> dict[str, Tensor]:
        if value.ndim == 0 or getattr(self.metric, "num_components", 0) is None:
            value = value.unsqueeze(0)
        names = [str(index) for index in range(len(value))] if self.labels is None else self.labels
        if len(names) != len(value):
            raise BadInputError(
                f"{self.prefix} has {len(value)} component(s) but {len(names)} component_names: "
                "give one name for each"
            )
        named = {f"{self.prefix}/{name}": one for name, one in zip(names, value, strict=True)}
        return named | {f"{self.prefix}/mean": value.float().mean(0)}
