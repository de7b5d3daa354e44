"""What the commands that write texts share: checks before anything is loaded, the model, and its film."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dlm.cli import options
from dlm.cli.console import check_free, errors

if TYPE_CHECKING:
    from dlm.lm import DiffusionLM
    from dlm.lm.sampler import Watch


def check_outputs(output: Path | None, export: Path | None, overwrite: bool) -> None:
    """Refuses files that exist, unless they may be replaced, and a film in no known format."""
    check_free(output, overwrite)
    check_free(export, overwrite)
    options.check_export(export)


def load(model: str, device: str | None, dtype: str, quantised: str | None) -> "DiffusionLM":
    """The model that a command writes with."""
    from dlm.lm import DiffusionLM

    weights = options.check_weights(dtype, quantised)
    options.check_device(device)
    return DiffusionLM.from_pretrained(model, device=device, **weights)


@contextmanager
def recording(lm: "DiffusionLM", title: str, watch: bool, export: Path | None) -> Iterator["Watch | None"]:
    """Shows the first text while it is written, and exports the film of it at the end.

    Args:
        lm: What writes.
        title: The film's title.
        watch: Whether to show it in the terminal.
        export: Where the film goes; None for no film.

    Yields:
        What is to be called with every state of the sampler; None where no one looks.
    """
    from dlm.film.export import export as export_film
    from dlm.film.frames import Recorder
    from dlm.film.live import LiveView

    with LiveView(errors, keep=False) if watch else nullcontext() as view:
        recorder = Recorder(lm.tokenizer, viewer=view.show if view else None, keep=export is not None)
        yield recorder.take if watch or export else None
    if export:
        export_film(recorder.film(title), export)
