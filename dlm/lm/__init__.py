"""A language model in one object: what a notebook imports and every command calls."""

from dlm.diffusion.guide import Guidance
from dlm.lm.infillings import Infilling
from dlm.lm.model import DiffusionLM
from dlm.lm.sampler import Sampler
from dlm.lm.samples import Sample
from dlm.lm.scores import Answers
from dlm.lm.scoring import Score

__all__ = ["Answers", "DiffusionLM", "Guidance", "Infilling", "Sample", "Sampler", "Score"]
