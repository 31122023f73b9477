"""Many writers of one store: who they are, and which shards each of them builds.

Any number of processes, on one machine or on several that share the folder, can
build disjoint shards of a store. Each is worker `rank` of `count`; the shards of
all splits stand in one list, and shard j of it is worker j mod `count`'s.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from saeflow.errors import BadInputError

Shard = TypeVar("Shard")

_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
"""What torchrun and srun call a process's rank, their number, and the rank on its machine."""


@dataclass(frozen=True)
class Worker:
    """One of `count` processes that fill a store.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        local_rank: its number on its machine, if a launcher says so.
    """

    rank: int = 0
    count: int = 1
    local_rank: int | None = None

    def __str__(self) -> str:
        return f"worker {self.rank}/{self.count}"

    def share(self, shards: Sequence[Shard]) -> Sequence[Shard]:
        """Of a store's shards, those that this worker builds."""
        return shards[self.rank :: self.count]


def parse_worker(text: str) -> Worker:
    """A worker from what `--worker` takes, such as `0/4`.

    Raises:
        BadInputError: the text is no share.
    """
    parts = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if parts is None or int(parts[1]) >= int(parts[2]):
        raise BadInputError(f"--worker {text} is no share: give i/n with i from 0 to n - 1")
    return Worker(int(parts[1]), int(parts[2]))


def choose_worker(option: str | None, environment: Mapping[str, str] | None = None) -> Worker:
    """The worker that this process is: the option's, or torchrun's, or srun's, or the only one.

    Args:
        option: what `--worker` was given.
        environment: `os.environ`, if not given.

    Raises:
        BadInputError: the option or a launcher's variable makes no sense.
    """
    if option is not None:
        return parse_worker(option)
    environment = os.environ if environment is None else environment
    for rank, count, local_rank in _LAUNCHERS:
        if rank in environment and _number(environment, count, default=1) > 1:
            worker = Worker(
                _number(environment, rank),
                _number(environment, count),
                _number(environment, local_rank) if local_rank in environment else None,
            )
            if worker.rank >= worker.count:
                raise BadInputError(
                    f"{rank}={worker.rank} is not below {count}={worker.count}: give --worker i/n"
                )
            return worker
    return Worker()


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, str(default))
    if re.fullmatch(r"[0-9]{1,6}", text) is None:
        raise BadInputError(
            f"the environment's {name} is {text!r}, which is no number: give --worker i/n"
        )
    return int(text)
