"""`dlm score`: a line in, its likelihoods out."""

import gzip
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers.normalizers import Lowercase

from dlm.config import Bytes, Characters
from dlm.lm import Answers, DiffusionLM
from dlm.lm.scoring import score_rows as scored
from dlm.model.tokenizer import build_tokenizer
from tests.support.commands import dlm, invoke, refusal
from tests.support.fixtures import MakeLM

CHAT = [{"role": "user", "content": "hi"}]
ROWS: list[dict[str, Any]] = [
    {"text": "some text", "id": 7},
    {"prompt": "a ", "response": "b\u2028c\x85", "odd": "\ud800", "text": None},
    {"prompt": "", "response": ""},
    {"prompt": "the ", "choices": ["king", "queen", "\u00e4"], "nested": {"x": [1, 2.5, None]}},
    {"messages": [*CHAT, {"role": "assistant", "content": "yes"}]},
    {"messages": CHAT, "response": "yes"},
    {"messages": CHAT, "choices": ["yes", "no"]},
]
ONE = {"log_likelihood", "nats", "bits", "tokens", "bytes", "standard_error"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_lm: MakeLM) -> Path:
    """A byte model with three readings that knows chats, with a context of 32."""
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}>{% endfor %}"
    folder = tmp_path_factory.mktemp("model") / "model"
    source = {"format": "text", "path": "none.txt"}
    data = {"train": source, "length": 32, "packing": "pad"}
    make_lm(tokenizer, 32, readings={"name": "joint", "sizes": [4]}, data=data).save_pretrained(folder)
    return folder


def test_a_tokenizer_that_changes_the_texts_is_told_once(tmp_path: Path, make_lm: MakeLM) -> None:
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    make_lm(tokenizer, 32).save_pretrained(tmp_path / "model")
    asked = tmp_path / "in.jsonl"
    for rows, told in (
        ([{"text": "all small"}, {"text": "A capital"}, {"text": "Another"}], "of 'A capital' it keeps 'a capital'"),
        ([{"prompt": "The ", "response": "end"}], "of 'The ' it keeps 'the '"),
        ([{"text": "all small"}, {"prompt": "the ", "choices": ["end", "tip"]}], ""),
    ):
        asked.write_text("\n".join(map(json.dumps, rows)))
        _, err = dlm("score", tmp_path / "model", asked)
        assert err.count("the tokenizer changes the scored text") == bool(told) and told in err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("\n\r\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    return path


def rows_of(out: str) -> list[dict[str, Any]]:
    """Lines of strict JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    assert out.endswith("\n") or not out
    return [json.loads(line, parse_constant=refuse) for line in out.splitlines()]


def found_in(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was found of each answer."""
    return row.get("scores", [row])


def test_a_line_in_is_a_line_out(model: Path, file: Path) -> None:
    out, err = dlm("score", model, file, "--reading", "any-order", "--greedy")
    rows = rows_of(out)
    for row, given in zip(rows, ROWS, strict=True):
        several = {"scores", "best", "best_per_byte"} if "choices" in given else {*ONE, "greedy"}
        assert row.keys() - given.keys() == {"reading", *several}
        assert {name: row[name] for name in given} == given and row["reading"] == "any-order"
        for one in found_in(row):
            assert ONE | {"greedy"} <= one.keys()
            assert one["nats"] == -one["log_likelihood"] == pytest.approx(one["bits"] * math.log(2))
            assert one["tokens"] == one["bytes"] + 1  # and the end of text
    assert [one["bytes"] for one in found_in(rows[3])] == [4, 5, 2] and rows[1]["bytes"] == 7
    assert err.count("\n") == 1 and err.startswith("10 answers, ") and "reading any-order, a bound" in err


def test_choices_are_compared(model: Path, file: Path) -> None:
    lm = DiffusionLM.from_pretrained(model, dtype="fp32")
    asked: list[tuple[list[str], dict[str, Any]]] = [
        ([], {}),
        (["--reading", "any-order", "--draws", "4"], {"reading": "any-order", "draws": 4}),
    ]
    for words, how in asked:
        row = rows_of(dlm("score", model, file, *words)[0])[3]
        scores = next(lm.score_each({3: Answers("the ", ROWS[3]["choices"])}, **how))
        nats = [one.log_likelihood for one in scores]
        assert [one["log_likelihood"] for one in row["scores"]] == pytest.approx(nats, rel=1e-5)
        per_byte = [value / size for value, size in zip(nats, (4, 5, 2), strict=True)]
        assert (row["best"], row["best_per_byte"]) == (nats.index(max(nats)), per_byte.index(max(per_byte)))
        for one, score in zip(row["scores"], scores, strict=True):
            found = one["difference"], one["difference_standard_error"]
            assert found == pytest.approx(score.less(scores[row["best"]]), rel=1e-4, abs=1e-4)
            assert one["standard_error"] == pytest.approx(score.monte_carlo_se, rel=1e-4, abs=1e-4)
            assert (one["standard_error"] == 0.0) == (not words)


def test_the_readings(model: Path, file: Path) -> None:
    lm = DiffusionLM.from_pretrained(model, dtype="fp32")
    by_default = dlm("score", model, file)[0]
    assert by_default == dlm("score", model, file, "--reading", "causal")[0]
    for words, reading in (
        ([], "causal"),
        (["--chain-rule"], "left-to-right"),
        (["--chain-rule", "--reading", "any-order"], "left-to-right"),
        (["--reading", "blocks:4", "--draws", "16"], "blocks:4"),
        (["--reading", "any-order", "--seed", "5"], "any-order"),
    ):
        out, err = dlm("score", model, file, *words)
        rows, seed = rows_of(out), 5 if "--seed" in words else 0
        assert {row["reading"] for row in rows} == {reading} and f"reading {reading}" in err
        assert (", a bound" in err) == (reading in ("any-order", "blocks:4"))
        expected = lm.score(None, "some text", reading=reading, seed=seed).log_likelihood
        assert rows[0]["log_likelihood"] == pytest.approx(expected, rel=1e-5)
        assert rows[4]["nats"] == pytest.approx(rows[5]["nats"], rel=1e-5) or reading in ("any-order", "blocks:4")


def test_a_corpus_is_the_sum_of_its_texts(model: Path, tmp_path: Path) -> None:
    texts = ["a b c", "some text", "and more of it, in thirty bytes"]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = rows_of(dlm("score", model, tmp_path / "texts.txt")[0])
    report = json.loads(dlm("eval", model, "--data", tmp_path / "texts.jsonl", "--field", "text", "--json")[0])
    assert report["reading"] == "causal" and report["tokens"] == sum(row["tokens"] for row in rows)
    total = report["nats_per_token"] * report["tokens"]
    assert sum(row["nats"] for row in rows) == pytest.approx(total, rel=1e-6)
    assert [row["text"] for row in rows] == texts and sum(row["bytes"] for row in rows) == report["bytes"]


def test_lines_come_from_files_and_stdin_alike(model: Path, file: Path, tmp_path: Path) -> None:
    words = ["--reading", "any-order", "--draws", "4"]
    out, _ = dlm("score", model, file, *words)
    text = file.read_text(encoding="utf-8")
    assert dlm("score", model, "-", "--jsonl", *words, stdin="\ufeff" + text)[0] == out
    (tmp_path / "packed.NDJSON.gz").write_bytes(gzip.compress(text.encode()))
    dlm("score", model, tmp_path / "packed.NDJSON.gz", "--output", tmp_path / "out.jsonl", *words)
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == out
    plain = rows_of(dlm("score", model, "-", *words, stdin='{"text": "a"}\r\n\n  b\n')[0])
    assert [row["text"] for row in plain] == ['{"text": "a"}', "  b"]


def test_bad_lines_are_left_out_and_told_at_the_end(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "a b"}\n{"prompt": 3}\n{"text": "%s"}\n[]\n{"text": "b c"}\n' % ("x" * 32))
    words = ["--reading", "any-order", "--draws", "4"]
    found = invoke("score", model, path, "--keep-going", *words)
    rows = rows_of(found.stdout)
    assert [row["text"] for row in rows] == ["a b", "b c"] and found.exit_code == 1
    told = found.stderr.splitlines()
    assert told[0].startswith("2 answers, 8 tokens")
    assert [line.split(":")[0] for line in told[1:4]] == ["line 2", "line 3", "line 4"]
    assert told[4:] == ["dlm: 3 of 5 records could not be used; the others are done"]
    lm = DiffusionLM.from_pretrained(model, dtype="fp32")
    (alone,) = next(lm.score_each({4: Answers(None, ["b c"])}, draws=4, reading="any-order"))
    assert rows[1]["log_likelihood"] == pytest.approx(alone.log_likelihood, rel=1e-5)  # its place counts the bad ones
    path.write_text("nothing\n")
    found = invoke("score", model, path, "--keep-going")
    assert (found.exit_code, found.stdout) == (1, "")


@pytest.mark.parametrize("size", ["1", "3", "16"])
def test_a_run_taken_up_again_is_an_undisturbed_one(model: Path, file: Path, tmp_path: Path, size: str) -> None:
    words = ["score", model, file, "--reading", "any-order", "--draws", "4", "--batch-size", size]
    out, begun = tmp_path / "out.jsonl", tmp_path / "begun.jsonl"
    dlm(*words, "--output", out, "--resume")  # where nothing is there yet, all is scored
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == len(ROWS)
    for count in range(len(ROWS) + 1):
        for part in {b"", *(lines[count][:cut] for cut in (1, 9, -1) if count < len(ROWS))}:
            begun.write_bytes(b"".join(lines[:count]) + part)
            _, err = dlm(*words, "--output", begun, "--resume")
            assert begun.read_bytes() == whole
            assert ("there already)" in err) == (count > 0) and (count < 2 or f"({count} lines were there" in err)


def test_what_is_finished_is_written_and_of_it_the_last_line_alone_is_scored_again(
    model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        rows.append(len(args[3]))
        if len(rows) == stop:
            raise KeyboardInterrupt
        return scored(*args, **options)

    words = ["score", model, file, "--reading", "any-order", "--draws", "4", "--batch-size", "2"]
    whole, out, stop = dlm(*words)[0], tmp_path / "out.jsonl", 4
    monkeypatch.setattr("dlm.lm.scores.score_rows", counted)
    found = invoke(*words, "--output", out)
    told = (
        f"dlm: interrupted: {out} has the lines that are finished; for the others, give --resume, without --overwrite\n"
    )
    assert (found.exit_code, found.stderr) == (130, told)
    assert out.read_text(encoding="utf-8").splitlines() == whole.splitlines()[:4]  # six answers, the last of line 4
    rows, stop = [], 1
    nothing = tmp_path / "nothing.jsonl"
    found = invoke(*words, "--output", nothing)
    assert (found.exit_code, found.stderr, nothing.exists()) == (130, "dlm: interrupted\n", False)
    rows, stop = [], 0
    dlm(*words, "--output", out, "--resume")
    assert out.read_text(encoding="utf-8") == whole
    assert rows == [2, 2, 2, 2]  # the last line kept is of three answers, which begin in the second batch of five


def test_lines_of_others_are_not_taken_for_ones_own(model: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = ["score", model, file, "--output", out, "--resume"]
    any_order = [*words, "--reading", "any-order", "--draws", "4"]
    dlm(*any_order)
    whole = out.read_text(encoding="utf-8")
    begun = "".join(whole.splitlines(keepends=True)[:1])
    out.write_text(begun, encoding="utf-8")
    for changed in ([*words], [*any_order, "--seed", "1"], [*any_order, "--greedy"], [*any_order[:-1], "8"]):
        assert "line 1 was scored by another model, or with other options" in refusal(*changed)
    lines = file.read_text(encoding="utf-8").replace('"id": 7', '"id": 8')
    for text, told in (
        (lines, "line 1 of"),
        (json.dumps({"text": "else"}), "is of another record than line 1"),
        ("", "holds no line with a record"),
    ):
        file.write_text(text, encoding="utf-8")
        assert told in refusal(*any_order)
    file.write_text(json.dumps(ROWS[0]), encoding="utf-8")
    out.write_text(whole, encoding="utf-8")
    assert "has 7 lines, and the input has 1 that can be used" in refusal(*any_order)
    for mine in ("mine\n", "mine", "{}", "{}\n", '{"text": "some"'):
        out.write_text(mine, encoding="utf-8")
        assert "line 1 of" in refusal(*any_order) and out.read_text(encoding="utf-8") == mine


def test_what_is_impossible_or_unknown_is_told(tmp_path: Path, make_lm: MakeLM) -> None:
    tokenizer = build_tokenizer(Characters(), lambda: iter(["abc w"]))
    tokenizer.add_special_tokens({"mask_token": "w"})  # a letter of the text: none of its spellings is another token
    make_lm(tokenizer, 32).save_pretrained(tmp_path / "model")
    out, err = dlm("score", tmp_path / "model", "-", stdin="abc\nawb\na§§\n")
    rows, told = rows_of(out), err.splitlines()
    assert [row["log_likelihood"] is None for row in rows] == [False, True, False]
    assert rows[1]["bits"] is rows[1]["standard_error"] is None
    assert told[0].startswith("2 of the tokens stand for characters that the tokenizer does not know")
    assert told[1] == "line 2: an answer has the probability zero, or none: its log-likelihood is null"
