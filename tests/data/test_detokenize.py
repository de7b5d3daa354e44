"""Corpora that were published in tokens, as people write them: cases by hand."""

from pathlib import Path

import pytest
from datasets import Dataset

from dlm.config import Data, Source
from dlm.data.detokenize import DETOKENIZERS, detokenized
from dlm.data.documents import Pairs, Plain
from dlm.data.reading import read_splits
from dlm.errors import ConfigError
from tests.support.fixtures import Refused

CASES = {
    "ptb": [
        ("the company 's profit was $ N million", "the company's profit was $1 million"),
        ("they do n't sell N N \\/ N shares", "they don't sell 1 1 / 1 shares"),
        ("the traders ' <unk> # N a share", "the traders' ? #1 a share"),
        ("one \n two", "one\ntwo"),
        ("N is not a number and NN neither", "N is not a number and NN neither"),
    ],
    "wikitext": [
        (" = A Title = \n", " = A Title =\n"),
        (" = = A Part = = \n Text \n", " == A Part ==\nText\n"),
        ("= = = A small part = = =", "=== A small part ==="),
        ("1 @,@ 000 @-@ year at 3 @.@ 5 ° C", "1,000-year at 3.5°C"),
        ('he ( a man ) said : " Yes , sir . " ; no !', 'he (a man) said: "Yes, sir."; no !'),
        ("Smith 's and the Jones ' [ sic ] { x }", "Smith's and the Jones' [sic] {x}"),
        ("a N b", "a 1 b"),
        ("nothing to do, here.", "nothing to do, here."),
    ],
    "lm1b": [
        ('He said : " It \'s fine , yes ? " ', 'He said: "It\'s fine, yes?" '),
        ("The bank paid $ 5 and £ 6 ( net ) [ sic ] .", "The bank paid $5 and £6 (net) [sic] ."),
        ("See http : / / a.com / b and https : / / c.com", "See http://a.com/b and https://c.com"),
        ("An end . And another .", "An end. And another."),
        ("An end !", "An end!"),
        ("Yes . No", "Yes . No"),  # a first word, which no blank stands before
        ("the ' best ' [ of all ]", "the 'best' [of all]"),
    ],
    "lambada": [
        (" \n“Yes,” he said.\n\nNo. \n ", '\n"Yes," he said.\n\nNo.'),
        ("", "\n"),
    ],
    "agnews": [
        ("the nation #39;s bears\\claw back", "the nation's bears claw back"),
        ("&lt;b&gt;AT amp;T&lt;/b&gt; &amp; quot;co quot;", '<b>AT &T</b> & "co "'),
        ("they don #39;t", "they don't"),
        ("a #39;word#39;", "a 'word'"),
    ],
    "scientific": [
        (
            "we show , as @xcite ( in fig . 1 ) , that x / y = @xmath0 .",
            "we show, as @xcite (in fig. 1), that x/y = @xmath0 .",
        ),
    ],
}


@pytest.mark.parametrize("name", DETOKENIZERS)
def test_what_tokens_did_is_undone(name: str) -> None:
    for text, written in CASES[name]:
        assert detokenized(text, DETOKENIZERS[name].rules) == written


@pytest.mark.parametrize("name", sorted(DETOKENIZERS.keys() - {"lm1b"}))
def test_it_is_undone_once(name: str) -> None:
    """But for LAMBADA's first line, and for the One Billion Word Benchmark, where a quote looks like a clitic."""
    for _, written in CASES[name]:
        assert detokenized(written, DETOKENIZERS[name].rules).strip() == written.strip()


def test_documents_keep_their_number_and_their_own_counts(refused: Refused) -> None:
    texts = ["the company 's N \\/ N", " a  b\n", ""]
    documents = Plain(Dataset.from_dict({"text": texts}))
    written = documents.detokenized("ptb")
    assert [*written.texts()] == ["the company's 1 / N", " a  b\n", ""]
    assert documents.sizes().tolist() == [21, 6, 0] and documents.words().tolist() == [6, 4, 1]
    assert [*documents.texts()] == texts
    pairs = Pairs.of(
        Dataset.from_dict({"q": ["a"], "a": ["b"]}), Source("jsonl", "x", prompt=("q",), response="a"), "data.train"
    )
    with refused(ConfigError, "--detokenize is of plain texts, and these have prompts"):
        pairs.detokenized("ptb")


def test_a_run_reads_its_text_as_people_write_it(tmp_path: Path, refused: Refused) -> None:
    """The training and the validation text; and what could not be undone is refused."""
    (tmp_path / "train.txt").write_text("the king 's\nthey do n't\n")
    (tmp_path / "valid.txt").write_text("$ N million\n")
    train, valid = (Source("text", str(tmp_path / f"{name}.txt"), documents="line") for name in ("train", "valid"))
    splits = read_splits(Data(train=train, validation=valid, detokenize="ptb"))
    assert [*splits.train.texts()] == ["the king's", "they don't"]
    assert [*splits.validation.texts()] == ["$1 million"]
    with refused(ConfigError, "data.detokenize", "'bnc'", "lm1b"):
        read_splits(Data(train=train, detokenize="bnc"))
    with pytest.raises(ValueError, match="detokenize: a stream is learned as it is"):
        Data(train=train, streaming=True, detokenize="ptb")
    pairs = Source("jsonl", "x.jsonl", prompt="p", response="r")
    with pytest.raises(ValueError, match="detokenize: it is for plain text"):
        Data(train=pairs, packing="pad", detokenize="ptb")
