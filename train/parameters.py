"""The four tensors of an SAE, named as the field names them, laid out for speed."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

INITIAL_ENCODER = 0.3
"""The encoder's initial weights, as a multiple of the decoder's transpose."""


class Parameters(nn.Module):
    """W_enc, b_enc, W_dec, b_dec.

    Both weights lie row-major per latent in memory, `(d_sae, d_in)`, so that a
    latent's numbers are contiguous; `W_enc` is the transposed view that the
    field's shapes ask for.
    """

    def __init__(
        self,
        encoder: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
    ) -> None:
        super().__init__()
        self.encoder = nn.Parameter(encoder.contiguous())
        self.b_enc = nn.Parameter(b_enc)
        self.W_dec = nn.Parameter(W_dec.contiguous())
        self.b_dec = nn.Parameter(b_dec)

    @staticmethod
    def initial(b_dec: Float[Tensor, " d_in"], d_sae: int, seed: int) -> "Parameters":
        """Random unit decoder rows, the encoder a small multiple of their transpose.

        A full-sized transpose begins with reconstructions as long as the rows
        themselves, in random directions, which training first has to unlearn; a
        small one begins near `b_dec`. The draw is on the CPU, so that a seed means
        the same weights on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        W_dec = F.normalize(torch.randn(d_sae, len(b_dec), generator=generator), dim=1)
        return Parameters(INITIAL_ENCODER * W_dec, torch.zeros(d_sae), W_dec, b_dec.clone())

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
