"""The denoisers of a model: one network, asked for different tokens in different precisions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from dlm.diffusion.denoiser import Denoiser, PlacedDenoiser
from dlm.diffusion.devices import has_float64
from dlm.diffusion.formulation import Formulation
from dlm.diffusion.network import FunctionNetwork, Network, PlacedNetwork
from dlm.diffusion.process import Process
from dlm.diffusion.reuse import Reuse, ReusingNetwork
from dlm.model.backbone import Backbone
from dlm.model.cache import CanvasCache, check_reuse
from dlm.model.precision import Precision, in_precision


@dataclass
class Denoisers:
    """What predicts the clean tokens, by what the prediction is for.

    Attributes:
        scoring: For likelihoods: predicts every token that a text may hold.
        weighing: The same in the precision of what is written: says how long holes are before they are filled.
        sampling: Writes texts, which may end: never the unknown character.
        remembering: The same for calls behind a cache.
        within: The same again, inside of a text: never its end.
        infilling: Writes the inside of a text: never its end either.
        ranking: For the likelihoods of what `infilling` wrote.
        continuing: The same of what `sampling` wrote.
        reusing: (how, whether inside of a text, rows and length of a canvas) -> what writes that canvas and uses keys
            and values again; it raises `ConfigError` where the network cannot.
    """

    scoring: Denoiser
    weighing: Denoiser
    sampling: Denoiser
    remembering: Denoiser
    within: Denoiser
    infilling: Denoiser
    ranking: Denoiser
    continuing: Denoiser
    reusing: Callable[[Reuse, bool, tuple[int, int]], Denoiser]

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        formulation: Formulation,
        process: Process,
        *,
        unknown: Sequence[int],
        ends: Sequence[int],
        first_id: int | None,
        writing: Precision,
        scoring: Precision,
    ) -> Self:
        """The denoisers of a network.

        Args:
            backbone: The network.
            formulation: How it was trained.
            process: The forward process.
            unknown: The ids of unknown characters.
            ends: The ids that end a text.
            first_id: The id that stands before every text, where there is one.
            writing: What texts are written in, and lengths are weighed in.
            scoring: What they are scored in.

        Returns:
            All of them.
        """

        def network_in(precision: Precision) -> Network:
            return PlacedNetwork(in_precision(backbone, precision), lambda: backbone.device)

        def of_network(network: Network, unwanted: Sequence[int]) -> Denoiser:
            return formulation.denoiser(network, process, (*process.vocabulary.forbidden, *unwanted), first_id)

        def denoiser(unwanted: Sequence[int], precision: Precision) -> Denoiser:
            return of_network(network_in(precision), unwanted)

        def placed(unwanted: Sequence[int], precision: Precision) -> Denoiser:
            return PlacedDenoiser(denoiser(unwanted, precision), lambda: arithmetic_device(backbone.device))

        # Few tokens a call: on a CPU it takes longer to round the weights each time than to compute with them.
        behind_cache = scoring if backbone.device.type == "cpu" else writing

        checked: set[int] = set()

        def reusing(how: Reuse, inside: bool, canvas: tuple[int, int]) -> Denoiser:
            # What is computed anew is found on the CPU, where the canvas is: a GPU need not be waited for.
            network, (rows, length) = network_in(behind_cache), canvas
            moving = FunctionNetwork(lambda inputs: network(inputs.to(arithmetic_device(backbone.device))))
            if length not in checked:
                check_reuse(moving, backbone, length)
                checked.add(length)
            pad_id = -1 if backbone.pad_id is None else backbone.pad_id
            again = ReusingNetwork(moving, CanvasCache(rows), how, rows, pad_id)
            return of_network(again, (*unknown, *(ends if inside else ())))

        return cls(
            scoring=denoiser((), scoring),
            weighing=placed((), writing),
            sampling=placed(unknown, writing),
            remembering=placed(unknown, behind_cache),
            within=placed((*unknown, *ends), behind_cache),
            infilling=placed((*unknown, *ends), writing),
            ranking=denoiser((*unknown, *ends), scoring),
            continuing=denoiser(unknown, scoring),
            reusing=reusing,
        )


def arithmetic_device(device: torch.device) -> torch.device:
    """Where noise, draws and sums are computed: where the model is, or the CPU if that has no float64."""
    return device if has_float64(device) else torch.device("cpu")
