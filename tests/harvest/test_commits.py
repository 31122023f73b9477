"""The commit logs: what counts as a shard, and what doesn't."""

import json
from pathlib import Path

import pytest

from saeflow.errors import SaeflowError
from saeflow.harvest import commits

RECORDS = [{"split": "train", "shard": 0, "rows": 5}, {"split": "heldout", "shard": 0, "rows": 3}]


def test_a_store_without_a_log_has_no_shards(tmp_path: Path) -> None:
    assert commits.read_records(tmp_path) == {}


def test_appended_records_are_read_back_by_split_and_number(tmp_path: Path) -> None:
    for record in RECORDS:
        commits.append(tmp_path, record)
    assert commits.read_records(tmp_path) == {("train", 0): RECORDS[0], ("heldout", 0): RECORDS[1]}


def test_the_logs_of_all_workers_count_together(tmp_path: Path) -> None:
    for rank, record in zip((0, 12), RECORDS, strict=True):
        commits.append(tmp_path, record, rank)
    names = {path.name for path in (tmp_path / commits.LOGS).iterdir()}
    assert names == {"rank00000.jsonl", "rank00012.jsonl"}
    assert commits.read_records(tmp_path) == {("train", 0): RECORDS[0], ("heldout", 0): RECORDS[1]}


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_line_cut_short_does_not_count_and_is_taken_away(tmp_path: Path, cut: int) -> None:
    for record in RECORDS:
        commits.append(tmp_path, record)
    log = commits.log_path(tmp_path, 0)
    log.write_bytes(log.read_bytes()[:-cut])
    assert list(commits.read_records(tmp_path)) == [("train", 0)]
    commits.cut_torn_line(tmp_path)
    commits.append(tmp_path, RECORDS[1])
    assert list(commits.read_records(tmp_path).values()) == RECORDS


def test_a_worker_leaves_the_torn_line_of_another_one_alone(tmp_path: Path) -> None:
    commits.append(tmp_path, RECORDS[0])
    commits.append(tmp_path, RECORDS[1], 1)
    log = commits.log_path(tmp_path, 1)
    log.write_bytes(log.read_bytes()[:-1])  # as a reader may see it while it is being written
    commits.cut_torn_line(tmp_path, 0)
    assert list(commits.read_records(tmp_path)) == [("train", 0)]
    log.write_bytes(log.read_bytes() + b"\n")
    assert len(commits.read_records(tmp_path)) == 2


def test_a_whole_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    commits.append(tmp_path, RECORDS[0])
    log = commits.log_path(tmp_path, 0)
    log.write_bytes(log.read_bytes() + bytes(8) + b"\n")
    with pytest.raises(SaeflowError, match=r"rank00000\.jsonl is damaged at line 2: take the line"):
        commits.read_records(tmp_path)


def test_the_manifest_takes_over_from_the_logs(tmp_path: Path) -> None:
    commits.append(tmp_path, RECORDS[0])
    commits.append(tmp_path, RECORDS[1], 1)
    (tmp_path / commits.MANIFEST).write_text(json.dumps({"shards": RECORDS}))
    commits.drop_log(tmp_path)
    commits.drop_log(tmp_path)
    assert not (tmp_path / commits.LOGS).exists()
    assert list(commits.read_records(tmp_path).values()) == RECORDS


def test_a_sweep_removes_files_under_temporary_names_only(tmp_path: Path) -> None:
    (tmp_path / "acts").mkdir()
    for name in ("acts/0", "acts/1.partial"):
        (tmp_path / name).write_text("rows")
    commits.sweep(tmp_path)
    assert [p.name for p in (tmp_path / "acts").iterdir()] == ["0"]


def test_a_full_disk_is_named_by_the_log(tmp_path: Path) -> None:
    (tmp_path / commits.LOGS).mkdir(parents=True)
    log = commits.log_path(tmp_path, 0)
    log.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        commits.append(tmp_path, RECORDS[0])
    assert error.value.filename == str(log)
