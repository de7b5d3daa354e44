"""Verified sampling has the distribution of the causal reading, whatever drafts it is given."""

import itertools
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from scipy import stats
from torch import Tensor

from dlm.diffusion.denoiser import FunctionDenoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.sample import State
from dlm.diffusion.unmask import TokenChoice
from dlm.diffusion.verify import Verified, sample_verified
from tests.support.networks import seen_behind_cache

SYMBOLS, LENGTH, MASK, BEFORE = 3, 3, 3, 4
ROWS = 1500
TABLE = torch.rand((SYMBOLS,) * LENGTH, generator=generator("joint"), dtype=torch.float64) ** 3
TABLE /= TABLE.sum()


@cache
def given(prefix: tuple[int, ...], ahead: int = 0) -> Tensor:
    """P of the token `ahead` places behind the next, given the tokens before; nothing is known beyond the text."""
    place = len(prefix) + ahead
    if place >= LENGTH:
        return torch.full((SYMBOLS,), 1.0 / SYMBOLS, dtype=torch.float64)
    rest = TABLE[prefix].movedim(ahead, 0).reshape(SYMBOLS, -1).sum(1)
    return rest / rest.sum()


def exact(prefix: tuple[int, ...], ahead: int) -> Tensor:
    """The best draft there is."""
    return given(prefix, ahead)


def useless(prefix: tuple[int, ...], ahead: int) -> Tensor:
    """A draft that knows nothing."""
    return torch.full((SYMBOLS,), 1.0 / SYMBOLS, dtype=torch.float64)


def adversarial(prefix: tuple[int, ...], ahead: int) -> Tensor:
    """A draft that is nearly sure of what is least likely."""
    worst = torch.full((SYMBOLS,), 0.01, dtype=torch.float64)
    worst[given(prefix, ahead).argmin()] = 0.98
    return worst


class Ids:
    """A cache that keeps ids instead of keys and values."""

    def __init__(self, rows: int) -> None:
        self.kept: list[list[int]] = [[] for _ in range(rows)]
        self.seen: list[list[int]] = []

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.kept]

    def keep(self, counts: Sequence[int]) -> None:
        self.kept = [[*ids, *new[:count]] for ids, new, count in zip(self.kept, self.seen, counts, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        self.kept = [self.kept[row] for row in rows]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.lengths)

    def crop(self, max_length: int) -> None:
        pass


def network(draft: Callable[[tuple[int, ...], int], Tensor]) -> FunctionDenoiser:
    """Next tokens of the joint at clean ids, and drafts at masks; it knows no more than it is let see."""

    def predict(inputs: NetworkInput) -> Tensor:
        memory = inputs.cache
        assert isinstance(memory, Ids) and inputs.positions is not None
        memory.seen = inputs.ids_BL.tolist()
        found = []
        for row, query in inputs.wanted_BL.nonzero().tolist():
            slots = [*memory.kept[row], *memory.seen[row]]
            open_S = seen_behind_cache(inputs)[row, query].tolist()
            seen = [id_ for id_, is_seen in zip(slots, open_S[: len(slots)], strict=True) if is_seen]
            assert not any(open_S[len(slots) :])  # what shorter rows leave over
            prefix = tuple(id_ for id_ in seen if id_ != MASK)[1:]
            place = int(inputs.positions[row, query])
            if memory.seen[row][query] == MASK:
                found.append(draft(prefix[:LENGTH], place - 1 - len(prefix)))
            else:
                assert place == len(prefix)
                found.append(given(prefix[:LENGTH]))
        return torch.stack(found).log()

    return FunctionDenoiser(predict)


def write(
    how: Verified,
    draft: Callable[[tuple[int, ...], int], Tensor],
    prompts: Sequence[Sequence[int]],
    *,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    first_BV: Tensor | None = None,
) -> list[State]:
    """The states of rows with these prompts."""
    canvas_BL = torch.tensor([[*prompt, *[MASK] * (LENGTH - len(prompt))] for prompt in prompts])
    return list(
        sample_verified(
            how,
            network(draft),
            Ids(len(prompts)),
            canvas_BL,
            canvas_BL == MASK,
            MASK,
            BEFORE,
            generators=[generator(seed, row) for row in range(len(prompts))],
            stop_ids=stop_ids,
            first_BV=first_BV,
        )
    )


def fits(x_BL: Tensor, joint: Tensor) -> bool:
    """Whether texts are draws of a joint, by the chi-square test."""
    weights = SYMBOLS ** torch.arange(LENGTH - 1, -1, -1)
    found = torch.bincount((x_BL * weights).sum(1), minlength=SYMBOLS**LENGTH)
    expected = joint.flatten() * len(x_BL)
    assert found[expected == 0.0].sum() == 0
    kept = expected > 0.0
    return float(stats.chisquare(found[kept].numpy(), expected[kept].numpy()).pvalue) > 1e-4


@pytest.mark.parametrize("draft", [exact, useless, adversarial])
@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_texts_are_draws_of_the_chain_whatever_drafts_are(
    draft: Callable[[tuple[int, ...], int], Tensor], drafts: int
) -> None:
    last = write(Verified(drafts), draft, [()] * ROWS)[-1]
    assert fits(last.x_BL, TABLE)


def test_the_comparison_sees_drafts_that_are_not_verified() -> None:
    last = write(Verified(3, accept=1e-9), useless, [()] * ROWS)[-1]
    assert not fits(last.x_BL, TABLE)


def test_a_temperature_and_a_cut_are_those_of_the_chain() -> None:
    token = TokenChoice(temperature=0.7, top_k=2)
    cut = torch.zeros_like(TABLE)
    for text in itertools.product(range(SYMBOLS), repeat=LENGTH):
        steps = [token.probabilities(given(text[:i]).log()[None])[0, text[i]] for i in range(LENGTH)]
        cut[text] = torch.stack(steps).prod()
    last = write(Verified(2, token), useless, [()] * ROWS)[-1]
    assert fits(last.x_BL, cut) and not fits(last.x_BL, TABLE)


def test_a_text_that_is_sure_is_the_likeliest_one_and_drafts_of_it_are_all_accepted() -> None:
    sure = TokenChoice(temperature=0.0)
    states = write(Verified(3, sure), exact, [()] * 2)
    text: tuple[int, ...] = ()
    for _ in range(LENGTH):
        text = (*text, int(given(text).argmax()))
    assert states[-1].x_BL.tolist() == [[*text]] * 2


def test_where_drafts_are_drawn_from_p_itself_everything_is_accepted() -> None:
    """A chain of independent tokens: what a mask knows is all there is to know."""
    even = torch.full((SYMBOLS,), 1.0 / SYMBOLS, dtype=torch.float64).log()
    memory = Ids(50)

    def predict(inputs: NetworkInput) -> Tensor:
        memory.seen = inputs.ids_BL.tolist()
        return even.expand(int(inputs.wanted_BL.sum()), -1)

    canvas_BL = torch.full((50, 41), MASK)
    states = sample_verified(
        Verified(3),
        FunctionDenoiser(predict),
        memory,
        canvas_BL,
        canvas_BL == MASK,
        MASK,
        BEFORE,
        generators=[generator(row) for row in range(50)],
    )
    *_, last = states
    assert last.calls_B.tolist() == [1 + 40 // 4] * 50  # one token without drafts, then three drafts and one more


def test_prompts_of_any_length_are_continued_by_the_chain_and_left_as_they_are() -> None:
    prompts: list[tuple[int, ...]] = [(), (0,), (0, 1), (1, 1, 2)] * (ROWS // 4)
    first, *_, last = write(Verified(2), useless, prompts)
    for prompt, row, begun in zip(prompts, last.x_BL.tolist(), first.x_BL.tolist(), strict=True):
        assert tuple(row[: len(prompt)]) == prompt and begun[len(prompt) :] == [MASK] * (LENGTH - len(prompt))
    chosen = torch.tensor([prompt == (0,) for prompt in prompts])
    conditional = torch.zeros_like(TABLE)
    conditional[0] = TABLE[0] / TABLE[0].sum()
    assert fits(last.x_BL[chosen], conditional)
    assert last.calls_B[torch.tensor([len(prompt) == LENGTH for prompt in prompts])].sum() == 0


@pytest.mark.parametrize("drafts", [0, 2])
def test_a_text_that_may_begin_with_some_tokens_alone_is_drawn_from_those(drafts: int) -> None:
    """A row whose prompt leaves nothing to write has no first token, and the others keep theirs."""
    prompts: list[tuple[int, ...]] = [(), (), (1, 1, 2)] * (ROWS // 2)
    first_BV = torch.tensor([[True, False, True], [True, True, True], [False, True, False]] * (ROWS // 2))
    last = write(Verified(drafts), useless, prompts, first_BV=first_BV)[-1]
    kept = TABLE.clone()
    kept[1] = 0.0
    assert fits(last.x_BL[0::3], kept / kept.sum()) and fits(last.x_BL[1::3], TABLE)


@pytest.mark.parametrize("drafts", [0, 2])
def test_a_row_depends_on_itself_alone(drafts: int) -> None:
    prompts = [(), (2,), (0, 1), (1, 1, 2)]
    together = write(Verified(drafts), exact, prompts)[-1]
    for row, prompt in enumerate(prompts):
        canvas_BL = torch.tensor([[*prompt, *[MASK] * (LENGTH - len(prompt))]])
        *_, alone = sample_verified(
            Verified(drafts),
            network(exact),
            Ids(1),
            canvas_BL,
            canvas_BL == MASK,
            MASK,
            BEFORE,
            generators=[generator(0, row)],
        )
        assert alone.x_BL[0].tolist() == together.x_BL[row].tolist()
        assert alone.calls_B[0] == together.calls_B[row]


def test_a_stop_ends_a_row_and_fills_it() -> None:
    states = write(Verified(2), exact, [()] * 200, stop_ids=(1,))
    for row in states[-1].x_BL.tolist():
        assert 1 not in row or set(row[row.index(1) :]) == {1}
    assert any(row.count(1) > 1 for row in states[-1].x_BL.tolist())


def test_every_state_keeps_what_was_written() -> None:
    states = write(Verified(2), useless, [()] * 20)
    for before, after in itertools.pairwise(states):
        was = before.x_BL != MASK
        assert torch.equal(after.x_BL[was], before.x_BL[was])
        assert torch.equal(after.changed_BL, after.x_BL != before.x_BL)
    assert states[-1].calls == len(states) - 1


@pytest.mark.parametrize(("drafts", "accept"), [(-1, 1.0), (1, 0.0), (1, 1.5)])
def test_impossible_choices_are_refused(drafts: int, accept: float) -> None:
    with pytest.raises(ValueError, match=r"drafts must be|accept must be"):
        Verified(drafts, accept=accept)
