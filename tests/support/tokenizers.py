"""Small tokenizers of the kinds that public models have, made on the spot."""

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

WORDS = ("i", "love", "you", "very", "much", "we", "saw", "a", "cat", "##s", "##ing", ".", ",", "(", ")", "!")
SENTENCEPIECE = "\u2581"


def like_bert() -> PreTrainedTokenizerFast:
    """WordPiece of whole words, lower case: [CLS] and [SEP] stand around a text."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    backend = Backend(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def like_roberta() -> PreTrainedTokenizerFast:
    """Byte-level pairs: <s> and </s> stand around a text, and the mask takes the blank before it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = "\u0120"
    merges = [("l", "o"), ("v", "e"), ("lo", "ve"), (space, "love"), ("y", "o"), ("yo", "u"), (space, "you")]
    names = ["<s>", "<pad>", "</s>", "<unk>", *letters, *("".join(pair) for pair in merges), "<mask>"]
    backend = Backend(models.BPE({name: i for i, name in enumerate(names)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True, normalized=False),
    )


QWEN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""A digit has no blank before it, and punctuation takes the line break behind it."""


def like_qwen(text: str, size: int = 420, pattern: str = QWEN) -> PreTrainedTokenizerFast:
    """Byte-level pairs of a text, within the parts that a pattern matches."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    names, alphabet = ["<|end|>", "<|pad|>", "<|mask|>"], pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [text] * 20, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=names)
    )
    end, pad, mask = names
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=pad, mask_token=mask)


def like_llama(*, unigram: bool = False, special_bytes: bool = False) -> PreTrainedTokenizerFast:
    """SentencePiece with bytes for rare characters, by merges or as a unigram: <s> stands before a text.

    Some conversions register the tokens of the bytes as special (`special_bytes`).
    """
    pieces = [SENTENCEPIECE, *"abcdefghijklmnopqrstuvwxyz.,'", f"{SENTENCEPIECE}y", "ou", f"{SENTENCEPIECE}you"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    if unigram:
        backend = Backend(models.Unigram([(name, -2.0) for name in names], unk_id=0, byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    else:
        merges = [(SENTENCEPIECE, "y"), ("o", "u"), (f"{SENTENCEPIECE}y", "ou")]
        vocabulary = {name: i for i, name in enumerate(names)}
        backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend(SENTENCEPIECE), normalizers.Replace(" ", SENTENCEPIECE)]
        )
        backend.decoder = decoders.Sequence(
            [decoders.Replace(SENTENCEPIECE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    if special_bytes:
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[3:259]])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
