"""torchmetrics without transformers, which it imports for its text metrics where it finds it.

Training uses neither those metrics nor transformers, which would cost it seconds and
hundreds of megabytes (torchmetrics 1.9, `functional/text/bert.py`; no switch for it).
"""

import sys
from typing import Any
from unittest.mock import patch

from lightning_utilities.core.imports import RequirementCache

_check: Any = RequirementCache._check_available


def _find_all_but_transformers(requirement: Any) -> None:
    if str(requirement.requirement).startswith("transformers"):
        requirement.available, requirement.message = False, "not wanted by saeflow"
    else:
        _check(requirement)


if "transformers" in sys.modules:
    import torchmetrics
else:
    with patch.object(RequirementCache, "_check_available", _find_all_but_transformers):
        import torchmetrics

ClasswiseWrapper = torchmetrics.ClasswiseWrapper
Metric = torchmetrics.Metric
MetricCollection = torchmetrics.MetricCollection
gather_all_tensors = torchmetrics.utilities.distributed.gather_all_tensors
