"""From a configuration to the mathematics it asks for: which process, denoiser, objective and estimator."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dlm.config import Config
from dlm.diffusion.denoiser import Denoiser, Network, PlugIn, Shifted, Subs
from dlm.diffusion.levels import Levels
from dlm.diffusion.likelihood import Estimator
from dlm.diffusion.noise import Absorbing, Noise
from dlm.diffusion.objective import MaskedObjective, Objective, TimedObjective
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.schedule import Linear, NoiseSchedule
from dlm.diffusion.weighting import Weighting


@dataclass(frozen=True)
class Recipe:
    """The choices that a model was, or is to be, trained with; by default those of plain masked diffusion.

    Attributes:
        noise: What a corrupted token becomes.
        schedule: alpha(t).
        steps: T of a chain of steps; None for continuous time.
        plug_in: Whether the network's softmax is the leave-one-out prediction, not p(x0 | xt).
        timed: Whether the network takes the time.
        shift: Whether the network predicts the next token, not the one in place.
    """

    noise: Noise = field(default_factory=Absorbing)
    schedule: NoiseSchedule = field(default_factory=Linear)
    steps: int | None = None
    plug_in: bool = False
    timed: bool = False
    shift: bool = False

    @classmethod
    def of(cls, config: Config | None) -> "Recipe":
        """What a run's configuration asks for; the default where there is no run."""
        if config is None:
            return cls()
        randomises, asked = config.noise.randomises, config.model.time_conditioning
        return cls(
            noise=config.noise,
            schedule=config.schedule,
            steps=config.time.steps,
            plug_in=randomises and config.parameterization != "mixture",
            timed=randomises if asked == "auto" else asked,
            shift=config.model.shift,
        )

    def process(self, size: int, mask_id: int, never: Sequence[int]) -> Process:
        """The forward process over a vocabulary; see `Vocabulary`."""
        return Process(self.noise, self.schedule, Vocabulary(size, mask_id, tuple(never)))

    def denoiser(self, network: Network, never: Sequence[int], process: Process, end_id: int) -> Denoiser:
        """The network, which takes a reader, as a denoiser that never predicts the ids in `never`.

        What ends a text also stands before the next one, as decoders saw it in training; see `Shifted`.
        """
        network = Shifted(network, end_id) if self.shift else network
        if self.plug_in:
            return PlugIn(network, never, process, chunked=True)
        return Subs(network, never, chunked=True)

    def objective(self, weighting: Weighting, levels: Levels) -> Objective:
        """The training loss: by exact counts of masks where they are all that the network is told."""
        counts = not self.timed and not self.noise.randomises
        kind = MaskedObjective if counts else TimedObjective
        return kind(weighting, levels, self.steps)

    def estimator(self, draws: int) -> Estimator:
        """The estimator of the bound of this model's own chain."""
        return Estimator(draws, self.steps, self.timed)
