"""`DiffusionLM`: a trained model and all it can do, for a notebook and for every command."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlm import hub
from dlm.config import Config, Pretrained
from dlm.diffusion.denoiser import Denoiser, PlacedDenoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.formulation import Formulation
from dlm.diffusion.likelihood import Estimator
from dlm.diffusion.network import PlacedNetwork, has_float64
from dlm.diffusion.unmask import Margin, Order, Random
from dlm.errors import CheckpointError, ConfigError, DataError
from dlm.lm.canvas import Canvas, fill, lay_out, stack, written_spans
from dlm.lm.sampler import Sampler, Watch
from dlm.lm.samples import Prompt, Sample, Task, alike, in_batches, kind, write_samples
from dlm.lm.scoring import Score, score_rows
from dlm.model.adapt import init_new_token_rows
from dlm.model.attention import attention_implementation
from dlm.model.backbone import Backbone
from dlm.model.checkpoint import Sidecar, read_sidecar, whole_folder, write_model
from dlm.model.loading import load_model, usable_positions
from dlm.model.locate import is_adapter, resolve
from dlm.model.lora import load_merged
from dlm.model.precision import Precision, in_precision, working_precisions
from dlm.model.public import Family, find
from dlm.model.text import encode, encode_chat
from dlm.model.time_embedding import TimeEmbedding, load_time_embedding
from dlm.model.tokenizer import Affixes, affixes_of, build_tokenizer, special_ids, vocabulary_of
from dlm.model.weights import Dtype, Held, Quantization
from dlm.template import Template, parse_template


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
        time_embedding: What tells the model the time; None for a model that takes no time.
        sidecar: The formulation, context and mask it was trained with, and the run that made it, where one did.
        process: The forward process.
        end_ids: The ids that end a text, that of the end of text first.
        precision: What texts are written in.
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
        precision: Precision | Literal["auto"] = "auto",
        time_embedding: TimeEmbedding | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        """Puts a model and its tokenizer together.

        Args:
            model: A bidirectional HuggingFace model.
            tokenizer: A tokenizer with distinct mask, padding and end-of-text tokens.
            sidecar: How it was trained; plain masked diffusion by default.
            precision: What the network computes in; `auto` is that of weights of 16 bits. With wider weights it writes
                texts in bfloat16 where this machine computes in it, and scores them in float32. Log-probabilities are
                float32 or wider in any case.
            time_embedding: What tells the model the time.
            backbone: The network made of both, where there is one already, such as one in training.

        Raises:
            CheckpointError: The tokenizer has an id that the model has no logit for, or is not the model's own.
        """
        ids = special_ids(tokenizer)
        self._backbone = backbone or Backbone(model, ids.pad, time_embedding)
        self.model, self.tokenizer, self.time_embedding = model, tokenizer, self._backbone.time_embedding
        if max(ids.mask, ids.pad, ids.end) >= self._backbone.vocabulary:
            raise CheckpointError(
                f"this model has {self._backbone.vocabulary} ids and none for its tokenizer's mask, padding or end of "
                f"text, which are {ids.mask}, {ids.pad} and {ids.end}: it was not trained to fill masks"
            )
        if sidecar is None:
            sidecar = Sidecar(Formulation(), usable_positions(model) or 512, ids.mask, affixes=affixes_of(tokenizer))
        self.sidecar = sidecar
        if self.sidecar.mask_id != ids.mask:
            raise CheckpointError(
                f"the mask of this tokenizer is {ids.mask} and the model was trained with {self.sidecar.mask_id}: "
                "the tokenizer is not the model's own"
            )
        family = self.sidecar.family
        ends = family.end_ids(tokenizer) if family else []
        self.process = self.formulation.process(vocabulary_of(tokenizer, self._backbone.vocabulary, allowed=ends))
        self.end_ids, self._pad_id = (ids.end, *ends), ids.pad
        self._first_id = _first_id(sidecar, tokenizer)
        self.precision, scoring = working_precisions(precision, model.dtype, self.device)
        forbidden = self.process.vocabulary.forbidden
        known = forbidden if ids.unknown is None or ids.unknown in ends else (*forbidden, ids.unknown)
        self.denoiser = self._forbidding(forbidden, scoring)
        inside = (*known, *self.end_ids)
        written: tuple[Denoiser, ...] = tuple(
            PlacedDenoiser(self._forbidding(unwanted, self.precision), lambda: self.arithmetic_device)
            for unwanted in (known, inside)
        )
        self.sampling_denoiser, self.infilling_denoiser = written
        self._ranking_denoiser = self._forbidding(inside, scoring)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: str | torch.device | None = None,
        attention: str = "auto",
        dtype: Dtype = "auto",
        load: Quantization | None = None,
        mask_token: str | int | None = None,
        precision: Dtype | None = None,
    ) -> Self:
        """Loads a model.

        Args:
            model: A run folder (its best checkpoint), a checkpoint folder, or a Hub name; also a masked-LM
                model of transformers' own, such as BERT, or a published diffusion model, such as LLaDA (see
                `dlm.model.public`). Adapters are merged into the model they belong to.
            device: Where to put it; a GPU where there is one by default.
            attention: As `model.attention` in the configuration.
            dtype: What the weights are held in and the network computes in. `auto` holds them as they are stored, and
                computes as the constructor says.
            load: Quantise the weights to 4 or 8 bits, by `bitsandbytes`.
            mask_token: The text or the id of the mask, where the model has one that its tokenizer does not register.
            precision: An earlier name of `dtype`.

        Returns:
            The model, ready to use.

        Raises:
            CheckpointError: There is no such model, it is damaged, or it has no mask.
            ConfigError: The model says itself that its mask is another; or the weights cannot be quantised here, or
                they are adapters.
        """
        path = resolve(model)
        sidecar = read_sidecar(path)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        held = Held(precision or dtype, load, where)
        held.check()
        family = find(path) if sidecar is None and not is_adapter(path) else None
        tokenizer = build_tokenizer(Pretrained(path, mask_token), lambda: (), adds_mask=sidecar is not None)
        ids = special_ids(tokenizer)
        if sidecar is not None and mask_token is not None and ids.mask != sidecar.mask_id:
            raise ConfigError(
                f"--mask-token: {path} was trained with the mask {sidecar.mask_id}, got {mask_token!r}, which is "
                f"{ids.mask}: leave it out"
            )
        how = attention_implementation(attention, where, sidecar.context if sidecar else 512)
        network = load_merged(path, tokenizer, how, held) if is_adapter(path) else load_model(path, how, held=held)
        size = int(network.config.vocab_size)
        if sidecar is None and ids.mask < size <= ids.pad:  # the padding is no part of what the model was trained with
            init_new_token_rows(network, [ids.pad], ids.pad + 1)
        if family is not None:
            sidecar = _sidecar_of(family, network, tokenizer)
        timed = sidecar is not None and sidecar.formulation.timed
        embedding = load_time_embedding(path, network).to(where) if timed else None
        computed: Precision | Literal["auto"] = "fp32" if held.dtype == "fp32" else "auto"
        return cls(network, tokenizer, sidecar=sidecar, precision=computed, time_embedding=embedding)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def arithmetic_device(self) -> torch.device:
        """Where noise, draws and sums are computed: where the model is, or the CPU if that has no float64."""
        return self.device if has_float64(self.device) else torch.device("cpu")

    @property
    def formulation(self) -> Formulation:
        """The choices it was trained with."""
        return self.sidecar.formulation

    @property
    def context(self) -> int:
        """The longest sequence, in tokens."""
        return self.sidecar.context

    @property
    def config(self) -> Config | None:
        """The configuration of the run that made it, where one did."""
        return self.sidecar.config

    @property
    def documents_apart(self) -> bool:
        """Whether it was trained on rows of documents that do not see each other, so that a text is one document."""
        return self.config is not None and self.config.data.attend == "document"

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
        return hub.upload(
            name,
            lambda folder: write_model(folder, self.model, self.tokenizer, self.sidecar, self.time_embedding),
            private=private,
        )

    def generate(
        self,
        prompt: Prompt = None,
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
            prompt: What the text begins with, or a chat. With one, a text ends at the first end of text; without one
                it may hold several documents, if the model was trained on rows whose documents see each other.
            num: How many texts.
            length: Tokens to write; by default what the context leaves room for, and for a published model no more
                than its publisher's own number.
            sampler: How; by default exact random order, one token at a time, or the model's own chain of steps;
                where seen tokens may be noise the reverse chain, in T steps, or without T in one step a token and at
                least 64. What it leaves open is taken from the publisher's own sampler for a published model.
            seed: Text number i depends on the seed and i alone, not on the batch.
            batch_size: Texts written side by side.
            watch: Called with every state.

        Returns:
            `num` texts.

        Raises:
            DataError: The prompt, or the prompt and the length, do not fit the context.
            ConfigError: The sampler needs absorbing noise, and the model's noise is another.
        """
        written = self.generate_each(
            {0: prompt}, num=num, length=length, sampler=sampler, seed=seed, batch_size=batch_size, watch=watch
        )
        return next(written)

    def generate_each(
        self,
        prompts: Mapping[int, Prompt],
        *,
        num: int = 1,
        length: int | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
        batch_size: int = 16,
        watch: Watch | None = None,
    ) -> Iterator[list[Sample]]:
        """Continues many prompts, or answers many chats, side by side, and gives each as soon as it is finished.

        All prompts are checked before the first text is written.

        Args:
            prompts: What each text begins with, as for `generate`, under the number that its noise follows from.
            num: How many texts of each.
            length: Tokens to write after each; as for `generate` by default.
            sampler: How; as for `generate`.
            seed: A text depends on the seed, its prompt's number and its own number alone. Those of the prompt of
                number 0 are what `generate` writes.
            batch_size: Texts written side by side; only those that take the same number of steps are.
            watch: Called with every state.

        Returns:
            An iterator over the `num` texts of each prompt, in the order of the prompts.

        Raises:
            DataError: A prompt, or a prompt and the length, do not fit the context.
            ConfigError: The sampler needs absorbing noise, and the model's noise is another.
        """
        self.model.eval()
        sampler, order = self._completed(sampler, Random())
        tasks = []
        for place, prompt in prompts.items():
            canvas = self.canvas(prompt, length)
            rule = sampler.rule(self.formulation, self.process, order, sum(canvas.editable))
            key = ("sample", place) if place else ("sample",)
            stop_ids = self.end_ids if prompt or self.documents_apart else ()
            tasks += [Task(prompt, canvas, rule, stop_ids, (seed, *key, number)) for number in range(num)]
        written = write_samples(
            tasks,
            sampler,
            self.sampling_denoiser,
            self.tokenizer,
            timed=self.formulation.timed,
            batch_size=batch_size,
            watch=watch,
        )
        return ([next(written) for _ in range(num)] for _ in prompts)

    def canvas(self, prompt: Prompt, length: int | None = None) -> Canvas:
        """A prompt as the model sees it, and the masks that it writes into.

        Args:
            prompt: A text, a chat, or nothing.
            length: Tokens to write; as for `generate` by default.

        Returns:
            The row.

        Raises:
            DataError: The prompt, or the prompt and the length, do not fit the context.
        """
        (given, affixes), room = self._given(prompt), self.room(prompt)
        if length is None:
            length = min(room, family.length) if (family := self.sidecar.family) else room
        if not 1 <= length <= room:
            raise DataError(f"the length must be from 1 to {room} tokens here, got {length}")
        return Canvas.after(given, [self.process.mask_id] * length, affixes)

    def room(self, prompt: Prompt) -> int:
        """The number of tokens that the context has room for after a prompt.

        Args:
            prompt: A text, a chat, or nothing.

        Returns:
            At least 1.

        Raises:
            DataError: The prompt does not fit the context.
        """
        given, affixes = self._given(prompt)
        return self.context - len(given) - len(affixes)

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
        """Fills the holes of a text; see `infill_many`.

        Args:
            text: Text with holes such as `[MASK:12]`, twelve tokens, or what `parse_template` makes of it.
            num: How many alternatives.
            sampler: How.
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
        """Fills many texts side by side; `infill_each` gives each as soon as it is filled.

        Args:
            templates: What `parse_template` makes of each text.
            num: How many alternatives of each.
            sampler: How; by margin order, one token at a time, by default; for a published model by its own order.
            seed: An alternative depends on the seed, its text's place in `templates` and its own number alone.
            batch_size: Alternatives written side by side.
            draws: Masked copies that a log-likelihood is estimated from; the same masks for every alternative.
            watch: Called with every state.

        Returns:
            For each text its alternatives, the most likely first.

        Raises:
            DataError: The holes of a text and what stands between them do not fit the context.
            ConfigError: The sampler needs absorbing noise, and the model's noise is another.
        """
        return list(
            self.infill_each(
                dict(enumerate(templates)),
                num=num,
                sampler=sampler,
                seed=seed,
                batch_size=batch_size,
                draws=draws,
                watch=watch,
            )
        )

    def infill_each(
        self,
        templates: Mapping[int, Template],
        *,
        num: int = 1,
        sampler: Sampler | None = None,
        seed: int = 0,
        batch_size: int = 16,
        draws: int = 16,
        watch: Watch | None = None,
    ) -> Iterator[list[Infilling]]:
        """Fills many texts side by side, and gives each as soon as it and those before it are filled.

        Args:
            templates: What `parse_template` makes of each text, under the number that its noise follows from.
            num: As for `infill_many`, as all that follow.
            sampler: How.
            seed: An alternative depends on the seed, its text's number and its own number alone.
            batch_size: Alternatives written side by side; only those that take the same number of steps are.
            draws: Masked copies that a log-likelihood is estimated from.
            watch: Called with every state.

        Yields:
            The alternatives of a text, the most likely first.

        Raises:
            DataError: The holes of a text and what stands between them do not fit the context.
            ConfigError: The sampler needs absorbing noise, and the model's noise is another.
        """
        self.model.eval()
        mask_id, affixes = self.process.mask_id, self.sidecar.affixes
        canvases = {i: lay_out(each, self.tokenizer, mask_id, self.context, affixes) for i, each in templates.items()}
        sampler, order = self._completed(sampler, Margin(), blocks=False)
        rules = {
            i: sampler.rule(self.formulation, self.process, order, sum(canvas.editable))
            for i, canvas in canvases.items()
        }
        kinds = {i: kind(rules[i], canvas, self.formulation.timed) for i, canvas in canvases.items()}
        estimator = self.formulation.estimator(draws)
        found: list[Infilling] = []
        jobs_of_all = [(i, number) for i in templates for number in range(num)]
        for jobs in alike(jobs_of_all, lambda job: kinds[job[0]], batch_size):
            rows_BL, editable_BL = stack([canvases[i] for i, _ in jobs], self._pad_id)
            streams = [generator(seed, "infill", *job) for job in jobs]
            rule = rules[jobs[0][0]]
            final = sampler.write(rule, self.infilling_denoiser, rows_BL, editable_BL, streams, watch=watch)
            ranks = [generator(seed, "rank") for _ in jobs]
            scores = self._score(self._ranking_denoiser, estimator, final.x_BL, editable_BL, ranks)
            for (i, _), ids, calls, score in zip(
                jobs, final.x_BL.tolist(), final.calls_B.tolist(), scores, strict=True
            ):
                spans = written_spans(templates[i], self.tokenizer, canvases[i], ids)
                written = tuple(tuple(ids[hole.start : hole.stop]) for hole in canvases[i].holes)
                found.append(Infilling(fill(templates[i], spans), spans, written, score.log_likelihood, calls))
                if len(found) == num:
                    yield sorted(found, key=lambda one: -one.log_likelihood)
                    found = []

    def score(self, prompt: Prompt, response: str, *, draws: int = 16, seed: int = 0) -> Score:
        """Bounds log p(response, then the end of text | prompt).

        Args:
            prompt: What the response is given: a text, a chat, or nothing.
            response: What is scored.
            draws: Noisy copies that the bound is estimated from; even, from 4 on with a standard error.
            seed: The noise follows from it, and is the same for responses of the same length.

        Returns:
            The score.

        Raises:
            DataError: Both together do not fit the context.
        """
        self.model.eval()
        given, affixes = self._given(prompt)
        ids = [*encode(self.tokenizer, [response])[0], self.end_ids[0]]
        canvas = Canvas.after(given, ids, affixes)
        if (excess := len(canvas.ids) - self.context) > 0:
            raise DataError(
                f"the response takes {len(ids)} tokens with its end, and the context has room for "
                f"{len(ids) - excess}: shorten it"
            )
        rows = stack([canvas], self._pad_id)
        return self._score(self.denoiser, self.formulation.estimator(draws), *rows, [generator(seed, "score")])[0]

    def nelbo(self, texts: str | Sequence[str], *, draws: int = 16, seed: int = 0, batch_size: int = 16) -> list[float]:
        """Upper bounds of texts' negative log-likelihoods, each text followed by its end.

        A text longer than the context is scored in pieces of the context's length. The special tokens that the model
        expects around a text are given, and not scored.

        Args:
            texts: One text or several.
            draws: Noisy copies of each piece; even.
            seed: The noise follows from it.
            batch_size: Pieces scored side by side.

        Returns:
            Nats a text.
        """
        self.model.eval()
        pieces: list[tuple[int, Canvas]] = []
        affixes, room = self.sidecar.affixes, self.context - len(self.sidecar.affixes)
        for index, ids in enumerate(encode(self.tokenizer, [texts] if isinstance(texts, str) else list(texts))):
            whole = [*ids, self.end_ids[0]]
            cuts = range(0, len(whole), room)
            pieces += [(index, Canvas.after([], whole[start : start + room], affixes)) for start in cuts]
        estimator = self.formulation.estimator(draws)
        nats = [0.0] * (pieces[-1][0] + 1 if pieces else 0)
        for numbered in in_batches(list(enumerate(pieces)), batch_size):
            rows = stack([canvas for _, (_, canvas) in numbered], self._pad_id)
            streams = [generator(seed, "nelbo", number) for number, _ in numbered]
            scores = self._score(self.denoiser, estimator, *rows, streams)
            for (_, (index, _)), score in zip(numbered, scores, strict=True):
                nats[index] -= score.log_likelihood
        return nats

    def _given(self, prompt: Prompt) -> tuple[list[int], Affixes]:
        """The ids of a prompt, and the special tokens around the row; a chat has those that its template writes."""
        if prompt is None or isinstance(prompt, str):
            given, affixes, what = encode(self.tokenizer, [prompt or ""])[0], self.sidecar.affixes, "prompt"
        else:
            family = self.sidecar.family
            given, affixes = encode_chat(self.tokenizer, prompt, family.chat if family else None), Affixes()
            what = "chat"
            if given[:1] == [self._first_id]:  # the template writes what the network reads before every text
                given = given[1:]
        if len(given) + len(affixes) >= self.context:
            raise DataError(
                f"the {what} takes {len(given) + len(affixes)} tokens and the context of this model is "
                f"{self.context}: shorten it"
            )
        return given, affixes

    def _score(
        self,
        denoiser: Denoiser,
        estimator: Estimator,
        x0_BL: Tensor,
        editable_BL: Tensor,
        streams: Sequence[torch.Generator],
    ) -> list[Score]:
        """Scores rows made on the CPU; see `score_rows`."""
        rows = x0_BL.to(self.arithmetic_device), editable_BL.to(self.arithmetic_device)
        return score_rows(denoiser, self.process, estimator, *rows, streams)

    def _forbidding(self, forbidden: Sequence[int], precision: Precision) -> Denoiser:
        """The network as a denoiser that never predicts some ids."""
        network = PlacedNetwork(in_precision(self._backbone, precision), lambda: self.device)
        return self.formulation.denoiser(network, self.process, forbidden, self._first_id)

    def _completed(self, sampler: Sampler | None, order: Order, *, blocks: bool = True) -> tuple[Sampler, Order]:
        """A sampler and a default order, with what they leave open taken from the publisher's own sampler."""
        sampler, family = sampler or Sampler(), self.sidecar.family
        if family is None:
            return sampler, order
        length = sampler.block_length or (family.block_length if blocks else None)
        return replace(sampler, token=sampler.token or family.token, block_length=length), family.order


def _sidecar_of(family: Family, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Sidecar:
    """What `dlm.yaml` would say beside a published model."""
    positions = (usable_positions(model) or family.context) - (family.first is not None)
    return Sidecar(family.formulation, min(family.context, positions), special_ids(tokenizer).mask, family=family)


def _first_id(sidecar: Sidecar, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that the network reads before every text: a family's own, or for a shift the end of the text before."""
    if sidecar.family is not None:
        return sidecar.family.first_id(tokenizer)
    return special_ids(tokenizer).end if sidecar.formulation.shift else None
