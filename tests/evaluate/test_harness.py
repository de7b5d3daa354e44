"""Tasks of lm-evaluation-harness, by dlm and by the harness's own command line, against figures worked out here."""

import importlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from dlm.config import Bytes
from dlm.diffusion.unmask import LeftToRight
from dlm.errors import ConfigError, DataError
from dlm.evaluate.harness import NAME, HarnessModel, main
from dlm.evaluate.requests import Answering, How
from dlm.evaluate.tasks import TasksReport, evaluate_tasks, load_tasks
from dlm.lm import DiffusionLM, Sampler
from dlm.model.tokenizer import build_tokenizer
from tests.support import public
from tests.support.commands import answer, dlm, refusal
from tests.support.fixtures import MakeLM, Refused
from tests.support.launchers import ENVIRONMENT
from tests.support.processes import together
from tests.support.tasks import DOCUMENTS, write_tasks

NAMES = ["own_choice", "own_last_word", "own_rolling", "own_answer"]
READINGS = ["any-order", "causal"]


@pytest.fixture(scope="module")
def lm(make_lm: MakeLM) -> DiffusionLM:
    """A byte model with three readings that knows chats, with a context of 32."""
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}>{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    return make_lm(tokenizer, 32, readings={"name": "joint", "sizes": [4]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def saved(lm: DiffusionLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lm.save_pretrained(tmp_path_factory.mktemp("saved") / "model")
    return tmp_path_factory.getbasetemp() / "saved0/model"


def asked(kind: str, *arguments: Any, doc: int = 0, task: str = "task", repeats: int = 1) -> Instance:
    return Instance(kind, {}, arguments, 0, (task, doc, repeats))


def figures(report: TasksReport | None) -> dict[tuple[str, str], float]:
    assert report is not None
    return {(each.task, each.metric): float(each.value or 0.0) for each in report.results}


def by_hand(lm: DiffusionLM, how: How) -> dict[tuple[str, str], float]:
    """What the tasks come to, from log-likelihoods alone."""
    model = Answering(lm, how, shows=False)
    scores = model.log_likelihoods([[(d["question"], choice) for choice in d["choices"]] for d in DOCUMENTS])
    hits = normed_hits = 0
    for d, found in zip(DOCUMENTS, scores, strict=True):
        nats = {choice: found[d["question"], choice][0] for choice in d["choices"]}
        hits += max(nats, key=lambda choice: nats[choice]) == d["choices"][d["gold"]]
        normed_hits += max(nats, key=lambda choice: nats[choice] / len(choice)) == d["choices"][d["gold"]]
    parted = [d["text"].rpartition(" ") for d in DOCUMENTS]
    pairs = [(before, f" {last}") for before, _, last in parted]
    words = [each[pair] for each, pair in zip(model.log_likelihoods([[pair] for pair in pairs]), pairs, strict=True)]
    texts = [d["text"] for d in DOCUMENTS]
    total = -sum(model.texts(texts))
    return {
        ("own_choice", "acc"): hits / 3,
        ("own_choice", "acc_norm"): normed_hits / 3,
        ("own_last_word", "perplexity"): math.exp(-sum(value for value, _ in words) / 3),
        ("own_last_word", "acc"): sum(greedy for _, greedy in words) / 3,
        ("own_rolling", "word_perplexity"): math.exp(total / sum(len(text.split()) for text in texts)),
        ("own_rolling", "byte_perplexity"): math.exp(total / sum(map(len, texts))),
        ("own_rolling", "bits_per_byte"): total / sum(map(len, texts)) / math.log(2),
    }


@pytest.mark.parametrize("reading", READINGS)
def test_tasks_come_to_what_their_log_likelihoods_come_to(lm: DiffusionLM, folder: Path, reading: str) -> None:
    how = How(reading=reading, draws=4)
    report = evaluate_tasks(HarnessModel(lm, how), load_tasks(NAMES, folder))
    found = figures(report)
    assert report is not None and found.pop(("own_answer", "exact_match")) == 0.0
    assert found == pytest.approx(by_hand(lm, how), rel=1e-5)
    assert {each.documents for each in report.results} == {3} and {each.few_shot for each in report.results} == {0}
    bounds = {each.metric for each in report.results if each.is_bound}
    expected = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}
    assert bounds == (expected if reading == "any-order" else set())
    assert (report.exact, report.draws) == (reading == "causal", None if reading == "causal" else 4)
    assert report.shortened == {"loglikelihood": 1} and report.cautions == ()  # the third document's last word


def test_the_harness_itself_gets_the_same(saved: Path, folder: Path, lm: DiffusionLM) -> None:
    """As its command line would: the class by arguments in a string, and its own evaluation."""
    model = HarnessModel.create_from_arg_string(
        f"path={saved},draws=4,reading=any-order", {"batch_size": "8", "device": "cuda:0"}
    )
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = simple_evaluate(model, tasks=NAMES[:3], task_manager=manager, bootstrap_iters=0)
    found = {
        (task, key.partition(",")[0]): value
        for task, values in results["results"].items()
        for key, value in values.items()
        if "," in key and "stderr" not in key
    }
    assert found == pytest.approx(by_hand(lm, How(reading="any-order", draws=4)), rel=1e-5)
    about = results["config"]
    assert about["reading"] == "any-order" and about["log_likelihoods"].startswith("lower bounds")
    assert about["shortened_contexts"] == {"loglikelihood": 1}


def test_requests_of_a_document_are_one_group(lm: DiffusionLM) -> None:
    pairs = [("the king ", "is dead"), ("the king ", "was")]
    model = HarnessModel(lm, How(reading="any-order", draws=4))
    together = Answering(lm, How(reading="any-order", draws=4), shows=False).log_likelihoods([pairs])[0]
    requests = [asked("loglikelihood", *pair, doc=5) for pair in (*pairs, pairs[1])]  # the last fills up a batch
    assert model.loglikelihood(requests) == [together[pair] for pair in (*pairs, pairs[1])]
    apart = model.loglikelihood([asked("loglikelihood", *pair, doc=doc) for doc, pair in enumerate(pairs)])
    assert apart[1][0] != pytest.approx(together[pairs[1]][0], abs=1e-4)
    tasks = [asked("loglikelihood", *pair, task=pair[1]) for pair in pairs]
    assert model.loglikelihood(tasks) == apart
    alike = [asked("loglikelihood", *pairs[0]), asked("loglikelihood", *pairs[1], task="other")]
    assert model.loglikelihood(alike) == apart  # documents of two tasks may have one number
    alone = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]  # of no document: of one context
    assert model.loglikelihood(alone) == [together[pair] for pair in pairs]
    other = Instance("loglikelihood", {}, ("a queen ", "said"), 0)
    found = [nats for nats, _ in model.loglikelihood([*alone, other])]
    assert found == pytest.approx([each[0] for part in (alone, [other]) for each in model.loglikelihood(part)])


def test_a_request_asked_again_gets_another_text(lm: DiffusionLM) -> None:
    drawn = {"until": ["\n"], "max_gen_toks": 8, "do_sample": True}
    model = HarnessModel(lm, How(reading="any-order"))
    one, two, other = model.generate_until(
        [asked("generate_until", "a", drawn)] * 2 + [asked("generate_until", "b", drawn)]
    )
    assert one != two and model.generate_until([asked("generate_until", "a", drawn)]) == [one]
    assert model.generate_until([asked("generate_until", "b", drawn), asked("generate_until", "a", drawn)]) == [
        other,
        one,
    ]
    cold = model.generate_until([asked("generate_until", "a", {**drawn, "temperature": 0.1, "do_sample": None})])
    sure = {"until": [], "max_gen_toks": 8}
    greedy = model.generate_until([asked("generate_until", "a", sure)])
    assert greedy == model.generate_until(
        [asked("generate_until", "a", {**sure, "max_gen_toks": None, "max_new_tokens": 8})]
    )
    assert len({one, *cold, *greedy}) == 3
    in_order = HarnessModel(lm, How(reading="any-order", sampler=Sampler(order=LeftToRight())))
    settings = [
        {"temperature": 1e-6, "do_sample": True},
        {"temperature": 1e-6},
        {"temperature": 2.0, "do_sample": False},
    ]
    texts = in_order.generate_until([asked("generate_until", "a", {**sure, **each}) for each in (*settings, {})])
    assert len(set(texts)) == 1
    assert model.ignored == set()
    model.generate_until([asked("generate_until", "a", {**sure, "num_beams": 4, "top_k": 0, "top_p": 1.0})])
    assert model.ignored == {"num_beams"}
    (short,) = HarnessModel(lm, How(length=2)).generate_until([asked("generate_until", "a", sure)])
    assert len(short) <= 2


def test_chats_are_asked_by_the_template(lm: DiffusionLM, folder: Path, tiny_lm: DiffusionLM, refused: Refused) -> None:
    model = HarnessModel(lm, How(reading="causal"))
    plain, chat = (
        figures(evaluate_tasks(HarnessModel(lm, How(reading="causal")), load_tasks(NAMES, folder), chat=chat))
        for chat in (False, True)
    )
    assert plain["own_last_word", "perplexity"] != pytest.approx(chat["own_last_word", "perplexity"])
    assert model.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi>:" and model.answering.chats
    assert model.chat_template(True) == lm.tokenizer.chat_template and model.chat_template(False) is None
    assert model.tokenizer_name != HarnessModel(tiny_lm).tokenizer_name
    for use in (lambda other: other.chat_template(True), lambda other: other.apply_chat_template([])):
        with refused(ConfigError, "this tokenizer has no chat template: leave apply_chat_template out"):
            use(HarnessModel(tiny_lm))
    with refused(DataError, "the chat template refuses the messages of a task"):
        model.apply_chat_template([3])  # type: ignore[list-item]


def test_a_task_keeps_its_number_of_examples_where_it_is_none(lm: DiffusionLM, tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "fixed", num_fewshot=0)
    report = evaluate_tasks(HarnessModel(lm, How()), load_tasks(["own_choice"], folder), few_shot=2, limit=1)
    assert report is not None
    assert report.cautions == ("own_choice fixes its number of examples at 0: --num-fewshot 2 has no part in it",)
    assert {(each.few_shot, each.documents) for each in report.results} == {(0, 1)}
    folder = write_tasks(tmp_path / "free", fewshot_split="test")
    other = write_tasks(tmp_path / "other", fewshot_split="test", num_fewshot=2)
    for shots in (3, 9):  # of three documents, one is the question
        with pytest.raises(ConfigError, match=f"--num-fewshot: own_choice has 2 documents to take .* and {shots} are"):
            evaluate_tasks(HarnessModel(lm, How()), load_tasks(["own_choice"], folder), few_shot=shots)
    found = [
        evaluate_tasks(HarnessModel(lm, How(reading="causal")), load_tasks(["own_last_word"], where), few_shot=shots)
        for where, shots in ((folder, 0), (folder, 1), (other, 1), (other, None), (folder, None))
    ]
    assert [{each.few_shot for each in report.results} for report in found if report] == [{0}, {1}, {1}, {2}, {0}]
    assert figures(found[0]) == figures(found[4]) != figures(found[1]) == figures(found[2])


def test_only_what_needs_it_asks_for_greedy_decoding(folder: Path, tmp_path: Path) -> None:
    assert load_tasks(["own_last_word", "own_answer"], folder).decodes_greedily
    assert not load_tasks(["own_choice", "own_rolling", "own_answer"], folder).decodes_greedily
    exact = write_tasks(tmp_path / "exact", metric_list=[{"metric": "exact_match"}])
    assert load_tasks(["own_choice"], exact).decodes_greedily


@pytest.mark.parametrize(
    ("changes", "names", "kind", "words"),
    [
        ({}, ["own_chioce"], ConfigError, ("there is no task 'own_chioce'", "did you mean own_choice")),
        ({"unsafe_code": True}, ["own_choice"], ConfigError, ("own_choice runs code", "--confirm_run_unsafe_code")),
        ({"dataset_path": "no/such-set"}, ["own_choice"], DataError, ("--tasks own_choice cannot be loaded",)),
        ({"dataset_path": None}, ["own_choice"], DataError, ("its file needs a dataset_path",)),
        ({"test_split": "tset"}, ["own_choice"], DataError, ("it asks for 'tset', which is not there",)),
        ({"doc_to_text": "{{nothing}}"}, ["own_choice"], DataError, ("a field that its documents have not", "nothing")),
        ({"metric_list": [{"metric": "nonsense"}]}, ["own_rolling"], DataError, ("one of its metrics is not known",)),
    ],
)
def test_tasks_that_cannot_be_done_are_refused(
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    names: list[str],
    kind: type[ConfigError] | type[DataError],
    words: tuple[str, ...],
) -> None:
    folder = write_tasks(tmp_path / "tasks", **changes)
    only_the_folder = TaskManager(
        include_path=str(folder), include_defaults=False
    )  # the others take ten seconds to list
    monkeypatch.setattr("dlm.evaluate.tasks.TaskManager", lambda **_: only_the_folder)
    with refused(kind, *words):
        load_tasks(names, folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ("say which model by path=RUN",)),
        ({"path": "x", "pretrained": "y"}, ("there is no 'pretrained'", "valid: batch_size, draws, dtype, greedy")),
        ({"path": "x", "dtype": "fp8"}, ("dtype is one of auto, bf16, fp16, fp32, got 'fp8'",)),
        ({"path": "x", "load": "2bit"}, ("load is one of 4bit, 8bit, got '2bit'",)),
        ({"path": "x", "batch_size": "auto"}, ("batch_size must be a whole number from 1 on, got 'auto'",)),
    ],
)
def test_wrong_arguments_are_refused(refused: Refused, arguments: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(ConfigError, *words):
        HarnessModel.create_from_arg_obj(arguments, {"max_batch_size": 4})


def test_the_command_prints_the_report(saved: Path, folder: Path) -> None:
    words = ["eval", saved, "--task-path", folder, "--reading", "any-order", "--draws", "4"]
    out, err = dlm(*words, "--tasks", "own_rolling,own_last_word", "--limit", "2", "--batch-size", "3")
    assert re.search(r"^own_rolling +bits_per_byte +≤ \d+\.\d{4} +2 +0$", out, re.MULTILINE)
    assert "perplexities     upper bounds, marked by ≤" in out
    assert "log-likelihoods  lower bounds, from 4 draws and seed 0" in out
    assert err == "--limit 2: these are not the figures of the whole tasks\n"
    out, err = dlm(*words[:4], "--tasks", "own_last_word")
    assert "log-likelihoods  exact" in out and "≤" not in out
    assert err == "1 request of continuations did not fit the context: of what is given, the beginning was cut\n"
    found = answer(*words, "--tasks", " own_choice, ", "--num-fewshot", "0")
    assert [each["metric"] for each in found["results"]] == ["acc", "acc_norm"] and found["draws"] == 4
    windows = [
        answer(*words, "--tasks", "own_rolling", *more)["results"][2]["value"] for more in ([], ["--stride", "8"])
    ]
    assert windows[0] != windows[1]
    answer(*words, "--tasks", "own_answer", "--sampler", "--steps 2 --order confidence", "--length", "4")
    answer(*words, "--tasks", "own_choice", "--apply-chat-template", "--reading", "any-order")
    blocks = ["eval", saved, "--task-path", folder, "--reading", "blocks:4", "--tasks"]
    assert answer(*blocks, "own_choice", "--draws", "4")["reading"] == "blocks:4"
    assert "decodes nothing greedily" in refusal(*blocks, "own_last_word")


def test_a_published_model_is_asked_by_its_papers_number_of_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaDA in the Hub's cache: an answer of two tokens a and b, by its formulas, in both orders of unmasking."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "made").mkdir()
    own = load_file(public.llada(tmp_path / "made") / "model.safetensors")
    public.into_cache(tmp_path / "made", "GSAI-ML/LLaDA-8B-Base", tmp_path / "hub")
    ends = {"doc_to_text": "{{text[:-3]}}", "doc_to_target": "{{text[-3:-1]}}"}
    words = ["--task-path", write_tasks(tmp_path / "tasks", **ends), "--tasks", "own_last_word", "--draws", "128"]
    found = answer("eval", "GSAI-ML/LLaDA-8B-Base", *words)
    mask, before = 258, 256
    forbidden = torch.tensor(DiffusionLM.from_pretrained("GSAI-ML/LLaDA-8B-Base").process.vocabulary.forbidden)

    def log_p(given: list[int], id_: int, place: int) -> float:
        logits_V = public.llada_logits(own, torch.tensor([[before, *given]]), heads=2)[0, 1:][place]
        return float(logits_V.index_fill(0, forbidden, -math.inf).log_softmax(0)[id_])

    nats = 0.0
    for text in (document["text"][:-1].encode() for document in DOCUMENTS):
        *start, a, b = text
        one = log_p([*start, mask, mask], a, -2) + log_p([*start, a, mask], b, -1)
        other = log_p([*start, mask, mask], b, -1) + log_p([*start, mask, b], a, -2)
        nats -= (one + other) / 2
    assert (found["draws"], found["results"][0]["metric"]) == (128, "perplexity")
    assert math.log(found["results"][0]["value"]) == pytest.approx(nats / len(DOCUMENTS), rel=1e-4)


def test_a_missing_package_is_a_line(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("lm_eval", "dlm.evaluate.harness", "dlm.evaluate.tasks"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    told = "lm-evaluation-harness is not installed: pip install 'dlm[harness]', or pip install 'lm_eval>=0.4.13'"
    assert told in refusal("eval", saved, "--tasks", "own_choice")
    with pytest.raises(ConfigError, match=re.escape(told)):
        importlib.import_module("dlm.evaluate.harness")


@pytest.mark.long
def test_two_processes_get_what_one_gets(saved: Path, folder: Path) -> None:
    words = ["eval", saved, "--task-path", folder, "--reading", "any-order", "--draws", "4", "--json", "--tasks"]
    one = json.loads(dlm(*words, ",".join(NAMES))[0])
    found = together(*words, ",".join(NAMES), launcher="torchrun")
    assert found.returncode == 0 and found.stdout.count("\n") == 1, found.stderr
    two = json.loads(found.stdout)
    for a, b in zip(one.pop("results"), two.pop("results"), strict=True):
        for each in (a, b):
            if each["metric"] == "perplexity":
                each.pop("standard_error")  # from other resamples
        assert a.pop("value") == pytest.approx(b.pop("value"), rel=1e-5)
        assert a == b
    assert one == two
    found = together(*words, "own_choice", "--limit", "1", launcher="torchrun")
    assert found.returncode == 2 and "own_choice has 1 document for 2 processes" in found.stderr


@pytest.mark.long
def test_the_harness_has_its_own_command_line(saved: Path, folder: Path, tmp_path: Path) -> None:
    words = ["--model", NAME, "--model_args", f"path={saved},reading=causal", "--device", "cpu"]
    words += ["--tasks", "own_rolling", "--include_path", str(folder), "--output_path", str(tmp_path / "out.json")]
    command = [sys.executable, "-m", "dlm.evaluate.harness", *words]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert found.returncode == 0, found.stderr
    (file,) = tmp_path.glob("**/*.json")
    results = json.loads(file.read_text())["results"]["own_rolling"]
    mine = answer("eval", saved, "--task-path", folder, "--tasks", "own_rolling", "--reading", "causal")
    assert results["bits_per_byte,none"] == pytest.approx(mine["results"][2]["value"], rel=1e-5)


def test_its_errors_are_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def evaluated() -> None:
        assert get_model(NAME) is HarnessModel
        HarnessModel.create_from_arg_obj({"path": "no/such/run"})

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", evaluated)
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "") and err.startswith("dlm: ") and err.count("\n") == 1
