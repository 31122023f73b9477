"""Which latents `--latents` names, and what it says of those that it can't mean."""

import pytest

from saeflow.errors import BadInputError
from saeflow.evaluate.latents.choice import choose_latents


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("all", list(range(10))),
        ("none", []),
        ("3", [3]),
        ("9,0", [0, 9]),
        ("3,1-4,4-5", [1, 2, 3, 4, 5]),
        (" 7 , 2 - 3 ", [2, 3, 7]),
        ("0-9", list(range(10))),
    ],
)
def test_numbers_and_ranges(option: str, expected: list[int]) -> None:
    assert choose_latents(option, 10).tolist() == expected


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("10", "--latents 10: there is no latent 10: this SAE's are 0 to 9"),
        ("5-12", "--latents 5-12: there is no latent 12: this SAE's are 0 to 9"),
        ("4-2", "--latents 4-2: 4-2 is empty: swap its ends"),
        ("1,,2", "--latents 1,,2: nothing is no latent"),
        ("", "--latents : nothing is no latent"),
        ("-3", "--latents -3: -3 is no latent"),
        ("some", "--latents some: some is no latent: give all, none, or numbers and ranges"),
        ("all,3", "--latents all,3: all is no latent"),
        ("²", "--latents ²: ² is no latent"),
    ],
)
def test_refusals(option: str, message: str) -> None:
    with pytest.raises(BadInputError) as refusal:
        choose_latents(option, 10)
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)
