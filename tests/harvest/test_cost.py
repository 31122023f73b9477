"""What a dry run says, held against what the store then takes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.cost import bytes_on_disk
from saeflow.harvest.run import harvest_activations, plan_harvest

Options = Callable[..., HarvestConfig]

HOOKS = ("blocks.0.hook_resid_post", "blocks.0.mlp.hook_post", "blocks.1.attn.hook_z")
"""Of 32 to 64 channels: 1 MB and more for 9000 tokens."""


@pytest.mark.parametrize(
    "changes",
    [
        {"shard_rows": 1024},
        {"shard_rows": 2048, "dtype": "float32"},
        {"shard_rows": None, "hook": HOOKS[:1], "dtype": "float32"},
        {"shard_rows": 1024, "dtype": "float16", "codec": "crc32c"},
        {"shard_rows": 1000, "dtype": "int8"},
        {"shard_rows": 4096, "dtype": "bfloat16", "codec": "zstd"},
        {"shard_rows": 1024, "dtype": "int8", "codec": "zstd", "pack": False},
        {"shard_rows": 1024, "dtype": "float32", "codec": "zstd", "order": "sequence"},
        {"shard_rows": 512, "dtype": "float16", "pack": False},
    ],
    ids=lambda changes: " ".join(str(v) for k, v in changes.items() if k != "hook"),
)
def test_a_plan_knows_what_the_store_takes(
    tiny_config: Options, changes: dict[str, object]
) -> None:
    """To within 2 %, whatever the precision, the codec and the packing."""
    config = tiny_config(**{"hook": HOOKS, "tokens": 9000, "held_out": 0.05, **changes})
    planned = plan_harvest(config)
    assert not Path(config.out).exists()
    store = harvest_activations(config).store
    taken = sum(p.stat().st_size for p in store.folder.rglob("*") if p.is_file())
    off = planned.bytes_on_disk / taken - 1
    print(f"planned {planned.bytes_on_disk:,} bytes, taken {taken:,}: {off:+.2%}")
    assert taken > 700_000
    assert abs(off) <= 0.02
    assert planned.layout == store.layout


def test_a_plan_names_tokens_memory_and_time(tiny_config: Options) -> None:
    planned = plan_harvest(tiny_config())
    told = planned.to_json()
    assert told["tokens"] == 1600
    assert told["text"]["documents_empty"] == 0
    assert planned.seconds > 0
    assert planned.bytes_on_device == 0


def test_the_counts_of_a_plan_are_those_of_the_dataset(tiny_config: Options) -> None:
    counts = plan_harvest(tiny_config(tokens=None)).text
    assert (counts.documents_read, counts.documents_empty) == (120, 0)
    assert counts.tokens_unused < 32


def test_space_is_reckoned_before_a_codec_s_gain_is_known(tiny_config: Options) -> None:
    """A run that checks for free space measures no batch, and must not hope."""
    planned = plan_harvest(tiny_config(codec="zstd"))
    assert bytes_on_disk(planned.layout) > planned.bytes_on_disk


CHILD = """
import resource, sys
from pathlib import Path
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations, plan_harvest
config = HarvestConfig(
    model="builtin",
    dataset="builtin",
    hook=("blocks.1.hook_resid_post", "blocks.2.mlp.hook_post"),
    out=Path(sys.argv[1]),
    tokens=80_000,
    shard_rows=32_768,
    dtype="float32",
    device="cpu",
)
planned = plan_harvest(config).bytes_in_memory
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
harvest_activations(config)
print(planned, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_the_peak_of_memory_is_what_was_planned(tmp_path: Path) -> None:
    """Of a process that holds two shards of 62 MB at a time."""
    command = [sys.executable, "-c", CHILD, str(tmp_path / "store")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    planned, before, peak = map(int, done.stdout.split())
    print(f"before {before / 1e6:.0f} MB, planned {planned / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    assert planned == pytest.approx(peak, rel=0.15)
