"""`dlm bench frontier`: its table, its JSON, its picture and its refusals."""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from transformers import PreTrainedTokenizerBase

from dlm.config import Characters
from dlm.model.tokenizer import build_tokenizer
from tests.support.commands import answer, dlm, refusal
from tests.support.fixtures import MakeLM

QUICK = ("--num", "2", "--batch-sizes", "2", "--repeats", "1", "--length", "8")


@pytest.fixture(scope="module")
def folders(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A folder of each readings, and one of another tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    characters = build_tokenizer(Characters(), lambda: ["abcdef\n"])
    for name in ("masked", "autoregressive", "joint", "blocks"):
        make_lm(byte_tokenizer, 16, readings={"name": name}).save_pretrained(folder / name)
    make_lm(characters, 12, readings={"name": "autoregressive"}).save_pretrained(folder / "letters")
    return {path.name: path for path in folder.iterdir()}


def rows(table: str) -> list[Sequence[str]]:
    """The cells of a table, up to the notes below it."""
    head, _, *lines = table.split("\n\n")[0].splitlines()
    starts = [head.index(name) for name in head.split()]
    assert starts[0] == 0
    return [line.replace(" ± ", "±").split() for line in (head, *lines)]


def test_a_table_with_the_judge_below_it(folders: dict[str, Path]) -> None:
    table, told = dlm("bench", "frontier", folders["autoregressive"], folders["masked"], *QUICK)
    head, *lines = rows(table)
    assert head == [
        *("model", "sampler", "tokens/s", "calls", "tokens/call", "nats/token", "entropy", "repeated", "distinct")
    ]
    assert [line[-8] for line in lines] == [
        *("causal", "transformers", "steps-16", "steps-32", "steps-64", "one", "confidence", "confidence-32")
    ]
    assert lines[0][0] == str(folders["autoregressive"]) and lines[2][0] == str(folders["masked"])
    assert all("±" in line[-4] and "±" in line[-3] for line in lines)  # nats, and the entropy beside them
    assert "2 texts of 8 tokens, temperature 1, batches of 2, seed 0; tokens/s is that of 1 pass in turns" in table
    assert f"judge: {folders['autoregressive']}, causal reading, exactly" in table
    assert "the judge is one of these models" in table and "≤" not in table
    passes = told.splitlines()
    assert [line.split(": ")[-1] for line in passes] == [f"{number} of 16 passes" for number in range(16)]
    assert passes[0] == passes[8].replace("8 of", "0 of") == f"{folders['autoregressive']} causal: 0 of 16 passes"


def test_temperatures_and_batch_sizes_are_columns_where_they_vary(folders: dict[str, Path]) -> None:
    words = ("--samplers", "causal", "--temperatures", "0.7, 1", "--batch-sizes", "1,2", "--num", "2", "--repeats", "1")
    head, *lines = rows(dlm("bench", "frontier", folders["joint"], *words, "--length", "4")[0])
    assert head[2:4] == ["temp.", "batch"]
    assert [tuple(line[-9:-7]) for line in lines] == [("0.7", "1"), ("0.7", "2"), ("1", "1"), ("1", "2")]


def test_a_bound_says_so(folders: dict[str, Path]) -> None:
    table, _ = dlm("bench", "frontier", folders["masked"], "--judge", folders["masked"], *QUICK, "--samplers", "one")
    assert "≤ nats/token" in table and "any-order reading, an upper bound alone" in table


def test_another_tokenizer_says_so(folders: dict[str, Path]) -> None:
    words = ("bench", "frontier", folders["joint"], "--judge", folders["letters"], *QUICK, "--samplers", "causal")
    table, _ = dlm(*words)
    assert "nats/byte" in rows(table)[0] and "decoded and encoded anew" in table
    assert "characters that the judge does not know" in table and "one of these models" not in table
    same, _ = dlm(*words[:3], *words[5:])
    assert "nats/byte" not in rows(same)[0] and "anew" not in same


def test_json_says_what_the_table_says(folders: dict[str, Path]) -> None:
    found = answer("bench", "frontier", folders["joint"], *QUICK, "--samplers", "causal,verified-2@0.5,transformers")
    assert [point["sampler"] for point in found["points"]] == ["causal", "verified-2@0.5", "transformers"]
    first, _, last = found["points"]
    assert first["calls"] == last["calls"] == 8 and first["tokens_per_call"] == 1.0
    assert (found["judge"], found["judge_exact"], found["num"], found["length"]) == (str(folders["joint"]), True, 2, 8)


def test_a_picture_never_replaces_a_file_unasked(folders: dict[str, Path], tmp_path: Path) -> None:
    picture = tmp_path / "a picture.svg"
    words = ("bench", "frontier", folders["joint"], *QUICK, "--samplers", "causal", "--output", picture)
    dlm(*words)
    tree = ElementTree.parse(picture)
    assert "causal" in "".join(tree.getroot().itertext())
    picture.write_text("mine")
    assert "exists already" in refusal(*words) and picture.read_text() == "mine"
    dlm(*words, "--overwrite")
    assert picture.read_text().startswith("<svg")


def test_a_model_is_the_same_by_every_name(folders: dict[str, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folders["joint"])
    assert "is given twice" in refusal("bench", "frontier", folders["joint"], link)
    words = ("bench", "frontier", folders["joint"], "--judge", link, *QUICK, "--samplers", "causal")
    assert answer(*words)["judge_is_compared"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere/at/all",), "no model at nowhere/at/all"),
        (("{joint}", "--judge", "nowhere/at/all"), "no model at nowhere/at/all"),
        (("{joint}", "{joint}"), "is given twice"),
        (("{joint}", "--samplers", "fast"), "there is no sampler 'fast'; valid: steps-N"),
        (("{joint}", "--samplers", ""), "--samplers takes one or more"),
        (("{joint}", "--samplers", "causal,,one"), "--samplers takes one or more"),
        (("{joint}", "--samplers", "causal,causal"), "causal is given twice"),
        (("{joint}", "--samplers", "verified-0"), "called causal"),
        (("{masked}", "--samplers", "causal"), "no sampler of --samplers suits"),
        (("{blocks}", "--samplers", "one"), "no sampler of --samplers suits"),
        (("{masked}",), "none of these models reads from left to right"),
        (("{joint}", "--temperatures", "warm"), "--temperatures takes finite numbers with commas"),
        (("{joint}", "--temperatures", "-1"), "--temperatures takes finite numbers from 0 on, got -1.0"),
        (("{joint}", "--temperatures", "nan"), "--temperatures takes finite numbers"),
        (("{joint}", "--temperatures", "inf"), "--temperatures takes finite numbers"),
        (("{joint}", "--temperatures", "1,1.0"), "1.0 is given twice"),
        (("{joint}", "--samplers", "verified-2,verified-2@1.0"), "verified-2 is given twice"),
        (("{joint}", "--batch-sizes", "0"), "--batch-sizes takes whole numbers from 1 on, got 0"),
        (("{joint}", "--batch-sizes", "1.5"), "--batch-sizes takes whole numbers"),
        (("{joint}", "--batch-sizes", "1,32"), "32 is more than the 16 texts of --num"),
        (("{joint}", "--length", "17"), "room for 16 tokens, got 17"),
        (("{joint}", "--output", "plot.png"), "--output writes .svg, got plot.png"),
        (("{joint}", "--output", "nowhere/plot.svg"), "there is no folder nowhere"),
        (("{joint}", "--dtype", "fp8"), "fp8"),
        (("{joint}", "--device", "abacus"), "--device abacus"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], said: str, folders: dict[str, Path]) -> None:
    named = [word.format_map({name: str(path) for name, path in folders.items()}) for word in words]
    line = refusal("bench", "frontier", *named)
    assert said in line and line.count("\n") == 1


def test_the_fastest_number_of_drafts_is_told_and_writes_what_it_writes_when_given(folders: dict[str, Path]) -> None:
    words = ("sample", folders["joint"], "--length", "8", "--prompt", "a")
    found = answer(*words, "--drafts", "auto")
    assert found["samples"] == answer(*words, "--drafts", found["drafts"])["samples"]
    out, told = dlm(*words, "--drafts", "auto")
    number = re.match(r"--drafts (\d) is the fastest here \(0: .*, 4: .* tokens/s\)\n", told)
    assert number and out == dlm(*words, "--drafts", number[1])[0]


@pytest.mark.parametrize(
    ("model", "drafts", "why"),
    [
        ("joint", "two", "--drafts must be a whole number from 0 on, or auto, got 'two'"),
        ("joint", "-1", "--drafts must be a whole number from 0 on, or auto, got '-1'"),
        ("joint", "33", "--drafts must be from 0 to 32, got 33: a call of K reads (K + 1)(K + 2) tokens"),
        ("masked", "auto", "for a model that was trained to predict next tokens too"),
        ("autoregressive", "auto", "masks draft, and this model, autoregressive, was not trained to fill them"),
    ],
)
def test_drafts_that_cannot_be_are_refused(folders: dict[str, Path], model: str, drafts: str, why: str) -> None:
    assert why in refusal("sample", folders[model], "--length", "4", "--drafts", drafts)
