"""Prompts and responses: a prompt is seen and never learned, the bound is the responses' own, and texts end."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from dlm.config import Config, Source
from dlm.data.corpus import corpus
from dlm.data.reading import read, read_splits
from dlm.data.run_data import read_run_data
from dlm.diffusion.unmask import Confidence, FixedSteps
from dlm.errors import ConfigError, DataError
from dlm.evaluate.likelihood import evaluate_likelihood
from dlm.lm import DiffusionLM, Sampler
from dlm.model.text import encode, encode_chat
from dlm.settings import parse_config
from dlm.train.metrics import RunFacts, Silent
from tests.support.commands import refusal
from tests.support.fixtures import MakeLM, Refused
from tests.support.networks import ask
from tests.support.tiny_models import TINY
from tests.support.tiny_runs import cut_after, resume, start, train, weights

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def repetitions(count: int) -> list[dict[str, Any]]:
    """`c>` is answered by one to six c's, all as likely."""
    draw = random.Random(0)
    letters = [draw.choice("abcdefgh") for _ in range(count)]
    return [{"q": f"{letter}>", "a": letter * draw.randint(1, 6), "id": i} for i, letter in enumerate(letters)]


def describe(path: Path, *, length: int = 26, **changes: Any) -> Config:
    tree: dict[str, Any] = {
        "data": {
            "train": {"format": "jsonl", "path": str(path), "prompt": "q", "response": "a"},
            "length": length,
            "packing": "pad",
        },
        "model": {"sizes": TINY},
        "objective": {"loss": "elbo", "levels": "even"},
        "optim": {"warmup": 10, "lr": 0.01, "muon_lr": 0.02},
        "train": {
            "steps": 6,
            "batch_size": 8,
            "precision": "fp32",
            "validate_every": 3,
            "validate_sequences": 16,
            "save_every": 2,
            "keep": 100,
            "sample_length": 0,
        },
    }
    for part, keys in changes.items():
        tree[part] |= keys
    return parse_config(tree)


# What is seen, learned and scored


def test_a_prompt_is_never_masked_and_never_learned(tmp_path: Path) -> None:
    trainer = start(tmp_path, describe(write(tmp_path / "data.jsonl", repetitions(200))))
    end = trainer.tokenizer.eos_token_id
    tails = []
    for step in range(1, 30):
        batch = trainer.batches.batch(step, range(8))
        for ids, where, document in zip(
            batch.x0_BL.tolist(), batch.loss_mask_BL.tolist(), batch.document_BL.tolist(), strict=True
        ):
            letter, used = chr(ids[0]), sum(d >= 0 for d in document)
            assert ids[1] == ord(">") and where[:2] == [False, False] and all(where[2:used])
            assert not any(where[used:])
            said = ids[2:used]
            text = said[: said.index(end)]
            assert 1 <= len(text) <= 6 and {chr(i) for i in text} == {letter}
            assert set(said[len(text) :]) == {end}
            tails.append(len(said) - len(text) - 1)
    assert min(tails) == 0 and max(tails) > 15  # a text may fill its canvas, or leave most of it empty


def test_what_is_left_out_and_cut_is_said_in_training_as_in_evaluation(tmp_path: Path) -> None:
    """And the tokens of the run are those that its steps learn: 30 prompts fill their rows, 30 responses are cut."""
    rows: list[dict[str, Any]] = [{"q": "p" * 64, "a": "none"}] * 30
    rows += [{"q": "p" * 60, "a": f"cut {i}"} for i in range(30)]
    rows += [{"q": "p", "a": "whole"}] * 4 + [{"q": "p", "a": ""}, {"q": "p", "a": None}]
    path = write(tmp_path / "data.jsonl", rows)
    source = {"format": "jsonl", "path": str(path), "prompt": "q", "response": "a"}
    config = describe(path, length=64, data={"validation": source, "tail": False})
    data = read_run_data(config, config.tokenizer)
    assert len(data.validation) == 34
    learned = int(data.validation.batch(range(34)).loss_mask_BL.sum())
    assert data.learned == data.validation.learned_tokens == learned == 30 * 4 + 4 * len("whole.")
    dropped = 30 * len("none.") + 10 * len("0.") + 20 * len("10.")
    told = (
        "2 {} rows without a response are left out",
        "64 {} documents at data.length 64: 30 left out, as their prompts fill it, 30 cut; "
        f"{dropped} tokens are in no row",
    )
    assert data.losses == tuple(line.format(which) for which in ("training", "validation") for line in told)
    trainer = start(tmp_path, config)
    heard: list[RunFacts] = []

    class Hears(Silent):
        def begin(self, facts: RunFacts) -> None:
            heard.append(facts)
            raise KeyboardInterrupt

    trainer.reporter = Hears()
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [(facts.train_tokens, facts.validation_tokens, facts.losses) for facts in heard] == [
        (learned, learned, data.losses)
    ]


def test_prompts_that_leave_nothing_to_validate_on_are_refused_before_training(
    refused: Refused, tmp_path: Path
) -> None:
    path = write(tmp_path / "data.jsonl", repetitions(20))
    other = write(tmp_path / "validation.jsonl", [{"q": "p" * 64, "a": "none"}] * 3)
    source = {"format": "jsonl", "path": str(other), "prompt": "q", "response": "a"}
    with refused(DataError, "3 validation documents", "data.length 26", "nothing to validate on"):
        start(tmp_path, describe(path, data={"validation": source}))


def test_without_a_tail_a_row_ends_with_its_text(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", repetitions(200))
    trainer = start(tmp_path, describe(path, data={"tail": False}))
    batch = trainer.batches.batch(1, range(8))
    assert ((batch.x0_BL == trainer.tokenizer.eos_token_id).sum(1) == 1).all()


def test_the_bound_is_the_responses_alone(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """By hand: the bound of each response, its prompt being seen, over the response's tokens and bytes."""
    rows = [{"q": "ab", "a": "xyz"}, {"q": "", "a": "wü"}, {"q": "c" * 40, "a": "never seen"}]
    config = describe(write(tmp_path / "data.jsonl", rows), length=16)
    lm = make_lm(byte_tokenizer, 16)
    sequences = corpus(byte_tokenizer, read(config.data.train, "data.train"), 16, "pad")
    assert len(sequences) == 2 and sequences.dropped_tokens == len("never seen") + 1
    report = evaluate_likelihood(lm, sequences, draws=400, seed=1)
    assert (report.tokens, report.given_tokens, report.documents) == (4 + 4, 2, 2)
    assert report.bytes == 3 + 3 and report.dropped_bytes == len("never seen")
    expected = 0.0
    for prompt, response in (("ab", "xyz"), ("", "wü")):
        ids = encode(byte_tokenizer, [prompt, response])
        x0_BL = torch.tensor([[*ids[0], *ids[1], byte_tokenizer.eos_token_id]])
        loss_mask_BL = torch.arange(x0_BL.shape[1])[None] >= len(ids[0])
        expected += _exact(lm, x0_BL, loss_mask_BL)
    assert report.nats_per_token * 8 == pytest.approx(expected, abs=5 * report.monte_carlo_se * 8 + 1e-4)


def test_prompts_that_fill_every_row_leave_nothing_to_evaluate(
    refused: Refused, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = describe(write(tmp_path / "data.jsonl", [{"q": "c" * 40, "a": "never seen"}]), length=16)
    sequences = corpus(byte_tokenizer, read(config.data.train, "data.train"), 16, "pad")
    with refused(DataError, "nothing to evaluate", "all 1 prompts fill the context of 16"):
        evaluate_likelihood(make_lm(byte_tokenizer, 16), sequences)


def _exact(lm: DiffusionLM, x0_BL: torch.Tensor, loss_mask_BL: torch.Tensor) -> float:
    """The bound, every subset of the learned positions masked in turn, weighted by its probability."""
    places = loss_mask_BL[0].nonzero()[:, 0].tolist()
    nats = 0.0
    for subset in range(1, 2 ** len(places)):
        masked = [place for i, place in enumerate(places) if subset >> i & 1]
        masked_BL = torch.zeros_like(loss_mask_BL)
        masked_BL[0, masked] = True
        share = 1.0 / math.comb(len(places), len(masked)) / len(places)
        with torch.no_grad():
            log_p_NV = ask(
                lm.denoisers.scoring, x0_BL.masked_fill(masked_BL, lm.process.mask_id), torch.zeros(1), masked_BL
            )
        ce = -log_p_NV.gather(-1, x0_BL[masked_BL][:, None]).sum().item()
        nats += share * len(places) / len(masked) * ce
    return nats


@pytest.mark.long
def test_samples_end_where_texts_do_however_long_the_canvas(tmp_path: Path) -> None:
    """A text has 3.5 letters on average, on any canvas; without the tail it is stretched to fill what there is."""
    path = write(tmp_path / "data.jsonl", repetitions(3000))
    budget = {"steps": 400, "batch_size": 32, "validate_every": 400, "save_every": None}
    run = train(tmp_path / "tail", describe(path, train=budget))
    lm = DiffusionLM.from_pretrained(run)
    for length in (10, 24):
        for sampler in (Sampler(), Sampler(order=Confidence(), budget=FixedSteps(8))):
            texts = [
                found.continuation
                for found in lm.generate("c>", num=100, length=length, sampler=sampler, batch_size=100)
            ]
            assert sum(set(text) == {"c"} for text in texts) >= 90
            assert 2.5 < sum(map(len, texts)) / 100 < 4.5
    budget |= {"steps": 150, "validate_every": 150}
    lm = DiffusionLM.from_pretrained(train(tmp_path / "none", describe(path, data={"tail": False}, train=budget)))
    assert all(len(found.continuation) > 6 for found in lm.generate("c>", num=20, length=8, batch_size=20))


def test_a_fine_tuning_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = describe(write(tmp_path / "data.jsonl", repetitions(200)))
    whole = train(tmp_path / "whole", config)
    assert weights(resume(cut_after(tmp_path / "cut", config, 2)), 6) == weights(whole, 6)


def test_a_prompt_is_on_the_same_side_as_its_response(tmp_path: Path) -> None:
    splits = read_splits(describe(write(tmp_path / "data.jsonl", repetitions(400))).data)
    assert len(splits.train) + len(splits.validation) == 400
    for part in (splits.train, splits.validation):
        assert all(set(row["text"]) == {row["prompt"][0]} for row in part.rows)


# Chats


def chats() -> list[dict[str, Any]]:
    return [
        {
            "chat": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "yes?"},
                {"role": "user", "content": "bye"},
                {"role": "assistant", "content": "so long"},
            ]
        },
        {"chat": [{"role": "user", "content": "nobody answers"}]},
    ]


def test_every_reply_of_an_assistant_is_learned_given_what_came_before(
    byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    source = describe(write(tmp_path / "chats.jsonl", chats()), length=64).data.train
    source = type(source)("jsonl", source.path, messages="chat")
    documents = read(source, "data.train")
    assert list(documents.texts()) == ["yes?", "so long"]
    byte_tokenizer.chat_template = TEMPLATE
    try:
        batch = corpus(byte_tokenizer, documents, 64, "pad").batch([0, 1])
    finally:
        byte_tokenizer.chat_template = None
    for row, (given, said) in enumerate(
        (
            ("<|user|>hi\n<|assistant|>", "yes?"),
            ("<|user|>hi\n<|assistant|>yes?\n<|user|>bye\n<|assistant|>", "so long"),
        )
    ):
        seen = batch.document_BL[row] >= 0
        where = batch.loss_mask_BL[row]
        assert bytes(batch.x0_BL[row][seen & ~where].tolist()).decode() == given
        assert batch.x0_BL[row][where].tolist() == [*said.encode(), byte_tokenizer.eos_token_id]


def test_a_message_without_content_is_not_learned(tmp_path: Path) -> None:
    said: list[tuple[str, str | None]] = [("user", "hi"), ("assistant", None), ("tool", "7"), ("assistant", "seven")]
    chat = [{"role": role, "content": content} for role, content in said]
    found = read(Source("jsonl", str(write(tmp_path / "m.jsonl", [{"m": chat}])), messages="m"), "data.train")
    assert list(found.texts()) == ["seven"]
    assert [message["content"] for message in json.loads(found.rows["messages"][0])] == ["hi", "", "7"]


def test_a_chat_is_held_out_as_a_whole(tmp_path: Path) -> None:
    """No answer that is validated on stands in what a training answer was given."""
    rows = [
        {"m": [{"role": role, "content": f"{role} {i} {turn}"} for turn in (1, 2) for role in ("user", "assistant")]}
        for i in range(200)
    ]
    path = write(tmp_path / "m.jsonl", rows)
    splits = read_splits(describe(path, data={"train": {"format": "jsonl", "path": str(path), "messages": "m"}}).data)
    held_out, train = ({text.split()[1] for text in part.texts()} for part in (splits.validation, splits.train))
    assert held_out and held_out.isdisjoint(train) and len(held_out) + len(train) == 200


def test_a_chat_is_sampled_by_the_template_it_was_trained_with(tiny_lm: DiffusionLM) -> None:
    tokenizer = tiny_lm.tokenizer
    tokenizer.chat_template = TEMPLATE
    try:
        asked = [{"role": "user", "content": "hi"}]
        assert bytes(encode_chat(tokenizer, asked)).decode() == "<|user|>hi\n<|assistant|>"
        by_chat = tiny_lm.generate(asked, length=6, seed=3)[0]
        by_text = tiny_lm.generate("<|user|>hi\n<|assistant|>", length=6, seed=3)[0]
    finally:
        tokenizer.chat_template = None
    assert by_chat.ids == by_text.ids and by_chat.text == by_chat.continuation == by_text.continuation


# What is refused


def test_leaving_rows_out_is_for_chats(refused: Refused, tmp_path: Path) -> None:
    with refused(ConfigError, "skip_invalid", "messages"):
        describe(tmp_path / "x.jsonl", data={"train": {"format": "jsonl", "path": "x", "skip_invalid": True}})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"packing": "pack"}, ("packing", "pad")),
        ({"held_out": {"by": "tail"}}, ("held_out.by", "documents")),
        ({"train": {"format": "jsonl", "path": "x", "prompt": "q"}}, ("prompt", "response")),
        ({"train": {"format": "jsonl", "path": "x", "prompt": "q", "response": "a", "messages": "m"}}, ("messages",)),
        ({"validation": {"format": "jsonl", "path": "x"}}, ("validation", "prompt")),
        (
            {
                "train": {"format": "text", "path": "x"},
                "validation": {"format": "jsonl", "path": "x", "prompt": "q", "response": "a"},
            },
            ("validation", "only then"),
        ),
    ],
)
def test_half_a_conversation_is_refused(
    refused: Refused, data: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    with refused(ConfigError, *words):
        describe(tmp_path / "x.jsonl", data=data)


@pytest.mark.parametrize(
    ("rows", "source", "words"),
    [
        ([{"q": "a", "b": "c"}], {"prompt": "q", "response": "a"}, ("data.train.response", "'a'", "it has")),
        ([{"p": "a", "a": "c"}], {"prompt": "q", "response": "a"}, ("data.train.prompt", "'q'")),
        ([{"q": 1, "a": "c"}], {"prompt": "q", "response": "a"}, ("data.train.prompt", "holds 1, not text")),
        ([{"m": "text"}], {"messages": "m"}, ("data.train.messages", "role, content")),
        ([{"m": [{"from": "me"}]}], {"messages": "m"}, ("data.train.messages", "role, content")),
        (
            [{"m": [{"role": "user", "content": [{"type": "image", "image": "hi"}]}]}],
            {"messages": "m"},
            ("data.train.messages", "both of them text"),
        ),
        ([{"m": [{"role": "user", "content": "alone"}]}], {"messages": "m"}, ("no chat in 'm'", "its roles are user")),
    ],
)
def test_fields_that_hold_something_else_are_refused(
    refused: Refused, rows: list[dict[str, Any]], source: dict[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", rows)
    config = parse_config({"data": {"train": {"format": "jsonl", "path": str(path), **source}, "packing": "pad"}})
    with refused(DataError, *words):
        read(config.data.train, "data.train")


def test_a_tokenizer_without_a_chat_template_is_refused(
    refused: Refused, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    with refused(DataError, "no chat template"):
        encode_chat(byte_tokenizer, [{"role": "user", "content": "hi"}])


def test_prompts_that_leave_no_room_are_refused(refused: Refused, tmp_path: Path) -> None:
    rows = [{"q": "long" * 10, "a": f"no {i}"} for i in range(100)]
    with refused(DataError, "data.length 26"):
        start(tmp_path, describe(write(tmp_path / "data.jsonl", rows)))


def test_a_prompt_and_a_chat_are_not_given_at_once(tmp_path: Path) -> None:
    told = refusal("sample", tmp_path, "--prompt", "a", "--chat", "b")
    assert "one of them" in " ".join(told.split())
