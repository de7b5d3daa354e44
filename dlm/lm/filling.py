"""What fills the holes of a model's texts: masks in their places, or next tokens one hole after the other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dlm.diffusion.draws import generator
from dlm.diffusion.unmask import LeftToRight, Margin
from dlm.errors import ConfigError
from dlm.lm.canvas import Canvas, stack
from dlm.lm.filler import Filler
from dlm.lm.layout import Layout
from dlm.lm.lengths import Weigher
from dlm.lm.middle import MiddleFiller
from dlm.lm.rereading import Rereader
from dlm.lm.sampler import Sampler, Watch
from dlm.lm.scores import Row
from dlm.lm.scoring import Score
from dlm.model.sentinels import Sentinels
from dlm.template import Template

if TYPE_CHECKING:
    from dlm.lm.model import DiffusionLM


@dataclass(frozen=True)
class Filling:
    """The ways in which a model fills holes.

    Attributes:
        lm: The model.
    """

    lm: "DiffusionLM"

    @property
    def in_the_middle(self) -> bool:
        """Whether the model fills holes by next tokens, one after the other."""
        return self.lm.sidecar.sentinels is not None and not self.lm.formulation.readings.any_order

    def check(self, template: Template) -> None:
        """Refuses a text whose holes do not fit the context.

        Args:
            template: Texts and holes.

        Raises:
            DataError: They do not.
        """
        if self.in_the_middle:
            self.by_next_tokens(None, self.lm.sidecar.sentinels).check(template)
        else:
            self.lm.languages.resolved(template)

    def by_masks(
        self,
        templates: Mapping[int, Template],
        sampler: Sampler | None,
        draws: int,
        seed: int,
        batch_size: int,
        watch: Watch | None,
    ) -> Filler:
        """What fills all holes of a text at once; see `DiffusionLM.infill_each`.

        Args:
            templates: What is to be filled.
            sampler: How.
            draws: Masked copies that a log-likelihood is estimated from.
            seed: What is written follows from it.
            batch_size: Texts written side by side.
            watch: Called with every state.

        Returns:
            The filler.

        Raises:
            ConfigError: The model is not read in any order, or the sampler cannot guide these texts.
        """
        lm = self.lm
        if not lm.formulation.readings.any_order:
            raise ConfigError(
                f"this model was trained with readings {lm.formulation.readings.name} and does not see what stands "
                "behind a hole: train one with readings joint or masked, or with data.fim, or write on from its "
                "beginning by dlm sample"
            )
        family = lm.sidecar.family
        how, order = (sampler or Sampler()).completed(family, inside=True), family.order if family else Margin()
        if how.guidance is not None and how.guidance.negative is not None:
            raise ConfigError("--negative-prompt is for what continues a prompt, and spans have a text on both sides")
        if how.guides and not all(any(isinstance(part, str) for part in each) for each in templates.values()):
            raise ConfigError("--guidance leads towards the text around spans, and there is none: leave it out")
        return Filler(
            lm.layout,
            lm.languages,
            Weigher(lm.layout, lm.denoisers.weighing, lm.process, lm.pad_id, batch_size),
            lambda canvas: how.rule(lm.formulation, lm.process, order, sum(canvas.editable), inside=True),
            lambda tasks, watched: lm.writer.write(
                [replace(task, other=lm.layout.hidden(task.canvas)) for task in tasks] if how.guides else tasks,
                how,
                batch_size=batch_size,
                watch=watch if watched else None,
                inside=True,
            ),
            watch is not None,
            lambda rows: self._scored(rows, draws, seed),
            self.rereader(batch_size) if lm.formulation.readings.causal else None,
            seed,
        )

    def by_next_tokens(
        self, sampler: Sampler | None, sentinels: Sentinels | None, seed: int = 0, batch_size: int = 16
    ) -> MiddleFiller:
        """What fills holes by the causal reading, one after the other.

        Args:
            sampler: The temperature and the cuts; by default every token is drawn from all.
            sentinels: The model's own, to read what stands behind a hole too; None for what stands before it alone.
            seed: What is written follows from it.
            batch_size: Texts written side by side.

        Returns:
            The filler.

        Raises:
            ConfigError: The model has no causal reading.
        """
        lm, how = self.lm, sampler or Sampler()
        estimator = lm.estimator("causal")

        def score(canvases: Sequence[Canvas], ends: bool) -> Iterator[Score]:
            scorer = lm.scorer(lm.denoisers.continuing if ends else lm.denoisers.ranking, estimator)
            return scorer.of_rows([Row.alone(canvas, (seed, "middle")) for canvas in canvases], batch_size)

        return MiddleFiller(
            lm.layout.one_by_one,
            sentinels,
            lambda tokens: how.rule(lm.formulation, lm.process, LeftToRight(), tokens),
            lambda tasks, ends: lm.writer.write(tasks, how, batch_size=batch_size, watch=None, ends=ends),
            score,
            lm.end_ids,
            seed,
            batch_size,
        )

    def rereader(self, batch_size: int = 64, layout: Layout | None = None) -> Rereader:
        """What tells by the causal reading how likely texts are whose holes are filled.

        Args:
            batch_size: Texts read side by side.
            layout: How the texts became rows that were filled; the model's own for None.

        Returns:
            The reader.

        Raises:
            ConfigError: The model has no causal reading.
        """
        scorer = self.lm.scorer(self.lm.denoisers.scoring, self.lm.estimator("causal"))
        return Rereader(
            layout or self.lm.layout,
            lambda canvases: scorer.of_rows([Row.alone(canvas, ("reread",)) for canvas in canvases], batch_size),
        )

    def _scored(self, rows: Sequence[Canvas], draws: int, seed: int) -> list[float]:
        """The log-likelihood of what was written of each row; all rows are scored under the same masks."""
        scorer = self.lm.scorer(self.lm.denoisers.ranking, self.lm.formulation.estimator(draws))
        streams = [generator(seed, "rank") for _ in rows]
        return [score.log_likelihood for score in scorer.of_batch(*stack(rows, self.lm.pad_id), streams)]
