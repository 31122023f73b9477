"""crc32c of pieces, held against the library's own over the whole."""

import google_crc32c
from hypothesis import given
from hypothesis import strategies as st

from saeflow.crc import crc32c, joined


@given(first=st.binary(max_size=300), second=st.binary(max_size=5000))
def test_the_crc_of_two_pieces_is_that_of_the_whole(first: bytes, second: bytes) -> None:
    expected = google_crc32c.value(first + second)
    assert joined(crc32c(first), crc32c(memoryview(second)), len(second)) == expected


def test_a_known_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4's check value
