"""What commands write: exactly the text, where there is a place for it, and else a line about it."""

import errno
import itertools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dlm.cli.console import line_writer, write_text
from dlm.diffusion.rules import Unmasking
from dlm.errors import CheckpointError, ConfigError, DlmError, WriteError, unwritten
from dlm.lm import DiffusionLM
from tests.support.commands import answer, dlm, invoke, refusal
from tests.support.launchers import ENVIRONMENT


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_lm: DiffusionLM) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny_lm.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        b"a[MASK:1]b",
        b"a[MASK:1]b\n",
        b"a[MASK:1]b\n\n",
        b"\xef\xbb\xbfa\r\n[MASK:1]\rb\r\n",
        "\x85a\u2028[MASK:1]".encode(),
    ],
    ids=["no newline", "newline", "two newlines", "BOM and CRLF", "other ends of lines"],
)
def test_a_file_gets_back_all_bytes_but_the_span(model: Path, tmp_path: Path, text: bytes) -> None:
    given, written = tmp_path / "given.txt", tmp_path / "written.txt"
    given.write_bytes(text)
    dlm("infill", model, "--file", given, "--output", written)
    before, after = text.split(b"[MASK:1]")
    found = written.read_bytes()
    assert found.startswith(before) and found.endswith(after)
    (span,) = answer("infill", model, "--file", given)["spans"]
    assert found == before + span.encode() + after


def test_stdout_gets_a_newline_where_the_text_ends_in_none(model: Path) -> None:
    for text in ("[MASK:2] b", "[MASK:2] b\n", "[MASK:2] b\n\n"):
        found = answer("infill", model, text)["text"]
        assert dlm("infill", model, text)[0] == (found if found.endswith("\n") else f"{found}\n")


def test_json_in_a_file_ends_its_line(model: Path, tmp_path: Path) -> None:
    for words in (["sample", model], ["infill", model, "a[MASK:1]"], ["corrupt", "a"]):
        file = tmp_path / f"{words[0]}.json"
        dlm(*words, "--json", "--output", file)
        assert file.read_bytes().count(b"\n") == 1 and file.read_bytes().endswith(b"}\n")


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(DiffusionLM, "from_pretrained", load)


def writers(model: Path, file: Path) -> list[list[object]]:
    """Commands that load a model and write what they are told to."""
    film = file.with_suffix(".svg")
    return [
        ["sample", model, "--output", file],
        ["sample", model, "--export", film],
        ["infill", model, "a [MASK:2]", "--output", file],
        ["infill", model, "a [MASK:2]", "--export", film],
        ["merge", model, file],
    ]


@pytest.mark.usefixtures("nothing_loads")
def test_a_place_that_cannot_be_is_told_before_a_model_is_loaded(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words in writers(model, tmp_path / "file" / "out"):
        assert f"{tmp_path / 'file'} is no folder" in refusal(*words)
    for words in writers(model, tmp_path / "none" / "out")[:-1]:
        assert f"there is no folder {tmp_path / 'none'}" in refusal(*words)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("spelling", ["itself", "a detour", "a link", "a hard link", "a linked folder"])
@pytest.mark.parametrize("option", ["--output", "--export"])
def test_what_is_read_is_not_written(model: Path, tmp_path: Path, spelling: str, option: str) -> None:
    """A result that is opened for writing would empty the records that are not done yet."""
    given = tmp_path / "in.svg"
    given.write_text('{"text": "a [MASK:2]", "prompt": "a"}\n')
    (tmp_path / "folder").symlink_to(tmp_path)
    (tmp_path / "link.svg").symlink_to(given)
    (tmp_path / "hard.svg").hardlink_to(given)
    written = {
        "itself": given,
        "a detour": tmp_path / "folder" / ".." / tmp_path.name / "in.svg",
        "a link": tmp_path / "link.svg",
        "a hard link": tmp_path / "hard.svg",
        "a linked folder": tmp_path / "folder" / "in.svg",
    }[spelling]
    before = given.read_bytes()
    for words in (["sample", model, "--prompts", given], ["infill", model, "--jsonl", "--file", given]):
        told = refusal(*words, option, written, "--overwrite")
        assert f"{option} {written} is what {words[-2]} reads" in told and "another file" in told
    assert given.read_bytes() == before


@pytest.mark.parametrize("words", ["infill {model} -", "infill {model} --jsonl --file -", "corrupt -"])
def test_a_stdin_that_is_a_file_is_not_written(model: Path, tmp_path: Path, words: str) -> None:
    given = tmp_path / "in.txt"
    given.write_text("a [MASK:2]")
    found = shell(f"{words.format(model=model)} --output {given} --overwrite < {given}")
    assert found.returncode == 2 and f"--output {given} is what" in found.stderr
    assert given.read_text() == "a [MASK:2]"


@pytest.mark.usefixtures("nothing_loads")
def test_a_place_that_may_not_be_written_is_told_before_a_model_is_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(path: Any, mode: int, real: Callable[..., bool] = os.access) -> bool:
        return not Path(path).samefile(tmp_path) and real(path, mode)

    monkeypatch.setattr(os, "access", refuses)  # the tests may run as root, who may write anywhere
    for words in writers(model, tmp_path / "out"):
        assert f"{tmp_path} may not be written" in refusal(*words, code=1)
    (tmp_path / "out.svg").touch()  # a film takes the place of its file, which needs its folder
    film = refusal("sample", model, "--export", tmp_path / "out.svg", "--overwrite", code=1)
    assert f"{tmp_path} may not be written" in film


def test_what_the_machine_refuses_is_a_failure_and_what_is_misnamed_a_mistake(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (ConfigError.exit_code, CheckpointError.exit_code, WriteError.exit_code) == (2, 2, 1)
    kinds: dict[int, type[DlmError]] = {
        **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO), WriteError),
        **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG), ConfigError),
    }
    for code, kind in kinds.items():
        error = unwritten("cannot write it", OSError(code, os.strerror(code)))
        assert type(error) is kind and str(error) == f"cannot write it: {os.strerror(code)}"
    assert "exists already" in refusal("merge", model, model)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in refusal("merge", model, tmp_path / "merged", code=1)
    monkeypatch.setattr(Path, "write_text", full)
    told = refusal("corrupt", "text", "--output", tmp_path / "out.txt", code=1)
    assert told == f"dlm: cannot write {tmp_path / 'out.txt'}: No space left on device\n"


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Files of no more than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("most", "left"), [(0, None), (6, "line\nl")])
def test_a_full_disk_leaves_no_empty_file(tmp_path: Path, most: int, left: str | None) -> None:
    """Of a batch, the lines that were written stay; a single text is there as a whole or not at all."""
    with full_disk(most), pytest.raises(WriteError, match=r"a\.txt"):
        write_text("a text of some length", tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").exists()
    with full_disk(most), pytest.raises(WriteError, match=r"b\.jsonl"), line_writer(tmp_path / "b.jsonl") as write:
        write("line")
        write("line")
    assert (tmp_path / "b.jsonl").exists() == (left is not None)
    assert left is None or (tmp_path / "b.jsonl").read_text() == left
    (tmp_path / "old.txt").write_text("old")
    with full_disk(0), pytest.raises(WriteError):
        write_text("new", tmp_path / "old.txt", overwrite=True)
    assert (tmp_path / "old.txt").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} <= {"old.txt", "b.jsonl"}  # no draft is left


def test_what_replaces_a_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    old, link = tmp_path / "old.txt", tmp_path / "link.txt"
    old.write_text("old")
    old.chmod(0o640)
    link.symlink_to("old.txt")
    write_text("new", link, overwrite=True)
    assert link.is_symlink()
    assert old.read_text() == "new"
    assert old.stat().st_mode & 0o777 == 0o640
    assert len([*tmp_path.iterdir()]) == 2


def test_what_exists_and_is_no_file_may_be_written(tmp_path: Path) -> None:
    write_text("text", Path("/dev/null"))
    with line_writer(Path("/dev/null")) as write:
        write("line")


def test_a_saved_model_has_the_mode_of_new_files(tiny_lm: DiffusionLM, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        tiny_lm.save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {0o640} and "model.safetensors" in {path.name for path in (tmp_path / "model").iterdir()}


def test_a_batch_of_nothing_that_succeeds_is_an_empty_file(tmp_path: Path) -> None:
    with line_writer(tmp_path / "a.jsonl"):
        pass
    assert (tmp_path / "a.jsonl").read_text() == ""


def test_a_file_that_is_given_as_the_text_is_told_apart(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a [MASK:1]"}\n')
    told = refusal("infill", model, tmp_path / "in.jsonl")
    assert "nothing to fill" in told and f"--file {tmp_path / 'in.jsonl'}" in told
    assert "--file" not in refusal("infill", model, "a text without spans" * 100)


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """What becomes of a command line of `dlm`, with the shell's redirections."""
    command = ["sh", "-c", f'"$0" -m dlm {line}', sys.executable]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device")
FILLED = [(f"{words} >/dev/full", "No space left on device") for words in ("--version", "corrupt text")]


CLOSED = ("--version >&-", "Bad file descriptor")


@pytest.mark.parametrize(("line", "told"), [CLOSED, *(pytest.param(*each, marks=FULL) for each in FILLED)])
def test_a_stdout_that_cannot_be_written_is_one_line(line: str, told: str) -> None:
    found = shell(line)
    assert (found.returncode, found.stdout, found.stderr) == (1, "", f"dlm: cannot write stdout: {told}\n")


def test_a_closed_stderr_changes_nothing_else() -> None:
    assert shell("--version 2>&-").stdout == dlm("--version")[0] != ""
    found = shell("corrupt - <&- 2>&-")
    assert (found.returncode, found.stdout, found.stderr) == (2, "", "")


@pytest.mark.long
def test_a_closed_stdin_is_one_line() -> None:
    found = shell("corrupt - <&-")
    assert (found.returncode, found.stderr) == (2, "dlm: stdin cannot be read: Bad file descriptor\n")


def test_a_reader_that_has_enough_is_no_error_to_speak_of() -> None:
    found = shell("--version | true")
    assert found.stderr == ""


@pytest.mark.parametrize("as_json", [False, True])
def test_texts_that_were_finished_before_ctrl_c_are_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    words = ["sample", model, "--length", "3", "--num", "5", "--batch-size", "1", "--seed", "4", "--json"]
    whole = answer(*words)["samples"]
    calls = itertools.count()
    step = Unmasking.step

    def stopped(*given: Any, **named: Any) -> Any:
        if next(calls) == 7:  # in the third text
            raise KeyboardInterrupt
        return step(*given, **named)

    monkeypatch.setattr(Unmasking, "step", stopped)
    found = invoke(*words[: len(words) - (not as_json)], "--output", tmp_path / "texts")
    assert found.exit_code == 130 and "2 of 5 texts were finished" in found.stderr and "interrupted" in found.stderr
    text = (tmp_path / "texts").read_text(encoding="utf-8")
    if as_json:
        assert json.loads(text)["samples"] == whole[:2] and json.loads(text)["network_calls"] == 6
    else:
        assert text == "\n---\n".join(one["text"] for one in whole[:2])
