"""`DiffusionLM`: a trained model and all it can do, for a notebook and for every command."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from huggingface_hub import HfApi
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlm.config import Config, Pretrained
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.formulation import NO_ORDER, Formulation
from dlm.diffusion.process import Process
from dlm.diffusion.rules import ReverseChain, Rule
from dlm.diffusion.sample import State, sample
from dlm.diffusion.unmask import Budget, Margin, Order, Random, TokenChoice
from dlm.errors import CheckpointError, ConfigError, DataError
from dlm.model.backbone import Backbone, attention_implementation, load_model
from dlm.model.checkpoint import Sidecar, read_sidecar, resolve, whole_folder, write_model
from dlm.model.lora import is_adapter, load_merged
from dlm.model.precision import Precision, in_precision
from dlm.model.time_embedding import TimeEmbedding, load_time_embedding
from dlm.model.tokenizer import build_tokenizer, encode, encode_chat, pieces, special_ids, vocabulary_of
from dlm.template import Hole, Template, parse_template

Watch = Callable[[State], None]
"""Called with every state of a sampler."""


@dataclass(frozen=True)
class Sampler:
    """A point in the grid of samplers; see `dlm/diffusion/unmask.py`.

    Attributes:
        order: Which masked positions first; None for the budget's own, or else for what suits the task.
        budget: How many of them a step; None for one, or for the reverse chain where seen tokens may be noise.
        token: Which token each gets.
        block_length: Tokens a block, written from left to right; None for one block.
    """

    order: Order | None = None
    budget: Budget | None = None
    token: TokenChoice = field(default_factory=TokenChoice)
    block_length: int | None = None

    def rule(self, formulation: Formulation, process: Process, suits: Order, tokens: int) -> Rule:
        """What this asks of a model; see `Formulation.rule`.

        Args:
            formulation: The model's.
            process: Its forward process.
            suits: The order that suits the task.
            tokens: How many are to be written.

        Returns:
            The rule.

        Raises:
            ConfigError: The model's noise knows no such order, budget or blocks.
        """
        try:
            rule = formulation.rule(
                process, self.token, order=self.order, budget=self.budget, suits=suits, tokens=tokens
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if isinstance(rule, ReverseChain) and self.block_length is not None:
            raise ConfigError(NO_ORDER)
        return rule


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote.

    Attributes:
        text: The prompt, exactly as it was given, and what was written after it; after a chat that alone.
        continuation: What was written alone.
        ids: The ids that were written, up to the end of text and without it.
        calls: Network calls that this text took part in.
    """

    text: str
    continuation: str
    ids: tuple[int, ...]
    calls: int


@dataclass(frozen=True)
class Infilling:
    """One way of filling the holes of a text.

    Attributes:
        text: The whole text; outside the holes it is byte for byte what was given.
        spans: What was written into each hole.
        ids: The ids that were written into each hole.
        log_likelihood: A lower bound, in nats, of the log-probability of the spans given the rest (exact for
            a single token).
        calls: Network calls that this text took part in.
    """

    text: str
    spans: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    log_likelihood: float
    calls: int


class DiffusionLM:
    """A diffusion language model with its tokenizer.

    Attributes:
        model: The HuggingFace model.
        tokenizer: Its tokenizer.
        sidecar: What its run left beside it; None for a model that `dlm` did not train.
        time_embedding: What tells the model the time; None for a model that takes no time.
        formulation: The choices it was trained with.
        context: The longest sequence, in tokens.
        process: The forward process.
        denoiser: Predicts clean tokens; scores texts.
        sampling_denoiser: The same with the unknown character forbidden; writes texts, which may end.
        infilling_denoiser: The same with the end of text forbidden too; writes the inside of a text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        sidecar: Sidecar | None = None,
        precision: Precision = "fp32",
        time_embedding: TimeEmbedding | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        """Puts a model and its tokenizer together.

        Args:
            model: A bidirectional HuggingFace model.
            tokenizer: A tokenizer with distinct mask, padding and end-of-text tokens.
            sidecar: What its run left beside it.
            precision: What the network computes in; the log-probabilities are float32 or wider in any case.
            time_embedding: What tells the model the time.
            backbone: The network made of both, where there is one already, such as one in training.

        Raises:
            CheckpointError: The tokenizer has an id that the model has no logit for, or is not the model's own.
        """
        ids = special_ids(tokenizer)
        self._backbone = backbone or Backbone(model, ids.pad, time_embedding)
        self.model, self.tokenizer, self.sidecar, self.time_embedding = (
            model,
            tokenizer,
            sidecar,
            self._backbone.time_embedding,
        )
        self.precision = precision
        if max(ids.mask, ids.pad, ids.end) >= self._backbone.vocabulary:
            raise CheckpointError("this model has no mask token of its own: it was not trained to fill masks")
        if sidecar is not None and sidecar.mask_id != ids.mask:
            raise CheckpointError(
                f"the mask of this tokenizer is {ids.mask} and the model was trained with {sidecar.mask_id}: "
                "the tokenizer is not the model's own"
            )
        self.context = (
            sidecar.config.data.length if sidecar else int(getattr(model.config, "max_position_embeddings", 512))
        )
        self.formulation = sidecar.config.formulation if sidecar else Formulation()
        self.process = self.formulation.process(vocabulary_of(tokenizer, self._backbone.vocabulary))
        network = in_precision(self._backbone, self.device, precision)
        forbidden = self.process.vocabulary.forbidden
        unspelled = forbidden if ids.unknown is None else (*forbidden, ids.unknown)
        self.denoiser, self.sampling_denoiser, self.infilling_denoiser = (
            self.formulation.denoiser(network, self.process, ids_, ids.end)
            for ids_ in (forbidden, unspelled, (*unspelled, ids.end))
        )
        self._end_id, self._pad_id = ids.end, ids.pad

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: str | torch.device | None = None,
        attention: str = "auto",
        precision: Precision = "fp32",
    ) -> Self:
        """Loads a model.

        Args:
            model: A run folder (its best checkpoint), a checkpoint folder, or a Hub name; also a masked-LM
                model of transformers' own, such as BERT. Adapters are merged into the model they belong to.
            device: Where to put it; a GPU where there is one by default.
            attention: As `model.attention` in the configuration.
            precision: What the network computes in.

        Returns:
            The model, ready to use.

        Raises:
            CheckpointError: There is no such model, or it is damaged.
        """
        path = resolve(model)
        sidecar = read_sidecar(path)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        length = sidecar.config.data.length if sidecar else 512
        tokenizer = build_tokenizer(Pretrained(path), lambda: ())
        how = attention_implementation(attention, where, length)
        network = load_merged(path, tokenizer, how) if is_adapter(path) else load_model(path, how)
        timed = sidecar is not None and sidecar.config.formulation.timed
        time_embedding = load_time_embedding(path, network).to(where) if timed else None
        return cls(network.to(where), tokenizer, sidecar=sidecar, precision=precision, time_embedding=time_embedding)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def config(self) -> Config | None:
        """The configuration of the run that made it, where one did."""
        return self.sidecar.config if self.sidecar else None

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that `from_pretrained` and plain transformers read.

        Args:
            folder: Where; nothing may stand there yet.

        Raises:
            CheckpointError: Something stands there already, or it cannot be written.
        """
        with whole_folder(Path(folder)) as draft:
            write_model(draft, self.model, self.tokenizer, self.sidecar, self.time_embedding)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Uploads the model to the Hub; needs a login (`hf auth login`).

        Args:
            name: The repository, as in `owner/name`.
            private: Whether a repository made now is private.

        Returns:
            The address of the commit.
        """
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), self.model, self.tokenizer, self.sidecar, self.time_embedding)
            return str(api.upload_folder(repo_id=name, folder_path=folder))

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, str]] | None = None,
        *,
        num: int = 1,
        length: int | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
        batch_size: int = 16,
        watch: Watch | None = None,
    ) -> list[Sample]:
        """Writes texts, from nothing or after a prompt.

        Args:
            prompt: What the text begins with, or a chat, messages of `{role, content}`, that the tokenizer's template
                writes down. With one, a text ends at the first end of text.
            num: How many texts.
            length: Tokens to write; what the context leaves room for by default.
            sampler: How; by default exact random order, one token at a time, or the model's own chain of steps;
                where seen tokens may be noise the reverse chain, without steps of its own in as many as tokens
                (at least 64).
            seed: Text number i depends on the seed and i alone, not on the batch.
            batch_size: Texts written side by side.
            watch: Called with every state.

        Returns:
            `num` texts.

        Raises:
            DataError: The prompt, or the prompt and the length, do not fit the context.
            ConfigError: The sampler needs masks, and the model's process has none, or none for good.
        """
        if prompt is None or isinstance(prompt, str):
            said = prompt or ""
            given = encode(self.tokenizer, [said])[0]
        else:
            said, given = "", encode_chat(self.tokenizer, prompt)
        room = self.context - len(given)
        if room < 1:
            raise DataError(
                f"the prompt takes {len(given)} tokens and the context of this model is {self.context}: shorten it"
            )
        length = room if length is None else length
        if not 1 <= length <= room:
            raise DataError(f"the length must be from 1 to {room} tokens here, got {length}")
        sampler = sampler or Sampler()
        rule = sampler.rule(self.formulation, self.process, Random(), length)
        row = given + [self.process.mask_id] * length
        samples = []
        for start in range(0, num, batch_size):
            indices = range(start, min(start + batch_size, num))
            final = self._write(
                rule,
                self.sampling_denoiser,
                [row] * len(indices),
                [[False] * len(given) + [True] * length] * len(indices),
                sampler.block_length,
                [generator(seed, "sample", i) for i in indices],
                self._end_id if prompt else None,
                watch,
            )
            for ids, calls in zip(final.x_BL.tolist(), final.calls_B.tolist(), strict=True):
                written = ids[len(given) :]
                if prompt and self._end_id in written:
                    written = written[: written.index(self._end_id)]
                text = "".join(pieces(self.tokenizer, given + written)[len(given) :])
                samples.append(Sample(said + text, text, tuple(written), calls))
        return samples

    def infill(
        self,
        text: str | Template,
        *,
        num: int = 1,
        sampler: Sampler | None = None,
        seed: int = 0,
        batch_size: int = 16,
        draws: int = 16,
        watch: Watch | None = None,
    ) -> list[Infilling]:
        """Fills the holes of a text.

        Args:
            text: Text with holes such as `[MASK:12]`, twelve tokens, or what `parse_template` makes of it.
            num: How many alternatives.
            sampler: How; by margin order, one token at a time, by default.
            seed: Alternative number i depends on the seed and i alone.
            batch_size: Alternatives written side by side.
            draws: Masked copies that a log-likelihood is estimated from.
            watch: Called with every state.

        Returns:
            `num` alternatives, the most likely first.

        Raises:
            DataError: There is no hole, or the holes and what stands between them do not fit the context.
        """
        template = parse_template(text) if isinstance(text, str) else text
        return self.infill_many(
            [template], num=num, sampler=sampler, seed=seed, batch_size=batch_size, draws=draws, watch=watch
        )[0]

    def infill_many(
        self,
        templates: Sequence[Template],
        *,
        num: int = 1,
        sampler: Sampler | None = None,
        seed: int = 0,
        batch_size: int = 16,
        draws: int = 16,
        watch: Watch | None = None,
    ) -> list[list[Infilling]]:
        """Fills many texts side by side; see `infill`.

        Args:
            templates: What `parse_template` makes of each text.
            num: How many alternatives of each.
            sampler: How.
            seed: An alternative depends on the seed, its text's place in `templates` and its own number alone.
            batch_size: Alternatives written side by side.
            draws: Masked copies that a log-likelihood is estimated from.
            watch: Called with every state.

        Returns:
            For each text its alternatives, the most likely first.

        Raises:
            DataError: The holes of a text and what stands between them do not fit the context.
            ConfigError: The sampler needs masks, and the model's process has none, or none for good.
        """
        canvases = [self._lay_out(template) for template in templates]
        widest = max((sum(canvas.editable) for canvas in canvases), default=1)
        sampler = sampler or Sampler()
        rule = sampler.rule(self.formulation, self.process, Margin(), widest)
        jobs = [(text, alternative) for text in range(len(templates)) for alternative in range(num)]
        results: list[list[Infilling]] = [[] for _ in templates]
        for start in range(0, len(jobs), batch_size):
            part = jobs[start : start + batch_size]
            rows = [canvases[text].ids for text, _ in part]
            editable = [canvases[text].editable for text, _ in part]
            streams = [generator(seed, "infill", *job) for job in part]
            denoiser, blocks = self.infilling_denoiser, sampler.block_length
            final = self._write(rule, denoiser, rows, editable, blocks, streams, None, watch)
            nats_B = self._conditional(final.x_BL, editable, draws, seed)
            for (text, _), ids, calls, nats in zip(
                part, final.x_BL.tolist(), final.calls_B.tolist(), nats_B, strict=True
            ):
                results[text].append(self._fill(templates[text], canvases[text], ids, calls, -nats))
        return [sorted(alternatives, key=lambda found: -found.log_likelihood) for alternatives in results]

    @torch.inference_mode()
    def nelbo(self, texts: str | Sequence[str], *, draws: int = 16, seed: int = 0, batch_size: int = 16) -> list[float]:
        """Upper bounds of texts' negative log-likelihoods, each text followed by its end.

        A text longer than the context is scored in pieces of the context's length.

        Args:
            texts: One text or several.
            draws: Masked copies of each piece; even.
            seed: The masks follow from it.
            batch_size: Pieces scored side by side.

        Returns:
            Nats a text.
        """
        self.model.eval()
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows: list[tuple[int, list[int]]] = []
        for index, ids in enumerate(encode(self.tokenizer, texts)):
            whole = [*ids, self._end_id]
            rows += [(index, whole[i : i + self.context]) for i in range(0, len(whole), self.context)]
        nats = [0.0] * len(texts)
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            x0_BL, where_BL = self._pad([ids for _, ids in part], [[True] * len(ids) for _, ids in part])
            streams = [generator(seed, "nelbo", start + i) for i in range(len(part))]
            terms_RBL = self.formulation.estimator(draws)(self.denoiser, self.process, x0_BL, streams, where_BL)
            for (index, _), value in zip(part, terms_RBL.mean(0).sum(1).tolist(), strict=True):
                nats[index] += value
        return nats

    def _write(
        self,
        rule: Rule,
        denoiser: Denoiser,
        rows: Sequence[list[int]],
        editable: Sequence[list[bool]],
        block_length: int | None,
        generators: Sequence[torch.Generator],
        stop_id: int | None,
        watch: Watch | None,
    ) -> State:
        """Runs the sampler to its end and returns the last state."""
        self.model.eval()
        canvas_BL, editable_BL = self._pad(rows, editable)
        for state in sample(
            rule,
            denoiser,
            canvas_BL,
            editable_BL,
            generators=generators,
            block_length=block_length,
            stop_id=stop_id,
        ):
            if watch:
                watch(state)
        return state

    @torch.inference_mode()
    def _conditional(self, x0_BL: Tensor, editable: Sequence[list[bool]], draws: int, seed: int) -> list[float]:
        """Bounds of -log p(written | given), in nats, the same masks for every alternative."""
        _, where_BL = self._pad([[]] * len(editable), editable)
        streams = [generator(seed, "rank") for _ in editable]
        terms_RBL = self.formulation.estimator(draws)(self.infilling_denoiser, self.process, x0_BL, streams, where_BL)
        nats: list[float] = terms_RBL.mean(0).sum(1).tolist()
        return nats

    def _pad(self, rows: Sequence[list[int]], where: Sequence[list[bool]]) -> tuple[Tensor, Tensor]:
        """Rows of unequal length as two tensors, padded on the right."""
        width = max(len(row) for row in where)
        ids_BL = torch.tensor([row + [self._pad_id] * (width - len(row)) for row in rows], device=self.device)
        where_BL = torch.tensor([row + [False] * (width - len(row)) for row in where], device=self.device)
        return ids_BL, where_BL

    def _lay_out(self, template: Template) -> "_Canvas":
        """Each part becomes tokens on its own, so that no token reaches over the seam of a hole."""
        texts = iter(encode(self.tokenizer, [part for part in template if isinstance(part, str)]))
        ids: list[int] = []
        holes: list[range] = []
        for part in template:
            if isinstance(part, Hole):
                holes.append(range(len(ids), len(ids) + part.tokens))
                if part.tokens > self.context:
                    raise DataError(f"a span of {part.tokens} tokens does not fit the context of {self.context}")
                ids += [self.process.mask_id] * part.tokens
            else:
                ids += next(texts)
        first, last = holes[0].start, holes[-1].stop
        if last - first > self.context:
            raise DataError(
                f"the spans and the text between them take {last - first} tokens and the context of this model is "
                f"{self.context}: shorten the spans, or fill them in several calls"
            )
        # A longer text is seen through a window with as much of it on either side of the holes as fits.
        start = max(0, min(first - (self.context - (last - first)) // 2, len(ids) - self.context))
        window = range(start, min(start + self.context, len(ids)))
        written = {i for hole in holes for i in hole}
        return _Canvas(
            [ids[i] for i in window],
            [i in written for i in window],
            [range(hole.start - start, hole.stop - start) for hole in holes],
        )

    def _fill(self, template: Template, canvas: "_Canvas", ids: list[int], calls: int, likelihood: float) -> Infilling:
        """Puts what was written into the holes; everything else is the text as it was given."""
        spans = [self._span(ids, hole) for hole in canvas.holes]
        filling = iter(spans)
        text = "".join(next(filling) if isinstance(part, Hole) else part for part in template)
        written = tuple(tuple(ids[hole.start : hole.stop]) for hole in canvas.holes)
        return Infilling(text, tuple(spans), written, likelihood, calls)

    def _span(self, ids: list[int], hole: range) -> str:
        return "".join(pieces(self.tokenizer, ids[: hole.stop])[hole.start :])


@dataclass(frozen=True)
class _Canvas:
    """A template as the model sees it: its ids, which of them are to be written, and where each hole is."""

    ids: list[int]
    editable: list[bool]
    holes: list[range]
