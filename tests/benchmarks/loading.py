"""The peak memory of loading a model, over the size of its files.

A model of random weights is made on the spot, stored in several ways, and loaded by a fresh process. What it had after
its imports does not count. The peak is that of the resident memory. Pages of the files count in it while they are
mapped, though the system takes them back where memory is short; the last column leaves them out.
Run: python -m tests.benchmarks.loading
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from dlm.config import Bytes
from dlm.diffusion.formulation import Formulation
from dlm.lm import DiffusionLM
from dlm.model.checkpoint import Sidecar, write_model
from dlm.model.loading import build_model
from dlm.model.tokenizer import build_tokenizer, special_ids
from dlm.model.weights import Dtype

LAYER = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 16}
"""Sizes of a qwen3 whose layers have 67 million parameters each."""

LAYER_BYTES = 4 * 67.1e6
STORED = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the float32 file")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="auto", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(peaks_of_loading(options.load, options.dtype)))
        return
    layers = max(round(options.gigabytes * 1e9 / LAYER_BYTES), 1)
    print("stored          held   files, MB   peak, MB   peak / files   without mapped files")
    for stored, shard, dtypes in (
        ("fp32", None, ("auto", "bf16")),
        ("fp32", "500MB", ("auto", "bf16")),
        ("bf16", "250MB", ("auto", "fp32")),
    ):
        with tempfile.TemporaryDirectory(prefix="dlm-loading-") as folder:
            words = [sys.executable, "-c", f"{WRITE}({folder!r}, {layers}, {stored!r}, {shard!r})"]
            subprocess.run(words, check=True)
            size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
            for dtype in dtypes:
                words = [sys.executable, "-m", __spec__.name, "--load", folder, "--dtype", dtype]
                peak, own = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
                name = f"{stored}, {'one file' if shard is None else 'shards'}"
                figures = f"{size / 1e6:>9,.0f}  {peak / 1e6:>9,.0f}   {peak / size:>12.2f}   {own / size:>20.2f}"
                print(f"{name:<15} {dtype:<6} {figures}", flush=True)


WRITE = "from tests.benchmarks.loading import write; write"


def write(folder: str, layers: int, stored: str, shard: str | None) -> None:
    """Writes a model of random weights, in one file or in shards."""
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    ids = special_ids(tokenizer)
    model: Any = build_model(
        "qwen3",
        {**LAYER, "num_hidden_layers": layers, "head_dim": 128},
        vocabulary=len(tokenizer),
        length=32,
        special_ids={"pad_token_id": ids.pad, "eos_token_id": ids.end},
        attention="eager",
        seed=0,
    )
    model.to(STORED[stored])
    write_model(Path(folder), model, tokenizer, Sidecar(Formulation(), 32, ids.mask))
    if shard is not None:
        for file in Path(folder).glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(folder, max_shard_size=shard)


def peaks_of_loading(folder: Path, dtype: Dtype) -> tuple[int, int]:
    """Bytes at the peak of loading, beyond those before it: all that is resident, and that without mapped files."""
    before, own = resident("VmRSS"), resident("RssAnon")
    largest, done = [own], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            largest.append(resident("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    lm = DiffusionLM.from_pretrained(folder, device="cpu", dtype=dtype)
    done.set()
    watcher.join()
    assert lm.context == 32
    return resident("VmHWM") - before, max(largest) - own


def resident(which: str) -> int:
    """A line of Linux's account of this process, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{which}:")))


if __name__ == "__main__":
    main()
