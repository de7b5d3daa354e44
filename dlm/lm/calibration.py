"""How many drafts a call are fastest here: the machine, the model and the batch decide."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dlm.lm.layout import Prompt
from dlm.lm.model import DiffusionLM
from dlm.lm.sampler import Sampler

CANDIDATES = (0, 1, 2, 3, 4)
LENGTH, ROUNDS = 32, 3


def drafts_per_second(
    lm: DiffusionLM,
    sampler: Sampler,
    prompt: Prompt = None,
    *,
    batch_size: int = 1,
    candidates: Sequence[int] = CANDIDATES,
    length: int = LENGTH,
) -> Mapping[int, float]:
    """Writes short texts with each number of drafts in turn, and says how fast each is.

    Args:
        lm: A model with a causal reading and masks.
        sampler: How it writes; its drafts are set aside.
        prompt: What the texts begin with.
        batch_size: Texts written side by side.
        candidates: The numbers of drafts.
        length: Tokens a text, or as many as there is room for.

    Returns:
        Tokens a second by the number of drafts, the best of three rounds.

    Raises:
        ConfigError: The model drafts nothing.
        DataError: The prompt does not fit the context.
    """
    length = min(length, lm.layout.room(prompt))
    speeds: dict[int, list[float]] = {drafts: [] for drafts in candidates}
    for number in range(ROUNDS + 1):  # the first warms up
        for drafts, found in speeds.items():
            how = replace(sampler, drafts=drafts, verify=True)
            began = time.perf_counter()
            texts = lm.generate(prompt, num=batch_size, length=length, sampler=how, seed=number, batch_size=batch_size)
            if number:
                found.append(sum(len(text.ids) for text in texts) / (time.perf_counter() - began))
    return {drafts: max(found) for drafts, found in speeds.items()}
