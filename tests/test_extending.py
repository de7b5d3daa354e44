"""The examples of the contributing page, built as it says: one class in one file, and its name in one union."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / ".github/CONTRIBUTING.md"
TINY = ["tokenizer=bytes", "data.train.format=text", "data.length=8", "train.steps=2", "train.validate_every=2"]
TINY += ["train.validate_sequences=2", "train.batch_size=2", "train.sample_length=0", "data.held_out.by=tail"]
TINY += ["data.held_out.share=0.3", "model.sizes.hidden_size=16", "model.sizes.num_hidden_layers=1"]
TINY += ["model.sizes.head_dim=8", "model.sizes.num_attention_heads=2", "model.sizes.num_key_value_heads=2"]


def extended(folder: Path, example: str, file: str) -> Path:
    """The folder with a copy of the package in which the page's class and union stand in `file`."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if re.search(rf"^class {example}\b", block, re.MULTILINE)]
    code, name, union = re.fullmatch(r"(.*?)^(\w+) = ([^\n]+)\n", block, re.DOTALL | re.MULTILINE).groups()  # type: ignore[union-attr]
    if not (folder / "dlm").exists():
        shutil.copytree(ROOT / "dlm", folder / "dlm")
    path = folder / file
    text, replaced = re.subn(rf"^{name} = [^\n]+$", f"{code}\n{name} = {union}", path.read_text(), flags=re.MULTILINE)
    assert replaced == 1
    path.write_text(text)
    return folder


SHELL = """
import json, sys
from typer.testing import CliRunner
from dlm.cli.app import app

def dlm(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.stdout

def train(*settings):
    chosen = [part for setting in (*json.loads(sys.argv[2]), *settings) for part in ("--set", setting)]
    dlm("train", sys.argv[1], "--run-dir", "run", *chosen)
"""


def run(folder: Path, script: str) -> None:
    """Runs Python in the folder, in one process; `dlm(...)` is a command there and `train(...)` makes a tiny run."""
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"}
    settings = json.dumps([*TINY, "data.train.path=text.txt"])
    done = subprocess.run(
        [sys.executable, "-c", SHELL + script, str(ROOT / "configs/tiny.yaml"), settings],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


CHECK_PROCESS = """
import math, torch
from dlm.selftest.joints import Joint, exact_bound
from dlm.diffusion.matrices import transition_matrix
from dlm.diffusion.noise import Zipf
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.schedule import Cosine

process = Process(Zipf(exponent=1.5), Cosine(), Vocabulary.plain(4))
first, second, whole = (transition_matrix(process, s, t) for s, t in ((0.0, 0.4), (0.4, 0.9), (0.0, 0.9)))
assert torch.allclose(second @ first, whole, atol=1e-12, rtol=0)
assert math.isclose(float(whole[0, 3] / whole[1, 3]), 2**1.5)  # the ranks of the noise
joint = Joint(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
for steps in (None, 3):
    bound = sum(float(p) * exact_bound(joint.denoiser(process), process, torch.tensor([x]), steps)
                for x, p in enumerate(joint.table))
    assert math.isclose(bound, joint.entropy, abs_tol=1e-9), (steps, bound, joint.entropy)

train("noise=zipf")
assert "zipf noise" in dlm("eval", "run")
assert len(dlm("sample", "run", "--length", 4, "--steps", 3)) > 1
assert dlm("infill", "run", "a [MASK:2] b").startswith("a ")
assert "zipf" in dlm("corrupt", "abcabc", "--process", "zipf", "--json")
"""


@pytest.mark.long
def test_a_process_is_one_class(tmp_path: Path) -> None:
    run(extended(tmp_path, "Zipf", "dlm/diffusion/noise.py"), CHECK_PROCESS)


CHECK_ORDER = """
train()
assert '"network_calls": 6' in dlm("sample", "run", "--length", 6, "--order", "outside-in", "--json")
"""


@pytest.mark.long
def test_an_order_is_one_class(tmp_path: Path) -> None:
    run(extended(tmp_path, "OutsideIn", "dlm/diffusion/unmask.py"), CHECK_ORDER)


CHECK_SCHEDULE = """
import torch
from dlm.diffusion.schedule import Hyperbolic

t = torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
schedule = Hyperbolic(bend=3.0)
alpha = schedule.alpha(t)
assert alpha[0] == 1 and alpha[-1] == 0
assert torch.allclose(schedule.inverse(alpha), t, atol=1e-12, rtol=0)
(slope,) = torch.autograd.grad(alpha.sum(), t)
assert torch.allclose(schedule.alpha_prime(t), slope, atol=1e-12, rtol=0)

train("schedule=hyperbolic")
assert "hyperbolic schedule" in dlm("eval", "run")
assert "alpha 0.2500" in dlm("corrupt", "abcabc", "--schedule", "hyperbolic", "--at", 0.5)
"""


@pytest.mark.long
def test_a_schedule_is_one_class(tmp_path: Path) -> None:
    run(extended(tmp_path, "Hyperbolic", "dlm/diffusion/schedule.py"), CHECK_SCHEDULE)


CHECK_FORMAT = """
from dlm.config import Data, Source
from dlm.data.choosing import source_of
from dlm.data.reading import read
from dlm.data.streaming import open_stream

source = source_of("rows.tsv", field="body")
assert source == Source("tsv", "rows.tsv", field="body")
assert list(read(source, "data.train").texts()) == ["007", "NA", "a, b"]
stream = open_stream(Data(source, validation=source, streaming=True))
assert [row["text"] for row in stream.train] == ["007", "NA", "a, b"]
pairs = read(Source("tsv", "rows.tsv", prompt="id", response="body"), "data.train")
assert pairs.rows["prompt"][:] == ["01", "02", "03"]

train("data.train.format=tsv", "data.train.path=texts.tsv")
assert "20 documents" in dlm("eval", "run", "--data", "texts.tsv")
import shutil
shutil.rmtree("run")
source = "{format: tsv, path: texts.tsv}"
train(f"data.train={source}", f"data.validation={source}", "data.streaming=true")
"""


@pytest.mark.long
def test_a_format_is_one_class(tmp_path: Path) -> None:
    folder = extended(tmp_path, "Tsv", "dlm/data/formats.py")
    (folder / "rows.tsv").write_text("id\tbody\n01\t007\n02\tNA\n03\ta, b\n")
    (folder / "texts.tsv").write_text("text\n" + "the quick brown fox jumps over the lazy dog\n" * 20)
    run(folder, CHECK_FORMAT)


CHECK_BUDGET = """
import torch
from dlm.diffusion.unmask import Doubling, Step

counts, masked = [], torch.tensor([10])
while masked.any():
    counts.append(Doubling(2).count(Step(len(counts) + 1, masked, torch.tensor([10])), ()))
    masked = masked - counts[-1]
assert torch.cat(counts).tolist() == [2, 2, 4, 2]

train()
done = dlm("sample", "run", "--length", 6, "--first", 1, "--json")
assert '"network_calls": 4' in done  # 1, 1, 2 and 2
assert "--first" in dlm("infill", "--help")
"""


@pytest.mark.long
def test_a_budget_is_one_class(tmp_path: Path) -> None:
    run(extended(tmp_path, "Doubling", "dlm/diffusion/unmask.py"), CHECK_BUDGET)


@pytest.mark.long
def test_a_loss_and_levels_are_one_class_each(tmp_path: Path) -> None:
    folder = extended(tmp_path, "HalfAndHalf", "dlm/diffusion/weighting.py")
    extended(folder, "Steep", "dlm/diffusion/levels.py")
    run(folder, 'train("objective.loss=half-and-half", "objective.loss.share=0.3", "objective.levels=steep")')
    config = (folder / "run/config.yaml").read_text()
    assert "half-and-half" in config and "steep" in config
    assert '"nelbo": ' in (folder / "run/metrics.jsonl").read_text()
