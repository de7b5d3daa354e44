"""`dlm bench infill`, and `dlm infill` of a model that fills in the middle."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dlm.bench import infilling
from dlm.bench.infilling import _measure
from dlm.config import Bytes
from dlm.lm import DiffusionLM
from dlm.model.sentinels import add_sentinels
from dlm.model.tokenizer import build_tokenizer
from tests.support import commands
from tests.support.commands import answer, dlm, refusal
from tests.support.fixtures import MakeLM

QUICK = ("--num", "3", "--spans", "2,words", "--holes", "1", "--draws", "2")


@pytest.fixture(scope="module")
def shelf(make_lm: MakeLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked model, one that fills in the middle, and a text."""
    folder = tmp_path_factory.mktemp("middle")
    make_lm(build_tokenizer(Bytes(), lambda: ()), 32).save_pretrained(folder / "masked")
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    sentinels = add_sentinels(tokenizer, "psm")
    lm = make_lm(tokenizer, 32, readings={"name": "autoregressive"})
    DiffusionLM(lm.model, tokenizer, sidecar=replace(lm.sidecar, sentinels=sentinels)).save_pretrained(
        folder / "middle"
    )
    (folder / "text.txt").write_text("some words of a text, again and again, " * 20)
    (folder / "short.txt").write_text("too short")
    return folder


def in_the_middle(shelf: Path) -> tuple[object, ...]:
    """The quick benchmark of the model that fills in the middle."""
    return ("bench", "infill", shelf / "middle", "--data", shelf / "text.txt", *QUICK)


def test_a_table_for_each_kind(shelf: Path) -> None:
    words = (
        "bench",
        "infill",
        shelf / "masked",
        shelf / "middle",
        "--data",
        shelf / "text.txt",
        *QUICK,
        "--max-length",
        "4",
    )
    table, told = dlm(*words, "--methods", "diffusion,fim,left")
    heads = [line for line in table.splitlines() if line.endswith("known length")]
    assert heads == [f"{kind}, {length} length" for kind in ("2 tokens", "words") for length in ("known", "unknown")]
    assert [table.count(f" {name} ") for name in ("diffusion", "fim", "left")] == [4 + 1, 4, 4]
    assert "3 passages of each kind, temperature 1, seed 0" in table and "≤" in table
    passes = told.splitlines()
    assert [line.split(": ")[-1] for line in passes] == [f"{number} of 12 passes" for number in range(12)]
    assert passes[0] == f"2 tokens, known length: {shelf / 'masked'} diffusion: 0 of 12 passes"


def test_json_has_every_figure_and_is_the_same_again(shelf: Path) -> None:
    words = (*in_the_middle(shelf), "--lengths", "known", "--candidates", "2", "--json")
    one, again = answer(*words), answer(*words)
    assert [(point["kind"], point["method"]) for point in one["points"]] == [
        (kind, method) for kind in ("2 tokens", "words") for method in ("fim", "fim+rerank", "left", "left+rerank")
    ]
    for tree in (one, again):
        for point in tree["points"]:
            del point["milliseconds"]
    assert one == again and one["finished"] and one["contexts"] == {str(shelf / "middle"): 32}
    assert one["points"][0]["exact_match"]["difference_interval"] == [0.0, 0.0]


def test_what_was_done_before_an_interrupt_is_written(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[None] = []

    def measure(*args: object, **kwargs: object) -> object:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(None)
        return _measure(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(infilling, "_measure", measure)
    words = (*in_the_middle(shelf), "--methods", "fim", "--max-length", "4", "--json")
    found = commands.invoke(*map(str, words))
    tree = json.loads(found.stdout)
    assert found.exit_code == 130 and "interrupted" in found.stderr
    assert not tree["finished"] and [point["known"] for point in tree["points"]] == [True, False]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("masked", "masked"), "MODEL: {0}/masked is given twice"),
        (("masked", "--spans", "4,x"), "--spans takes whole numbers from 1 on, or words or lines"),
        (("masked", "--spans", "4,4"), "--spans: 4 is given twice"),
        (("masked", "--holes", "0"), "--holes takes whole numbers from 1 on, with commas between them, got '0'"),
        (("masked", "--holes", "1,1"), "--holes: 1 is given twice"),
        (("masked", "--lengths", "some"), "--lengths is known, unknown, or both with a comma between them, got 'some'"),
        (("masked", "--draws", "3"), "--draws must be even, got 3"),
        (
            ("masked", "--methods", "best"),
            "--methods: there is no method 'best'; valid: diffusion, diffusion+rerank, fim",
        ),
        (("masked", "--methods", "fim"), "--methods: fim suits none of these models: leave it out"),
        (("masked", "middle", "--methods", "fim"), "{0}/masked fills no holes by any of these methods"),
        (("middle", "--methods", "fim+rerank", "--temperature", "0"), "which are all the same at temperature 0"),
        (("masked", "--lengths", "known", "--max-length", "5"), "--max-length is for spans of unknown length"),
        (("masked", "--lengths", "known", "--length-top-p", "1"), "--length-top-p is for spans of unknown length"),
        (("middle", "--length-top-p", "1"), "--length-top-p is for a search of lengths, and none of these methods"),
        (("middle", "--reread"), "--reread is for a search of lengths, and none of these methods"),
        (("masked", "--length-top-p", "0"), "--length-top-p must be above 0 and at most 1, got 0"),
        (("masked", "--lengths", "known", "--no-reread"), "--reread and --no-reread are for spans of unknown length"),
        (("masked", "--methods", "diffusion", "--candidates", "4"), "--candidates is for methods with +rerank"),
        (("masked", "--lengths", "known", "--chain-rule", "--draws", "4"), "--draws is for bounds"),
        (("masked", "--lengths", "unknown", "--spans", "64", "--max-length", "9"), "none of these spans fit"),
        (("masked", "--lengths", "unknown", "--spans", "9", "--max-length", "8"), "raise --max-length"),
        (
            ("masked", "--spans", "64", "--holes", "3"),
            "none of these spans fit: those of a passage take at most 16 tokens",
        ),
        (("masked", "--data", "short.txt"), "it needs a document of 26 tokens"),
    ],
)
def test_what_a_user_may_get_wrong_is_one_line(words: tuple[str, ...], told: str, shelf: Path) -> None:
    here = [str(shelf / word) if (shelf / word).exists() else word for word in words]
    data = () if "--data" in here else ("--data", str(shelf / "text.txt"))
    assert told.format(shelf) in refusal("bench", "infill", *here, *data)


def test_a_share_of_the_lengths_is_filled(shelf: Path) -> None:
    words = "bench", "infill", shelf / "masked", "--data", shelf / "text.txt", "--lengths", "unknown", "--num", "3"
    few, all_ = (
        answer(*words, "--spans", "4", "--holes", "1", "--draws", "2", "--length-top-p", top_p)
        for top_p in ("0.01", "1")
    )
    assert (few["length_top_p"], all_["length_top_p"]) == (0.01, 1.0)
    assert few["points"][0]["chrf"] != all_["points"][0]["chrf"]
    told = dlm(*words, "--spans", "4", "--holes", "1", "--draws", "2")[0]
    assert "diffusion fills the likeliest lengths that together have the probability 0.8\n" in told


def test_a_model_without_a_text_of_its_own_needs_one(shelf: Path) -> None:
    assert "data.train" in refusal("bench", "infill", shelf / "masked")  # it was made from a file that is not there


def test_infill_says_that_holes_are_filled_from_left_to_right(shelf: Path) -> None:
    text, told = dlm("infill", shelf / "middle", "a [MASK:2] b [MASK] c", "--num", "2")
    assert told.startswith("this model fills in the middle: one span after the other, from left to right\n")
    assert all(part.startswith("a ") and part.rstrip("\n").endswith(" c") for part in text.split("\n---\n"))
    found = json.loads(dlm("infill", shelf / "middle", "a [MASK:2] b", "--json")[0])
    assert found["lengths"] == [2] and found["log_likelihood"] == found["log_joint"] < 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--effort", "4"), "--effort is for a search of lengths, and this model"),
        (("--length-prior", "uniform"), "--length-prior is for a search of lengths, and this model"),
        (("--no-reread",), "--no-reread is for a search of lengths, and this model"),
        (("--length-top-p", "1", "--reread"), "--length-top-p and --reread are for a search of lengths"),
        (("--order", "confidence"), "writes from left to right alone"),
        (("--export", "film.html"), "--watch and --export show masks in their places"),
        (("--watch",), "--watch and --export show masks in their places"),
    ],
)
def test_flags_of_masks_are_refused(words: tuple[str, ...], told: str, shelf: Path, tmp_path: Path) -> None:
    here = [str(tmp_path / word) if word.endswith(".html") else word for word in words]
    assert told in refusal("infill", shelf / "middle", "a [MASK:2] b", *here)
    assert not (tmp_path / "film.html").exists()


def test_a_batch_names_the_hole_that_does_not_fit(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "batch.jsonl").write_text('{"text": "a [MASK:2] b"}\n{"text": "a [MASK:29] b"}\n')
    told = refusal("infill", shelf / "middle", "--file", tmp_path / "batch.jsonl")
    assert "line 2" in told and "room for 28" in told
