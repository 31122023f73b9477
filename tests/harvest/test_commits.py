"""The commit log and the lock."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from saeflow.errors import BadInputError
from saeflow.harvest import commits

RECORDS = [{"split": "train", "shard": 0, "rows": 5}, {"split": "heldout", "shard": 0, "rows": 3}]

HOLDER = """
import sys, pathlib
from saeflow.harvest import commits
with commits.locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_store_without_a_log_has_no_shards(tmp_path: Path) -> None:
    assert commits.read_records(tmp_path) == {}


def test_appended_records_are_read_back_by_split_and_number(tmp_path: Path) -> None:
    for record in RECORDS:
        commits.append(tmp_path, record)
    assert commits.read_records(tmp_path) == {("train", 0): RECORDS[0], ("heldout", 0): RECORDS[1]}


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_line_cut_short_does_not_count_and_is_taken_away(tmp_path: Path, cut: int) -> None:
    for record in RECORDS:
        commits.append(tmp_path, record)
    log = tmp_path / commits.LOG
    log.write_bytes(log.read_bytes()[:-cut])
    assert list(commits.read_records(tmp_path)) == [("train", 0)]
    commits.recover(tmp_path)
    commits.append(tmp_path, RECORDS[1])
    assert list(commits.read_records(tmp_path).values()) == RECORDS


def test_the_manifest_takes_over_from_the_log(tmp_path: Path) -> None:
    commits.append(tmp_path, RECORDS[0])
    (tmp_path / commits.MANIFEST).write_text(json.dumps({"shards": RECORDS}))
    commits.drop_log(tmp_path)
    commits.drop_log(tmp_path)
    assert not (tmp_path / commits.LOG).parent.exists()
    assert list(commits.read_records(tmp_path).values()) == RECORDS


def test_recovery_removes_files_under_temporary_names_only(tmp_path: Path) -> None:
    (tmp_path / "acts").mkdir()
    for name in ("acts/0", "acts/1.partial"):
        (tmp_path / name).write_text("rows")
    commits.recover(tmp_path)
    assert [p.name for p in (tmp_path / "acts").iterdir()] == ["0"]


def test_a_second_process_is_refused_until_the_first_one_dies(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(BadInputError, match="is being written by another process: wait for it"):
            commits.locked(store).__enter__()
        holder.kill()
    with commits.locked(store):
        pass
    with commits.locked(store):
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), commits.locked(tmp_path):
        raise KeyError
    with commits.locked(tmp_path):
        pass
