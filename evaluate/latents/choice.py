"""Which latents to look at, as `--latents` says it."""

import re

import numpy as np
from jaxtyping import Int64

from saeflow.errors import BadInputError

_RANGE = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", re.ASCII)


def choose_latents(option: str, d_sae: int) -> Int64[np.ndarray, " latents"]:
    """Numbers of latents, rising, each once.

    Args:
        option: `all`, `none`, or numbers and ranges such as `3,17,100-120`; the end of a
            range is in it.
        d_sae: how many the SAE has.

    Raises:
        BadInputError: the option says none of that, or a latent that the SAE doesn't have.
    """
    if option.strip() in ("all", "none"):
        return np.arange(d_sae if option.strip() == "all" else 0)
    wanted = np.zeros(d_sae, bool)
    for part in option.split(","):
        matched = _RANGE.fullmatch(part)
        if matched is None:
            raise BadInputError(
                f"--latents {option}: {part.strip() or 'nothing'} is no latent: "
                "give all, none, or numbers and ranges like 3,17,100-120"
            )
        first, last = int(matched[1]), int(matched[2] or matched[1])
        if first > last:
            raise BadInputError(f"--latents {option}: {part.strip()} is empty: swap its ends")
        if last >= d_sae:
            raise BadInputError(
                f"--latents {option}: there is no latent {last}: this SAE's are 0 to {d_sae - 1}"
            )
        wanted[first : last + 1] = True
    return wanted.nonzero()[0]
