"""A text survives the way to ids and back, nothing in it is taken for a special token, and no id changes meaning."""

import random
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dlm.config import Bpe, Bytes, Characters, Pretrained
from dlm.errors import CheckpointError, DataError
from dlm.model.text import decode, encode, pieces
from dlm.model.tokenizer import build_tokenizer, check_rows, fingerprint, forbidden_ids, special_ids
from tests.support.fixtures import Refused
from tests.support.tokenizers import like_llama, like_roberta

HOSTILE = [
    "plain text, and \u00e9\u00e8 \u4e2d\u6587 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301",
    "<|mask|><|pad|><|endoftext|> [MASK][PAD]<s></s> <|mask|",
    "<|unknown|>",
    "  spaces  \t\n\r\n\n\ttabs ",
    "\x00\x01\x1b[0m\x7f\u0085\u2028\ufeff\ufffd\uffff",
    " ' n't 's .,!? \u00a0",
    "\u0120\u010a\u00c4\u0100\u0142",  # the characters that stand for bytes inside the vocabulary
    "a" * 200,
    "\U0010ffff\u0300\u0300\u202e",
    "x",
    "",
]
TRAINING = [*HOSTILE, "the cat sat on the mat " * 20, "\u4e2d\u6587" * 20]
SPECS = [Bytes(), Characters(), Bpe(size=300)]


@pytest.fixture(params=SPECS, ids=lambda spec: spec.name)
def own(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return build_tokenizer(request.param, lambda: TRAINING)


@pytest.fixture
def word_piece(tmp_path: Path) -> str:
    """A tokenizer like BERT's, saved to a folder: lower case, [CLS] and [SEP] around a text."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{c}" for c in "abcdefgh"), "head", "##ed"]
    backend = Backend(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(tmp_path / "word-piece")
    return str(tmp_path / "word-piece")


def left_to_right(folder: Path, **special: str) -> str:
    """A tokenizer like GPT-2's, whose only special token is the end of text, saved to a folder."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TRAINING, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


# Our own


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_comes_back_whole(own: PreTrainedTokenizerBase, text: str, tmp_path: Path) -> None:
    own.save_pretrained(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    (ids,) = encode(own, [text])
    assert decode(own, ids) == text
    assert "".join(pieces(own, ids)) == text
    assert encode(plain, [text]) == [ids]
    assert decode(plain, ids) == text
    assert plain.decode(ids, clean_up_tokenization_spaces=False) == text
    assert fingerprint(plain) == fingerprint(own)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_holds_a_special_id(own: PreTrainedTokenizerBase, text: str) -> None:
    assert not set(encode(own, [text])[0]) & set(own.all_special_ids)


def test_encoding_leaves_the_tokenizer_as_it_was(own: PreTrainedTokenizerBase) -> None:
    assert own.mask_token is not None
    encode(own, [own.mask_token])
    assert own(own.mask_token, add_special_tokens=False)["input_ids"] == [own.mask_token_id]


def test_truncation_and_padding_asked_for_elsewhere_do_not_reach_encode(own: PreTrainedTokenizerBase) -> None:
    own(["a" * 50, "a"], padding=True, truncation=True, max_length=4)
    assert [decode(own, ids) for ids in encode(own, ["a" * 50, "a"])] == ["a" * 50, "a"]


def test_special_ids_differ_and_stand_outside_the_text(own: PreTrainedTokenizerBase) -> None:
    ids = special_ids(own)
    assert len({ids.mask, ids.pad, ids.end}) == 3
    assert len(set(own.get_vocab().values())) == len(own.get_vocab()) == len(own)
    assert own.convert_ids_to_tokens([ids.end, ids.pad, ids.mask]) == ["<|endoftext|>", "<|pad|>", "<|mask|>"]


def test_forbidden_ids_are_exactly_the_ids_that_no_text_holds(own: PreTrainedTokenizerBase) -> None:
    ids = special_ids(own)
    never = forbidden_ids(own, len(own) + 3)
    assert {ids.mask, ids.pad, len(own), len(own) + 1, len(own) + 2} <= set(never)
    assert ids.end not in never
    held = {id_ for text in TRAINING for id_ in encode(own, [text])[0]}
    assert not held & set(never)
    assert len(never) == len(set(never)) < 8


def test_a_byte_is_its_own_id(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    for text in HOSTILE:
        assert encode(byte_tokenizer, [text]) == [list(text.encode())]
    assert sorted(byte_tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values()) == list(range(256))
    assert min(byte_tokenizer.all_special_ids) == 256


def test_a_character_is_one_id() -> None:
    tokenizer = build_tokenizer(Characters(), lambda: TRAINING)
    for text in HOSTILE:
        assert len(encode(tokenizer, [text])[0]) == len(text)
    assert len(tokenizer) == len(set("".join(TRAINING))) + 4  # end, pad, mask, unknown


def test_a_character_never_seen_is_unknown_and_only_it() -> None:
    tokenizer = build_tokenizer(Characters(), lambda: ["abc"])
    (ids,) = encode(tokenizer, ["a\u00e9c"])
    assert [id_ == tokenizer.unk_token_id for id_ in ids] == [False, True, False]
    assert tokenizer.unk_token_id not in forbidden_ids(tokenizer, len(tokenizer))  # a text holds it, and it is scored
    assert decode(tokenizer, ids) == "a<|unknown|>c"


def test_no_characters_at_all_are_refused(refused: Refused) -> None:
    with refused(DataError, "empty"):
        build_tokenizer(Characters(), lambda: [""])
    with refused(DataError, "empty"):
        build_tokenizer(Characters(), list)


def test_bpe_has_the_size_that_was_asked_for_and_merges_what_is_frequent() -> None:
    tokenizer = build_tokenizer(Bpe(size=300), lambda: TRAINING)
    assert len(tokenizer) == 300
    assert len(encode(tokenizer, ["the cat sat on the mat"])[0]) < len("the cat sat on the mat") / 2
    never_seen = "\u0416\U0001f9ff"
    assert decode(tokenizer, encode(tokenizer, [never_seen])[0]) == never_seen


def test_training_twice_gives_the_same_tokenizer() -> None:
    def trained(texts: list[str]) -> str:
        return fingerprint(build_tokenizer(Bpe(size=280), lambda: texts))

    assert trained(TRAINING) == trained(TRAINING) != trained(["zq" * 90])


# Pieces


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_pieces_are_the_decoded_text_even_of_broken_ids(spec: Bytes | Characters | Bpe) -> None:
    tokenizer, stream = build_tokenizer(spec, lambda: TRAINING), random.Random(0)
    for _ in range(200):
        ids = stream.choices(range(len(tokenizer)), k=stream.randint(0, 12))
        parts = pieces(tokenizer, ids)
        assert len(parts) == len(ids)
        assert "".join(parts) == decode(tokenizer, ids)


def test_a_character_is_given_out_by_the_byte_that_completes_it(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    text = "a\u00e9\U0001f600b"
    assert pieces(byte_tokenizer, list(text.encode())) == ["a", "", "\u00e9", "", "", "", "\U0001f600", "b"]


@pytest.mark.parametrize("unigram", [False, True])
def test_characters_spelled_by_byte_tokens_come_back_whole(unigram: bool) -> None:
    tokenizer = like_llama(unigram=unigram)
    for text in ("a\U0001f600b", "\u4e2d\u6587 you", "\ufffd", "x\U0001f468\u200d\U0001f469", "\U0001f600"):
        (ids,) = encode(tokenizer, [text])
        assert decode(tokenizer, ids) == "".join(pieces(tokenizer, ids)) == text
    (ids,) = encode(tokenizer, ["a\U0001f600b"])
    assert [piece for piece in pieces(tokenizer, ids) if piece] == ["a", "\U0001f600", "b"]


@pytest.mark.parametrize("unigram", [False, True])
def test_a_broken_byte_leaves_the_characters_beside_it_whole(unigram: bool) -> None:
    tokenizer = like_llama(unigram=unigram)

    def spelled(content: bytes) -> list[int]:
        return [tokenizer.get_vocab()[f"<0x{byte:02X}>"] for byte in content]

    character = "\u4e2d".encode()
    assert decode(tokenizer, spelled(character + character[:2])) == "\u4e2d\ufffd"
    assert decode(tokenizer, spelled(character[2:] + character)) == "\ufffd\u4e2d"
    assert pieces(tokenizer, spelled(character + character[:2])) == ["", "", "\u4e2d", "", "\ufffd"]
    stream = random.Random(0)
    for _ in range(200):
        ids = stream.choices([*spelled(b"\xe4\xb8\xad\xf0\x9f\x98"), *range(259, len(tokenizer))], k=9)
        assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)


@pytest.mark.parametrize("special_bytes", [False, True])
@pytest.mark.parametrize("unigram", [False, True])
def test_bytes_of_rare_characters_are_text_even_where_their_tokens_are_special(
    unigram: bool, special_bytes: bool, tmp_path: Path
) -> None:
    like_llama(unigram=unigram, special_bytes=special_bytes).save_pretrained(tmp_path)
    plain, tokenizer = AutoTokenizer.from_pretrained(tmp_path), build_tokenizer(Pretrained(str(tmp_path)), lambda: ())
    for text in ("\u4e2d\u6587\U0001f600 \u4e2d\u6587\n", "\u00e9", "you, a\t\U0001f600!", "\x00\x7f"):
        (ids,) = encode(tokenizer, [text])
        assert ids == plain(text, add_special_tokens=False)["input_ids"]
        assert decode(tokenizer, ids) == text
    byte_tokens = {tokenizer.get_vocab()[f"<0x{byte:02X}>"] for byte in range(256)}
    assert byte_tokens.isdisjoint(forbidden_ids(tokenizer, len(tokenizer)))
    assert {tokenizer.bos_token_id, tokenizer.mask_token_id} <= set(forbidden_ids(tokenizer, len(tokenizer)))


@pytest.mark.parametrize("special_bytes", [False, True])
@pytest.mark.parametrize("unigram", [False, True])
def test_the_name_of_a_byte_written_in_a_text_is_six_characters(unigram: bool, special_bytes: bool) -> None:
    tokenizer = like_llama(unigram=unigram, special_bytes=special_bytes)
    for text in ("<0x41>", "a<0x41>b <0xE4> <s>\u4e2d<0xE4></s>", "\u4e2d<0x0A>"):
        (ids,) = encode(tokenizer, [text])
        assert decode(tokenizer, ids) == text
        assert {tokenizer.bos_token_id, tokenizer.eos_token_id}.isdisjoint(ids)


def test_a_byte_token_named_as_the_mask_is_in_no_text(tmp_path: Path) -> None:
    like_llama(special_bytes=True).save_pretrained(tmp_path)
    tokenizer = build_tokenizer(Pretrained(str(tmp_path), "<0x00>"), lambda: ())
    mask_id = special_ids(tokenizer).mask
    assert mask_id in forbidden_ids(tokenizer, len(tokenizer))
    assert mask_id not in encode(tokenizer, ["a\x00b<0x00>"])[0]


def test_another_way_to_encode_is_another_fingerprint(
    byte_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(byte_tokenizer)
    monkeypatch.setattr("dlm.model.tokenizer.ENCODING", "another")
    assert fingerprint(byte_tokenizer) != before  # or a cache would keep the tokens of before


# Those of others


def test_words_without_an_end_are_learned_from_in_linear_time() -> None:
    letters = "".join(random.Random(0).choices("ACGT", k=120_000))
    began = time.perf_counter()
    tokenizer = build_tokenizer(Bpe(size=600), lambda: [letters])
    assert time.perf_counter() - began < 3.0  # as one word it takes seven seconds, and four times as long for twice
    (ids,) = encode(tokenizer, [letters])
    assert decode(tokenizer, ids) == letters and len(ids) < len(letters) / 3


def test_ordinary_words_are_learned_from_as_they_are() -> None:
    texts = ["the cat sat on the mat " * 300, "x" * 1023 + " " * 1000 + "y" * 500, "a\n" * 900]
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=297, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    learned = build_tokenizer(Bpe(size=300), lambda: texts).backend_tokenizer.get_vocab(with_added_tokens=False)
    assert set(learned) == set(backend.get_vocab())


@pytest.mark.parametrize("named", ["you", 4 + 256 + 6])
def test_a_token_can_be_named_as_the_mask(tmp_path: Path, named: str | int) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=like_roberta().backend_tokenizer, eos_token="</s>")
    tokenizer.save_pretrained(tmp_path)
    told = build_tokenizer(Pretrained(str(tmp_path), named), lambda: ())
    mask_id = told.convert_tokens_to_ids("you" if named == "you" else "\u0120you")
    assert special_ids(told).mask == mask_id
    assert mask_id in forbidden_ids(told, len(told))
    assert mask_id not in encode(told, ["you love you"])[0]


def test_a_mask_may_be_the_row_behind_the_vocabulary(tmp_path: Path) -> None:
    path = left_to_right(tmp_path, eos_token="<|endoftext|>")
    assert special_ids(build_tokenizer(Pretrained(path, 300), lambda: ())).mask == 300


@pytest.mark.parametrize(
    ("named", "words"),
    [("<|nothing|>", ["no token '<|nothing|>'"]), (9999, ["no token 9999"]), ("<|endoftext|>", ["another special"])],
)
def test_a_mask_that_is_no_token_is_refused(
    refused: Refused, tmp_path: Path, named: str | int, words: list[str]
) -> None:
    path = left_to_right(tmp_path, eos_token="<|endoftext|>")
    with refused(CheckpointError, *words):
        build_tokenizer(Pretrained(path, named), lambda: ())


def test_a_tokenizer_without_mask_and_padding_gets_them_as_new_ids(tmp_path: Path) -> None:
    path = left_to_right(tmp_path, eos_token="<|endoftext|>")
    before = AutoTokenizer.from_pretrained(path)
    tokenizer = build_tokenizer(Pretrained(path), lambda: ())
    ids = special_ids(tokenizer)
    assert ids.end == before.eos_token_id
    assert {ids.mask, ids.pad} == {len(before), len(before) + 1}
    assert before.get_vocab().items() <= tokenizer.get_vocab().items()
    for text in HOSTILE:
        (found,) = encode(tokenizer, [text])
        assert encode(before, [text]) == [found]
        assert decode(tokenizer, found) == text


def test_padding_that_is_the_end_of_text_gets_an_id_of_its_own(tmp_path: Path) -> None:
    path = left_to_right(tmp_path, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer = build_tokenizer(Pretrained(path), lambda: ())
    ids = special_ids(tokenizer)
    assert ids.end == AutoTokenizer.from_pretrained(path).eos_token_id
    assert ids.pad >= 300 and ids.mask >= 300


def test_a_tokenizer_with_no_special_token_at_all_gets_three(tmp_path: Path) -> None:
    path = left_to_right(tmp_path)
    tokenizer = build_tokenizer(Pretrained(path), lambda: ())
    ids = special_ids(tokenizer)
    size = len(AutoTokenizer.from_pretrained(path))
    assert sorted([ids.mask, ids.pad, ids.end]) == [size, size + 1, size + 2]


def test_a_vocabulary_that_holds_the_names_already_keeps_them_as_text(tmp_path: Path) -> None:
    words = {"<|mask|>": 0, "<|pad|>": 1, "<|endoftext|>": 2, "a": 3}
    backend = Backend(models.WordLevel(words, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    tokenizer = build_tokenizer(Pretrained(str(tmp_path)), lambda: ())
    ids = special_ids(tokenizer)
    assert min(ids.mask, ids.pad, ids.end) >= 4
    assert encode(tokenizer, ["a <|mask|> <|pad|> <|endoftext|>"]) == [[3, 0, 1, 2]]


def test_a_tokenizer_like_berts_keeps_its_mask(word_piece: str) -> None:
    before = AutoTokenizer.from_pretrained(word_piece)
    tokenizer = build_tokenizer(Pretrained(word_piece), lambda: ())
    assert special_ids(tokenizer).mask == before.mask_token_id == 4
    assert special_ids(tokenizer).pad == 0
    assert special_ids(tokenizer).end == before.sep_token_id == 3
    assert len(tokenizer) == len(before)
    never = forbidden_ids(tokenizer, len(tokenizer))
    assert never == [0, 2, 4]  # [SEP] ends a text, and [UNK] is in it
    (ids,) = encode(tokenizer, ["Headed a"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["head", "##ed", "a"]  # no [CLS], no [SEP]
    assert not {2, 3, 4} & set(encode(tokenizer, ["a [MASK] b [SEP]"])[0])
    assert encode(tokenizer, ["\u4e2d"]) == [[1]]
    assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids) == "headed a"


@pytest.mark.parametrize("kind", ["unigram", "words"])
def test_special_tokens_that_the_vocabulary_finds_in_a_text_are_spelled_out(tmp_path: Path, kind: str) -> None:
    special = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    names = [*special.values(), "\u2581", *dict.fromkeys("</>abdkmps")]
    if kind == "unigram":  # like XLM-R's and T5's, where the special pieces are the likeliest of all
        scores = [(name, 0.0 if name in special.values() else -3.0) for name in names]
        backend = Backend(models.Unigram(scores, unk_id=0))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        backend = Backend(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path)
    tokenizer = build_tokenizer(Pretrained(str(tmp_path)), lambda: ())
    (ids,) = encode(tokenizer, ["a <mask> b </s> <pad>"])
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert decode(tokenizer, ids).replace(" ", "") == "a<mask>b</s><pad>"


def test_a_vocabulary_with_gaps_and_reserved_tokens(tmp_path: Path) -> None:
    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Backend(models.BPE(vocab={**alphabet, "ab": 400}, merges=[("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<|reserved|>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(tmp_path)
    tokenizer = build_tokenizer(Pretrained(str(tmp_path)), lambda: ())
    never = forbidden_ids(tokenizer, 512)
    assert encode(tokenizer, ["ab"]) == [[400]] and len(tokenizer) < 400
    assert 400 not in never
    assert tokenizer.convert_tokens_to_ids("<|reserved|>") in never
    assert {399, 401, 511} <= set(never)


def test_how_a_call_padded_and_cut_does_not_make_another_tokenizer(own: PreTrainedTokenizerBase) -> None:
    before = fingerprint(own)
    own(["a" * 50, "a"], padding=True, truncation=True, max_length=4)
    assert fingerprint(own) == before


def test_completing_a_complete_tokenizer_changes_nothing(own: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    own.save_pretrained(tmp_path)
    again = build_tokenizer(Pretrained(str(tmp_path)), lambda: ())
    assert fingerprint(again) == fingerprint(own)
    assert special_ids(again) == special_ids(own)


def test_a_folder_without_a_tokenizer(refused: Refused, tmp_path: Path) -> None:
    with refused(CheckpointError, "cannot load a tokenizer", str(tmp_path)):
        build_tokenizer(Pretrained(str(tmp_path)), lambda: ())


@pytest.mark.parametrize("kind", ["qwen3", "bert", "llama", "modernbert"])
def test_a_model_without_its_tokenizer_gets_no_empty_one(refused: Refused, tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    with refused(CheckpointError, str(tmp_path)):
        build_tokenizer(Pretrained(str(tmp_path)), lambda: ())


def test_a_tokenizer_whose_special_tokens_are_one_is_refused(refused: Refused, tmp_path: Path) -> None:
    path = left_to_right(tmp_path, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    with refused(CheckpointError, "different mask, padding and end-of-text"):
        special_ids(AutoTokenizer.from_pretrained(path))


def test_a_tokenizer_whose_texts_hold_more_ids_than_the_model_has_rows_is_refused(refused: Refused) -> None:
    tokenizer = like_llama()
    size = len(tokenizer)
    check_rows(tokenizer, size)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    check_rows(tokenizer, size)  # a special token is in no text
    tokenizer.add_tokens(["abracadabra", "hocuspocus"])
    with refused(CheckpointError, f"{size} rows", f"{size + 3} ids", "2 of them without a row"):
        check_rows(tokenizer, size)
