"""Put an SAE into its source model: every forward pass made inside sees its reconstructions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.config import require
from saeflow.errors import BadInputError
from saeflow.evaluate.config import PositionChoice
from saeflow.evaluate.placing import attached, place_rows, placing_hooks
from saeflow.evaluate.positions import chosen_positions
from saeflow.evaluate.replay import Replay
from saeflow.evaluate.residual_mid import is_resid_mid
from saeflow.harvest.capture import probe_hook_points
from saeflow.harvest.importing.source import UNKNOWN
from saeflow.harvest.models import ModelSpec, SourceModel
from saeflow.train.sae import SAE

Replacement = Callable[[Float[Tensor, "rows d_in"]], Float[Tensor, "rows d_in"]]
"""From activations, in float32, to what takes their place."""

_CACHE_IS_LOST = (
    "this forward pass continues from a cache that holds nothing, as the versions of "
    "TransformerLens and transformers in use never fill it for this model: its tokens would be "
    "wrong and left unspliced; generate with use_cache=False, or by the bridge with "
    "use_past_kv_cache=False"
)


@contextmanager
def splice(
    model: Any,
    sae: SAE | Replacement,
    hook_point: str | None = None,
    *,
    positions: PositionChoice = "text",
    keep_error: bool = False,
) -> Iterator[None]:
    """While it lasts, every forward pass has an SAE's reconstructions in the model.

        with saeflow.splice(model, sae):
            logits = model.bridge(tokens)

    A transcoder's output takes the place of the rows at its target hook point. The
    model's other activations are computed from what was put in; no gradient flows
    through an SAE. Hooks are gone at the end, also after an error. A forward pass with a
    cache that the model does not fill is refused: its tokens would pass for first ones.

    Args:
        model: a SourceModel, or a TransformerBridge.
        sae: an SAE or a transcoder; or any function from rows, (rows, d_in) in float32,
            to rows.
        hook_point: where; by default where the SAE was trained.
        positions: which positions are replaced.
        keep_error: the error `x - x_hat` is added back to `x_hat`. That is x, and x is
            what is put in, as the sum would round: logits must be the clean ones, to the
            bit, which is a check of all that is done besides.

    Raises:
        BadInputError: the SAE doesn't fit the hook point, or can't be spliced so; inside, by
            a forward pass: its cache is not kept, or the rows put in are of another shape.
    """
    source = _as_source(model)
    read, target = _hook_points(sae, hook_point)
    _check_fit(source, sae, read, target)
    spliced = _Splice(sae, read, target, _special(source, positions), positions, keep_error)
    hooks = placing_hooks(source.bridge, {target: spliced.replace})
    if read != target:
        hooks.insert(0, (read, spliced.look))
    wrapped = source.bridge.original_model
    handles = [
        wrapped.register_forward_pre_hook(spliced.begin, with_kwargs=True),
        wrapped.register_forward_hook(spliced.end, with_kwargs=True),
    ]
    try:
        with attached(source.bridge, hooks):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Splice:
    """What one splice knows of the forward pass that is under way."""

    def __init__(
        self,
        sae: SAE | Replacement,
        read: str,
        target: str,
        special: Sequence[int],
        positions: PositionChoice,
        keep_error: bool,
    ) -> None:
        self._sae, self._read, self._target = sae, read, target
        self._special, self._positions, self._keep_error = special, positions, keep_error
        self._replaced = torch.zeros(0, 0, dtype=torch.bool)
        self._seen: Tensor | None = None
        self._n_past = 0

    def begin(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG002  # torch's signature
        """Choose the positions of a forward pass, from what the wrapped model is given."""
        given = args[0] if args else kwargs.get("input_ids")
        tokens: Tensor = kwargs["inputs_embeds"] if given is None else given
        if tokens.is_floating_point():
            require(
                self._positions != "text",
                "this forward pass is given embeddings, so that special tokens can't be told: "
                "give token ids, or splice with positions='no-first' or 'all'",
            )
            tokens = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        self._seen = None
        self._n_past = _n_cached(kwargs)
        self._replaced = _chosen(tokens, kwargs, self._special, self._positions)

    def end(
        self,
        module: Any,  # noqa: ARG002  # torch's signature
        args: tuple[Any, ...],  # noqa: ARG002
        kwargs: Mapping[str, Any],
        output: Any,  # noqa: ARG002
    ) -> None:
        """Refuse a forward pass whose cache did not grow by it: all after it would be wrong."""
        require(_cache(kwargs) is None or _n_cached(kwargs) > self._n_past, _CACHE_IS_LOST)

    def look(self, activation: Tensor) -> None:
        """Keep what a transcoder reads."""
        self._seen = activation

    def replace(self, activation: Tensor) -> Tensor:
        """The activation with reconstructions at the chosen positions."""
        seen = activation if self._read == self._target else self._seen
        if seen is None:
            raise BadInputError(
                f"{self._read} comes after {self._target} in this model: a transcoder can only "
                "replace what comes after what it reads"
            )
        replaced = self._replaced.to(activation.device)
        own = activation.flatten(2)[replaced]
        made = _reconstructed(self._sae, seen.flatten(2)[replaced].float())
        if made.shape != own.shape:
            raise BadInputError(
                f"what is spliced gave rows of shape {tuple(made.shape)}, but those at "
                f"{self._target} are {tuple(own.shape)}"
            )
        return place_rows(activation, replaced, own if self._keep_error else made)


def _reconstructed(sae: SAE | Replacement, rows: Tensor) -> Tensor:
    place = sae.parameters.encoder.device if isinstance(sae, SAE) else rows.device
    made = sae(rows.to(place)).to(rows.device)
    if made.is_inference() and not torch.is_inference_mode_enabled():
        return made.clone()  # autograd takes no inference tensors
    return made


def _chosen(
    tokens: Tensor, kwargs: Mapping[str, Any], special: Sequence[int], which: PositionChoice
) -> Tensor:
    """Chosen positions of the tokens, of which a cache may hold earlier ones."""
    n_past = _n_cached(kwargs)
    own = torch.ones(len(tokens), n_past + tokens.shape[1], dtype=torch.bool, device=tokens.device)
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        require(mask.shape[1] <= own.shape[1], _CACHE_IS_LOST)
        own[:, own.shape[1] - mask.shape[1] :] = mask.bool()
    before = tokens.new_zeros(len(tokens), n_past)
    return chosen_positions(torch.cat([before, tokens], 1), own, special, which)[:, n_past:]


def _cache(kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get("past_key_values", kwargs.get("cache"))  # transformers renames it


def _n_cached(kwargs: Mapping[str, Any]) -> int:
    """How many tokens of each sequence are in the cache that a forward pass is given."""
    past = _cache(kwargs)
    return int(past.get_seq_length()) if past is not None else 0


def _as_source(model: Any) -> SourceModel:
    if isinstance(model, SourceModel):
        return model
    require(
        hasattr(model, "hook_dict") and hasattr(model, "original_model"),
        f"{type(model).__name__} can't be spliced into: give a SourceModel or a TransformerBridge",
    )
    spec = ModelSpec(name=str(model.cfg.model_name), device=str(model.cfg.device))
    return SourceModel(model, model.tokenizer, spec)


def _hook_points(sae: SAE | Replacement, given: str | None) -> tuple[str, str]:
    """What is read, and what is replaced."""
    if not isinstance(sae, SAE):
        require(given is not None, "a function does not say its hook point: give hook_point")
        return str(given), str(given)
    require(
        sae.kind != "crosscoder",
        "a crosscoder can't be spliced into a single forward pass: what it puts at its first hook "
        "point needs the clean rows of its last; `saeflow evaluate` does it, in two passes",
    )
    if sae.kind == "transcoder":
        require(given is None, "a transcoder says both of its hook points: leave out hook_point")
        return sae.hook_point, sae.target_hook_points[0]
    if given is None and sae.cfg.get("metadata", {}).get("hook_name") in (None, "", UNKNOWN):
        raise BadInputError("this SAE does not say its hook point: give hook_point")
    name = given or sae.hook_point
    return name, name


def _check_fit(source: SourceModel, sae: SAE | Replacement, read: str, target: str) -> None:
    found = probe_hook_points(source, (read, target))
    if isinstance(sae, SAE):
        for hook_point, width in zip(found, (sae.d_in, sae.d_out), strict=True):
            require(
                hook_point.d_in == width,
                f"this SAE's rows at {hook_point.name} are {width} wide, but the model's are "
                f"{hook_point.d_in}: splice it into the model that it was trained on",
            )
    if is_resid_mid(target):
        Replay(source, [target]).clean(torch.zeros(1, 8, dtype=torch.long))  # refuses, or not


def _special(source: SourceModel, positions: PositionChoice) -> list[int]:
    if positions != "text":
        return []
    require(
        source.tokenizer is not None,
        "this model has no tokenizer to say its special tokens: splice with positions='no-first' "
        "or 'all'",
    )
    return sorted(set(source.tokenizer.all_special_ids))
