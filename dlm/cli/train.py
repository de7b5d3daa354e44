"""`dlm train`."""

from pathlib import Path
from typing import Annotated

import typer

from dlm.cli.console import TrainingDisplay, errors, is_first, quiet_libraries
from dlm.cli.options import Debug, Settings
from dlm.paths import quoted


def train(
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file; the small default if none.", show_default=False)
    ] = None,
    settings: Settings = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run folder; runs/ and the configuration's name by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the run that is there, and begin anew.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train a model on any text.

    Example:  dlm train configs/text-file.yaml --set data.train.path=book.txt
    """
    from dlm.errors import ConfigError
    from dlm.settings import default_config_path, load_config

    if resume and overwrite:
        raise ConfigError("--resume goes on with a run and --overwrite removes it: give one of them")
    asked = config or default_config_path()
    folder = run_dir or Path("runs") / asked.stem
    # A run that is resumed by its folder alone goes on with its own configuration.
    source = folder / "config.yaml" if resume and config is None and (folder / "config.yaml").exists() else asked
    tree = load_config(source, settings or ())

    quiet_libraries()
    from dlm.train.run import RunFolder
    from dlm.train.trainer import Trainer

    run = RunFolder.reopen(folder, tree) if resume else RunFolder.create(folder, tree, overwrite=overwrite)
    with TrainingDisplay(errors, tree.train.log_every) as display:
        Trainer(run, display).train()
    if is_first():
        ask = " --chat ..." if tree.data.train.messages else " --prompt ..." if tree.data.train.supervised else ""
        errors.print(f"done: dlm sample {quoted(folder)}{ask}", highlight=False, soft_wrap=True)
