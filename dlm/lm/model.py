"""`DiffusionLM`: a trained model and all it can do, for a notebook and for every command."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlm.config import Config
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.formulation import Formulation
from dlm.diffusion.likelihood import Likelihood
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.readings import Masked
from dlm.diffusion.unmask import Random
from dlm.errors import CheckpointError, ConfigError
from dlm.lm import loading
from dlm.lm.denoisers import Denoisers, arithmetic_device
from dlm.lm.filling import Filling
from dlm.lm.infillings import Infilling
from dlm.lm.languages import Languages
from dlm.lm.layout import Layout, Prompt
from dlm.lm.rows import Task, in_groups
from dlm.lm.sampler import Sampler, Watch
from dlm.lm.samples import Sample
from dlm.lm.scores import REPLICATES, Answers, Row, Rows, Scorer, greedy_by
from dlm.lm.scoring import Score
from dlm.lm.search import LengthSearch
from dlm.lm.writer import Writer
from dlm.model.backbone import Backbone
from dlm.model.checkpoint import Sidecar, upload_model, whole_folder, write_model
from dlm.model.loading import usable_positions
from dlm.model.precision import Precision, working_precisions
from dlm.model.spelling import Spelling
from dlm.model.text import drops_blanks
from dlm.model.time_embedding import TimeEmbedding
from dlm.model.tokenizer import affixes_of, special_ids, vocabulary_of
from dlm.model.weights import Dtype, Held, Quantization
from dlm.paths import expand
from dlm.template import Template, parse_template

Streams = Sequence[torch.Generator]


class DiffusionLM:
    """A diffusion language model with its tokenizer.

    Attributes:
        model: The HuggingFace model.
        tokenizer: Its tokenizer.
        time_embedding: What tells the model the time; None for a model that takes no time.
        sidecar: The formulation, context and mask it was trained with, and the run that made it, where one did.
        process: The forward process.
        languages: The texts that a hole may have, where it says an expression or choices.
        layout: How texts become rows, and how many tokens there is room for after a prompt.
        end_ids: The ids that end a text, that of the end of text first.
        pad_id: The id that fills up the shorter rows of a batch.
        unknown: The id of unknown characters, which is never written, where there is one.
        precision: What texts are written in, and lengths of holes weighed in.
        denoisers: Predict clean tokens: to score texts, to write them, and to fill their holes.
        writer: Writes rows side by side.
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
        patterns = sidecar is not None and not isinstance(sidecar.formulation.readings, Masked)
        self._backbone = backbone or Backbone(model, ids.pad, time_embedding, patterns=patterns)
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
        self.end_ids, self.pad_id = (ids.end, *ends), ids.pad
        self.unknown = () if ids.unknown is None or ids.unknown in ends else (ids.unknown,)
        forbidden = (*self.process.vocabulary.forbidden, *self.unknown, *self.end_ids)
        spelling = Spelling(tokenizer, self.process.vocabulary.size, forbidden)
        holds = self.process.absorbing and not drops_blanks(tokenizer)
        self.layout = Layout(tokenizer, sidecar, spelling if holds else None)
        self.precision, scoring = working_precisions(precision, model.dtype, self.device)
        self.denoisers = Denoisers.of(
            self._backbone,
            self.formulation,
            self.process,
            unknown=self.unknown,
            ends=self.end_ids,
            first_id=self.layout.first_id,
            writing=self.precision,
            scoring=scoring,
        )
        self.languages = Languages(self.layout, self.process, spelling)
        aligned = family is None or family.aligned
        self.writer = Writer(self.denoisers, self.formulation, ids.mask, ids.pad, self.layout.before_id, aligned)

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

        Returns:
            The model, ready to use.

        Raises:
            CheckpointError: There is no such model, it is damaged, or it has no mask.
            ConfigError: The model says itself that its mask is another; or the weights cannot be quantised here, or
                they are adapters.
        """
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        loaded = loading.load(model, Held(dtype, load, where), attention, mask_token)
        return cls(
            loaded.model,
            loaded.tokenizer,
            sidecar=loaded.sidecar,
            precision=loaded.precision,
            time_embedding=loaded.time_embedding,
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._backbone.device

    @property
    def arithmetic_device(self) -> torch.device:
        """Where noise, draws and sums are computed: where the model is, or the CPU if that has no float64."""
        return arithmetic_device(self.device)

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
        """Whether no document saw another in training, so that a text is one document.

        Each stood in a row of its own, or saw itself alone in a row of several.
        """
        return self.config is not None and (self.config.data.attend == "document" or self.config.data.packing == "pad")

    def hidden(self, inputs: NetworkInput) -> Tensor:
        """The network's last hidden states of the wanted positions.

        Args:
            inputs: The call; a network that takes no time ignores its time.

        Returns:
            States, in what the weights are held in, shape (N, D), where the network is.
        """
        return self._backbone.hidden(inputs.to(self.device))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that `from_pretrained` and plain transformers read.

        Args:
            folder: Where; nothing may stand there yet.

        Raises:
            CheckpointError: Something stands there already.
            ConfigError: The name is one where no folder can be.
            WriteError: It cannot be written.
        """
        with whole_folder(expand(folder)) as draft:
            write_model(draft, self.model, self.tokenizer, self.sidecar, self.time_embedding)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Uploads the model to the Hub; needs a login (`hf auth login`).

        Args:
            name: The repository, as in `owner/name`.
            private: Whether a repository made now is private.

        Returns:
            The address of the commit.

        Raises:
            ConfigError: The Hub does not take such a name.
            WriteError: The Hub does not answer, or refuses.
        """
        return upload_model(
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
        return [
            *self.stream(prompt, num=num, length=length, sampler=sampler, seed=seed, batch_size=batch_size, watch=watch)
        ]

    def stream(
        self,
        prompt: Prompt = None,
        *,
        num: int = 1,
        length: int | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
        batch_size: int = 16,
        watch: Watch | None = None,
    ) -> Iterator[Sample]:
        """The texts of `generate`, of which this has the arguments and errors, each as soon as it is finished."""
        return self._written({0: prompt}, num, length, sampler, seed, batch_size, watch)

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
        samples = self._written(prompts, num, length, sampler, seed, batch_size, watch)
        return in_groups(samples, len(prompts), num)

    def infill(
        self,
        text: str | Template,
        *,
        num: int = 1,
        sampler: Sampler | None = None,
        seed: int = 0,
        batch_size: int = 16,
        draws: int = 16,
        search: LengthSearch | None = None,
        watch: Watch | None = None,
    ) -> list[Infilling]:
        """Fills the holes of a text.

        Args:
            text: Text with holes such as `[MASK:12]`, twelve tokens, `[MASK:3-12]` or `[MASK]`, of any length; or what
                `parse_template` makes of it.
            num: How many alternatives; fewer where the best of several fillings are looked for, or spans are to match,
                and too few differ.
            sampler: How; by margin order, one token at a time, by default; for a published model by its own order.
            seed: Filling number i depends on the seed and i alone.
            batch_size: Fillings written side by side.
            draws: Masked copies that a log-likelihood is estimated from.
            search: How lengths are found where there may be several, and how fillings are ranked; see `LengthSearch`.
            watch: Called with every state.

        Returns:
            The alternatives, the most likely first.

        Raises:
            DataError: There is no hole, or the holes and what stands between them do not fit the context.
        """
        template = parse_template(text) if isinstance(text, str) else text
        found = self.infill_each(
            {0: template},
            num=num,
            sampler=sampler,
            seed=seed,
            batch_size=batch_size,
            draws=draws,
            search=search,
            watch=watch,
        )
        return next(found)

    def infill_each(
        self,
        templates: Mapping[int, Template],
        *,
        num: int = 1,
        sampler: Sampler | None = None,
        seed: int = 0,
        batch_size: int = 16,
        draws: int = 16,
        search: LengthSearch | None = None,
        watch: Watch | None = None,
    ) -> Iterator[list[Infilling]]:
        """Fills many texts side by side, and gives each as soon as it and those before it are filled.

        Args:
            templates: What `parse_template` makes of each text, under the number that its noise follows from.
            num: How many alternatives of each.
            sampler: How; as for `infill`.
            seed: What is written depends on the seed, its text's number and its own number alone.
            batch_size: Fillings written side by side; only those that take the same number of steps are.
            draws: Masked copies that a log-likelihood is estimated from.
            search: How lengths are found where there may be several, and how fillings are ranked; see `LengthSearch`.
            watch: Called with every state.

        Returns:
            An iterator over the alternatives of each text, the most likely first, in the order of the texts.

        Raises:
            DataError: The holes of a text and what stands between them do not fit the context.
            ConfigError: The sampler needs absorbing noise, and the model's noise is another; or the model is not read
                in any order; or it fills in the middle, and `search` or `watch` is given.
        """
        self.model.eval()
        if self.filling.in_the_middle:
            if watch is not None:
                raise ConfigError(
                    "--watch and --export show masks in their places, and this model writes a middle behind what "
                    "stands before and behind it: leave them out"
                )
            if search is not None:
                raise ConfigError(
                    "search is for lengths of masks, and this model, which fills in the middle, ends a span by itself: "
                    "leave it out"
                )
            filler = self.filling.by_next_tokens(sampler, self.sidecar.sentinels, seed, batch_size)
            return filler.fill(templates, num)
        by_masks = self.filling.by_masks(templates, sampler, draws, seed, batch_size, watch)
        return by_masks.fill(templates, num, search or LengthSearch())

    @property
    def filling(self) -> Filling:
        """What fills the holes of texts."""
        return Filling(self)

    def estimator(self, reading: str | None = None, draws: int = 16, replicates: int = 2) -> Likelihood:
        """What computes or bounds the likelihood of a reading.

        Args:
            reading: `any-order`, `causal` or `blocks:S`; by default the one that its runs are judged by.
            draws: Noisy copies of each sequence, where there are any.
            replicates: The most independent estimates that are made of them.

        Returns:
            The estimator.

        Raises:
            ConfigError: The model was not trained to be read so.
        """
        try:
            name = reading or self.formulation.readings.all[0]
            return self.formulation.reading(name, draws, self.layout.before_id, replicates)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def score(
        self, prompt: Prompt, response: str, *, draws: int = 16, seed: int = 0, reading: str | None = None
    ) -> Score:
        """Bounds log p(response, then the end of text | prompt).

        Args:
            prompt: What the response is given: a text, a chat, or nothing.
            response: What is scored.
            draws: Noisy copies that the bound is estimated from; even, from 4 on with a standard error.
            seed: The noise follows from it, and is the same for responses of the same length.
            reading: How the model is read: `any-order`, `causal`, which is exact, or `blocks:S`; by default as its runs
                are judged.

        Returns:
            The score.

        Raises:
            ConfigError: The model was not trained to be read so.
            DataError: Both together do not fit the context.
        """
        (found,) = next(self.score_each({0: Answers(prompt, (response,))}, draws=draws, seed=seed, reading=reading))
        return found

    def score_each(
        self,
        asked: Mapping[int, Rows],
        *,
        draws: int = 16,
        seed: int = 0,
        batch_size: int = 16,
        reading: str | None = None,
        greedy: bool = False,
        begin: int = 0,
    ) -> Iterator[list[Score]]:
        """Scores many responses side by side, and gives those to a prompt as soon as they are scored.

        All are checked before the first is scored.

        Args:
            asked: The responses to each prompt, such as `Answers`, under the number that its noise follows from. Those
                to one prompt have common random masks, so that `Score.less` of two of them has far less noise than
                each.
            draws: As for `score`.
            seed: Scores depend on the seed, their prompt's number, and the responses to that prompt. That of a single
                response to the prompt of number 0 is what `score` gives.
            batch_size: Responses scored side by side; it changes a score by float rounding alone.
            reading: As for `score`; or `left-to-right`, the exact likelihood of the any-order sampler that writes one
                token at a time in that order.
            greedy: Whether to find out if greedy decoding, one token at a time, writes exactly the response and its
                end: next tokens of the causal reading, or masks from left to right on a canvas of that length.
            begin: How many prompts are left out, those scored before; the others' scores are as if none were.

        Returns:
            An iterator over the scores of the responses to each prompt, in the order given.

        Raises:
            ConfigError: The model was not trained to be read so, or the reading decodes nothing one token at a time.
            DataError: A response and its prompt do not fit the context.
        """
        self.model.eval()
        scorer = self.scorer(self.denoisers.scoring, self.estimator(reading, draws, REPLICATES))
        if greedy:
            scorer = replace(scorer, greedy=greedy_by(self, reading))
        canvases = {number: answers.canvases(self.layout) for number, answers in asked.items()}
        self.layout.warn_of_unknown([canvas for group in canvases.values() for canvas in group])
        return scorer.of_answers(canvases, (seed, "score"), batch_size, begin)

    def nelbo(
        self,
        texts: str | Sequence[str],
        *,
        draws: int = 16,
        seed: int = 0,
        batch_size: int = 16,
        reading: str | None = None,
    ) -> list[float]:
        """Upper bounds of texts' negative log-likelihoods, each text followed by its end.

        A text longer than the context is scored in pieces of the context's length. The special tokens that the model
        expects around a text are given, and not scored.

        Args:
            texts: One text or several.
            draws: Noisy copies of each piece; even.
            seed: The noise follows from it.
            batch_size: Pieces scored side by side.
            reading: As for `score`.

        Returns:
            Nats a text.

        Raises:
            ConfigError: The model was not trained to be read so.
        """
        self.model.eval()
        estimator = self.estimator(reading, draws)
        whole = [texts] if isinstance(texts, str) else texts
        pieces = [(text, piece) for text, each in enumerate(whole) for piece in self.layout.pieces(each)]
        self.layout.warn_of_unknown([piece for _, piece in pieces])
        rows = [Row.alone(piece, (seed, "nelbo", number)) for number, (_, piece) in enumerate(pieces)]
        scores = self.scorer(self.denoisers.scoring, estimator).of_rows(rows, batch_size)
        nats = [0.0] * len(whole)
        for (text, _), score in zip(pieces, scores, strict=True):
            nats[text] -= score.log_likelihood
        return nats

    def scorer(self, denoiser: Denoiser, estimator: Likelihood) -> Scorer:
        """What scores rows by a reading: its likelihood, and the denoiser that predicts what may stand there."""
        return Scorer(denoiser, self.process, self.pad_id, self.arithmetic_device, estimator)

    def _written(
        self,
        prompts: Mapping[int, Prompt],
        num: int,
        length: int | None,
        sampler: Sampler | None,
        seed: int,
        batch_size: int,
        watch: Watch | None,
    ) -> Iterator[Sample]:
        """The texts of `generate_each`, after a check of all prompts, each as soon as its batch is finished."""
        self.model.eval()
        family = self.sidecar.family
        sampler, order = (sampler or Sampler()).completed(family), family.order if family else Random()
        asked: list[tuple[Prompt, Task]] = []
        led = sampler.negative is None and not self.writer.remembers(sampler)  # both rows have as much to be written
        for place, prompt in prompts.items():
            canvas = self.layout.canvas(prompt, length, led=led)
            if length is None and sampler.negative is not None:
                room = self.layout.room(prompt, sampler.negative)
                canvas = self.layout.canvas(prompt, min(room, sum(canvas.editable)))
            rule = sampler.rule(self.formulation, self.process, order, sum(canvas.editable))
            key = ("sample", place) if place else ("sample",)
            stop_ids = self.end_ids if prompt or self.documents_apart else ()
            other = None
            if sampler.guides:
                other = self.layout.unguided(prompt, canvas, sampler.negative)
            self.layout.warn_of_unseen([canvas])
            task = Task(canvas, rule, (seed, *key), stop_ids, self.languages.led(canvas), other)
            tasks = (replace(task, key=(*task.key, number)) for number in range(num))
            asked += [(prompt, task) for task in tasks]
        batches = self.writer.write([task for _, task in asked], sampler, batch_size=batch_size, watch=watch)
        rows = (row for batch in batches for row in zip(batch.x_BL.tolist(), batch.calls, strict=True))
        return (
            Sample.of_row(prompt, task, ids, calls, self.tokenizer)
            for (prompt, task), (ids, calls) in zip(asked, rows, strict=True)
        )
