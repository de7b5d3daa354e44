"""`dlm sample --prompts`: a record a line in, an object a line out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dlm.cli.sample import _prompt_of
from dlm.config import Bytes
from dlm.diffusion.sample import sample as written
from dlm.model.tokenizer import build_tokenizer
from tests.support.commands import answer, dlm, invoke
from tests.support.fixtures import MakeLM

ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "id": 7},
    {"prompt": "a", "note": "line\u2028separator\x85"},
    {"messages": [{"role": "user", "content": "hi"}], "odd": "\ud800", "prompt": None},
    {"prompt": "a longer prompt \U0001f600", "nested": {"x": [1, 2.5, None]}},
    {"prompt": ""},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_lm: MakeLM) -> Path:
    """A byte model that knows chats, with a context of 32."""
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}>{% endfor %}"
    folder = tmp_path_factory.mktemp("model") / "model"
    make_lm(tokenizer, 32).save_pretrained(folder)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\r\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    return path


FEW = ["--length", "4", "--precision", "fp32"]


def rows_of(out: str) -> list[dict[str, Any]]:
    assert out.endswith("\n")
    return [json.loads(line) for line in out.splitlines()]


def texts(row: Mapping[str, Any]) -> list[str]:
    return [sample["text"] for sample in row["samples"]]


def test_a_line_in_is_a_line_out(model: Path, file: Path) -> None:
    out, err = dlm("sample", model, "--prompts", file, "--num", "2", *FEW)
    rows = rows_of(out)
    assert [{key: row[key] for key in row if key != "samples"} for row in rows] == ROWS
    for row in rows:
        assert len(set(texts(row))) == 2
        for sample in row["samples"]:
            assert set(sample) == {"text", "continuation", "tokens", "network_calls"}
            assert sample["text"] == (row.get("prompt") or "") + sample["continuation"] and sample["tokens"] <= 4
    assert err.startswith("10 texts, ") and err.count("\n") == 1
    assert set(texts(rows[0])).isdisjoint(texts(rows[1]))  # the same prompt twice is two requests


def test_a_text_depends_on_its_place_and_number_alone(model: Path, file: Path) -> None:
    words = ["sample", model, *FEW]
    together = rows_of(dlm(*words, "--prompts", file, "--num", "2")[0])
    for size in ("1", "3"):
        assert rows_of(dlm(*words, "--prompts", file, "--num", "2", "--batch-size", size)[0]) == together
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[2] = "no JSON"  # a record's place counts the bad ones
    assert json.loads(lines[0]) == ROWS[0] and json.loads(lines[4])
    found = invoke(*words, "--prompts", "-", "--keep-going", stdin="\n".join(lines))
    assert [texts(row)[0] for row in rows_of(found.stdout)] == [texts(row)[0] for row in (together[0], *together[2:])]


def test_the_first_line_is_what_a_single_request_is(model: Path) -> None:
    for row, option, value in (
        ({"prompt": "a b"}, "--prompt", "a b"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "--chat", "hi"),
    ):
        (found,) = rows_of(dlm("sample", model, "--prompts", "-", "--num", "3", *FEW, stdin=json.dumps(row))[0])
        assert found["samples"] == answer("sample", model, option, value, "--num", "3", *FEW)["samples"]


def test_files_and_stdin_are_read_alike(model: Path, file: Path, tmp_path: Path) -> None:
    words = ["sample", model, *FEW]
    out, _ = dlm(*words, "--prompts", file)
    assert dlm(*words, "--prompts", "-", "--json", stdin="\ufeff" + file.read_text(encoding="utf-8")) == (out, "")
    dlm(*words, "--prompts", file, "--output", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == out


def test_bad_lines_are_left_out_and_told_at_the_end(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": 3}\n{"prompt": "' + "x" * 40 + '"}\n[]\n{"prompt": "b"}\n')
    found = invoke("sample", model, "--prompts", path, "--keep-going", *FEW)
    assert [row["prompt"] for row in rows_of(found.stdout)] == ["a", "b"] and found.exit_code == 1
    told = found.stderr.splitlines()
    assert told[0].startswith("2 texts, ")
    assert [line.split(":")[0] for line in told[1:4]] == ["line 2", "line 3", "line 4"]
    assert told[4:] == ["dlm: 3 of 5 records could not be used; the others are done"]
    path.write_text("nothing\nat all\n")
    found = invoke("sample", model, "--prompts", path, "--keep-going", "--export", tmp_path / "x.svg")
    assert (found.exit_code, found.stdout) == (1, "") and "dlm: 2 of 2 records could not be used" in found.stderr


def test_what_is_finished_is_written(model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(*args: Any, real: Any = written, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    words = ["sample", model, "--prompts", file, "--batch-size", "1", *FEW]
    expected = dlm(*words)[0].splitlines(keepends=True)
    monkeypatch.setattr("dlm.lm.writer.sample", interrupted)
    found = invoke(*words, "--output", tmp_path / "out.jsonl")
    assert found.exit_code == 130
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines(keepends=True) == expected[:2]


def test_a_film_is_of_the_first_text(model: Path, file: Path, tmp_path: Path) -> None:
    words = ["sample", model, *FEW]
    plain, _ = dlm(*words, "--prompts", file)
    assert dlm(*words, "--prompts", file, "--watch", "--export", tmp_path / "x.html")[0] == plain
    dlm(*words, "--prompt", "a", "--export", tmp_path / "y.html")
    assert (tmp_path / "x.html").read_text() == (tmp_path / "y.html").read_text()


def test_a_chat_of_a_batch_keeps_its_calls_of_tools() -> None:
    call: dict[str, Any] = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "time", "arguments": {}}}],
    }
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": "q"},
        call,
        {"role": "tool", "content": "noon", "tool_call_id": "1"},
    ]
    assert _prompt_of({"messages": [{**message, "weight": 0} for message in chat]}) == chat
