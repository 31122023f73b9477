"""The tensors of an SAE, named as the field names them, laid out for speed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

INITIAL_ENCODER = 0.3
"""The encoder's initial weights, as a multiple of the decoder's transpose."""


@dataclass(frozen=True)
class Rule:
    """What happens to a tensor that an architecture has beside the usual four.

    Attributes:
        axes: its shape, in the names of cfg.json.
        in_row_units: it is divided by what the rows are divided by, as biases and
            thresholds are and weights aren't.
        trained: it goes downhill; otherwise it is state, which the objective renews.
        rate: its learning rate, as a multiple of the others'.
        lowest: no update leaves it below; None for no bound.
    """

    axes: tuple[str, ...] = ("d_sae",)
    in_row_units: bool = True
    trained: bool = True
    rate: float = 1.0
    lowest: float | None = None


class Parameters(nn.Module):
    """W_enc, b_enc, W_dec, b_dec, and what else an architecture has.

    Both weights lie row-major per latent in memory, `(d_sae, d_in)`, so that a
    latent's numbers are contiguous; `W_enc` is the transposed view that the
    field's shapes ask for.

    Args:
        encoder, b_enc, W_dec, b_dec: the four.
        extra: more of them, by name.
        rules: one for each of `extra`.

    Attributes:
        extra: those that are trained.
        rules: what holds for `extra` and `state`.
    """

    def __init__(
        self,
        encoder: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        extra: Mapping[str, Tensor] | None = None,
        rules: Mapping[str, Rule] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = nn.Parameter(encoder.contiguous())
        self.b_enc = nn.Parameter(b_enc)
        self.W_dec = nn.Parameter(W_dec.contiguous())
        self.b_dec = nn.Parameter(b_dec)
        self.rules: Mapping[str, Rule] = dict(rules or {})
        self.extra = nn.ParameterDict()
        self._state = nn.Module()
        for name, tensor in (extra or {}).items():
            if self.rules[name].trained:
                self.extra[name] = nn.Parameter(tensor)
            else:
                self._state.register_buffer(name, tensor)

    @staticmethod
    def initial(
        b_dec: Float[Tensor, " d_in"],
        d_sae: int,
        seed: int,
        extra: Mapping[str, Tensor] | None = None,
        rules: Mapping[str, Rule] | None = None,
    ) -> "Parameters":
        """Random unit decoder rows, the encoder a small multiple of their transpose.

        A full-sized transpose begins with reconstructions as long as the rows
        themselves, in random directions, which training first has to unlearn; a
        small one begins near `b_dec`. The draw is on the CPU, so that a seed means
        the same weights on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        W_dec = F.normalize(torch.randn(d_sae, len(b_dec), generator=generator), dim=1)
        four = INITIAL_ENCODER * W_dec, torch.zeros(d_sae), W_dec, b_dec.clone()
        return Parameters(*four, extra, rules)

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder's weights, a view."""
        return self.encoder.t()

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.encoder.shape[1]

    @property
    def d_sae(self) -> int:
        """Latents."""
        return self.encoder.shape[0]

    def more(self, name: str) -> Tensor:
        """One of the trained tensors beside the four."""
        tensor: Tensor = self.extra[name]
        return tensor

    @property
    def state(self) -> Mapping[str, Tensor]:
        """What is not trained, but changes while the rest is; on the same device."""
        return dict(self._state.named_buffers())

    def centred(
        self, x: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, " d_sae"]]:
        """`x - b_dec` and a bias such that the encoder may take no gradient to its input.

        The pre-activations are `(x - b_dec) W_enc + b_enc`. Autograd would send the
        gradient to b_dec through the whole batch, one more matrix product of the
        encoder's size; summed over the batch it is a product with a vector, so here
        it goes through the bias, to which a term of value zero is added.
        """
        bias = self.b_enc + (self.b_dec.detach() - self.b_dec) @ self.W_enc.detach()
        return x - self.b_dec.detach(), bias

    @torch.no_grad()
    def renew(self, state: Mapping[str, Tensor]) -> None:
        """Put new values into the state."""
        held = self.state
        for name, value in state.items():
            held[name].copy_(value)

    @torch.no_grad()
    def keep_bounds(self) -> None:
        """Lift what an update has left below its lowest value."""
        for name, tensor in self.extra.items():
            if (lowest := self.rules[name].lowest) is not None:
                tensor.clamp_(min=lowest)

    def copy_for_rows_divided_by(self, scale: float) -> "Parameters":
        """Parameters that do on `rows / scale` what these do on `rows`, latents divided too.

        Biases and thresholds are divided; the weights, and so the decoder's unit
        rows, stay. The copy takes no gradients.
        """
        more = {
            name: tensor.detach() / scale if self.rules[name].in_row_units else tensor.detach()
            for name, tensor in self._more()
        }
        copy = Parameters(
            self.encoder.detach().clone(),
            self.b_enc.detach() / scale,
            self.W_dec.detach().clone(),
            self.b_dec.detach() / scale,
            {name: tensor.clone() for name, tensor in more.items()},
            self.rules,
        )
        return copy.requires_grad_(False)

    def with_more(self, extra: Mapping[str, Tensor], rules: Mapping[str, Rule]) -> "Parameters":
        """The same four tensors, and others beside them; nothing takes gradients."""
        encoder, b_enc = self.encoder.detach(), self.b_enc.detach()
        W_dec, b_dec = self.W_dec.detach(), self.b_dec.detach()
        return Parameters(encoder, b_enc, W_dec, b_dec, extra, rules).requires_grad_(False)

    def _more(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.extra.items()
        yield from self.state.items()
