"""Text as rows of ids, of which some are to be written or scored and the others are given."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm.errors import DataError
from dlm.model.text import encode, pieces
from dlm.template import Hole, Template


@dataclass(frozen=True)
class Canvas:
    """A row of ids.

    Attributes:
        ids: What the row holds; the mask where something is to be written.
        editable: Whether each position is to be written, or scored.
        holes: Where the holes of a template are, in reading order.
    """

    ids: list[int]
    editable: list[bool]
    holes: list[range]

    @classmethod
    def after(cls, given: Sequence[int], rest: Sequence[int]) -> "Canvas":
        """A row of given ids, and after them a hole: masks that are to be written, or ids that are to be scored."""
        hole = range(len(given), len(given) + len(rest))
        return cls([*given, *rest], [False] * len(given) + [True] * len(rest), [hole])


def lay_out(template: Template, tokenizer: PreTrainedTokenizerBase, mask_id: int, context: int) -> Canvas:
    """A template as the model sees it.

    Each of its texts becomes tokens on its own, so that no token crosses the border of a hole. A text longer than the
    context is seen through a window, with as much of it on either side of the holes as fits.

    Args:
        template: Texts and holes, at least one hole.
        tokenizer: The model's tokenizer.
        mask_id: What stands in the holes.
        context: The longest row, in tokens.

    Returns:
        The row.

    Raises:
        DataError: The holes and the text between them are longer than the context.
    """
    texts = iter(encode(tokenizer, [part for part in template if isinstance(part, str)]))
    ids: list[int] = []
    holes: list[range] = []
    for part in template:
        if isinstance(part, Hole):
            if part.tokens > context:
                raise DataError(f"a span of {part.tokens} tokens does not fit the context of {context}")
            holes.append(range(len(ids), len(ids) + part.tokens))
            ids += [mask_id] * part.tokens
        else:
            ids += next(texts)
    first, last = holes[0].start, holes[-1].stop
    if last - first > context:
        raise DataError(
            f"the spans and the text between them take {last - first} tokens and the context of this model is "
            f"{context}: shorten the spans, or fill them in several calls"
        )
    start = max(0, min(first - (context - (last - first)) // 2, len(ids) - context))
    window = range(start, min(start + context, len(ids)))
    written = {i for hole in holes for i in hole}
    return Canvas(
        [ids[i] for i in window],
        [i in written for i in window],
        [range(hole.start - start, hole.stop - start) for hole in holes],
    )


def fill(template: Template, spans: Sequence[str]) -> str:
    """The text of a template with its holes filled; everything else is exactly the text that was given."""
    filling = iter(spans)
    return "".join(next(filling) if isinstance(part, Hole) else part for part in template)


def written_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], hole: range) -> str:
    """The text that the ids of a hole add to what stands before them."""
    return "".join(pieces(tokenizer, list(ids[: hole.stop]))[hole.start :])


def stack(canvases: Sequence[Canvas], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of unequal length side by side.

    Args:
        canvases: The rows.
        pad_id: What fills up the shorter ones, on the right.

    Returns:
        Ids, and whether each position is editable; both of shape (B, L), on the CPU.
    """
    width = max(len(canvas.ids) for canvas in canvases)
    ids_BL = [canvas.ids + [pad_id] * (width - len(canvas.ids)) for canvas in canvases]
    editable_BL = [canvas.editable + [False] * (width - len(canvas.ids)) for canvas in canvases]
    return torch.tensor(ids_BL), torch.tensor(editable_BL)
