"""The commands on a run of their own: what they print where, and that equal questions get equal answers."""

import gzip
import json
import math
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from dlm.cli.infill import WRITTEN
from dlm.diffusion.sample import sample as written
from dlm.diffusion.unmask import AnyBudget, AnyOrder, TokenChoice
from dlm.lm import DiffusionLM
from dlm.settings import load_config
from tests.support.choices import names
from tests.support.commands import answer, dlm, invoke, refusal
from tests.support.tiny_models import TINY

CONTEXT = 16


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("\n".join(f"the {a} {b} sat on the mat." for a in "abcdefgh" for b in ("cat", "dog", "eel")))
    return path


STEPS = ["--set", "train.steps=2", "--set", "optim.warmup=1"]


@pytest.fixture(scope="module")
def configuration(text: Path) -> Path:
    source = {"format": "text", "path": str(text), "documents": "line"}
    tree = {
        "data": {"train": source, "held_out": {"share": 0.3}, "length": CONTEXT},
        "model": {"sizes": {**TINY, "num_hidden_layers": 1}},
        "optim": {"warmup": 5},
        "train": {"steps": 40, "batch_size": 8, "precision": "fp32", "validate_every": 20, "log_every": 10},
    }
    path = text.with_name("small.yaml")
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def run(configuration: Path) -> Path:
    """A run that was trained by the command."""
    folder = configuration.with_name("run")
    out, err = dlm("train", configuration, "--run-dir", folder, "--set", "seed=3")
    assert out == ""
    said = err.splitlines()
    assert said[0].startswith(f"{folder}: ") and "fp32" in said[0] and said[-1] == f"done: dlm sample {folder}"
    assert [line.split()[1] for line in said if line.startswith("step") and "loss" in line] == ["10", "20", "30", "40"]
    assert [line.split()[1] for line in said if "validation bound" in line] == ["20", "40"]
    return folder


# train


def test_train_leaves_a_run(run: Path, configuration: Path) -> None:
    config = load_config(run / "config.yaml")
    assert config == load_config(configuration, ["seed=3"])
    assert config.seed == 3
    names = {path.name for path in (run / "checkpoints/best").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "dlm.yaml", "trainer"} <= names
    assert {path.name for path in run.iterdir()} == {".lock", "checkpoints", "config.yaml", "metrics.jsonl"}


def test_train_resumes_to_nothing(run: Path) -> None:
    out, err = dlm("train", "--resume", "--run-dir", run)
    assert out == "" and "all 40 steps are done already" in err


def test_train_takes_the_name_of_its_configuration(
    configuration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dlm("train", configuration, "--set", "train.steps=1")
    assert (tmp_path / "runs/small/checkpoints/last/model.safetensors").exists()
    dlm("train", configuration, "--set", "train.steps=2", "--overwrite")
    assert [path.name for path in (tmp_path / "runs/small/checkpoints").glob("step-*")] == ["step-000002"]


def test_train_of_nothing_takes_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only as far as the corpus, which here is not the default's."""
    monkeypatch.chdir(tmp_path)
    source = "data.train={format: text, path: nowhere.txt}"
    words = ["train", "--set", source, "--set", "train.precision=fp32"]  # Accelerate takes one precision a process
    assert refusal(*words) == "dlm: data.train: there is no file nowhere.txt\n"


# sample


def test_sample_prints_the_text_and_nothing_else(run: Path) -> None:
    out, err = dlm("sample", run, "--seed", "5")
    (text,) = DiffusionLM.from_pretrained(run).generate(seed=5)
    assert out == text.text.encode("utf-8", "replace").decode() + "\n"
    assert err.startswith(f"1 text, {CONTEXT} tokens in {CONTEXT} network calls (1.00 tokens a call)")
    assert err.count("\n") == 1


def test_sample_of_a_seed_is_the_same_text(run: Path) -> None:
    texts = [answer("sample", run, "--num", "3", "--seed", seed)["samples"] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]
    assert len({sample["text"] for sample in texts[0]}) == 3


def test_sample_in_batches_of_any_size(run: Path) -> None:
    found = [
        [s["text"] for s in answer("sample", run, "--num", "5", "--batch-size", size)["samples"]]
        for size in ("1", "2", "5")
    ]
    assert found[0] == found[1] == found[2]


def test_sample_for_a_machine(run: Path) -> None:
    found = answer("sample", run, "--num", "2", "--length", "6", "--seed", "9")
    keys = {"samples", "network_calls", "tokens", "tokens_per_call", "tokens_per_second", "unigram_entropy", "seed"}
    assert set(found) == keys
    assert (found["network_calls"], found["tokens"], found["tokens_per_call"], found["seed"]) == (12, 12, 1.0, 9)
    assert 0.0 <= found["unigram_entropy"] <= math.log(12) and found["tokens_per_second"] > 0
    for sample in found["samples"]:
        assert set(sample) == {"text", "continuation", "tokens", "network_calls"}
        assert sample["text"] == sample["continuation"] and sample["tokens"] == sample["network_calls"] == 6


def test_several_samples_are_set_apart(run: Path) -> None:
    found = [sample["text"] for sample in answer("sample", run, "--num", "3", "--length", "4")["samples"]]
    assert dlm("sample", run, "--num", "3", "--length", "4")[0] == "\n---\n".join(found) + "\n"


def test_sample_continues_a_prompt(run: Path) -> None:
    for sample in answer("sample", run, "--prompt", "the cat", "--num", "4")["samples"]:
        assert sample["text"] == "the cat" + sample["continuation"]
        assert sample["tokens"] <= CONTEXT - 7


BUDGETS: list[tuple[Sequence[str], range]] = [
    (["--steps", "4"], range(4, 5)),
    (["--steps", "4", "--grid", "cosine"], range(4, 5)),
    (["--steps", "4", "--grid", "binomial"], range(1, 5)),
    (["--threshold", "0"], range(1, 2)),
    (["--threshold", "1"], range(CONTEXT, CONTEXT + 1)),
    (["--factor", "1e9"], range(1, 2)),
    (["--factor", "0.001"], range(1, CONTEXT + 1)),
    (["--entropy-bound", "1e9"], range(1, 2)),
    (["--entropy-bound", "0"], range(1, CONTEXT + 1)),
    (["--block-length", "4", "--steps", "4"], range(4, CONTEXT + 1)),
    (["--temperature", "0"], range(CONTEXT, CONTEXT + 1)),
    (["--top-k", "3", "--top-p", "0.5"], range(CONTEXT, CONTEXT + 1)),
]


@pytest.mark.parametrize(("words", "calls"), BUDGETS, ids=[" ".join(words) for words, _ in BUDGETS])
def test_every_budget_keeps_to_its_calls(run: Path, words: Sequence[str], calls: range) -> None:
    (sample,) = answer("sample", run, *words)["samples"]
    assert sample["network_calls"] in calls and sample["tokens"] == CONTEXT
    out, _ = dlm("infill", run, f"the [MASK:{CONTEXT - 5}].", *words)
    assert out.startswith("the ") and out.endswith(".\n")


@pytest.mark.parametrize("order", names(AnyOrder))
def test_every_order_has_a_name(run: Path, order: str) -> None:
    words = ["--order", order, "--num", "4", "--temperature", "0"]
    found = {sample["text"] for sample in answer("sample", run, *words)["samples"]}
    # Without temperature only the random order leaves anything to chance.
    assert (len(found) > 1) == (order == "random")


def test_sample_into_a_file(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    expected = answer("sample", run)["samples"][0]["text"]
    out, err = dlm("sample", run, "--output", path)
    assert out == "" and err.startswith("1 text, ") and path.read_text() == expected
    refusal("sample", run, "--seed", "1", "--output", path)
    assert path.read_text() == expected
    dlm("sample", run, "--seed", "1", "--output", path, "--overwrite")
    assert path.read_text() == answer("sample", run, "--seed", "1")["samples"][0]["text"] != expected


@pytest.mark.parametrize("suffix", [".html", ".svg"])
def test_films_are_written(run: Path, tmp_path: Path, suffix: str) -> None:
    for name, words in (("s", ["sample", str(run), "--num", "3"]), ("i", ["infill", str(run), "the [MASK:4] sat"])):
        path = tmp_path / f"{name}{suffix}"
        plain = dlm(*words)[0]
        assert dlm(*words, "--export", path)[0] == plain
        film = path.read_text(encoding="utf-8")
        assert f"dlm {words[0]} {run}" in film and film.rstrip().endswith(
            {".html": "</html>", ".svg": "</svg>"}[suffix]
        )
        assert f"step {CONTEXT if name == 's' else 4}/" in film or suffix == ".html"
        refusal(*words, "--export", path)
        assert [file.name for file in tmp_path.glob(f"*{name}{suffix}*")] == [path.name]


def test_watching_without_a_terminal_is_told_and_harmless(run: Path, tmp_path: Path) -> None:
    nowhere = "--watch draws in a terminal, and stderr is none that can draw"
    for words in (["sample", str(run), "--num", "2"], ["infill", str(run), "the [MASK:4] sat"]):
        plain, watched = dlm(*words), dlm(*words, "--watch")
        told, rest = watched[1].split("\n", 1)
        assert (
            told == "--watch draws in a terminal, and stderr is none that can draw; --export FILE.html keeps the film"
        )
        assert watched[0] == plain[0] and "\x1b" not in rest and rest.count("\n") == plain[1].count("\n")
        assert dlm(*words, "--watch", "--export", tmp_path / f"{words[0]}.svg")[1].startswith(f"{nowhere}\n")


def test_options_of_a_search_are_not_refused_for_what_other_records_lack(run: Path, tmp_path: Path) -> None:
    """A record that is left out is no reason to say that every span has its length."""
    rows = tmp_path / "rows.jsonl"
    words = ["infill", run, "--file", rows, "--keep-going"]
    rows.write_text('{"text": "a [MASK:3] b"}\n{"text": "x [MASK:9998-9999] y"}\n')
    for option in (["--length-prior", "uniform"], ["--effort", "4"]):
        assert "line 2: " in refusal(*words, *option, code=1)
    rows.write_text('{"text": "no span"}\n')
    assert "line 1: nothing to fill" in refusal(*words, "--max-length", "9", code=1)


def test_a_checkpoint_folder_is_a_model_too(run: Path) -> None:
    best = run / "checkpoints/best"
    assert dlm("sample", best)[0] == dlm("sample", best.resolve())[0] == dlm("sample", run)[0]


def test_a_tilde_is_the_home_folder_everywhere(
    run: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlm.train.start import starting_point

    expected = dlm("infill", run, "the [MASK:3] sat")[0]
    scored = answer("eval", run, "--data", text)
    monkeypatch.setenv("HOME", str(run.parent))
    assert answer("eval", f"~/{run.name}", "--data", f"~/{text.name}") == scored
    assert Path(starting_point(f"~/{run.name}")).samefile(run / "checkpoints/best")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "in.txt").write_text("the [MASK:3] sat")
    dlm("infill", run, "--file", "~/in.txt", "--output", "~/out.txt")
    assert (tmp_path / "out.txt").read_text() == expected.removesuffix("\n")
    assert "exists already" in refusal("sample", run, "--output", "~/out.txt")


# infill


def test_infill_keeps_what_was_given(run: Path) -> None:
    out, err = dlm("infill", run, "the [MASK:2] c[MASK:3]t.")
    found = answer("infill", run, "the [MASK:2] c[MASK:3]t.")
    assert out == found["text"] + "\n" and len(found["spans"]) == 2
    assert found["text"] == f"the {found['spans'][0]} c{found['spans'][1]}t."
    assert err.startswith(f"1. log-likelihood {found['log_likelihood']:.2f} nats, 5 network calls: ")


def test_infill_ranks_its_alternatives(run: Path) -> None:
    found = answer("infill", run, "the [MASK:3]", "--num", "5")
    scores = [alternative["log_likelihood"] for alternative in found["alternatives"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 5 and scores[0] < 0
    names = {"text", "spans", "log_likelihood", "network_calls", "fillings", "lengths", "log_joint"}
    assert set(found["alternatives"][0]) == names and found["lengths"] == [3]
    assert found["text"] == found["alternatives"][0]["text"]
    out, err = dlm("infill", run, "the [MASK:3]", "--num", "5")
    assert out == "\n---\n".join(a["text"] for a in found["alternatives"]) + "\n"
    assert [line[:3] for line in err.splitlines()] == ["1. ", "2. ", "3. ", "4. ", "5. "]


def test_draws_of_one_text_are_told(run: Path) -> None:
    words = ("infill", run, "the [MASK:3]", "--num", "3", "--temperature", "0")
    assert "2 alternatives are the text of another" in dlm(*words)[1]
    assert "text of another" not in dlm(*words[:3], "--num", "3")[1]


@pytest.mark.parametrize("number", ["NaN", "1e400", "[-Infinity]"])
def test_a_number_that_could_not_be_written_again_is_refused(number: str, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "the [MASK:1]", "prompt": "the", "n": 10e2}}\n{{"text": "[MASK:1]", "n": {number}}}\n')
    for words in (("infill", "--file"), ("sample", "--prompts")):
        assert "line 2: it has a number that JSON" in refusal(words[0], run, words[1], path)


def test_infill_reads_text_from_anywhere(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "hole.txt"
    path.write_text("the [MASK:3] sat", encoding="utf-8")
    given = dlm("infill", run, "the [MASK:3] sat")
    assert given == dlm("infill", run, "-", stdin="the [MASK:3] sat") == dlm("infill", run, "--file", path)
    assert dlm("infill", run, "the [HOLE:3] sat", "--marker", "HOLE")[0] == given[0]


def test_infill_keeps_the_byte_order_mark_of_a_file(run: Path, tmp_path: Path) -> None:
    """It is the file that is edited, so that all of it but the spans stays as it is."""
    path, batch = tmp_path / "hole.txt", tmp_path / "holes.jsonl"
    path.write_text("\ufeffthe [MASK:3] sat", encoding="utf-8")
    batch.write_text('\ufeff{"text": "the [MASK:3] sat"}\n', encoding="utf-8")
    assert answer("infill", run, "--file", path)["text"].startswith("\ufeffthe ")
    assert answer("infill", run, "--file", batch)["text"].startswith("the ")


def test_an_escaped_marker_is_text(run: Path) -> None:
    assert answer("infill", run, r"\[MASK:3][MASK:1]")["text"].startswith("[MASK:3]")


def test_infill_of_a_batch(run: Path, tmp_path: Path) -> None:
    rows = [{"text": "the [MASK:3] sat", "id": 7}, {"text": "[MASK:2] é"}, {"text": "a[MASK:1]b[MASK:1]"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    out, err = dlm("infill", run, "--file", path)
    found = [json.loads(line) for line in out.splitlines()]
    assert err == "" and [row.get("id") for row in found] == [7, None, None]
    assert [len(row["spans"]) for row in found] == [1, 1, 2]
    assert found[0]["text"] == f"the {found[0]['spans'][0]} sat" and found[1]["text"].endswith(" é")
    assert dlm("infill", run, "-", "--jsonl", stdin=path.read_text())[0] == out
    for size in ("1", "2"):
        again = [json.loads(line) for line in dlm("infill", run, "--file", path, "--batch-size", size)[0].splitlines()]
        assert [row["text"] for row in again] == [row["text"] for row in found]
        assert [r["log_likelihood"] for r in again] == pytest.approx([r["log_likelihood"] for r in found], rel=1e-4)


def test_what_a_batch_writes_it_reads(run: Path, tmp_path: Path) -> None:
    """Characters that end a line elsewhere are part of a text, and nothing else of a record is lost."""
    rows = [{"text": "a\u2028b\x85 [MASK:2]\x0c\u2029", "id": "\ud800 \u2028"}, {"text": "[MASK:1]\r\n\x1e"}]
    path, first = tmp_path / "rows.ndjson", tmp_path / "first.jsonl"
    path.write_text("\ufeff" + "".join(json.dumps(row, ensure_ascii=row.get("id") is not None) + "\n" for row in rows))
    dlm("infill", run, "--file", path, "--output", first)
    with first.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    assert [row.get("id") for row in found] == [row.get("id") for row in rows]
    for row, given in zip(found, rows, strict=True):
        before, _, after = re.split(r"(\[MASK:\d\])", given["text"])
        assert row["text"] == before + row["spans"][0] + after
    again = tmp_path / "again.jsonl.gz"
    own = [{key: value for key, value in row.items() if key not in WRITTEN} for row in found]
    assert all(row.keys() == given.keys() for row, given in zip(own, rows, strict=True))
    lines_again = [json.dumps({**row, "text": row["text"] + "[MASK:1]"}, ensure_ascii=True) for row in own]
    again.write_bytes(gzip.compress("\r\n".join(lines_again).encode()))
    second = [json.loads(line) for line in dlm("infill", run, "--file", again)[0].split("\n")[:-1]]
    assert [row["text"].startswith(first["text"]) for row, first in zip(second, found, strict=True)] == [True, True]


def test_fewer_texts_than_are_asked_for_are_told(run: Path) -> None:
    text, told = dlm("infill", run, "the [MASK] sat", "--num", "3", "--choices", "cat,dog")
    assert len(text.split("\n---\n")) == 2
    assert told.splitlines()[-1] == "only 2 different texts were found, of the 3 that --num asks for"
    told = dlm("infill", run, "the [MASK] sat", "--num", "3", "--choices", "cat,a")[1]
    assert told.splitlines()[-1] == "only 2 different texts were found, of the 3 that --num asks for"  # all were tried
    assert "only" not in dlm("infill", run, "the [MASK] sat", "--num", "2", "--choices", "cat,dog")[1]


def test_a_share_of_the_lengths_is_filled(run: Path) -> None:
    lengths = {}
    for top_p in ("0.01", "1"):
        words = "infill", run, "the [MASK:1-6] sat on", "--num", "8", "--length-top-p", top_p, "--json"
        found = json.loads(dlm(*words)[0])
        lengths[top_p] = {tuple(each["lengths"]) for each in found["alternatives"]}
        assert len(found["length_posterior"]) == 6  # all were weighed
    assert len(lengths["0.01"]) == 1 < len(lengths["1"])
    told = dlm("infill", run, "the [MASK:1-6] sat on", "--num", "32", "--temperature", "0.01")[1]
    assert told.endswith(", of the 32 that --num asks for; more are tried by a higher --effort or --length-top-p\n")


@pytest.mark.parametrize(
    "words", [("infill", "--file"), ("sample", "--length", "4", "--prompts")], ids=lambda each: each[0]
)
def test_a_batch_that_was_stopped_goes_on(words: Sequence[str], run: Path, tmp_path: Path) -> None:
    """After any byte of its output: what is there is kept, and the rest is what it would have been."""
    path, whole, out = (tmp_path / name for name in ("rows.jsonl", "whole.jsonl", "out.jsonl"))
    name, rest = ("text", " [MASK:2]") if words[0] == "infill" else ("prompt", "")
    path.write_text("\n".join(json.dumps({name: f"the cat{rest}", "id": i}) for i in range(4)), encoding="utf-8")
    command = words[0], run, *words[1:], path, "--batch-size", "1"
    dlm(*command, "--output", whole)
    content = whole.read_bytes()
    lines = [at + 1 for at, byte in enumerate(content) if byte == 10]
    for kept in (0, 5, lines[0], lines[1] + 7, lines[2], len(content) - 1, len(content)):
        out.write_bytes(content[:kept])
        dlm(*command, "--output", out, "--resume")
        assert [json.loads(line) for line in out.read_text().splitlines()] == [
            json.loads(line) for line in content.splitlines()
        ]
    told = refusal(*command, "--output", out)
    assert told.endswith("exists already: choose another name, or say --overwrite, or --resume to go on with it\n")
    out.write_bytes(content[: lines[1]].replace(b"cat", b"dog"))
    assert "is of another record than line 1" in refusal(*command, "--output", out, "--resume")
    assert "give that, without --overwrite" in refusal(*command, "--resume")
    assert "give that, without --overwrite" in refusal(*command, "--output", out, "--resume", "--overwrite")


def test_what_was_written_with_another_number_is_not_gone_on_with(run: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"text": "the [MASK:3]", "prompt": "the"}\n' * 2)
    for words, key in (
        (("infill", run, "--file", path), "alternatives"),
        (("sample", run, "--prompts", path), "samples"),
    ):
        command: tuple[object, ...] = (*words, "--batch-size", "1")
        rows = [json.loads(line) for line in dlm(*command, "--num", "3")[0].splitlines()]
        assert all(len(row[key]) == 3 for row in rows)
        out.write_text(json.dumps(rows[0]) + "\n")
        assert "3 " in (told := refusal(*command, "--output", out, "--resume")) and "--num" in told
        dlm(*command, "--num", "3", "--output", out, "--resume")
        assert [json.loads(line) for line in out.read_text().splitlines()] == rows
        assert "has all 2 lines already" in dlm(*command, "--num", "3", "--output", out, "--resume")[1]
    out.write_text(json.dumps(rows[0]) + "\n")
    assert "line 1 of --output has 3 texts, and --num is 4" in refusal(
        *command, "--num", "4", "--output", out, "--resume"
    )
    fill = ("infill", run, "--file", path, "--output", out)
    dlm(*fill, "--overwrite")
    out.write_text(out.read_text().splitlines(keepends=True)[0])
    told = dlm(*fill, "--num", "2", "--resume")[1]
    assert told.startswith("1 line of --output that is kept has fewer alternatives than the 2 of --num\n")


def test_nothing_is_written_where_no_record_can_be_used(run: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"text": 3, "prompt": 3}\n')
    for words in (("infill", run, "--file", path), ("sample", run, "--prompts", path)):
        assert "1 of 1 record could not be used" in refusal(*words, "--keep-going", "--output", out, code=1)
        assert not out.exists()


def test_a_record_whose_choice_has_no_room_is_left_out(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    texts = ("the [MASK]", f"{'a' * 20} [MASK] {'b' * 20}", "[MASK] sat")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = invoke("infill", run, "--file", path, "--choices", f"cat,{'d' * 12}", "--keep-going")
    assert found.exit_code == 1 and found.stdout.count("\n") == 2
    assert f"line 2: choice '{'d' * 12}' takes 12 tokens, and beside the text around it" in found.stderr


def test_a_model_that_is_called_nearly_so_is_named(run: Path) -> None:
    told = refusal("infill", f"{run}n", "a [MASK:2]")
    assert told.endswith(f"; there is {run}\n")
    assert "there is" not in refusal("infill", run.with_name("nothing-of-the-kind"), "a [MASK:2]").split("folder", 1)[1]


def test_what_only_looks_like_a_span_is_told(run: Path, tmp_path: Path) -> None:
    assert dlm("infill", run, "the [MASK:3] [mask:3]")[1].startswith("'[mask:3]' is no span and stays as it is; ")
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "the [MASK:3]"}\n{"text": "the [MASK:3] [MASK 2] [MASK"}\n')
    told = dlm("infill", run, "--file", path)[1]
    assert told.startswith("line 2: '[MASK 2]', '[MASK' are no spans and stay as they are; ") and told.count("\n") == 1
    path.write_text('{"text": "the [MASK:3] [mask]"}\n' * 5)
    assert dlm("infill", run, "--file", path)[1].splitlines()[3:] == ["2 other records have such words too"]


def test_a_single_text_is_not_resumed(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    assert "--resume is for a batch" in refusal("infill", run, "a [MASK:2]", "--output", out, "--resume")
    assert "--resume is for the lines of a file" in refusal("sample", run, "--output", out, "--resume")


def test_a_batch_goes_on_without_its_bad_records(run: Path, tmp_path: Path) -> None:
    good = ['{"text": "the [MASK:3] sat", "id": 1}', '{"text": "[MASK:2]", "id": 2}']
    bad = ["not JSON", '{"text": 7}', '{"text": "no span"}', f'{{"text": "[MASK:{CONTEXT + 1}]"}}', "[]"]
    path, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    path.write_text("\n".join([bad[0], good[0], *bad[1:4], "", good[1], bad[4]]), encoding="utf-8")
    assert "line 1: not JSON" in refusal("infill", run, "--file", path, "--output", output)
    assert not output.exists()
    found = invoke("infill", run, "--file", path, "--output", output, "--keep-going", "--num", "2")
    assert found.exit_code == 1 and found.stdout == ""
    told = found.stderr.splitlines()
    assert [line.partition(":")[0] for line in told[:-1]] == [f"line {number}" for number in (1, 3, 4, 5, 8)]
    assert told[-1] == "dlm: 5 of 7 records could not be used; the others are done"
    path.with_name("bad.jsonl").write_text("\n".join(bad), encoding="utf-8")
    none = refusal("infill", run, "--file", path.with_name("bad.jsonl"), "--keep-going", code=1)
    assert none.endswith("dlm: 5 of 5 records could not be used\n")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in rows] == [1, 2] and [len(row["alternatives"]) for row in rows] == [2, 2]
    # A record's noise follows from its own number: mending the others does not change what was written.
    mended = ['{"text": "[MASK:1]"}' if line in bad else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(mended))
    whole = [json.loads(line) for line in dlm("infill", run, "--file", path, "--num", "2")[0].splitlines()]
    assert [row["text"] for row in whole if "id" in row] == [row["text"] for row in rows]
    path.write_text("\n".join(bad))
    nothing = invoke("infill", run, "--file", path, "--keep-going")
    assert (nothing.exit_code, nothing.stdout) == (1, "") and "5 of 5 records" in nothing.stderr


def test_a_batch_that_is_stopped_keeps_what_is_done(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"text": "a [MASK:2]"}\n' * 5)
    whole = dlm("infill", run, "--file", path, "--batch-size", "2")[0].splitlines()
    calls = []

    def stops(*args: Any, real: Any = written, **keys: Any) -> Any:
        calls.append(output.read_text().count("\n"))  # what is on the disk before the batch
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **keys)

    monkeypatch.setattr("dlm.lm.writer.sample", stops)
    found = invoke("infill", run, "--file", path, "--batch-size", "2", "--output", output)
    assert (found.exit_code, calls) == (130, [0, 2, 4])
    assert found.stderr == (
        f"dlm: interrupted: {output} has the lines that are finished; for the others, give --resume, without "
        "--overwrite\n"
    )
    assert output.read_text().splitlines() == whole[:4]
    monkeypatch.undo()
    dlm("infill", run, "--file", path, "--batch-size", "2", "--output", output, "--resume")
    assert output.read_text().splitlines() == whole


# eval

BOUND = ["nats_per_token", "bits_per_token", "bits_per_byte", "perplexity_bound"]


def test_eval_for_a_machine(run: Path, text: Path) -> None:
    found = answer("eval", run, "--data", text)
    for name in BOUND:
        low, high = found[f"{name}_ci95"]
        assert low < found[name] < high
    assert found["bits_per_token"] == pytest.approx(found["nats_per_token"] / math.log(2))
    assert found["perplexity_bound"] == pytest.approx(math.exp(found["nats_per_token"]))
    size = len(text.read_bytes())  # a token a byte, and one for the end of the file
    assert (found["bytes"], found["tokens"], found["documents"]) == (size, size + 1, 1)
    assert found["bits_per_byte"] == pytest.approx(found["bits_per_token"] * found["tokens"] / found["bytes"])
    assert found["chain_rule"] is None and found["nats_per_token"] < math.log(257)


def test_eval_of_one_sequence_has_no_interval(run: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short")
    out, err = dlm("eval", run, "--data", tmp_path / "short.txt")
    assert [line.split()[-1] for line in out.splitlines()[1:5]] == ["n.a."] * 4
    assert "n.a. from the texts" in out and "the text is one sequence" in err
    found = json.loads(dlm("eval", run, "--data", tmp_path / "short.txt", "--json")[0])
    assert found["sampling_se"] is None and [found[f"{name}_ci95"] for name in BOUND] == [None] * 4
    assert found["monte_carlo_se"] > 0.0


def test_eval_of_few_sequences_says_that_its_intervals_are_too_narrow(run: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("few words " * 4)
    assert "intervals from 3 sequences are too narrow" in dlm("eval", run, "--data", tmp_path / "few.txt")[1]
    (tmp_path / "more.txt").write_text("more words " * 100)
    assert "too narrow" not in dlm("eval", run, "--data", tmp_path / "more.txt")[1]


def test_eval_of_the_runs_own_texts(run: Path, text: Path) -> None:
    validation, training = answer("eval", run), answer("eval", run, "--split", "train")
    assert validation == answer("eval", run, "--split", "validation")
    everything = len(text.read_text().splitlines())
    assert validation["documents"] + training["documents"] == everything and validation["documents"] > 0
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    during = [line["validation"] for line in logged if "validation" in line][-1]
    assert during["tokens"] == validation["tokens"]
    error = 4 * math.hypot(during["monte_carlo_se"], validation["monte_carlo_se"])
    assert during["nats_per_token"] == pytest.approx(validation["nats_per_token"], abs=error)


def test_eval_follows_a_text_that_has_moved(configuration: Path, text: Path, tmp_path: Path) -> None:
    there, moved = tmp_path / "there.txt", tmp_path / "moved.txt"
    there.write_bytes(text.read_bytes())
    folder, few = tmp_path / "my run", ["--draws", "4"]
    _, err = dlm("train", configuration, "--run-dir", folder, "--set", f"data.train.path={there}", *STEPS)
    assert err.splitlines()[-1] == f"done: dlm sample '{folder}'"
    before = answer("eval", folder, *few)
    there.rename(moved)
    assert f"there is no file {there}; --data FILE measures other text" in refusal("eval", folder)
    dlm("train", "--resume", "--run-dir", folder, "--set", f"data.train.path={moved}")
    for model in (folder, folder / "checkpoints/last", folder / "checkpoints/step-000002"):
        assert answer("eval", model, *few) == before


@pytest.mark.parametrize("words", [[], ["--split", "train"], ["--max-documents", "4"]])
def test_eval_refuses_a_text_of_the_run_that_has_changed(
    configuration: Path, text: Path, tmp_path: Path, words: list[str]
) -> None:
    """A cut file holds out other documents, some of which were trained on."""
    own = tmp_path / "own.txt"
    own.write_bytes(text.read_bytes())
    folder = tmp_path / "run"
    dlm("train", configuration, "--run-dir", folder, "--set", f"data.train.path={own}", *STEPS)
    answer("eval", folder, "--draws", "4", *words)
    own.write_text("\n".join(own.read_text().splitlines()[::2]))
    told = refusal("eval", folder, *words)
    assert f"{'train' if 'train' in words else 'validation'} text of {folder}" in told
    assert "has changed" in told and "--data" in told
    answer("eval", folder, "--data", own, "--draws", "4")


def test_eval_knows_a_format_by_its_name_or_is_told(run: Path, text: Path, tmp_path: Path) -> None:
    lines = [line for line in text.read_text().splitlines() if line]
    rows = "".join(json.dumps({"n": i, "text": line}) + "\n" for i, line in enumerate(lines)).encode()
    for name, content in (("a.ndjson", rows), ("a.jsonl.gz", gzip.compress(rows)), ("a.rows", rows)):
        (tmp_path / name).write_bytes(content)
    expected = answer("eval", run, "--data", tmp_path / "a.ndjson")
    assert expected["bytes"] == sum(len(line) for line in lines) and expected["documents"] == len(lines)
    assert answer("eval", run, "--data", tmp_path / "a.jsonl.gz") == expected
    assert answer("eval", run, "--data", tmp_path / "a.rows", "--format", "jsonl") == expected
    assert answer("eval", run, "--data", tmp_path / "a.rows", "--format", "text")["bytes"] == len(rows)
    assert "known: text (.txt), jsonl (.jsonl .ndjson)" in refusal("eval", run, "--data", tmp_path / "a.rows")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "a.txt", "--subset", "en"], "--subset: text has no subsets, got 'en'"),
        (["--data", "a.txt", "--format", "json"], "--format: there is no format 'json'; did you mean jsonl?"),
        (["--subset", "en"], "--subset is of other text than the run's own"),
        (["--format", "text"], "--format is of other text than the run's own"),
        (["--field", "body"], "--field is of other text than the run's own"),
    ],
)
def test_eval_refuses_what_its_text_does_not_have(run: Path, words: list[str], told: str) -> None:
    assert told in refusal("eval", run, *words)


def test_eval_in_batches_of_any_size(run: Path) -> None:
    found = [answer("eval", run, "--batch-size", size, "--draws", "4")["nats_per_token"] for size in ("1", "3", "64")]
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-5)


def test_eval_follows_its_seed_and_not_by_much(run: Path) -> None:
    one, same, other = (answer("eval", run, "--seed", seed) for seed in ("0", "0", "1"))
    assert one == same
    assert 0 < abs(one["nats_per_token"] - other["nats_per_token"]) < 5 * math.sqrt(2) * one["monte_carlo_se"]


def test_eval_of_the_first_documents(run: Path) -> None:
    assert answer("eval", run, "--max-documents", "2")["documents"] == 2
    assert answer("eval", run, "--max-documents", "999") == answer("eval", run)


def test_eval_by_the_chain_rule(run: Path) -> None:
    found = answer("eval", run, "--chain-rule", "--chain-rule-sequences", "3")["chain_rule"]
    assert set(found) == {
        "left_to_right_nats_per_token",
        "confidence_nats_per_token",
        "bound_nats_per_token",
        "sequences",
        "tokens",
    }
    assert found["sequences"] == 3 and 0 < found["tokens"] <= 3 * CONTEXT
    assert all(0 < value < 10 for name, value in found.items() if name.endswith("per_token"))


def test_eval_for_a_person(run: Path) -> None:
    found = answer("eval", run)
    out, err = dlm("eval", run, "--chain-rule", "--chain-rule-sequences", "1")
    told = ["any-order: 0 of 5 sequences", "chain rule: 0 of 1 sequence"]
    assert (
        err.splitlines() == told
        and f"{found['nats_per_token']:.4f}" in out
        and f"{found['perplexity_bound']:.4f}" in out
    )
    assert f"{found['tokens']:,} tokens" in out and "left to right" in out


# all


@pytest.mark.parametrize("command", ["train", "sample", "infill", "chat", "eval", "corrupt", "selftest"])
def test_help_shows_an_example_to_paste(command: str) -> None:
    """On one line of a terminal of usual width, and beginning as it must."""
    out, err = dlm(command, "--help")
    (place,) = [number for number, line in enumerate(out.splitlines()) if line.strip().startswith("Example:")]
    example, below = out.splitlines()[place : place + 2]
    assert f"Example:  dlm {command}" in example.strip() and not below.strip() and err == ""


@pytest.mark.parametrize("command", ["sample", "infill"])
def test_help_says_what_steps_are_where_there_are_no_masks(command: str) -> None:
    told = " ".join(dlm(command, "--help")[0].replace("│", " ").split())
    assert "uniform, hybrid" in told and "reverse chain" in told


def test_help_names_every_choice() -> None:
    from dlm.diffusion.noise import AnyNoise
    from dlm.diffusion.schedule import Schedule

    for command, union in (("sample", AnyOrder), ("corrupt", AnyNoise), ("corrupt", Schedule)):
        told = dlm(command, "--help")[0]
        assert [name for name in names(union) if name not in told] == []


def test_all_that_write_take_the_same_sampler() -> None:
    """What their help says of how they write is the same to the letter, and every field of it is an option."""
    panels = [dlm(command, "--help")[0].partition("How it writes")[2] for command in ("sample", "infill", "chat")]
    assert panels[0] == panels[1] == panels[2]
    asked = {f.name for choice in (*get_args(AnyBudget), TokenChoice) for f in fields(choice)} - {"name"}
    assert [name for name in asked | {"order"} if f"--{name.replace('_', '-')} " not in panels[0]] == []


def test_version() -> None:
    from importlib.metadata import version

    assert dlm("--version")[0] == f"dlm {version('dlm')}\n"
