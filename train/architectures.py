"""Every architecture, by the names of the command line and of SAE folders."""

from collections.abc import Mapping

from saeflow.train import batchtopk, gated, jumprelu, matryoshka, p_anneal, relu, topk
from saeflow.train.architecture import Loader, Maker

MAKERS: Mapping[str, Maker] = {
    "topk": topk.from_config,
    "batchtopk": batchtopk.from_config,
    "relu": relu.from_config,
    "jumprelu": jumprelu.from_config,
    "gated": gated.from_config,
    "matryoshka": matryoshka.from_config,
    "p-anneal": p_anneal.from_config,
}
"""What `--arch` may name, and what makes it of the options."""

LOADERS: Mapping[str, Loader] = {
    "topk": topk.from_cfg,
    "standard": relu.from_cfg,
    "jumprelu": jumprelu.from_cfg,
    "gated": gated.from_cfg,
}
"""What an SAE folder's cfg.json may name, and what reads it."""
