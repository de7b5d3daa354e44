"""What a harness asks of a model, against plain networks, the chain rule and texts that are written."""

import itertools
import math
import statistics
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from dlm.diffusion.unmask import LeftToRight, TokenChoice
from dlm.errors import ConfigError, DataError
from dlm.evaluate.requests import Answering, How, cut_at, number_of
from dlm.lm import DiffusionLM, Sampler
from dlm.lm.layout import Encoded, prompt_ids
from dlm.model.text import encode
from tests.support.fixtures import MakeLM, Refused
from tests.support.tokenizers import like_llama

JOINT = {"name": "joint", "sizes": [4]}
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "you"}]
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|end|>{% endfor %}"


@pytest.fixture(scope="module")
def joint(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    return make_lm(byte_tokenizer, 32, readings=JOINT)


def llama() -> PreTrainedTokenizerBase:
    """A tokenizer that puts a blank before a text, with a mask and a special token of chats."""
    tokenizer = like_llama()
    roles = {"mask_token": "<mask>", "pad_token": "<pad>"}
    tokenizer.add_special_tokens({**roles, "additional_special_tokens": ["<|end|>"]})
    return tokenizer


def answering(lm: DiffusionLM, reading: str | None = None, **how: object) -> Answering:
    return Answering(lm, How(reading=reading, **how), shows=False)  # type: ignore[arg-type]


def scored(lm: DiffusionLM, context: str, continuation: str, reading: str = "causal", **how: object) -> float:
    pair = context, continuation
    (found,) = answering(lm, reading, **how).log_likelihoods([[pair]])
    return found[pair][0]


def chain_rule(lm: DiffusionLM, context: str, continuation: str) -> float:
    """Masks from left to right by the plain network, with no end of text behind them."""
    given, ids = (encode(lm.tokenizer, [text])[0] for text in (context, continuation))
    total = 0.0
    for done, id_ in enumerate(ids):
        row = torch.tensor([[*given, *ids[:done], *[lm.process.mask_id] * (len(ids) - done)]])
        with torch.inference_mode():
            logits = lm.model(input_ids=row).logits[0, len(given) + done]
        logits = logits.index_fill(0, torch.tensor(list(lm.process.vocabulary.forbidden)), -math.inf)
        total += float(logits.log_softmax(0)[id_])
    return total


@pytest.mark.parametrize(("context", "continuation"), [("the king", " is"), ("", "alone"), ("x", "y")])
def test_a_continuation_is_scored_without_an_end(tiny_lm: DiffusionLM, context: str, continuation: str) -> None:
    found = scored(tiny_lm, context, continuation, LeftToRight().name, greedy=False)
    assert found == pytest.approx(chain_rule(tiny_lm, context, continuation), rel=1e-5)


def test_one_token_has_an_exact_bound(tiny_lm: DiffusionLM) -> None:
    assert scored(tiny_lm, "the kin", "g", "any-order") == pytest.approx(chain_rule(tiny_lm, "the kin", "g"), rel=1e-5)


def test_blanks_belong_to_the_continuation(tiny_lm: DiffusionLM) -> None:
    for context, rest in (("the king ", " is"), ("the king  ", "  is"), ("  ", "  is")):
        given, ids = (encode(tiny_lm.tokenizer, [text])[0] for text in (context.rstrip(), rest))
        assert tiny_lm.layout.parted(context, "is") == (Encoded(given), ids)


def test_a_token_across_the_border_is_never_scored(make_lm: MakeLM) -> None:
    """The ids of the context and of the continuation are those of the text that they make, byte for byte."""
    tokenizer = llama()
    lm = make_lm(tokenizer, 64)
    for context, continuation in (
        ("ab", "c"),
        ("y", "ou"),
        ("the y", "ou"),
        ("a b", " c"),
        ("the end", "ing"),
        ("the", " end"),
        ("", "a b"),
    ):
        given, ids = lm.layout.parted(context, continuation)
        text = str(tokenizer.decode([*given.ids, *ids]))
        assert text.strip() == (context + continuation).strip() and ids
        assert [*given.ids] == encode(tokenizer, [context])[0]


def test_is_greedy_is_what_greedy_decoding_writes(joint: DiffusionLM) -> None:
    how = {"any-order": Sampler(order=LeftToRight(), token=TokenChoice(0.0))}
    how["causal"] = Sampler(token=TokenChoice(0.0), drafts=0)
    seen: list[str] = []
    for reading, context in itertools.product(how, ("the king", "a", "x =", "")):
        text = joint.generate(Encoded(encode(joint.tokenizer, [context])[0]), length=3, sampler=how[reading])[0]
        if len(text.ids) < 3 or encode(joint.tokenizer, [context + text.continuation])[0][-3:] != [*text.ids]:
            continue  # an end of text, or half of a character
        right, wrong = text.continuation, text.continuation[:-1] + ("a" if text.continuation[-1] != "a" else "b")
        (found,) = answering(joint, reading).log_likelihoods([[(context, right), (context, wrong)]])
        assert [found[context, each][1] for each in (right, wrong)] == [True, False]
        (found,) = answering(joint, reading, greedy=False).log_likelihoods([[(context, right)]])
        assert not found[context, right][1]
        seen.append(reading)
    assert {*seen} == {*how}


def test_choices_of_a_question_have_common_masks(tiny_lm: DiffusionLM) -> None:
    """Their difference has far less noise than that of two questions."""
    pairs = [("the king said ", "no, my lord"), ("the king said ", "no, my lady")]

    def spread(groups: Sequence[Sequence[tuple[str, str]]]) -> float:
        differences = []
        for seed in range(12):
            found = answering(tiny_lm, draws=4, seed=seed, greedy=False).log_likelihoods(groups)
            values = {pair: value for group in found for pair, (value, _) in group.items()}
            differences.append(values[pairs[0]] - values[pairs[1]])
        return statistics.stdev(differences)

    assert spread([pairs]) < 0.7 * spread([pairs[:1], pairs[1:]])


def test_an_answer_depends_on_what_is_asked_alone(tiny_lm: DiffusionLM) -> None:
    groups = [[("a", "bc"), ("a", "bcd")], [("the", "re is more")], [("", "x")]]
    whole = answering(tiny_lm, draws=4).log_likelihoods(groups)
    for size in (1, 3):
        parts = [answering(tiny_lm, draws=4, batch_size=size).log_likelihoods([group])[0] for group in groups[::-1]]
        for one, other in zip(whole, parts[::-1], strict=True):
            assert one.keys() == other.keys()
            assert [one[pair][0] for pair in one] == pytest.approx([other[pair][0] for pair in one], rel=1e-5)
    doubled = answering(tiny_lm, draws=4).log_likelihoods([[*groups[0], groups[0][1]], groups[0]])
    assert doubled[0] == doubled[1] and doubled[0].keys() == whole[0].keys()
    noisy = answering(tiny_lm, draws=4, seed=1).log_likelihoods(groups)
    assert noisy[0]["a", "bcd"][0] != pytest.approx(whole[0]["a", "bcd"][0], abs=1e-6)


def test_nothing_is_sure(tiny_lm: DiffusionLM) -> None:
    assert answering(tiny_lm).log_likelihoods([[("a", "")], [("", "")]]) == [
        {("a", ""): (0.0, True)},
        {("", ""): (0.0, True)},
    ]
    assert answering(tiny_lm).texts([""]) == [0.0]


def test_a_context_that_is_too_long_loses_its_beginning(joint: DiffusionLM) -> None:
    model = answering(joint, "causal")
    context, end = "0123456789" * 6, " end"
    (found,) = model.log_likelihoods([[(context, end)]])
    assert found[context, end][0] == pytest.approx(scored(joint, context[-28:], end), rel=1e-6)
    assert model.shortened == {"loglikelihood": 1}
    model.log_likelihoods([[(context[-28:], end)]])
    assert model.shortened == {"loglikelihood": 1}


def test_a_long_text_is_scored_window_by_window(joint: DiffusionLM) -> None:
    text = "to be or not to be, that is the question: whether 'tis nobler in the mind"
    windows = (text[:32], text[32:64], text[64:])
    (found,) = answering(joint, "causal").texts([text])
    assert found == pytest.approx(sum(scored(joint, "", window) for window in windows), rel=1e-6)
    (bound,) = answering(joint, "any-order").texts([text])
    assert bound != pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("stride", [1, 7, 31, 32])
def test_windows_that_overlap_are_the_chain_rule(joint: DiffusionLM, stride: int) -> None:
    """Of an exact reading: each new part is scored after what its window still holds of the text."""
    text = "tobeornottobe,thatisthequestion:whether'tisnoblerinthemind"
    total, done = scored(joint, "", text[:32]), 32
    while done < len(text):
        stop = min(done + stride, len(text))
        total += scored(joint, text[max(stop - 32, 0) : done], text[done:stop])
        done = stop
    assert answering(joint, "causal", stride=stride).texts([text, text]) == pytest.approx([total] * 2, rel=1e-6)


def test_an_answer_is_cut_at_its_end(tiny_lm: DiffusionLM) -> None:
    token = TokenChoice(0.7)
    numbers = {number_of("generate_until", n): context for n, context in enumerate(("the king", "a", ""))}
    whole = dict(answering(tiny_lm).written(numbers, token, 12, []))
    one = next(iter(whole.values()))
    for ends in ([one[3]], [one[5:7], one[3:5]], ["", "not there"]):
        cut = dict(answering(tiny_lm, batch_size=1).written(numbers, token, 12, ends))
        assert cut == {number: cut_at(text, ends) for number, text in whole.items()}
    assert cut_at("an answer", ["s", "n ", ""]) == "a" and cut_at("an answer", []) == "an answer"
    assert cut_at(one, [one[3]]) == one[: one.index(one[3])] and cut_at(one, ["", "not there"]) == one
    with_own = answering(tiny_lm, sampler=Sampler(token=TokenChoice(0.0)))
    greedy = dict(answering(tiny_lm).written(numbers, TokenChoice(0.0), 12, []))
    assert dict(with_own.written(numbers, token, 12, [])) == greedy != whole


def test_a_prompt_makes_room_for_its_answer(tiny_lm: DiffusionLM, refused: Refused) -> None:
    model, context = answering(tiny_lm), "0123456789" * 4
    (long,) = dict(model.written({5: context}, TokenChoice(0.0), 12, [])).values()
    assert model.shortened == {"generate_until": 1}
    (short,) = dict(model.written({5: context[-20:]}, TokenChoice(0.0), 12, [])).values()
    assert long == short and model.shortened == {"generate_until": 1}
    assert len(dict(model.written({5: ""}, TokenChoice(0.0), 32, []))) == 1
    with refused(DataError, "an answer of 32 tokens leaves no room", "context of 32", "shorter length"):
        next(model.written({5: "x"}, TokenChoice(0.0), 32, []))
    with refused(DataError, "33 tokens are asked for", "room for 32", "shorter length"):
        next(model.written({5: "x"}, TokenChoice(0.0), 33, []))
    with refused(DataError, "33 tokens are asked for", "room for 32"):
        model.log_likelihoods([[("x", "y" * 33)]])


def test_a_chat_as_text_has_the_ids_of_the_chat(make_lm: MakeLM) -> None:
    tokenizer = llama()
    tokenizer.chat_template = TEMPLATE
    lm = make_lm(tokenizer, 64)
    written = str(tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True))
    given, ids = lm.layout.parted(written, "yes", chat=True)
    assert given.is_chat and [*given.ids] == prompt_ids(tokenizer, CHAT, lm.layout.chat_template)
    assert [*ids] == [id_ for id_, wanted in zip(*_row(lm), strict=True) if wanted][:-1]
    model = answering(lm, greedy=False)
    model.chats = True
    number, token = 5, TokenChoice(0.0)
    told = lm.generate_each({number: CHAT}, length=4, sampler=Sampler(token=token))
    assert dict(model.written({number: written}, token, 4, []))[number] == next(told)[0].continuation
    plain, _ = lm.layout.parted(written, "yes")
    assert len(plain.ids) > len(given.ids)  # where the name of a special token is text


def _row(lm: DiffusionLM) -> tuple[list[int], list[bool]]:
    canvas = lm.layout.answered(CHAT, "yes")
    return canvas.ids, canvas.editable


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"draws": 5}, ("draws must be even, got 5",)),
        ({"draws": 2}, ("draws must be a whole number from 4 on, got 2",)),
        ({"draws": "x"}, ("draws must be a whole number", "'x'")),
        ({"batch_size": "auto"}, ("batch_size must be a whole number from 1 on, got 'auto'",)),
        ({"seed": 0.5}, ("seed must be a whole number, got 0.5",)),
        ({"length": 0}, ("length must be a whole number from 1 on, got 0",)),
        ({"stride": 0}, ("stride must be a whole number from 1 on, got 0",)),
        ({"greedy": "yes"}, ("greedy must be true or false, got 'yes'",)),
        ({"reading": "blocks:4"}, ("the reading blocks:4", "greedy=false")),
        ({"reading": "backwards"}, ("no reading 'backwards'",)),
    ],
)
def test_a_wrong_way_is_refused(
    joint: DiffusionLM, refused: Refused, how: dict[str, object], words: tuple[str, ...]
) -> None:
    with refused(ConfigError, *words):
        answering(joint, **how)  # type: ignore[arg-type]


def test_a_reading_in_blocks_has_no_greedy_decoding(joint: DiffusionLM, refused: Refused) -> None:
    (found,) = answering(joint, "blocks:4", greedy=False).log_likelihoods([[("a", "bc")]])
    assert found["a", "bc"][0] < 0.0 and not found["a", "bc"][1]
    with refused(ConfigError, "the stride must be from 1 to 32 tokens", "got 33"):
        answering(joint, stride=33).texts(["x"])
