"""`dlm quality`: texts of files and of models, their figures beside those of real text, and what it refuses."""

import json
import math
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from dlm.evaluate.figures import parses_python
from dlm.evaluate.quality import evaluate_quality, texts_of_model
from dlm.evaluate.samples import ReadingJudge, unigram_entropy
from dlm.lm import DiffusionLM
from tests.support.commands import answer, dlm, refusal
from tests.support.fixtures import MakeLM


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> Path:
    """Texts of every kind, a masked model and one with a causal reading."""
    folder = tmp_path_factory.mktemp("quality")
    make_lm(byte_tokenizer, 16).save_pretrained(folder / "masked")
    make_lm(byte_tokenizer, 16, readings={"name": "joint"}).save_pretrained(folder / "joint")
    (folder / "docs").mkdir()
    (folder / "docs/a.txt").write_text("x = 1")
    (folder / "docs/b.txt").write_text("def f(:")
    (folder / "real.txt").write_text("x = 1\ny = 2\nfor i in range(9):\n    print(i)\n" * 30)
    (folder / "rows.jsonl").write_text('{"text": "x = 1"}\n{"text": "def f(:"}\n')
    (folder / "bodies.jsonl").write_text('{"body": "x = 1"}\n{"body": "def f(:"}\n')
    (folder / "empty.jsonl").write_text("\n")
    (folder / "none.json").write_text('{"samples": []}\n')
    (folder / "mixed.jsonl").write_text('{"samples": [{"continuation": "a"}]}\n{"text": "b"}\n')
    (folder / "number.json").write_text('{"samples": [{"continuation": 3}]}\n')
    (folder / "odd.bin").write_text("abc")
    return folder


def value(found: dict[str, dict[str, float]], name: str) -> float:
    return found[name]["value"]


def test_texts_are_the_same_by_whatever_file_they_come(shelf: Path) -> None:
    by_folder = answer("quality", shelf / "docs", "--parses", "python")
    assert by_folder["texts"] == 2 and value(by_folder, "parses") == 0.5 and value(by_folder, "characters") == 6.0
    assert by_folder["judge"] is None and by_folder["token"] == "word" and "nats_per_token" not in by_folder
    assert answer("quality", shelf / "rows.jsonl", "--parses", "python") == by_folder
    assert answer("quality", shelf / "bodies.jsonl", "--field", "body", "--parses", "python") == by_folder


def test_samples_of_a_file_are_those_that_the_model_writes_on_the_spot(shelf: Path) -> None:
    options = ("--num", 6, "--length", 5, "--seed", 3, "--dtype", "fp32")
    dlm("sample", shelf / "masked", *options, "--json", "--output", shelf / "samples.json", "--overwrite")
    judge = ("--judge", shelf / "joint", "--json")
    of_file, err = dlm("quality", shelf / "samples.json", *judge, "--seed", 3)
    on_the_spot, told = dlm("quality", shelf / "masked", *judge, *options)
    one, other = json.loads(of_file), json.loads(on_the_spot)
    assert err == "" and told == "writing 6 texts\n" and one["texts"] == 6
    assert {name: one[name] for name in ("entropy", "characters")} == {
        name: other[name] for name in ("entropy", "characters")
    }
    texts = [each["continuation"] for each in json.loads((shelf / "samples.json").read_text())["samples"]]
    entropies = [unigram_entropy(text.encode()) for text in texts]
    assert value(one, "entropy") == pytest.approx(sum(entropies) / 6)
    assert value(one, "perplexity") == pytest.approx(math.exp(value(one, "nats_per_token")))
    assert one["judge_exact"] is True and one["judge_reading"] == "causal" and one["token"] == "judge"


def test_only_what_was_written_of_prompts_counts(shelf: Path) -> None:
    """The prompt is a person's, and would make any model look good."""
    (shelf / "prompts.jsonl").write_text('{"prompt": "x = "}\n{"prompt": "y"}\n')
    words = ("--length", 5, "--num", 2, "--output", shelf / "done.jsonl", "--overwrite")
    dlm("sample", shelf / "masked", "--prompts", shelf / "prompts.jsonl", *words)
    found = answer("quality", shelf / "done.jsonl")
    lines = [json.loads(line) for line in (shelf / "done.jsonl").read_text().splitlines()]
    written = [each["continuation"] for line in lines for each in line["samples"]]
    assert found["texts"] == 4 and value(found, "characters") == sum(map(len, written)) / 4


def test_a_bound_is_marked_and_the_entropy_stands_right_below(shelf: Path) -> None:
    out, _ = dlm("quality", shelf / "docs", "--judge", shelf / "masked")
    names = [line.split()[0] for line in out.splitlines()[1:5]]
    assert names == ["nats/token", "nats/character", "perplexity", "entropy"]
    assert out.count("\u2264") == 3 and "an upper bound" in out
    out, _ = dlm("quality", shelf / "docs", "--judge", shelf / "joint")
    assert "\u2264" not in out and "causal reading, exact" in out


def test_real_text_stands_beside(shelf: Path) -> None:
    found, err = dlm("quality", shelf / "docs", "--reference", shelf / "real.txt", "--json")
    plain = json.loads(found)
    assert err.startswith("no MAUVE: it compares states of a model") and "mauve" not in plain
    assert plain["reference"]["texts"] == 2 and value(plain["reference"], "characters") == 6.0
    out, err = dlm("quality", shelf / "docs", "--reference", shelf / "real.txt", "--judge", shelf / "joint")
    assert out.splitlines()[0].split() == ["texts", "(2)", "reference", "(2)"] and "no MAUVE" in err


def test_real_text_is_near_itself_by_mauve_and_memorised(shelf: Path) -> None:
    pytest.importorskip("mauve", reason="the extra quality is not installed")
    pytest.importorskip("pydivsufsort", reason="the extra quality is not installed")
    lines = (shelf / "real.txt").read_text()
    parts = [json.dumps({"text": lines[at : at + 12]}) for at in range(0, 600, 12)]
    (shelf / "parts.jsonl").write_text("\n".join(parts))
    words = ("--reference", shelf / "real.txt", "--memorised", shelf / "real.txt", "--least", 12, "--json")
    out, err = dlm("quality", shelf / "parts.jsonl", "--judge", shelf / "joint", *words)
    found = json.loads(out)
    assert value(found, "mauve") > 0.8 and found["features"] == str(shelf / "joint")
    assert err.startswith("MAUVE of 50 texts says little")
    assert value(found, "memorised_characters") == 12.0 == found["longest_memorised"]
    assert value(found, "memorised_share") == 1.0
    other, _ = dlm("quality", shelf / "masked", "--num", 50, "--length", 12, "--judge", shelf / "joint", *words)
    assert value(json.loads(other), "mauve") < 0.5 and value(json.loads(other), "memorised_share") == 0.0


def test_one_text_has_no_interval(shelf: Path) -> None:
    out, err = dlm("quality", shelf / "real.txt")
    assert (
        " to " not in out.partition("\n\n")[0] and err == "one text alone has no interval: it says nothing of others\n"
    )


def test_nothing_is_overwritten_unasked(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    words = ("quality", shelf / "docs", "--output", tmp_path / "mine.txt")
    assert "exists already" in refusal(*words) and (tmp_path / "mine.txt").read_text() == "mine"
    out, _ = dlm(*words, "--overwrite")
    assert out == "" and (tmp_path / "mine.txt").read_text().startswith(" " * 16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("@none.txt", "there is no file"),
        ("@nothing", "no model at"),
        ("@empty.jsonl", "FILE"),
        ("@none.json", "holds no sample"),
        ("@mixed.jsonl", "line 2 is no line of dlm sample"),
        ("@number.json", "line 1 is no line of dlm sample: that is an object with samples"),
        ("@odd.bin", "is in no format that is known by its name"),
        ("@bodies.jsonl", "--field: "),
        ("@docs --num 3", "--num says how a model writes"),
        ("@docs --batch-size 3", "--batch-size says how a model writes"),
        ("@masked --length 99", "the length must be from 1 to 16 tokens here, got 99"),
        ("@docs --judge @docs", "is neither a run folder nor a checkpoint"),
        ("@docs --features @joint", "--features is for MAUVE"),
        ("@docs --parses perl", "--parses knows python, got 'perl'"),
        ("@docs --least 3", "--least says what counts as memorised"),
        ("@docs --reference @none.txt", "--reference: there is no file"),
        ("@docs --memorised @none.txt", "--memorised: there is no file"),
        ("@docs --reference -", "--reference - would be stdin"),
        ("@real.txt --output @real.txt --overwrite", "is what FILE reads"),
        ("@docs --device cuda:99", "--device cuda:99 cannot be used here"),
        ("@docs --judge @masked --dtype fp8", "--dtype is auto, bf16, fp16, fp32, got fp8"),
    ],
)
def test_what_is_refused_in_one_line(words: str, message: str, shelf: Path) -> None:
    if "--memorised" in words:
        pytest.importorskip("pydivsufsort", reason="the extra quality is not installed")
    err = refusal("quality", *(word.replace("@", f"{shelf}/") for word in words.split()))
    assert message in err and err.count("\n") == 1, err


def test_a_missing_package_is_named(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("mauve", "pydivsufsort"):
        monkeypatch.setitem(sys.modules, name, None)
    words = ("quality", shelf / "docs", "--reference", shelf / "real.txt")
    assert "pip install mauve-text" in refusal(*words, "--features", shelf / "joint")
    assert "pip install pydivsufsort" in refusal("quality", shelf / "docs", "--memorised", shelf / "real.txt")
    _, err = dlm(*words, "--judge", shelf / "joint")
    assert err.startswith("no MAUVE: MAUVE needs the package mauve-text")


def test_the_figures_are_those_of_any_batch(shelf: Path, tiny_lm: DiffusionLM) -> None:
    found = [
        json.loads(dlm("quality", shelf / "masked", "--num", 5, "--batch-size", size, "--json")[0]) for size in (1, 5)
    ]
    assert found[0] == found[1]


def test_python_gives_what_the_command_gives(shelf: Path) -> None:
    real = [(shelf / "real.txt").read_text()]
    lm = DiffusionLM.from_pretrained(shelf / "masked", dtype="fp32")
    own = texts_of_model(lm, num=3, length=6, batch_size=2, seed=4)
    judge = ReadingJudge(DiffusionLM.from_pretrained(shelf / "joint", dtype="fp32"), seed=4)
    report = evaluate_quality(own, judge=judge, reference=real, parser=parses_python, seed=4)
    words = ("--judge", shelf / "joint", "--reference", shelf / "real.txt", "--parses", "python", "--json")
    out, err = dlm("quality", shelf / "masked", "--num", 3, "--length", 6, "--seed", 4, *words)
    found = json.loads(out)
    assert found.pop("judge") == str(shelf / "joint") and found.pop("features") is None
    assert found == json.loads(json.dumps(report.to_dict()))
    assert err.splitlines() == ["writing 3 texts", *report.notes] and len(report.notes) == 1


def test_records_without_text_are_told(shelf: Path) -> None:
    """An empty text parses, so that the share would not be what it seems to be."""
    (shelf / "gaps.jsonl").write_text('{"text": ""}\n{"text": "x = 1"}\n{"text": null}\n{"text": "x ="}\n')
    out, err = dlm("quality", shelf / "gaps.jsonl", "--parses", "python", "--json")
    assert value(json.loads(out), "parses") == 0.5
    assert err == "FILE: 2 rows without text are left out: no figure counts them\n"
    (shelf / "gap.jsonl").write_text('{"text": ""}\n{"text": "x = 1"}\n{"text": "x"}\n')
    _, err = dlm("quality", shelf / "docs", "--reference", shelf / "gap.jsonl")
    assert err.splitlines()[0] == "--reference: 1 row without text is left out: no figure counts them"
