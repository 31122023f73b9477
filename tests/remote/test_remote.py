"""Objects behind a URL: what can be asked of them, and what each refusal is told as."""

import sys
from pathlib import Path
from typing import Any

import pytest

from saeflow.errors import BadInputError, SaeflowError
from saeflow.harvest import remote as remote_module
from saeflow.harvest.remote import Remote, connect
from saeflow.location import Url, locate


@pytest.fixture(params=["s3", "gs"])
def remote(request: pytest.FixtureRequest) -> Remote:
    """An empty place that can be written to."""
    bucket = request.getfixturevalue("bucket" if request.param == "s3" else "gs_bucket")
    return connect(Url(f"{bucket}/some/folder"))


def test_objects_are_read_as_they_were_put(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    remote.put("a/b", b"bytes")
    remote.put("a/c", tmp_path / "file")
    assert remote.read("a/b") == b"bytes"
    assert remote.read("a/c") == b"from a file"
    assert remote.read("a") is None
    assert remote.size("a/c") == 11
    assert remote.read_range("a/c", 5, 3) == b"a f"
    assert remote.read_range("a/c", 11, 0) == b""


def test_objects_are_listed_and_removed(remote: Remote) -> None:
    for name in ("x", "a/b", "a/c", "ab"):
        remote.put(name, b"")
    assert set(remote.names()) == {"x", "a/b", "a/c", "ab"}
    assert set(remote.names("a")) == {"a/b", "a/c"}
    remote.delete(["not/there", "x", "a/b"])
    remote.delete([])
    assert set(remote.names()) == {"a/c", "ab"}


def test_an_object_is_created_only_once(remote: Remote) -> None:
    assert remote.create("lock", b"first")
    assert not remote.create("lock", b"second")
    assert remote.read("lock") == b"first"


def test_only_the_version_that_was_read_is_replaced(remote: Remote) -> None:
    remote.put("lock", b"first")
    found = remote.read_version("lock")
    assert found is not None
    assert remote.replace("lock", b"second", found[1])
    assert not remote.replace("lock", b"third", found[1])
    assert remote.read("lock") == b"second"
    assert remote.read_version("other") is None


@pytest.mark.parametrize(("start", "length"), [(2, 5), (4, 1), (9, 2)])
def test_a_range_beyond_the_end_is_refused(remote: Remote, start: int, length: int) -> None:
    remote.put("x", b"1234")
    with pytest.raises(SaeflowError, match=r"/some/folder/x ends before byte \d+: check the store"):
        remote.read_range("x", start, length)


def test_a_missing_object_is_named(remote: Remote) -> None:
    for ask in (lambda: remote.size("x/y"), lambda: remote.read_range("x/y", 0, 4)):
        with pytest.raises(SaeflowError, match=r"/some/folder/x/y can't be read: the object does"):
            ask()


def test_a_missing_bucket_is_named(bucket: str) -> None:
    nowhere = connect(Url("s3://no-such-bucket/store"))
    for ask in (
        lambda: nowhere.put("x", b""),
        lambda: nowhere.create("x", b""),
        lambda: list(nowhere.names()),
    ):
        with pytest.raises(SaeflowError, match=r"s3://no-such-bucket/store.* the bucket does not"):
            ask()


def test_denied_access_is_told_with_what_to_look_at(web: Any) -> None:
    web.status = 403
    with pytest.raises(BadInputError, match=r"/st/x can't be read: access is denied; check the"):
        connect(Url(f"{web.url}/st")).read("x")


def test_a_server_that_gives_no_parts_is_refused(web: Any) -> None:
    web.objects["st/x"], web.ranges = b"123456", False
    with pytest.raises(SaeflowError, match=r"/st/x can't be read: its server does not do what"):
        connect(Url(f"{web.url}/st")).read_range("x", 1, 2)


def test_a_dead_server_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(remote_module, "_RETRY", {"max_retries": 0})
    with pytest.raises(SaeflowError, match=r"x can't be read: .* check the network") as told:
        connect(Url(f"{bucket}/st")).read("x")
    assert "\n" not in str(told.value)


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("obstore", "obstore.store", "obstore.exceptions"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadInputError) as refusal:
        connect(Url("s3://bucket/store"))
    assert str(refusal.value) == "s3:// needs the extra: pip install 'saeflow[remote]'"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("s3://", "names no bucket"),
        ("gs:///store", "names no bucket"),
        ("https://", "names no host"),
        ("az://container/store", "no URL that saeflow knows: give a folder, or s3://, gs://"),
        ("file:///tmp/store", "no URL that saeflow knows"),
        ("https://host/store?signature=1", "holds a '?', a '#' or credentials"),
        ("https://me:secret@host/store", "holds a '?', a '#' or credentials"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(BadInputError) as refusal:
        locate(text)
    assert complaint in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_a_url_is_no_path() -> None:
    assert locate("s3://bucket//a/b/") == Url("s3://bucket/a/b")
    assert str(Url("s3://bucket") / "a") == "s3://bucket/a"
    assert locate("some/folder") == Path("some/folder")
    assert locate("C:/folder") == Path("C:/folder")
    with pytest.raises(BadInputError, match="a URL that became a path: give it as text"):
        locate(Path("s3://bucket/store"))
