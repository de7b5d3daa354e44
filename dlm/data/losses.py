"""What of some documents is in no row of their sequences, in words."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from transformers import PreTrainedTokenizerBase

from dlm.data.batches import Sequences
from dlm.data.chats import ROLES
from dlm.data.documents import Documents
from dlm.data.keys import listed
from dlm.model.text import decode, encode
from dlm.model.tokenizer import special_ids
from dlm.plain import counted

LOOKED_INTO, LONGEST_PART = 20, 1000
"""The texts, and the characters of each, that are encoded and decoded to see whether a tokenizer changes them."""

QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
"""The words that a chat template writes, or compares with."""

LOOKED_AT = 20_000_000
"""The tokens of a text that are looked at for what the tokenizer does not know."""


def losses_of(which: str, documents: Documents, sequences: Sequences) -> Iterator[str]:
    """What is left out of some documents, and cut.

    Args:
        which: What they are for, such as `training`.
        documents: The documents.
        sequences: What `dlm.data.corpus` made of them.

    Yields:
        A line for each kind of loss; none where everything is in some row.
    """
    yield from left_out(which, documents, sequences)
    filled, cut = len(sequences.dropped_whole), sequences.cut_documents
    parts = [f"{filled:,} left out, as their prompts fill it"] if filled else []
    parts += [f"{cut:,} cut"] if cut else []
    if parts:
        yield (
            f"{counted(len(documents), f'{which} document')} at data.length {sequences.length}: {', '.join(parts)}; "
            f"{counted(sequences.dropped_tokens, 'token', 'are')} in no row"
        )


def unknown_in(which: str, sequences: Sequences, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """What of some documents the tokenizer does not know; of a long text, its first tokens tell.

    Args:
        which: As for `losses_of`.
        sequences: As there.
        tokenizer: What made them.

    Yields:
        A line, or none.
    """
    ids, looked = special_ids(tokenizer), sequences.tokens.ids[:LOOKED_AT]
    if ids.unknown in (None, ids.end):
        return
    if count := int((looked == ids.unknown).sum()):
        first = "first " if len(sequences.tokens.ids) > LOOKED_AT else ""
        yield (
            f"{count:,} of the {first}{len(looked):,} {which} tokens stand for characters that the tokenizer does not "
            "know: what they were is not learned or scored"
        )


def altered_in(which: str, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Whether a tokenizer changes the texts that it reads, as uncased ones do; the beginnings of some tell.

    Args:
        which: As for `losses_of`.
        texts: Those of documents, or others.
        tokenizer: The model's.

    Yields:
        A line with an example, or none.
    """
    unknown = special_ids(tokenizer).unknown
    for text in islice(texts, LOOKED_INTO):
        part = text[:LONGEST_PART]
        (ids,) = encode(tokenizer, [part])
        back = decode(tokenizer, ids)
        if unknown not in ids and back != part:
            at = next(
                (i for i, (one, other) in enumerate(zip(part, back, strict=False)) if one != other),
                min(len(part), len(back)),
            )
            kept, given = (repr(x[max(0, at - 10) : at + 20]) for x in (back, part))
            yield (
                f"the tokenizer changes the {which} text: of {given} it keeps {kept}; what is lost is not learned or "
                "scored, and bits/byte are over bytes that are not all kept"
            )
            return


def odd_roles(which: str, documents: Documents, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The roles of chats that a chat template does not know, as far as its own words tell.

    Args:
        which: As for `losses_of`.
        documents: As there.
        tokenizer: The model's.

    Yields:
        A line, or none.
    """
    template = str(tokenizer.chat_template)
    if odd := [role for role in documents.roles if not {f"'{role}'", f'"{role}"'} & {*QUOTED.findall(template)}]:
        shown = listed(odd[:5]) + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
        yield (
            f"the {which} chats have roles of which the chat template does not speak: {shown}; it is given them as "
            f"they are, and nothing of theirs is learned: rename those that mean {' or '.join(sorted(ROLES))}"
        )


def left_out(which: str, documents: Documents, sequences: Sequences) -> Iterator[str]:
    """The rows of a source that are left out, whatever the length of a row; see `losses_of`.

    Args:
        which: As there.
        documents: As there.
        sequences: As there.

    Yields:
        A line for those that are not valid, one for those that have nothing to learn, and one for calls of tools.
    """
    if sequences.skipped.rows:
        yield f"of the {which} text, {sequences.skipped}"
    if documents.empty:
        are = "is" if documents.empty == 1 else "are"
        yield f"{counted(documents.empty, f'{which} row')} without {documents.lacking} {are} left out"
    if documents.calls:
        yield (
            f"{counted(documents.calls, f'{which} message', 'call')} tools: the chat template is given the calls, and "
            "not the definitions of tools; calls are not learned or scored, as they are no text"
        )
