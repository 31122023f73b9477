"""What is typed wrong, and what the operating system refuses: one line, and the right exit code."""

import errno
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from saeflow import cli
from saeflow.cli import main
from saeflow.errors import BadInputError
from saeflow.failures import told

Run = Callable[..., Any]
COMMANDS = ["harvest", "import", "train", "evaluate", "compare", "verify", "info", "quickstart"]


@pytest.fixture
def failing(run_cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`saeflow info` whose stage fails with an error."""

    def run(error: BaseException) -> Any:
        from saeflow.train import info

        def fail(store: str) -> None:
            raise error

        monkeypatch.setattr(info, "store_info", fail)
        return run_cli("info", tmp_path)

    return run


# What is typed wrong.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "run", "--tokens", "abc"], "'--tokens'"),
        (["evaluate", "run", "--replace", "foo"], "'foo' is not one of"),
        (["evaluate", "run", "--nothing"], "No such option: --nothing"),
        (["evaluate", "run", "other"], "extra argument"),
        (["train", "store", "--k"], "requires an argument"),
        (["compare"], "Missing argument"),
        (["evalaute"], "No such command 'evalaute'"),
        (["--nothing"], "No such option: --nothing"),
    ],
)
def test_what_typer_does_not_understand_is_one_line(
    run_cli: Run, words: list[str], message: str
) -> None:
    outcome = run_cli(*words)
    assert message in outcome.refusal()
    (line,) = outcome.err.splitlines()
    assert line.endswith(" --help")


@pytest.mark.parametrize(
    ("command", "word"), [("evaluate", "SAE"), ("train", "STORE"), ("import", "SOURCE")]
)
def test_a_missing_argument_is_not_called_a_flag(
    run_cli: Run, tmp_path: Path, command: str, word: str
) -> None:
    line = f"saeflow: {word} is needed: give it behind the command or in --config"
    assert run_cli(command).refusal() == line
    (tmp_path / "options.toml").write_text(
        "seed = 3\n" if command != "import" else "held_out = 0\n"
    )
    assert run_cli(command, config=tmp_path / "options.toml").refusal() == line


def test_a_config_file_may_give_the_argument(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text('sae = "nowhere"\n')
    refusal = run_cli("evaluate", config=tmp_path / "options.toml").refusal()
    assert "nowhere" in refusal
    assert "needed" not in refusal


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version_are_no_failures(run_cli: Run, command: str) -> None:
    outcome = run_cli(command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"{command} [OPTIONS]" in outcome.out
    assert run_cli("--version").code == 0


def test_without_a_word_there_is_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_cli: Run
) -> None:
    del run_cli  # which puts the signal's handler back
    monkeypatch.setattr(sys, "argv", ["saeflow"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    shown = "".join(capsys.readouterr())
    assert all(command in shown for command in COMMANDS)
    assert "saeflow:" not in shown


def test_the_exit_code_of_a_command_is_that_of_saeflow(failing: Callable[..., Any]) -> None:
    assert failing(typer.Exit(1)).code == 1
    assert failing(typer.Abort()).err == "saeflow: stopped\n"
    assert failing(KeyboardInterrupt()).code == 130
    assert failing(SystemExit(143)).code == 143


def test_a_shell_completes_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_cli: Run
) -> None:
    del run_cli
    monkeypatch.setattr(sys, "argv", ["saeflow"])
    variables = {
        "_SAEFLOW_COMPLETE": "complete_bash",
        "COMP_WORDS": "saeflow ev",
        "COMP_CWORD": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    complete = partial(get_command(cli.app), prog_name="saeflow")
    monkeypatch.setattr(cli, "app", complete)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert capsys.readouterr().out.split() == ["evaluate"]


# What the operating system refuses.


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "give yourself permission, or name another path"),
        (errno.EPERM, "give yourself permission, or name another path"),
        (errno.EROFS, "name a path on a disk that can be written to"),
        (errno.ENOENT, "check the path"),
        (errno.ENOTDIR, "check the path, a part of it is a file"),
        (errno.EISDIR, "name a file"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
    ],
)
def test_a_file_that_can_not_be_used_is_named_with_the_reason(
    failing: Callable[..., Any], number: int, remedy: str
) -> None:
    reason = os.strerror(number)
    for name in ("folder/file", b"folder/file", Path("folder/file")):
        line = failing(OSError(number, reason, name)).refusal()
        assert line == f"saeflow: folder/file: {reason}: {remedy}"


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("of no file"),
        OSError(errno.EACCES, "Permission denied"),
        OSError(errno.EACCES, "Permission denied", 7),
        OSError(errno.EIO, "Input/output error", "file"),
        OSError(errno.EBADF, "Bad file descriptor", "file"),
    ],
)
def test_other_errors_keep_their_traceback(failing: Callable[..., Any], error: OSError) -> None:
    with pytest.raises(OSError, match=r".") as raised:
        failing(error)
    assert raised.value is error


def test_a_full_disk_is_named_where_it_is_known(failing: Callable[..., Any]) -> None:
    outcome = failing(OSError(errno.ENOSPC, "No space left on device", "store/file"))
    line = "saeflow: no space left on the disk of store/file: make room, then run again\n"
    assert (outcome.code, outcome.err) == (1, line)
    assert told(OSError(errno.ENOSPC, "No space left on device")) == (
        "no space left on the disk: make room, then run again",
        1,
    )


def test_a_reader_that_had_enough_is_no_error_to_talk_of(failing: Callable[..., Any]) -> None:
    outcome = failing(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert (outcome.code, outcome.err) == (1, "")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_full_standard_output_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch, run_cli: Run, tiny_store: Path, flags: list[str]
) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        outcome = run_cli("info", tiny_store, *flags)
    line = "saeflow: no space left on the disk of stdout: make room, then run again\n"
    assert (outcome.code, outcome.err) == (1, line)


# A store that is there, and that this user may not read.


@pytest.mark.parametrize("command", ["info", "train", "verify"])
def test_a_store_without_permission_is_a_store_all_the_same(
    run_cli: Run, tiny_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    root = tiny_store / "zarr.json"
    for name in ("read_bytes", "open"):
        real = getattr(Path, name)

        def refused(path: Path, *args: Any, real: Any = real, **rest: Any) -> Any:
            if path == root:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *args, **rest)

        monkeypatch.setattr(Path, name, refused)
    real_open = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest: refused(path) if path == root else real_open(path, *rest)
    )
    flags = {"out": tmp_path / "run", "d_sae": 40} if command == "train" else {}
    assert run_cli(command, tiny_store, **flags).refusal() == (
        f"saeflow: store {tiny_store} can't be read (zarr.json: Permission denied): "
        "give yourself permission to read all of it"
    )


def test_a_bad_input_error_is_its_own_line(failing: Callable[..., Any]) -> None:
    assert failing(BadInputError("this: do that")).refusal() == "saeflow: this: do that"
