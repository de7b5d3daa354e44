"""`dlm merge`."""

from pathlib import Path
from typing import Annotated

import typer

from dlm.cli import options
from dlm.cli.console import check_writable, errors, quiet_libraries
from dlm.paths import quoted


def merge(
    model: options.Model,
    folder: Annotated[Path, typer.Argument(help="Where to write it; nothing may stand there yet.", show_default=False)],
    mask_token: options.MaskToken = None,
    debug: options.Debug = False,
) -> None:
    """Write a model, its adapters merged in, as one plain HuggingFace folder.

    Example:  dlm merge runs/lora my-model
    """
    quiet_libraries()
    from dlm.lm import DiffusionLM
    from dlm.model.checkpoint import check_absent

    check_absent(folder)
    check_writable(folder, next(parent for parent in folder.absolute().parents if parent.exists()))
    mask = options.read_mask_token(mask_token)
    DiffusionLM.from_pretrained(model, device="cpu", dtype="fp32", mask_token=mask).save_pretrained(folder)
    errors.print(f"done: dlm sample {quoted(folder)}", highlight=False, soft_wrap=True)
