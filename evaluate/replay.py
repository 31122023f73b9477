"""One clean forward pass a batch, and every other pass from where it differs.

What a splice or an ablation puts in is a function of the clean activations, so it
is known before the model runs again: the blocks before it would compute what they
computed. `Replay` keeps what they gave and runs the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.evaluate.placing import Change, Hook, attached, place_rows, placing_hooks
from saeflow.evaluate.residual_mid import check_stream_sum, is_resid_mid, stream_parts
from saeflow.evaluate.restart import residual_of, restarted_after, with_residual
from saeflow.harvest.capture import probe_hook_points
from saeflow.harvest.models import SourceModel


@dataclass(frozen=True)
class CleanPass:
    """A batch's forward pass with nothing replaced, and what the passes after it need.

    Attributes:
        tokens: token ids, on the model's device.
        logits: in the model's dtype.
        activations: of each hook point, in the model's dtype, a head axis flattened.
        after: of each hook point, the last block whose output comes before it, or is
            it; -1 where no block does.
        outputs: what each of these blocks gave.
    """

    tokens: Int[Tensor, "batch position"]
    logits: Float[Tensor, "batch position vocabulary"]
    activations: Mapping[str, Float[Tensor, "batch position _"]]
    after: Mapping[str, int]
    outputs: Mapping[int, Any]

    def rows(
        self, hook_point: str, chosen: Bool[Tensor, "batch position"]
    ) -> Float32[Tensor, "rows d_in"]:
        """A hook point's rows at chosen positions, in the order of `torch.nonzero(chosen)`."""
        return self.activations[hook_point][chosen].float()


class Replay:
    """The forward passes of an evaluation, for hook points where something is replaced or read.

    A splice at `hook_resid_post` of block l runs the blocks after l; one of anything
    inside block l runs l and those after it; one of the embeddings runs all.

    Raises:
        BadInputError: a hook point holds no vector a token, as `probe_hook_points`
            says; or a changed `hook_resid_mid` can't be passed on in this model.
    """

    def __init__(self, model: SourceModel, hook_points: Sequence[str]) -> None:
        probe_hook_points(model, hook_points)
        self._model, self._hook_points = model, tuple(dict.fromkeys(hook_points))
        blocks = getattr(model.bridge, "blocks", ())
        self._block_of_output = {
            name: block
            for name in self._hook_points
            for block, module in enumerate(blocks)
            if model.bridge.hook_dict[name] is getattr(module, "hook_out", None)
        }
        mids = [name for name in self._hook_points if is_resid_mid(name)]
        self._unchecked = {name: stream_parts(name) for name in mids}

    @torch.inference_mode()
    def clean(self, tokens: Int[Tensor, "batch position"]) -> CleanPass:
        """Run a batch with nothing replaced.

        Args:
            tokens: token ids, on any device; padding only on the right.

        Raises:
            BadInputError: as the constructor; or a hook point is passed more than once.
        """
        recording = _Recording(self._block_of_output)
        parts = {part for names in self._unchecked.values() for part in names}
        seen = dict.fromkeys([*self._hook_points, *sorted(parts)])
        hooks: list[tuple[str, Hook]] = [(name, recording.look(name)) for name in seen]
        blocks = getattr(self._model.bridge, "blocks", ())
        handles = [
            module.register_forward_hook(recording.finished(block))
            for block, module in enumerate(blocks)
        ]
        try:
            logits = self._forward(tokens, hooks)
        finally:
            for handle in handles:
                handle.remove()
        for name, names in self._unchecked.items():
            check_stream_sum(name, *(recording.activations[part] for part in names))
        self._unchecked = {}
        return CleanPass(
            tokens.to(self._model.device),
            logits,
            {name: recording.activations[name].flatten(2) for name in self._hook_points},
            {name: recording.after[name] for name in self._hook_points},
            {block: recording.outputs[block] for block in self._needed(recording.after)},
        )

    @torch.inference_mode()
    def spliced(
        self,
        clean: CleanPass,
        replaced: Bool[Tensor, "batch position"],
        rows: Mapping[str, Float[Tensor, "rows _"]],
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Logits, in the model's dtype, with rows in the place of the clean ones.

        Args:
            clean: this batch's clean pass.
            replaced: at which positions; the same at all hook points.
            rows: of each hook point, in the order of `torch.nonzero(replaced)`; one or
                more of those that the constructor was given. They are rounded to the
                model's dtype.

        Raises:
            ValueError: rows are not as many as replaced positions, or not as wide as
                the hook point's.
        """
        _check_rows(clean, replaced, rows)
        changes = {name: _placing(replaced, given) for name, given in rows.items()}
        block = min(clean.after[name] for name in rows)
        output = clean.outputs.get(block)
        for name, given in rows.items():
            if block >= 0 and self._block_of_output.get(name) == block:
                # Its hook is in a block that doesn't run: it is put into what the block gave.
                residual = place_rows(residual_of(output), replaced, given)
                output = with_residual(output, residual)
                del changes[name]
        with restarted_after(self._model.bridge, block, output):
            return self._forward(clean.tokens, placing_hooks(self._model.bridge, changes))

    def _forward(self, tokens: Tensor, hooks: list[tuple[str, Hook]]) -> Tensor:
        bridge = self._model.bridge
        with attached(bridge, hooks):
            logits: Tensor = bridge(
                tokens.to(self._model.device), return_type="logits", use_cache=False
            )
        return logits

    def _needed(self, after: Mapping[str, int]) -> set[int]:
        return {after[name] for name in self._hook_points} - {-1}


class _Recording:
    """What a clean pass leaves behind."""

    def __init__(self, block_of_output: Mapping[str, int]) -> None:
        self._named = block_of_output
        self._last: tuple[int, Any] = (-1, None)
        self.activations: dict[str, Tensor] = {}
        self.after: dict[str, int] = {}
        self.outputs: dict[int, Any] = {}

    def look(self, name: str) -> Hook:
        def keep(activation: Tensor) -> None:
            if name in self.activations:
                raise BadInputError(
                    f"hook point {name} is passed more than once in a forward pass: choose another"
                )
            # A copy, as some models add to an activation in place.
            self.activations[name] = activation.clone()
            if name not in self._named:
                self.after[name] = self._last[0]
                self.outputs[self._last[0]] = self._last[1]

        return keep

    def finished(self, block: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:  # noqa: ARG001  # torch's signature
            self._last = (block, output)
            for name, named in self._named.items():
                if named == block:
                    self.after[name] = block
                    self.outputs[block] = output

        return hook


def _placing(replaced: Tensor, rows: Tensor) -> Change:
    return lambda activation: place_rows(activation, replaced, rows)


def _check_rows(clean: CleanPass, replaced: Tensor, rows: Mapping[str, Tensor]) -> None:
    n_replaced = int(replaced.sum())
    for name, given in rows.items():
        expected = (n_replaced, clean.activations[name].shape[-1])
        if tuple(given.shape) != expected:
            raise ValueError(f"rows of {name} are {tuple(given.shape)}: they must be {expected}")
