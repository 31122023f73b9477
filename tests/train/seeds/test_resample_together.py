"""Two processes that saw half of the rows each resample as one that saw them all."""

from pathlib import Path

import pytest
import resample_together
from ranks import in_two_processes


def test_processes_resample_the_same_latents_with_the_same_rows(tmp_path: Path) -> None:
    found = in_two_processes(resample_together, tmp_path)
    assert found[0] == found[1]
    expected = resample_together.resample([slice(0, 15), slice(15, 40)], seed=5)  # all rows
    assert [latents for latents, _ in expected] == [[2], [1, 4]]  # latent 0 fired, in one of them
    for (latents, rows), (right, right_rows) in zip(found[0]["same"], expected, strict=True):
        assert latents == right
        assert [y for x in rows for y in x] == pytest.approx([y for x in right_rows for y in x])
    assert found[0]["refused"].startswith("component 0 has 1 dead latents and 0 sampled rows")
