"""The peak memory of loading a model, over the size of its files.

A model of random weights is made on the spot, and a fresh process loads each way of storing it: nothing that was
allocated before counts. The peak is that of the resident memory, in which the pages of the file that are mapped count
too, less what the process had after its imports.
Run: python -m tests.benchmarks.loading
"""

import argparse
import json
import subprocess
import sys
import tempfile
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
        print(json.dumps(peak_of_loading(options.load, options.dtype)))
        return
    layers = max(round(options.gigabytes * 1e9 / LAYER_BYTES), 1)
    print("stored          held   files, MB   peak, MB   peak / files")
    for stored, shard, dtype in (
        ("fp32", None, "auto"),
        ("fp32", "500MB", "auto"),
        ("fp32", None, "bf16"),
        ("bf16", None, "auto"),
        ("bf16", "250MB", "auto"),
        ("bf16", None, "fp32"),
    ):
        with tempfile.TemporaryDirectory(prefix="dlm-loading-") as folder:
            subprocess.run([sys.executable, "-c", f"{WRITE}({folder!r}, {layers}, {stored!r}, {shard!r})"], check=True)
            size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
            words = [sys.executable, "-m", __spec__.name, "--load", folder, "--dtype", dtype]
            peak = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        name = f"{stored}, {'one file' if shard is None else 'shards'}"
        print(f"{name:<15} {dtype:<6} {size / 1e6:>9,.0f}  {peak / 1e6:>9,.0f}   {peak / size:>12.2f}", flush=True)


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


def peak_of_loading(folder: Path, dtype: Dtype) -> int:
    """Bytes of resident memory at the peak of loading, beyond those before it."""
    before = resident("VmRSS")
    lm = DiffusionLM.from_pretrained(folder, device="cpu", dtype=dtype)
    assert lm.context == 32
    return resident("VmHWM") - before


def resident(which: str) -> int:
    """A line of Linux's account of this process, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{which}:")))


if __name__ == "__main__":
    main()
