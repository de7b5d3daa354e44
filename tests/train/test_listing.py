"""Where runs stand: finished, interrupted, being trained, or broken; and what their history says, read again."""

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest

from dlm.errors import DataError
from dlm.train.history import History
from dlm.train.listing import list_runs, state_of
from dlm.train.run import RunFolder
from tests.support.commands import answer, dlm, refusal
from tests.support.locks import another
from tests.support.tiny_runs import STEPS, bounds, cut_after, describe, lines, train


def cut_short(file: Path, count: int) -> None:
    """Takes so many bytes from the end of a file, or adds some."""
    kept = file.read_bytes()
    file.write_bytes(kept[:-count] if count > 0 else kept + bytes(-count))


DAMAGE = {
    "without a configuration": lambda run: (run / "config.yaml").unlink(),
    "a configuration of another kind": lambda run: (run / "config.yaml").write_text("- a\n"),
    "a configuration that is no YAML": lambda run: (run / "config.yaml").write_bytes(b"\xff{"),
    "metrics of another kind": lambda run: (run / "metrics.jsonl").write_text('["a"]\n{"loss": 3}\n'),
    "metrics that are no text": lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe"),
    "a step without its fields": lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n'),
    "a checkpoint without its progress": lambda run: (
        run / f"checkpoints/step-{STEPS:06d}/trainer/progress.json"
    ).unlink(),
    "weights that end too early": lambda run: cut_short(run / f"checkpoints/step-{STEPS:06d}/model.safetensors", 100),
    "weights that go on behind their end": lambda run: cut_short(run / "checkpoints/best/model.safetensors", -1),
    "weights of a header that is none": lambda run: (run / "checkpoints/best/model.safetensors").write_bytes(b"x" * 99),
    "weights that are empty": lambda run: (run / "checkpoints/best/model.safetensors").write_bytes(b""),
    "no weights": lambda run: (run / f"checkpoints/step-{STEPS:06d}/model.safetensors").unlink(),
    "an optimizer that ends too early": lambda run: cut_short(
        run / f"checkpoints/step-{STEPS:06d}/trainer/optimizer.safetensors", 8
    ),
    "no optimizer": lambda run: (run / f"checkpoints/step-{STEPS:06d}/trainer/optimizer.safetensors").unlink(),
    "a model without dlm.yaml": lambda run: (run / "checkpoints/best/dlm.yaml").unlink(),
    "a model without its configuration": lambda run: (run / "checkpoints/best/config.json").unlink(),
    "a tokenizer that is no JSON": lambda run: (run / "checkpoints/best/tokenizer.json").write_text("{"),
    "a shard that is gone": lambda run: (run / "checkpoints/best/model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'
    ),
    "an index of another kind": lambda run: (run / "checkpoints/best/model.safetensors.index.json").write_text("[]"),
    "no checkpoint any more": lambda run: shutil.rmtree(run / "checkpoints"),
    "metrics that are a folder": lambda run: ((run / "metrics.jsonl").unlink(), (run / "metrics.jsonl").mkdir()),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and one that was stopped."""
    folder = tmp_path_factory.mktemp("runs")
    config = describe(folder)
    train(folder / "runs/done", config)
    cut_after(folder / "runs/cut", config, 5)
    (folder / "runs/notes").mkdir()
    (folder / "runs/.hidden").mkdir()
    (folder / "runs/.hidden/config.yaml").write_text("")
    return folder / "runs"


def test_a_finished_run_and_a_stopped_one(trained: Path) -> None:
    cut, done = list_runs(trained)
    assert (done.state, done.step, done.saved, done.steps) == ("finished", STEPS, STEPS, STEPS)
    assert (cut.state, cut.step, cut.saved, cut.steps) == ("interrupted", 5, 5, STEPS)
    assert done.best == min(bounds(trained / "done")) and done.best_ci95 is not None
    assert done.best_ci95[0] < done.best < done.best_ci95[1] and (done.tokens_per_second or 0) > 0
    assert done.go_on == f"dlm sample {trained / 'done'}"


def test_the_command_to_go_on_goes_on(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "cut", tmp_path / "cut here")
    words = shlex.split(state_of(tmp_path / "cut here").go_on)
    assert words == ["dlm", "train", "--resume", "--run-dir", str(tmp_path / "cut here")]
    dlm(*words[1:])
    assert state_of(tmp_path / "cut here").state == "finished"


def test_steps_after_the_last_checkpoint_are_taken_again(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "cut", run)
    shutil.rmtree(run / "checkpoints/step-000005")
    assert (state_of(run).step, state_of(run).saved) == (5, 4)
    out, _ = dlm("runs", tmp_path)
    assert "5 of 8 (saved 4)" in out
    for folder in (run / "checkpoints").glob("step-*"):
        shutil.rmtree(folder)
    assert (state_of(run).state, state_of(run).saved) == ("interrupted", None)
    assert "5 of 8 (saved 0)" in dlm("runs", tmp_path)[0]


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", describe(tmp_path)).begin()
    found = state_of(tmp_path / "run")
    assert (found.state, found.step, found.best, found.tokens_per_second) == ("interrupted", 0, None, None)


def test_a_run_that_another_process_trains(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "cut", tmp_path / "run")
    with another(tmp_path / "run") as process:
        found = state_of(tmp_path / "run")
        assert found.state == "training" and f"process {process.pid} on" in (found.writer or "")
        assert "training, process" in dlm("runs", tmp_path)[0]
    process.wait()
    assert state_of(tmp_path / "run").state == "interrupted"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_a_row(damage: str, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "done", tmp_path / "run")
    shutil.copytree(trained / "done", tmp_path / "sound")
    DAMAGE[damage](tmp_path / "run")
    broken, sound = list_runs(tmp_path)
    assert broken.state == "broken" and broken.problem and "\n" not in broken.problem and sound.state == "finished"
    out, err = dlm("runs", tmp_path)
    *table, empty, below = out.splitlines()
    assert err == "" and below == f"{broken.path}: {broken.problem}" and (empty, len(table)) == ("", 4)
    assert broken.problem not in "".join(table)


def test_a_run_that_lost_its_checkpoints_is_not_begun_anew_unasked(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "done", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    metrics = (tmp_path / "run/metrics.jsonl").read_bytes()
    assert "has lost its checkpoints, of which its metrics.jsonl tells" in refusal(
        "train", "--resume", "--run-dir", tmp_path / "run"
    )
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == metrics


def test_a_run_without_its_best_goes_on_from_what_is_left(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "done", tmp_path / "run", symlinks=True)
    *_, before, last = sorted((tmp_path / "run/checkpoints").glob("step-*"))
    shutil.rmtree(last)
    found = state_of(tmp_path / "run")
    assert found.state == "interrupted" and found.saved == int(before.name.removeprefix("step-"))


def test_damaged_weights_are_named(trained: Path, tmp_path: Path) -> None:
    """By header and size alone: other bytes within a tensor are for its reader to find."""
    shutil.copytree(trained / "done", tmp_path / "run", symlinks=True)
    file = tmp_path / "run/checkpoints/last/model.safetensors"
    size = file.stat().st_size
    cut_short(file, 100)
    assert f"model.safetensors is damaged: by its header it has {size:,} bytes, and there are {size - 100:,}" in (
        state_of(tmp_path / "run").problem
    )
    cut_short(file, -100)
    assert state_of(tmp_path / "run").state == "finished"


def test_a_table_is_a_line_a_run_and_json_has_the_same(trained: Path) -> None:
    out, _ = dlm("runs", trained)
    head, _, cut, done = out.splitlines()
    assert head.split() == ["run", "state", "step", "best", "bound", "tokens/s", "last", "change", "to", "go", "on"]
    assert cut.split()[1] == "interrupted" and done.split()[1] == "finished"
    found = answer("runs", trained)["runs"]
    assert [each["state"] for each in found] == ["interrupted", "finished"] and found[1]["path"] == str(
        trained / "done"
    )
    assert answer("runs", trained / "done")["runs"] == [found[1]]  # a run is a folder of one


def test_no_run_and_no_folder(tmp_path: Path) -> None:
    assert dlm("runs", tmp_path) == ("", f"no run in {tmp_path}\n")
    assert answer_of_none(tmp_path) == {"runs": []}
    assert f"there is no folder {tmp_path / 'none'}" in refusal("runs", tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "there is no folder" in refusal("runs", tmp_path / "file")


def answer_of_none(folder: Path) -> object:
    return json.loads(dlm("runs", folder, "--json")[0])


def test_an_infinite_bound_is_no_number_of_json(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "done", tmp_path / "run")
    text = (tmp_path / "run/metrics.jsonl").read_text()
    for bound in bounds(trained / "done"):
        text = text.replace(f'"nats_per_token": {bound!r}', '"nats_per_token": Infinity')
    (tmp_path / "run/metrics.jsonl").write_text(text)
    assert answer("runs", tmp_path)["runs"][0]["best"] is None and state_of(tmp_path / "run").best == math.inf
    assert "inf" in dlm("runs", tmp_path)[0]


# History


def test_the_history_is_what_was_written(trained: Path) -> None:
    history = History.read(trained / "done")
    assert [step.step for step in history.steps] == [*range(1, STEPS + 1)]
    assert [each.judged.nats_per_token for each in history.validations] == bounds(trained / "done")
    assert [each.step for each in history.validations] == [4, 8]
    assert all(each.sample for each in history.validations)
    assert [each.sample for each in history.validations] == [
        line["sample"] for line in lines(trained / "done") if "validation" in line
    ]
    spent = sum(64 / step.tokens_per_second for step in history.steps)  # 4 rows of 16 tokens a step
    assert history.seconds[-1] == pytest.approx(spent) and [*history.seconds] == sorted(history.seconds)


def test_a_step_that_was_taken_again_counts_once(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    text = (trained / "done/metrics.jsonl").read_text()
    again = json.dumps({**json.loads(text.splitlines()[0]), "loss": 77.0})
    (tmp_path / "run/metrics.jsonl").write_text(text + again + "\n" + '{"step": 9, "lo')
    history = History.read(tmp_path / "run")
    assert [step.step for step in history.steps] == [*range(1, STEPS + 1)] and history.steps[0].loss == 77.0


def test_an_older_history_has_no_samples_and_a_missing_one_nothing(tmp_path: Path) -> None:
    report = {"nats_per_token": 2.0, "nats_per_token_ci95": None}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 3, "validation": report, "later": 1}) + "\n")
    (only,) = History.read(tmp_path).validations
    assert only.sample == "" and only.judged.interval is None and not only.judged.exact
    empty = History.read(tmp_path / "none")
    assert not empty.steps and not empty.validations and empty.best is None and empty.speed() is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "validation": {}}\n')
    with pytest.raises(DataError, match="is damaged"):
        History.read(tmp_path)
