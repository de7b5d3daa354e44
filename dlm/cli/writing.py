"""What the commands that write texts share: checks before anything is loaded, the model, and its film."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dlm.cli import options
from dlm.cli.console import caution, check_apart, check_free, check_writable, errors, is_terminal, note
from dlm.cli.progress import Meter, progress
from dlm.cli.records import check_resume
from dlm.errors import ConfigError
from dlm.plain import counted

if TYPE_CHECKING:
    from dlm.film.frames import Frame
    from dlm.film.live import LiveView
    from dlm.lm import DiffusionLM
    from dlm.lm.diffusion_gemma import DiffusionGemma
    from dlm.lm.layout import Prompt
    from dlm.lm.sampler import Sampler, Watch

Written = TypeVar("Written")


def check_outputs(
    output: Path | None,
    export: Path | None,
    overwrite: bool,
    reads: Mapping[str, Path | None],
    *,
    resume: bool | None = None,
) -> None:
    """Refuses files that are read, exist unless they may be replaced, or cannot be written, and films of no known kind.

    Args:
        output: The value of `--output`.
        export: The value of `--export`.
        overwrite: Whether files may be replaced.
        reads: What the command reads, by the options that named it; see `check_apart`.
        resume: Whether the output goes on with what is there; see `check_resume`. None where it could not.
    """
    check_resume(bool(resume), output, overwrite)
    options.check_export(export)
    check_apart(reads, {"--output": output, "--export": export})
    check_free(output, overwrite or bool(resume), resumable=resume is not None)
    check_free(export, overwrite)
    if export is not None:
        if export.exists() and not export.is_file():
            raise ConfigError(f"cannot write {export}: a film is a file, and this is none")
        check_writable(export, export.parent)  # a film is written beside its file and renamed
        if output is not None and output.resolve() == export.resolve():
            raise ConfigError(f"--output and --export are both {output}: the film would replace the text")


def load(
    model: str, device: str | None, dtype: str, quantised: str | None, mask_token: str | None = None
) -> "DiffusionLM":
    """The model that a command writes with."""
    from dlm.lm import DiffusionLM

    weights = options.check_weights(dtype, quantised)
    options.check_device(device)
    mask = options.read_mask_token(mask_token)
    return DiffusionLM.from_pretrained(model, device=device, mask_token=mask, **weights)


def load_writer(
    model: str,
    device: str | None,
    dtype: str,
    quantised: str | None,
    sampler: "Sampler",
    batch_size: int | None,
    mask_token: str | None = None,
) -> "DiffusionLM | DiffusionGemma":
    """The model that `dlm sample` writes with, which may be one that does nothing else and knows few samplers."""
    from dlm.lm.diffusion_gemma import DiffusionGemma, check_sampler

    weights = options.check_weights(dtype, quantised)
    if not DiffusionGemma.is_at(model):
        return load(model, device, dtype, quantised, mask_token)
    check_sampler(sampler, batch_size)
    if mask_token is not None:
        raise ConfigError(f"--mask-token: {model} writes uniform noise and has no mask; leave it out")
    options.check_device(device)
    return DiffusionGemma.from_pretrained(model, device=device, **weights)


def load_many(
    model: str, device: str | None, dtype: str, quantised: str | None, mask_token: str | None = None
) -> "DiffusionLM":
    """The model that `dlm sample --prompts` writes with."""
    from dlm.lm.diffusion_gemma import DiffusionGemma

    if DiffusionGemma.is_at(model):
        raise ConfigError("--prompts: DiffusionGemma writes after one prompt at a time here; give --prompt or --chat")
    return load(model, device, dtype, quantised, mask_token)


@dataclass(frozen=True)
class Recording:
    """What is seen of texts while they are written: the first as it is denoised, and how many are finished.

    Attributes:
        take: What is to be called with every state of the sampler; None where no one looks.
        view: Where the first text is drawn; None where it is not.
        told: Is told how many are finished.
    """

    take: "Watch | None"
    view: "LiveView | None"
    told: Meter

    def each(self, texts: Iterable[Written], total: int) -> Iterator[Written]:
        """Gives texts on and counts them; the drawing ends when the first is there.

        Args:
            texts: What is written, one after the other.
            total: How many will be written.

        Yields:
            The texts.
        """
        self.told(0, total, "written")
        for number, text in enumerate(texts, start=1):
            if self.view is not None:
                self.view.close()  # lines that are written now would be drawn over
                if number < total:
                    self.told.show()
            self.told(number, total, "written")
            yield text


def is_apart(output: Path | None) -> bool:
    """Whether lines go elsewhere than to a terminal."""
    return output is not None or not is_terminal(sys.stdout)


@contextmanager
def recording(
    lm: "DiffusionLM | DiffusionGemma", title: str, watch: bool, export: Path | None, *, apart: bool
) -> Iterator[Recording]:
    """Shows the first text while it is written, and exports the film of it at the end.

    Args:
        lm: What writes.
        title: The film's title.
        watch: Whether to show it in the terminal.
        export: Where the film goes; None for no film.
        apart: Whether nothing else is written to the terminal meanwhile.

    Yields:
        What is seen of the texts.
    """
    from dlm.film.export import export as export_film
    from dlm.film.frames import Recorder
    from dlm.film.live import LiveView

    drawn = watch and errors.is_terminal and not errors.is_dumb_terminal
    if watch and not drawn:
        remedy = "; --export FILE.html keeps the film" if export is None else ""
        caution(f"--watch draws in a terminal, and stderr is none that can draw{remedy}")
    with (
        progress("text", shown=apart, patient=True) as told,
        LiveView(errors, keep=False) if drawn else nullcontext() as view,
    ):

        def draw(frame: "Frame", note: str) -> None:
            if view is not None and view.is_open:
                told.hide()
                view.show(frame, note)

        recorder = Recorder(lm.tokenizer, viewer=draw, keep=export is not None)
        yield Recording(recorder.take if watch or export else None, view, told)
    if export is None:
        return
    if not recorder.frames:
        caution(f"{export}: no film is made, since nothing was written by the network")
        return
    film = recorder.film(title)
    export_film(film, export)
    calls = counted(film.calls[-1], "network call")
    note(f"{export}: the film of the first text that was written, {counted(len(film.frames), 'frame')} of {calls}")


def calibrated(
    lm: "DiffusionLM | DiffusionGemma",
    sampler: "Sampler",
    asked: Mapping[str, Any],
    prompt: "Prompt",
    batch_size: int,
    *,
    quiet: bool = False,
) -> "Sampler":
    """The sampler with as many drafts a call as are fastest here, if the command line says `--drafts auto`.

    Args:
        lm: The model.
        sampler: What its options describe.
        asked: The values of its options, of those that were given.
        prompt: What a text begins with.
        batch_size: Texts written side by side.
        quiet: Whether stderr is told nothing of it.

    Returns:
        The sampler.

    Raises:
        ConfigError: The model drafts nothing.
        DataError: The prompt does not fit the context.
    """
    from dlm.lm import DiffusionLM
    from dlm.lm.calibration import drafts_per_second

    if asked.get("drafts") != "auto" or not isinstance(lm, DiffusionLM):
        return sampler
    speeds = drafts_per_second(lm, sampler, prompt, batch_size=batch_size)
    fastest = max(speeds, key=lambda drafts: speeds[drafts])
    if not quiet:
        listed = ", ".join(f"{drafts}: {speed:,.0f}" for drafts, speed in speeds.items())
        told = f"--drafts {fastest} is the fastest here ({listed} tokens/s)"
        note(told)
    return replace(sampler, drafts=fastest)
