"""The examples of the contributing page, built as it says: one class in one file, and its name in one union."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / ".github/CONTRIBUTING.md"
TINY = ["tokenizer=bytes", "data.train.format=text", "data.length=8", "train.steps=2", "train.validate_every=2"]
TINY += ["train.validate_sequences=2", "train.batch_size=2", "train.sample_length=0", "data.held_out.by=tail"]
TINY += ["data.held_out.share=0.3", "model.sizes.hidden_size=16", "model.sizes.num_hidden_layers=1"]
TINY += ["model.sizes.head_dim=8", "model.sizes.num_attention_heads=2", "model.sizes.num_key_value_heads=2"]


def extend(folder: Path, example: str, file: str) -> None:
    """Puts the page's class and its union into `file` of the package in the folder."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if re.search(rf"^class {example}\b", block, re.MULTILINE)]
    code, name, union = re.fullmatch(r"(.*?)^(\w+) = ([^\n]+)\n", block, re.DOTALL | re.MULTILINE).groups()  # type: ignore[union-attr]
    path = folder / file
    text, replaced = re.subn(rf"^{name} = [^\n]+$", f"{code}\n{name} = {union}", path.read_text(), flags=re.MULTILINE)
    assert replaced == 1
    path.write_text(text)


SHELL = """
import json, os, sys, traceback
from typer.testing import CliRunner
from dlm.cli.app import app

def dlm(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.stdout

def train(*settings):
    chosen = [part for setting in (*json.loads(sys.argv[2]), *settings) for part in ("--set", setting)]
    dlm("train", sys.argv[1], "--run-dir", "run", *chosen)

failed = {}
for name, check in json.loads(sys.argv[3]).items():
    os.mkdir(name)
    os.chdir(name)
    try:
        exec(compile(check, name, "exec"), {"dlm": dlm, "train": train})
    except BaseException:
        failed[name] = traceback.format_exc()
    os.chdir("..")
print(json.dumps(failed))
"""


def run(folder: Path, checks: Mapping[str, str]) -> dict[str, str]:
    """The traceback of each check that fails.

    All run in one process, each in its own folder. `dlm(...)` is a command there, and `train(...)` makes a tiny run.
    """
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"}
    settings = [*TINY, "data.train.path=../text.txt"]
    done = subprocess.run(
        [sys.executable, "-c", SHELL, str(ROOT / "configs/tiny.yaml"), json.dumps(settings), json.dumps(checks)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


CHECK_NOISE = """
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


CHECK_ORDER = """
train()
assert '"network_calls": 6' in dlm("sample", "run", "--length", 6, "--order", "outside-in", "--json")
"""


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


CHECK_FORMAT = """
from dlm.config import Data, Source
from dlm.data.choosing import source_of
from dlm.data.reading import read
from dlm.data.streaming import open_stream

from pathlib import Path
import shutil

Path("rows.psv").write_text("id|body\\n01|007\\n02|NA\\n03|a, b\\n")
Path("texts.psv").write_text("text\\n" + "the quick brown fox jumps over the lazy dog\\n" * 20)
source = source_of("rows.psv", field="body")
assert source == Source("psv", "rows.psv", field="body")
assert list(read(source, "data.train").texts()) == ["007", "NA", "a, b"]
stream = open_stream(Data(source, validation=source, streaming=True))
assert [row["text"] for row in stream.train] == ["007", "NA", "a, b"]
pairs = read(Source("psv", "rows.psv", prompt="id", response="body"), "data.train")
assert pairs.rows["prompt"][:] == ["01", "02", "03"]

train("data.train.format=psv", "data.train.path=texts.psv")
assert "20 documents" in dlm("eval", "run", "--data", "texts.psv")
shutil.rmtree("run")
source = "{format: psv, path: texts.psv}"
train(f"data.train={source}", f"data.validation={source}", "data.streaming=true")
"""


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


CHECK_REMASKER = """
from dlm.bench.kinds import kind
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.noise import Absorbing
from dlm.diffusion.remask import Fading
from dlm.diffusion.remasking import Remasking
from dlm.diffusion.schedule import Linear
from dlm.diffusion.unmask import TokenChoice

rule = Remasking(Process(Absorbing(), Linear(), Vocabulary.plain(3)), 4, Fading(0.8), TokenChoice())
assert [round(rule.probabilities(k)[2], 9) for k in (3, 2)] == [0.6, 0.2]  # 3/4 x 0.8 x 1, and 1/2 x 0.8 x 1/2
assert kind("remask-fading-8@0.5").sampler.remask == Fading(0.5)

train()
assert '"network_calls"' in dlm("sample", "run", "--length", 6, "--steps", 8, "--remask", "fading:eta=0.5", "--json")
assert "fading:eta=0.2" in "".join(dlm("infill", "--help").split())
"""


CHECK_LOSS = """
from pathlib import Path

train("objective.loss=half-and-half", "objective.loss.share=0.3", "objective.levels=steep")
config = Path("run/config.yaml").read_text()
assert "half-and-half" in config and "steep" in config
assert '"nelbo": ' in Path("run/metrics.jsonl").read_text()
"""

EXAMPLES = {
    "Zipf": ("dlm/diffusion/noise.py", CHECK_NOISE),
    "OutsideIn": ("dlm/diffusion/unmask.py", CHECK_ORDER),
    "Doubling": ("dlm/diffusion/unmask.py", CHECK_BUDGET),
    "Fading": ("dlm/diffusion/remask.py", CHECK_REMASKER),
    "Hyperbolic": ("dlm/diffusion/schedule.py", CHECK_SCHEDULE),
    "Psv": ("dlm/data/formats.py", CHECK_FORMAT),
    "HalfAndHalf": ("dlm/diffusion/weighting.py", CHECK_LOSS),
    "Steep": ("dlm/diffusion/levels.py", ""),  # with the loss
}


@pytest.mark.long
def test_each_example_of_the_page_is_one_class_and_one_name(tmp_path: Path) -> None:
    """All of them in one copy of the package, so that they get on with one another too."""
    shutil.copytree(ROOT / "dlm", tmp_path / "dlm")
    for example, (file, _) in EXAMPLES.items():
        extend(tmp_path, example, file)
    failed = run(tmp_path, {example: check for example, (_, check) in EXAMPLES.items()})
    assert not failed, "\n".join(failed.values())
