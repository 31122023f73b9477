"""The tensors of an SAE, named as the field names them, laid out for speed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Scale = float | Float[Tensor, " channels"]
"""What numbers are multiplied or divided by: one number for all, or one for each channel."""


@dataclass(frozen=True)
class Rule:
    """What happens to a tensor that an architecture has beside the usual four.

    Attributes:
        axes: its shape, in the names of cfg.json.
        in_row_units: it is divided by what the latents are divided by, as biases and
            thresholds are and weights aren't.
        gain: of a bias that is added to the encoder's product times the exponential of
            another tensor, that tensor's name: what is taken off the rows can then be
            moved into the bias. None for what is no such bias.
        trained: it goes downhill; otherwise it is state, which the objective renews.
        rate: its learning rate, as a multiple of the others'.
        lowest: no update leaves it below; None for no bound.
    """

    axes: tuple[str, ...] = ("d_sae",)
    in_row_units: bool = True
    gain: str | None = None
    trained: bool = True
    rate: float = 1.0
    lowest: float | None = None

    @property
    def grows_with_latents(self) -> bool:
        """Each latent has one of it, in the units of its activations."""
        return self.in_row_units and self.axes == ("d_sae",)


class Parameters(nn.Module):
    """W_enc, b_enc, W_dec, b_dec, and what else an architecture has.

    Both weights lie row-major per latent in memory, `(d_sae, d_in)` and
    `(d_sae, d_out)`, so that a latent's numbers are contiguous; `W_enc` is the
    transposed view that the field's shapes ask for.

    An SAE reconstructs the rows that it reads, and takes `b_dec` off them first. So
    does a crosscoder, whose rows are those of several hook points, one after the other.
    A transcoder reconstructs other rows than it reads, perhaps of another width: off
    these it takes `centre`, which is not trained.

    Args:
        encoder, b_enc, W_dec, b_dec: the four.
        extra: more of them, by name.
        rules: one for each of `extra`.
        centre: of a transcoder, what is taken off the rows that it reads.
        W_skip: of a transcoder that has it, the linear map from rows to targets that
            is added to what the latents decode to.
        blocks: of a crosscoder, the widths of its hook points.
        leaf: they are trained; otherwise they keep the graph that they come with.

    Attributes:
        extra: those that are trained.
        rules: what holds for `extra` and `state`.
        centre, W_skip, blocks: as given.
    """

    encoder: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    centre: Tensor | None
    W_skip: Tensor | None
    extra: nn.ParameterDict | dict[str, Tensor]

    def __init__(
        self,
        encoder: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"],
        b_dec: Float[Tensor, " d_out"],
        extra: Mapping[str, Tensor] | None = None,
        rules: Mapping[str, Rule] | None = None,
        *,
        centre: Float[Tensor, " d_in"] | None = None,
        W_skip: Float[Tensor, "d_out d_in"] | None = None,
        blocks: tuple[int, ...] = (),
        leaf: bool = True,
    ) -> None:
        super().__init__()
        assert centre is not None or encoder.shape == W_dec.shape
        assert centre is not None or W_skip is None
        assert not blocks or sum(blocks) == W_dec.shape[1]
        own: Callable[[Tensor], Tensor] = nn.Parameter if leaf else lambda tensor: tensor
        self.encoder = own(encoder.contiguous())
        self.b_enc = own(b_enc)
        self.W_dec = own(W_dec.contiguous())
        self.b_dec = own(b_dec)
        self.register_buffer("centre", centre)
        self.W_skip = None if W_skip is None else own(W_skip.contiguous())
        self.blocks = blocks
        self.rules: Mapping[str, Rule] = dict(rules or {})
        self.extra = nn.ParameterDict() if leaf else {}
        self._state = nn.Module()
        for name, tensor in (extra or {}).items():
            if self.rules[name].trained:
                self.extra[name] = own(tensor)
            else:
                self._state.register_buffer(name, tensor)

    @staticmethod
    def initial(
        b_dec: Float[Tensor, " d_in"],
        d_sae: int,
        seed: int,
        extra: Mapping[str, Tensor] | None = None,
        rules: Mapping[str, Rule] | None = None,
        *,
        blocks: tuple[int, ...] = (),
        encoder_scale: float = 1.0,
        decoder_scale: float = 1.0,
    ) -> "Parameters":
        """Random decoder rows of one length, the encoder a multiple of their transpose.

        So an SAE begins, and a crosscoder; transcoders are in `saeflow.train.initial`.
        The draw is on the CPU, so that a seed means the same weights on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(d_sae, len(b_dec), generator=generator)
        W_dec = decoder_scale * F.normalize(drawn, dim=1)
        four = encoder_scale * W_dec, torch.zeros(d_sae), W_dec, b_dec.clone()
        return Parameters(*four, extra, rules, blocks=blocks)

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder's weights, a view."""
        return self.encoder.t()

    @property
    def d_in(self) -> int:
        """Width of the rows that are read."""
        return self.encoder.shape[1]

    @property
    def d_out(self) -> int:
        """Width of the rows that are reconstructed."""
        return self.W_dec.shape[1]

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

    @property
    def input_centre(self) -> Float[Tensor, " d_in"]:
        """What is taken off the rows that are read."""
        return self.b_dec if self.centre is None else self.centre

    def centred(
        self, x: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, " d_sae"]]:
        """`x - input_centre` and a bias such that the encoder may take no gradient to its input.

        The pre-activations are `(x - b_dec) W_enc + b_enc`. Autograd would send the
        gradient to b_dec through the whole batch, one more matrix product of the
        encoder's size; summed over the batch it is a product with a vector, so here
        it goes through the bias, to which a term of value zero is added. A
        transcoder's centre takes no gradient at all.
        """
        if self.centre is not None:
            return x - self.centre, self.b_enc
        bias = self.b_enc + (self.b_dec.detach() - self.b_dec) @ self.W_enc.detach()
        return x - self.b_dec.detach(), bias

    def offset(
        self, x: Float[Tensor, "*batch d_in"] | None
    ) -> Float[Tensor, " d_out"] | Float[Tensor, "*batch d_out"]:
        """What is added to decoded latents: `b_dec`, and with a skip `W_skip (x - centre)`.

        Args:
            x: the rows that were read; needed for a skip only.

        Raises:
            ValueError: there is a skip, and no rows.
        """
        if self.W_skip is None:
            return self.b_dec
        if x is None:
            raise ValueError("a skip transcoder decodes latents together with the rows they are of")
        return F.linear(x - self.input_centre, self.W_skip, self.b_dec)

    def summed_norms(self) -> Float[Tensor, " d_sae"] | None:
        """For each latent, the sum over hook points of the norms of its parts of W_dec.

        None where there is but one hook point, and so but one norm, which is 1.
        """
        if not self.blocks:
            return None
        parts = self.W_dec.split(list(self.blocks), dim=1)
        return torch.stack([part.norm(dim=1) for part in parts]).sum(0)

    def with_unit_decoder(self) -> "Parameters":
        """What training sees of decoder rows whose norms are free: unit rows, the same function.

        The norms go to the latents: encoder rows, `b_enc`, and thresholds and biases
        of latents are multiplied by them. So what is selected and penalised are
        activations times decoder norms, as in "Update on how we train SAEs"
        (Anthropic, April 2024). The result carries the graph back to these
        parameters, and has their state.
        """
        norms = self.W_dec.norm(dim=1).clamp_min(torch.finfo(self.W_dec.dtype).tiny)
        extra = {
            name: tensor * norms if self.rules[name].grows_with_latents else tensor
            for name, tensor in self._more()
        }
        return Parameters(
            self.encoder * norms[:, None],
            self.b_enc * norms,
            self.W_dec / norms[:, None],
            self.b_dec,
            extra,
            self.rules,
            centre=self.centre,
            W_skip=self.W_skip,
            blocks=self.blocks,
            leaf=False,
        )

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

    def copy_for_rows_divided_by(
        self,
        scale: Scale,
        *,
        source: Scale | None = None,
        latents: float | None = None,
    ) -> "Parameters":
        """Parameters that do on divided rows what these do on rows. They take no gradients.

        Biases and thresholds are divided. Where everything is divided by one number
        the weights, and so the decoder's unit rows, stay.

        Args:
            scale: what targets are divided by; a number, or one for each channel.
            source: what the rows that are read are divided by, if by something else.
            latents: what latents are divided by, if by something else.
        """
        source = scale if source is None else source
        if latents is None:
            assert isinstance(scale, float)
            latents = scale
        more = {
            name: tensor.detach() / latents if self.rules[name].in_row_units else tensor.detach()
            for name, tensor in self._more()
        }
        skip = None if self.W_skip is None else (self.W_skip.detach().t() / scale).t() * source
        return self._copy(
            encoder=self.encoder.detach() * (source / latents),
            b_enc=self.b_enc.detach() / latents,
            W_dec=self.W_dec.detach() * (latents / scale),
            b_dec=self.b_dec.detach() / scale,
            extra={name: tensor.clone() for name, tensor in more.items()},
            centre=None if self.centre is None else self.centre / source,
            W_skip=skip,
        )

    def recentred(self, centre: Float[Tensor, " d_in"]) -> "Parameters":
        """A transcoder that does the same, and takes something else off the rows it reads.

        What that changes goes into the biases, in float64. It takes no gradients.
        """
        moved = (centre - self.input_centre).double()
        product = moved @ self.W_enc.detach().double()
        extra = {name: tensor.detach() for name, tensor in self._more()}
        for name, tensor in extra.items():
            if (gain := self.rules[name].gain) is not None:
                extra[name] = _plus(tensor, product * extra[gain].double().exp())
        b_dec = self.b_dec.detach()
        if self.W_skip is not None:
            b_dec = _plus(b_dec, self.W_skip.detach().double() @ moved)
        b_enc = _plus(self.b_enc.detach(), product)
        return self._copy(b_enc=b_enc, b_dec=b_dec, extra=extra, centre=centre)

    def centred_by_b_dec(self) -> "Parameters":
        """An SAE that does the same, and takes b_dec off its rows. It takes no gradients."""
        return self.recentred(self.b_dec.detach())._copy(centre=None)

    def with_more(
        self,
        extra: Mapping[str, Tensor],
        rules: Mapping[str, Rule],
        *,
        W_skip: Float[Tensor, "d_out d_in"] | None = None,
    ) -> "Parameters":
        """The same tensors, and others beside them; nothing takes gradients."""
        skip = {} if W_skip is None else {"W_skip": W_skip}
        return self._copy(extra=extra, rules=rules, **skip)

    def _copy(self, **changed: Any) -> "Parameters":
        """The same tensors, but for some; nothing takes gradients."""
        kept: dict[str, Any] = {
            "encoder": self.encoder.detach(),
            "b_enc": self.b_enc.detach(),
            "W_dec": self.W_dec.detach(),
            "b_dec": self.b_dec.detach(),
            "rules": self.rules,
            "centre": self.centre,
            "W_skip": None if self.W_skip is None else self.W_skip.detach(),
            "blocks": self.blocks,
        }
        return Parameters(**{**kept, **changed}).requires_grad_(False)

    def _more(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.extra.items()
        yield from self.state.items()


def _plus(tensor: Tensor, wide: Tensor) -> Tensor:
    """Their sum, computed in float64, in the first one's precision."""
    return (tensor.double() + wide).to(tensor.dtype)
