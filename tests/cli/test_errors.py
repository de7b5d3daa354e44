"""What a user may get wrong: one line that names it, exit code 2, nothing on stdout, and no traceback."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlm.lm import DiffusionLM
from tests.support import commands
from tests.support.fixtures import MakeLM
from tests.support.launchers import ENVIRONMENT
from tests.support.tiny_models import SMALLEST

BAD_PROMPTS = {
    "p-broken": b'{"prompt": ',
    "p-latin": b'{"prompt": "caf\xe9"}',
    "p-list": b'["a"]',
    "p-none": b'{"text": "a"}',
    "p-both": b'{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}',
    "p-number": b'{"prompt": 7}',
    "p-half": rb'{"prompt": "a\ud800"}',
    "p-taken": b'{"prompt": "a", "samples": 3}',
    "p-long": b'{"prompt": "%s"}' % (b"x" * 32),
    "p-empty-chat": b'{"messages": []}',
    "p-no-role": b'{"messages": [{"content": "a"}]}',
    "p-answered": b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
}
"""Lines that `dlm sample --prompts` cannot use."""

BAD_ANSWERS = {
    "s-broken": '{"text": ',
    "s-list": '["a"]',
    "s-none": '{"txt": "a"}',
    "s-alone": '{"prompt": "a"}',
    "s-given-nothing": '{"response": "a"}',
    "s-both": '{"prompt": "a", "response": "b", "choices": ["b", "c"]}',
    "s-two-prompts": '{"prompt": "a", "messages": [{"role": "user", "content": "b"}], "response": "c"}',
    "s-text-and-prompt": '{"text": "a", "prompt": "b"}',
    "s-number": '{"prompt": "a", "response": 7}',
    "s-half": r'{"text": "a\ud800"}',
    "s-no-list": '{"prompt": "a", "choices": "b"}',
    "s-one-choice": '{"prompt": "a", "choices": ["b"]}',
    "s-odd-choice": '{"prompt": "a", "choices": ["b", null]}',
    "s-empty-choice": '{"prompt": "a", "choices": ["b", ""]}',
    "s-long": '{"prompt": "a", "response": "%s"}' % ("x" * 31),
    "s-long-prompt": '{"prompt": "%s", "response": "a"}' % ("x" * 32),
    "s-long-choice": '{"prompt": "a", "choices": ["b", "%s"]}' % ("x" * 31),
    "s-unanswered": '{"messages": [{"role": "user", "content": "a"}]}',
    "s-only-answer": '{"messages": [{"role": "assistant", "content": "a"}]}',
    "s-answered-twice": '{"messages": [{"role": "assistant", "content": "a"}], "response": "b"}',
    "s-no-chat": '{"messages": [{"content": "a"}], "response": "b"}',
    "s-chat": '{"messages": [{"role": "user", "content": "a"}], "response": "b"}',
    "s-taken": '{"text": "a", "bits": 3}',
}
"""Lines that `dlm score` cannot use."""


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, tiny_lm: DiffusionLM) -> Path:
    """A folder with a model whose context is 32, and with files and folders of every bad kind."""
    folder = tmp_path_factory.mktemp("shelf")
    tiny_lm.save_pretrained(folder / "model")
    for name in ("truncated", "headless", "future", "scrambled"):
        tiny_lm.save_pretrained(folder / name)
    weights = folder / "truncated/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (folder / "headless/model.safetensors").write_bytes(b"")
    sidecar = folder / "future/dlm.yaml"
    sidecar.write_text(sidecar.read_text().replace("format: 3", "format: 99"))
    (folder / "scrambled/config.json").write_text('{"model_type": ')
    (folder / "folder").mkdir()
    (folder / "empty-run/checkpoints").mkdir(parents=True)
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text("  \n \n")
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1") * 20)
    (folder / "short.txt").write_text("too short")
    (folder / "text.txt").write_text("some words to train on, again and again. " * 30)
    (folder / "rows.jsonl").write_text('{"title": "a", "size": 1}\n' * 3)
    (folder / "broken.jsonl").write_text('{"text": "a [MASK:2] b"}\n{"text": \n')
    (folder / "fieldless.jsonl").write_text('{"text": "a [MASK:2] b"}\n\n{"txt": "a"}\n')
    (folder / "spanless.jsonl").write_text('{"text": "a [MASK:2] b"}\n{"text": "a [MASK:0] b"}\n')
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n\n{"messages": [{"role": "user", "content": "b"}]}\n')
    for name, line in BAD_PROMPTS.items():
        (folder / f"{name}.jsonl").write_bytes(b'{"prompt": "a"}\n' + line + b'\n{"prompt": "b"}\n')
    for name, text in BAD_ANSWERS.items():
        (folder / f"{name}.jsonl").write_text(f'{{"text": "a"}}\n{text}\n')
    (folder / "table.csv").write_text("text\na\n")
    (folder / "object.json").write_text('{"text": "a"}\n')
    (folder / "answers.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (folder / "long.jsonl").write_text('{"text": "a [MASK:2] b"}\n{"text": "a [MASK:33] b"}\n')
    for name in ("spans", "log_likelihood", "network_calls", "alternatives"):
        good, bad = '{"text": "a [MASK:2] b"}', f'{{"text": "a [MASK:2] b", "{name}": 3}}'
        (folder / f"t-{name}.jsonl").write_text(f"{good}\n{bad}\n")
    (folder / "halves.jsonl").write_text('{"text": "a [MASK:2] \\ud800"}\n')
    (folder / "no-archive.jsonl.gz").write_text("plain")
    (folder / "twice.jsonl").write_text('{"text": "a [MASK:2] b", "prompt": "a", "n": 1, "n": 2}\n')
    (folder / "no-line.jsonl").write_text("\n\n")
    (folder / "taken.txt").write_text("mine")
    (folder / "taken.svg").write_text("mine")
    (folder / "device.svg").symlink_to("/dev/full")
    source = {"format": "text", "path": str(folder / "text.txt")}
    tree: dict[str, Any] = {
        "data": {"train": source, "held_out": {"by": "tail"}, "length": 16},
        "model": {"sizes": SMALLEST},
    }
    tree |= {"tokenizer": {"name": "bytes"}, "train": {"precision": "fp32"}}  # Accelerate takes one a process
    (folder / "good.yaml").write_text(yaml.safe_dump(tree))
    (folder / "list.yaml").write_text("- a\n- b\n")
    (folder / "broken.yaml").write_text("data: {train: [\n")
    return folder


def invoke(shelf: Path, words: str | list[str]) -> tuple[int, str, str]:
    parts = [word.replace("@", f"{shelf}/") for word in (words.split() if isinstance(words, str) else words)]
    found = commands.invoke(*parts)
    return found.exit_code, found.stdout, found.stderr


TRAIN = "train @good.yaml --run-dir @new --set "
COMPARE = "bench infill @model --data @text.txt "
BAD: list[tuple[str | list[str], str]] = [
    # fill-in-the-middle, and infilling compared
    (TRAIN + "data.fim=0.5", "data.fim: it is for readings autoregressive"),
    (TRAIN + "data.fim=0.5 --set readings=joint", "got readings joint; set it to 0"),
    (TRAIN + "data.fim=2 --set readings=autoregressive", "data.fim"),
    (TRAIN + "data.fim=0.5 --set readings=autoregressive --set data.length=6", "set length to 8 or more"),
    ("bench infill @none --data @text.txt", "no model at"),
    ("bench infill @model --data @none.txt", "--data: there is no file"),
    ("bench infill @model", "data.train"),
    (COMPARE + "--methods left", "--methods: left suits none of these models"),
    (COMPARE + "--methods ,", "--methods takes one or more, with commas between them"),
    (COMPARE + "--spans 1.5", "--spans takes whole numbers from 1 on, or words or lines"),
    (COMPARE + "--spans 64", "none of these spans fit"),
    (COMPARE + "--holes many", "--holes takes whole numbers"),
    (COMPARE + "--lengths any", "--lengths is known, unknown, or both"),
    (COMPARE + "--draws 7", "--draws must be even, got 7"),
    (["infill", "@model", "a [MASK] b", "--reread"], "--reread is for a model with a causal reading"),
    (["infill", "@model", "a [MASK:3] b", "--effort", "4"], "--effort: nothing is searched here"),
    # configurations
    ("train @none.yaml", "cannot read the configuration"),
    ("train @folder", "cannot read the configuration"),
    ("train @list.yaml", "holds no configuration"),
    ("train @broken.yaml", "is not valid YAML"),
    ("train @latin.txt", "is not valid YAML"),
    (TRAIN + "optim.lr", "--set takes key=value, got 'optim.lr'"),
    (TRAIN + "=3", "--set takes key=value"),
    (TRAIN + "optim.momentun=0.9", "unknown configuration key optim.momentun: did you mean momentum?"),
    (TRAIN + "opt.lr=1", "unknown configuration key opt: did you mean optim?"),
    (TRAIN + "optim.lr=fast", "optim.lr: "),
    (TRAIN + "optim.lr=-1", "optim.lr: "),
    (TRAIN + "optim.lr=.nan", "optim.lr: "),
    (TRAIN + "train.steps=0", "train.steps: "),
    (TRAIN + "train.validate_draws=3", "train.validate_draws: "),
    (TRAIN + "optim.decay=cubic", "optim.decay: "),
    (TRAIN + "tokenizer=chars", "tokenizer.name: unknown choice 'chars'; valid: bytes, characters, bpe, pretrained"),
    (TRAIN + "tokenizer.name=[", "--set tokenizer.name: the value '[' is not valid YAML"),
    (TRAIN + "data.train.format=txt", "data.train.format: there is no format 'txt'"),
    (TRAIN + "model.architecture=qwen33", "qwen33"),
    (TRAIN + "model.sizes.hidden_sizes=3", "hidden_sizes"),
    (TRAIN + "train.trackers=[nosuch]", "nosuch"),
    ("train @good.yaml --resume --overwrite", "--resume goes on with a run and --overwrite removes it"),
    ("train @good.yaml --resume --run-dir @folder", "nothing to resume"),
    ("train @good.yaml --run-dir @folder/../model", "is not empty and holds no run"),
    ("train @good.yaml --overwrite --run-dir @model", "is no run folder and is not overwritten"),
    (TRAIN + "data.attend=sentence", "data.attend: "),
    ("train @good.yaml --set data.attend=document --set data.packing=pad", "attend: with packing pad a row holds"),
    (TRAIN + "data.attend=document --set model.shift=true", "data.attend: with model.shift the first token"),
    (TRAIN + "data.attend=document --set model.attention=flash_attention_2", "model.attention auto, eager or sdpa"),
    # data
    (TRAIN + "data.train.path=@none.txt", "there is no file"),
    (TRAIN + "data.train.path=@empty.txt", "holds no text at all"),
    (TRAIN + "data.train.path=@blank.txt", "the training text has 5 tokens"),
    (TRAIN + "data.train.path=@latin.txt", "is not UTF-8 text: byte 3"),
    (TRAIN + "data.train.path=@folder", "holds no *.txt file"),
    (TRAIN + "data.train.path=@short.txt", "fewer than one sequence of data.length 16"),
    ([*TRAIN.split(), "data.train={format: jsonl, path: @rows.jsonl, field: body}"], "'body'"),
    ("eval @model --data @none.txt", "there is no file"),
    ("eval @model --data @empty.txt", "holds no text at all"),
    ("eval @model --data @latin.txt", "is not UTF-8 text"),
    ([*TRAIN.split(), "data.train.path=' '"], "data.train.path: name a file, a folder or a glob, got ' '"),
    (TRAIN + "data.train.path=@*.nothing", "there is no file"),
    ("eval @model --data @rows.jsonl", "--field: "),
    ("eval @model --data @rows.jsonl --field nothing", "has no field 'nothing'; it has title, size"),
    (["eval", "@model", "--data", "@rows.jsonl", "--field", ""], "has no field ''"),
    ("eval @model --data @rows.jsonl --field size", "--field: line 1 of"),
    ("eval @model --data @rows.jsonl --split test", "--split: jsonl has no splits"),
    ("eval @model --data @text.txt --field words", "--field: text has no columns, got 'words'"),
    ("eval @model --data @text.txt --subset s", "--subset: text has no subsets"),
    ("eval @model --data @text.txt --format txt", "--format: there is no format 'txt'; did you mean text?"),
    (["eval", "@model", "--data", ""], "--data: name a file, a folder or a glob, got ''"),
    (["eval", "@model", "--data", "  "], "--data: name a file, a folder or a glob, got"),
    ("eval @model --data @*.nothing", "there is no file"),
    ("eval @model --data @folder", "no file, or hidden ones alone"),
    ("infill @model --file @twice.jsonl", "line 1: 'n' stands there twice"),
    ("sample @model --prompts @twice.jsonl", "line 1: 'n' stands there twice"),
    (
        "eval @model --data @broken.jsonl",
        "broken.jsonl: not JSON: the line ends before its object does; a file holds one",
    ),
    ("eval @model", "none.txt"),
    ("eval @model --data @text.txt --draws 5", "--draws must be even, got 5"),
    ("eval @model --data @text.txt --time soon", "--time is a number of steps or continuous, got 'soon'"),
    ("eval @model --data @text.txt --time 0", "--time is a number of steps or continuous, got '0'"),
    ("eval @model --data @text.txt --time 99999999999", "--time must be at most 1,000,000 steps, got 99999999999"),
    (f"eval @model --data @text.txt --time 1{'0' * 5000}", "--time must be at most 1,000,000 steps, got 1000"),
    (TRAIN + "time.steps=99999999999", "time.steps: input should be less than or equal to 1000000"),
    (TRAIN + "seed=18446744073709551616", "seed: input should be less than 18446744073709551616"),
    (TRAIN + "model.attention=foo", "model.attention: transformers has no 'foo'; valid: auto, eager"),
    (TRAIN + "model.attention=someone/kernels", "model.attention: transformers has no 'someone/kernels'"),
    (TRAIN + "model.sizes.head_dim=3", "these sizes: "),
    (TRAIN + "model.sizes.attention_dropout=2", "model.sizes: qwen3 cannot compute with these sizes: dropout"),
    *(
        (f"{TRAIN}model.sizes.{key}=1", f"model.sizes.{key} is no size")
        for key in ("vocab_size", "pad_token_id", "eos_token_id", "bos_token_id", "is_causal", "dtype")
    ),
    ("eval @model --data -", "--data - would be stdin, which is not read here"),
    ("sample " + "m" * 300, "name too long"),
    ("eval @model --data " + "d" * 300, "name too long"),
    ("train " + "c" * 300, "name too long"),
    ("train @good.yaml --run-dir " + "r" * 300, "name too long"),
    ("sample @model --output " + "o" * 300, "name too long"),
    ("sample @model --export " + "e" * 300 + ".svg", "name too long"),
    ("sample @model --prompts " + "p" * 300, "name too long"),
    ("infill @model --file " + "f" * 300, "name too long"),
    ("merge @model " + "m" * 300, "name too long"),
    ("corrupt text --output " + "o" * 300, "name too long"),
    ("eval @model --data @text.txt --precision fp8", "--dtype is auto, bf16, fp16, fp32, got fp8"),
    # models
    ("sample @none", "no model at"),
    ("sample no/such/model", "no model at"),
    ("sample no-such-model", "no model at no-such-model"),
    ("sample @folder", "is neither a run folder nor a checkpoint"),
    ("sample @text.txt", "is neither a run folder nor a checkpoint"),
    ("sample @empty-run", "has no checkpoint yet: wait for its first, or go on with it by: dlm train --resume"),
    ("sample @truncated", "truncated"),
    ("sample @headless", "headless"),
    ("sample @future", "has format 99"),
    ("sample @scrambled", "scrambled"),
    ("eval @truncated --data @text.txt", "truncated"),
    (["infill", "@truncated", "a [MASK:2]"], "truncated"),
    # sampling
    ("sample @model --steps 4 --threshold 0.9", "--steps and --threshold are different budgets"),
    ("sample @model --grid cosine", "--grid alone says nothing: give --steps too"),
    ("sample @model --grid linear --order confidence", "--grid alone says nothing: give --steps too"),
    ("sample @model --grid cosine --threshold 0.9", "--grid has no part in --threshold"),
    ("sample @model --grid binomial --factor 1", "--grid has no part in --factor"),
    ("chat @model --grid cosine", "--grid alone says nothing"),
    ("bench sample @model --grid cosine", "--grid alone says nothing"),
    (["infill", "@model", "a [MASK:2]", "--grid", "cosine"], "--grid alone says nothing"),
    ("eval @model --data @text.txt --chain-rule-sequences 3", "--chain-rule-sequences says how many --chain-rule"),
    ("sample @model --factor 1 --entropy-bound 0.9", "--factor and --entropy-bound are different budgets"),
    ("sample @model --temperature -1", "--temperature must be at least 0, got -1.0"),
    ("sample @model --temperature nan", "--temperature must be"),
    ("sample @model --temperature inf", "--temperature must be"),
    ("sample @model --top-p 0", "--top-p must be"),
    ("sample @model --top-p 1.5", "--top-p must be"),
    ("sample @model --threshold 2", "--threshold must be"),
    ("sample @model --factor 0", "--factor must be"),
    ("sample @model --entropy-bound -1", "--entropy-bound must be"),
    ("sample @model --order sideways", "there is no order 'sideways'; valid: random, "),
    ("sample @model --length 33", "the length must be from 1 to 32 tokens here, got 33"),
    ("sample @model --device warp", "--device warp cannot be used here"),
    # other units, rows and tasks
    ("eval @model --data @text.txt --stride 33", "the stride must be from 1 to 32 tokens"),
    ("eval @model --data @text.txt --stride 0", "'--stride': it should be greater than or equal to 1, got 0; see"),
    ("eval @model --data @text.txt --stride 4 --wrap", "--wrap joins documents and --stride keeps them apart"),
    ("eval @model --data @short.txt --wrap", "--wrap: the text has 10 tokens, and a row 32: leave it out"),
    (
        "eval @model --data @text.txt --detokenize latex",
        "--detokenize: there is no 'latex'; valid: ptb, wikitext, lm1b",
    ),
    ("eval @model --data @text.txt --per letter", "'letter' is not one of"),
    ("eval @model --data @text.txt --limit 3", "--limit is of tasks that are done: give --tasks too, or leave it out"),
    ("eval @model --data @text.txt --num-fewshot 0", "--num-fewshot is of tasks that are done"),
    ("eval @model --data @text.txt --apply-chat-template", "--apply-chat-template is of tasks that are done"),
    (["eval", "@model", "--data", "@text.txt", "--sampler", "--steps 4"], "--sampler is of tasks that are done"),
    ("eval @model --tasks a --data @text.txt", "--data is of a text that is scored, and --tasks have their own"),
    ("eval @model --tasks a --per word", "--per is of a text that is scored"),
    ("eval @model --tasks a --chain-rule", "--chain-rule is of a text that is scored"),
    ("eval @model --tasks a --draws 5", "--draws must be even, got 5"),
    ("eval @model --tasks a --limit 0", "'--limit': it should be greater than or equal to 1, got 0; see"),
    ("eval @model --tasks a --reading causal --reading any-order", "done by one --reading, got any-order, causal"),
    (["eval", "@model", "--tasks", "a", "--sampler", "--drafts auto"], "--drafts auto is measured for one prompt"),
    (["eval", "@model", "--tasks", "a", "--sampler", "--steps 4 --threshold 0.5"], "are different budgets"),
    (["eval", "@model", "--tasks", "a", "--sampler", "--order best"], "--order: there is no order 'best'"),
    (["eval", "@model", "--tasks", "a", "--sampler", "--step 4"], "--sampler: no such option: --step"),
    (["eval", "@model", "--tasks", "a", "--sampler", "--order 'random"], "--sampler: no closing quotation"),
    ("eval @model --tasks a --task-path @text.txt", "text.txt is no folder; name one that holds task files"),
    ("eval @model --tasks ,", "--tasks: name tasks, as in --tasks hellaswag,lambada_openai"),
    ("eval @model --data @text.txt --device cuda:99", "--device cuda:99 cannot be used here"),
    (["infill", "@model", "a [MASK:2]", "--device", "warp"], "): say cpu, or leave it out"),
    (["sample", "@model", "--prompt", "x" * 32], "the prompt takes 32 tokens and the context of this model is 32"),
    (["sample", "@model", "--prompt", "x" * 30, "--length", "3"], "the length must be from 1 to 2 tokens"),
    ("sample @model --export film.gif", "a film is written as .html (a page) or .svg (a picture), not as 'film.gif'"),
    ("sample @model --export @taken.svg", "exists already"),
    ("sample @model --output @taken.txt", "exists already"),
    ("sample @model --output @no/such/folder.txt", "there is no folder"),
    ("sample @model --export @no/such/film.svg", "there is no folder"),
    ("sample @model --output @text.txt/out.txt", "text.txt is no folder"),
    ("sample @model --output @folder", "it is a folder"),
    ("sample @model --output @folder --overwrite", "it is a folder"),
    ("sample @model --output @new.svg --export @folder/../new.svg", "are both"),
    (["infill", "@model", "a [MASK:2]", "--output", "@no/such/folder.txt"], "there is no folder"),
    (["infill", "@model", "a [MASK:2]", "--export", "@no/such/film.html"], "there is no folder"),
    ("merge @model @folder", "exists already"),
    ("merge @model @text.txt/merged", "text.txt is no folder"),
    (["sample", "@model", "--chat", ""], "--chat: the message is blank"),
    (["sample", "@model", "--chat", " \n"], "--chat: the message is blank"),
    (["sample", "@model", "--chat", "caf\udce9"], "--chat is not UTF-8: the byte at character 4 cannot be read"),
    (["sample", "@model", "--prompt", "caf\udce9"], "--prompt is not UTF-8: the byte at character 4 cannot be read"),
    (["chat", "@model", "--system", "caf\udce9"], "--system is not UTF-8: the byte at character 4 cannot be read"),
    # batches of prompts
    ("sample @model --prompts @p-broken.jsonl", "line 2: not JSON"),
    ("sample @model --prompts @p-latin.jsonl", "is not UTF-8 text"),
    ("sample @model --prompts @p-list.jsonl", 'line 2: no object in JSON: ["a"]'),
    ("sample @model --prompts @p-none.jsonl", 'line 2: it needs a field "prompt"'),
    ("sample @model --prompts @p-both.jsonl", 'line 2: it needs a field "prompt"'),
    ("sample @model --prompts @p-number.jsonl", "line 2: "),
    ("sample @model --prompts @p-half.jsonl", "half of a character"),
    ("sample @model --prompts @p-taken.jsonl", 'line 2: the field "samples"'),
    ("sample @model --prompts @p-long.jsonl", "line 2: the prompt takes 32 tokens and the context of this model is 32"),
    ("sample @model --prompts @p-empty-chat.jsonl", "line 2: messages is empty: there is nothing to answer"),
    ("sample @model --prompts @p-no-role.jsonl", "line 2: messages must hold lists of {role, content}"),
    ("sample @model --prompts @p-answered.jsonl", "line 2: messages must end with one that is to be answered"),
    ("sample @model --prompts @prompts.jsonl --length 32", "line 1: the length must be from 1 to 31 tokens"),
    ("sample @model --prompts @none.jsonl", "cannot read"),
    ("sample @model --prompts @no-line.jsonl", "holds no line with a record"),
    ("sample @model --prompts @prompts.jsonl --prompt a", "give one of them"),
    ("sample @model --prompts @prompts.jsonl --chat a", "give one of them"),
    ("sample @model --prompt a --chat a", "give one of them"),
    ("sample @model --prompts @prompts.jsonl --output @taken.txt", "exists already"),
    ("sample @model --keep-going", "give --prompts FILE"),
    # spans held to expressions and choices
    (["infill", "@model", "a [MASK:/b"], "[MASK:/ begins an expression, which /] ends"),
    (["infill", "@model", "a [MASK:99999999999999999999]"], "at most nine digits"),
    (["infill", "@model", "a [MASK:/[0-9]+]"], "begins an expression that does not end"),
    (["infill", "@model", "a [MASK:2-:/b/]"], "[MASK:2-] is no span"),
    (["infill", "@model", "a [MASK:5-3]"], "[MASK:5-3] is a range that ends before it begins: write [MASK:3-5]"),
    (["infill", "@model", "a [:3]", "--marker", ""], "--marker is a word"),
    (["infill", "@model", "a [a]b:3]", "--marker", "a]b"], "--marker is a word"),
    (["infill", "@model", "a [MASK:3]", "--max-length", "9"], "has its own lengths or choices: leave it out"),
    (["infill", "@model", "a [MASK:3-9]", "--max-length", "9"], "has its own lengths or choices: leave it out"),
    (["infill", "@model", "a [MASK]", "--max-length", "9999"], "at most the context of this model, "),
    (["infill", "@model", "a [MASK]", "--choices", "no,yes,no"], "--choices has 'no' twice"),
    (
        ["infill", "@model", "a [MASK] b", "--choices", "c,d", "--length-prior", "uniform"],
        "every span has its length: leave it out",
    ),
    (["infill", "@model", "a [MASK:2] b", "--length-prior", "uniform"], "every span has its length: leave it out"),
    (["infill", "@model", "a [MASK:2] b", "--length-top-p", "0.5"], "every span has its length: leave it out"),
    (
        ["infill", "@model", "a [MASK:2] b", "--length-top-p", "0.5", "--length-prior", "uniform"],
        "--length-prior and --length-top-p are for spans of unknown length",
    ),
    (["infill", "@model", "a [MASK] b", "--choices", "c,dd", "--length-top-p", "0.5"], "choices are tried whatever"),
    (["infill", "@model", "a [MASK] b", "--length-top-p", "nan"], "must be above 0 and at most 1, got nan"),
    (
        ["infill", "@model", "a [MASK] b", "--num", "9", "--effort", "4"],
        "fewer fillings than the alternatives of --num 9",
    ),
    (["infill", "@model", "a [MASK] b", "--effort", "99999999"], "65536"),
    (["infill", "@model", "a [MASK:2] b", "--num", "99999999"], "65536"),
    (["infill", "@model", "a [MASK:2] b", "--batch-size", "9" * 30], "less than or equal to 65536"),
    (["sample", "@model", "--batch-size", "9" * 30], "less than or equal to 65536"),
    (["sample", "@model", "--num", "9" * 30], "less than or equal to 1000000"),
    (["infill", "@model", "a [MASK:2]", "--export", "@device.svg"], "a film is a file, and this is none"),
    (["infill", "@model", "a [MASK:2] b", "--steps", "1000000000"], "steps must be at most 1,000,000"),
    (["infill", "@model", "a [MASK:5-0]"], "[MASK:5-0] is no span"),
    (["infill", "@model", "a [MASK:/(/]"], "/(/ is no regular expression"),
    (["infill", "@model", "a [MASK:/a(?=b)/]"], "lookahead and lookbehind"),
    (["infill", "@model", r"a [MASK:/(a)\1/]"], "references to groups"),
    (["infill", "@model", "a [MASK:/^a$/]"], "anchors"),
    (["infill", "@model", "a [MASK:/.{0,4000}/]"], "more than 2000 states"),
    (
        ["infill", "@model", "a [MASK:2:/[0-9]{3}/]"],
        "no text of 2 tokens matches /[0-9]{3}/, and the nearest that does has 3 tokens",
    ),
    (
        ["infill", "@model", "a [MASK:9:/b|cd/]"],
        "no text of 9 tokens matches /b|cd/, and the nearest that does has 2 tokens",
    ),
    (
        ["infill", "@model", "a [MASK:0-1:/bc+/]"],
        "no text of 0 to 1 tokens matches /bc+/, and the nearest that does has 2",
    ),
    (
        ["infill", "@model", "a [MASK:3:/(bc)+/]"],
        "and the nearest that does has 2 or 4 tokens: let the span have other",
    ),
    (["infill", "@model", "a [MASK:/[0-9]{40}/]"], "which takes more than the 32 of the context"),
    (["infill", "@model", "a [MASK:2]", "--choices", "yes,no"], "the text has no plain [MASK]"),
    (["infill", "@model", "a [MASK]", "--choices", "yes,,no"], "none of them is empty"),
    (["infill", "@model", "a [MASK]", "--choices", "x" * 40], "takes 40 tokens, and the context of this model is 32"),
    (
        ["infill", "@model", "abcdefgh [MASK] b", "--choices", "c," + "x" * 30],
        "takes 30 tokens, and beside the text around it the context of 32 has room for 21: ",
    ),
    (["infill", "@model", "a [MASK]", "--choices", "b,cd", "--max-length", "9"], "has its own lengths or choices"),
    (["infill", "@model", "a [mask:3] b"], "has no span such as [MASK:12] or [MASK]; '[mask:3]' is none"),
    # guidance
    (["sample", "@model", "--guidance", "1"], "--guidance leads towards a prompt, and there is none"),
    (["sample", "@model", "--prompt", "a", "--guidance", "strong"], "--guidance is a number from 0 on"),
    (["sample", "@model", "--prompt", "a", "--guidance", "2:early"], "as in 2:late, got '2:early'"),
    (["sample", "@model", "--prompt", "a", "--negative-prompt", "b"], "give --guidance W too"),
    (["sample", "@model", "--prompt", "a", "--guidance", "1", "--negative-prompt", "b" * 32], "--negative-prompt: "),
    (["infill", "@model", "[MASK:2]", "--guidance", "1"], "--guidance leads towards the text around spans"),
    (
        ["infill", "@model", "a [MASK:2]", "--guidance", "1", "--negative-prompt", "b"],
        "--negative-prompt is for what continues a prompt",
    ),
    # infilling
    ("infill @model", "give the text, or --file FILE"),
    (["infill", "@model", "a [MASK:2] b", "--file", "@text.txt"], "are both given: leave one of them out"),
    (["infill", "@model", "no span at all"], "span"),
    (["infill", "@model", "a [MASK:0] b"], "[MASK:0]"),
    (["infill", "@model", "a [MASK:33] b"], "a span of 33 tokens does not fit the context of 32"),
    (["infill", "@model", f"a [MASK:{10**30}] b"], "MASK"),
    (["infill", "@model", "[MASK:4]" + "x" * 30 + "[MASK:4]"], "the spans and the text between them take 38 tokens"),
    ("infill @model --file @none.txt", "cannot read"),
    ("infill @model --file @latin.txt", "is not UTF-8 text: byte 3"),
    ("infill @model --file @broken.jsonl", "line 2: not JSON"),
    ("infill @model --file @fieldless.jsonl", 'line 3: no field "text"'),
    ("infill @model --file @spanless.jsonl", "line 2: "),
    ("infill @model --file @long.jsonl", "line 2: a span of 33 tokens does not fit the context of 32"),
    ("infill @model --file @halves.jsonl", "line 1: no field \"text\" with a text in it: holds '\\ud800'"),
    *(
        (f"infill @model --file @t-{name}.jsonl", f'line 2: the field "{name}" is where')
        for name in ("spans", "log_likelihood", "network_calls", "alternatives")
    ),
    ("infill @model --file @no-line.jsonl", "holds no line with a record"),
    ("infill @model --file @no-archive.jsonl.gz", "cannot be unpacked"),
    (["infill", "@model", "a [MASK:2]", "--keep-going"], "--keep-going is for a batch"),
    (["infill", "@model", "\udce9[MASK:2]"], "the text is not UTF-8: the byte at character 1 cannot be read"),
    # scoring
    ("score @model @none.jsonl", "cannot read"),
    ("score @model @none.json", "cannot read"),
    ("score @model @table.csv", "table.csv: .csv holds records"),
    ("score @model @object.json", "object.json: .json holds records"),
    ("score @model @folder", "cannot read"),
    ("score @none @answers.jsonl", "no model at"),
    ("score @model @empty.txt", "holds no line with a record"),
    ("score @model @latin.txt", "is not UTF-8 text: byte 3"),
    ("score @model @s-broken.jsonl", "line 2: not JSON"),
    ("score @model @s-list.jsonl", 'line 2: no object in JSON: ["a"]'),
    ("score @model @s-none.jsonl", 'line 2: it needs a "text"; or a "prompt" or'),
    ("score @model @s-alone.jsonl", "; got prompt"),
    ("score @model @s-given-nothing.jsonl", "; got response"),
    ("score @model @s-both.jsonl", "; got prompt, response, choices"),
    ("score @model @s-two-prompts.jsonl", "; got prompt, messages, response"),
    ("score @model @s-text-and-prompt.jsonl", "; got text, prompt"),
    ("score @model @s-number.jsonl", 'line 2: "response" holds 7, not text'),
    ("score @model @s-half.jsonl", "half of a character"),
    ("score @model @s-no-list.jsonl", 'line 2: "choices" must be a list of two texts or more'),
    ("score @model @s-one-choice.jsonl", 'line 2: "choices" must be a list of two texts or more'),
    ("score @model @s-odd-choice.jsonl", 'line 2: "choice 2" holds null, not text'),
    ("score @model @s-empty-choice.jsonl", 'line 2: "choice 2" is empty'),
    (
        "score @model @s-long.jsonl",
        "line 2: the response takes 32 tokens with its end, and the context has room for 31",
    ),
    ("score @model @s-long-prompt.jsonl", "line 2: the prompt takes 32 tokens and the context of this model is 32"),
    ("score @model @s-long-choice.jsonl", "line 2: the response takes 32 tokens with its end"),
    ("score @model @s-unanswered.jsonl", "line 2: messages must end with the assistant's"),
    ("score @model @s-only-answer.jsonl", "line 2: the assistant's last message must be a text that answers others"),
    ("score @model @s-answered-twice.jsonl", "line 2: messages must end with one that is to be answered"),
    ("score @model @s-no-chat.jsonl", "line 2: messages must hold lists of {role, content}"),
    ("score @model @s-chat.jsonl", "line 2: this tokenizer has no chat template: give a prompt of plain"),
    ("score @model @s-taken.jsonl", 'line 2: the field "bits" is where'),
    ("score @model @twice.jsonl", "line 1: 'n' stands there twice"),
    ("score @model @no-archive.jsonl.gz", "cannot be unpacked"),
    ("score @model @answers.jsonl --draws 5", "--draws must be even, got 5"),
    ("score @model @answers.jsonl --draws 8 --chain-rule", "--draws: the reading left-to-right is exact"),
    ("score @model @answers.jsonl --reading causal", "this model has no reading 'causal'; it has any-order"),
    ("score @model @answers.jsonl --reading blocks:0", "this model has no reading 'blocks:0'"),
    ("score @model @answers.jsonl --chain-rule --reading causal", "--chain-rule is of the reading any-order, got"),
    ("score @model @answers.jsonl --resume", "--resume goes on with the file of --output"),
    ("score @model @answers.jsonl --resume --output @new --overwrite", "--resume goes on with the file of --output"),
    ("score @model @answers.jsonl --resume --output @taken.txt", "taken.txt is no line of this command"),
    ("score @model @answers.jsonl --output @taken.txt", "exists already"),
    ("score @model @answers.jsonl --output @answers.jsonl --overwrite", "is what FILE reads"),
    ("score @model @answers.jsonl --output @no/such/folder.jsonl", "there is no folder"),
    ("score @model @answers.jsonl --output @folder --resume", "it is a folder"),
    ("score @model @answers.jsonl --device warp", "--device warp cannot be used here"),
    ("score @model @answers.jsonl --dtype fp8", "--dtype is auto, bf16, fp16, fp32, got fp8"),
    ("score @model " + "f" * 300, "name too long"),
    # corrupting
    (["corrupt", ""], "the text is empty: there is nothing to corrupt"),
    (["corrupt", "caf\udce9"], "the text is not UTF-8: the byte at character 4 cannot be read"),
    ("corrupt text --at 0.5,1.5", "--at takes times from 0 to 1, got 1.5"),
    ("corrupt text --at=-0.1", "--at takes times from 0 to 1, got -0.1"),
    ("corrupt text --at nan", "--at takes times from 0 to 1, got nan"),
    ("corrupt text --at 0.5,soon", "--at takes times with commas between them, such as 0.1,0.5; got '0.5,soon'"),
    (["corrupt", "text", "--at", ""], "--at takes times with commas between them, such as 0.1,0.5; got ''"),
    ("corrupt text --process gaussian", "--process: there is no process 'gaussian'; valid: absorbing, uniform, hybrid"),
    ("corrupt text --schedule steep", "'steep'; valid: linear, cosine, polynomial, geometric"),
    ("corrupt text --tokenizer bpe", "--tokenizer: there is no tokenizer 'bpe'; valid: bytes, characters"),
    ("corrupt text --share 0.2", "--share is for hybrid noise and this is absorbing"),
    ("corrupt text --process uniform --share 0.2", "--share is for hybrid noise and this is uniform"),
    ("corrupt text --process hybrid --share 1", "--share must be above 0 and below 1, got 1.0"),
    ("corrupt text --process hybrid --share nan", "--share must be above 0 and below 1, got nan"),
    ("corrupt text @none", "no model at"),
    ("corrupt text @folder", "is neither a run folder nor a checkpoint"),
    ("corrupt text @empty-run", "has no checkpoint yet"),
    ("corrupt text @future", "has format 99"),
    (
        "corrupt text @model --tokenizer bytes",
        "a model has a tokenizer of its own: leave out --tokenizer, or the model",
    ),
    ("corrupt text --output @taken.txt", "exists already"),
    ("corrupt text --output @no/such/folder.txt", "there is no folder"),
]


@pytest.mark.parametrize(("words", "told"), BAD, ids=[" ".join(w.split() if isinstance(w, str) else w) for w, _ in BAD])
def test_a_mistake_is_one_line(shelf: Path, words: str | list[str], told: str) -> None:
    taken = {path: path.read_text() for path in shelf.glob("taken.*")}
    code, out, err = invoke(shelf, words)
    assert (code, out) == (2, ""), err
    assert err.startswith("dlm: ") and err.count("\n") == 1 and err.endswith("\n") and len(err) < 600
    assert told.lower() in err.lower()
    assert not (shelf / "new").exists()
    assert {path: path.read_text() for path in shelf.glob("taken.*")} == taken


@pytest.mark.parametrize(
    "words",
    [
        "eval @model --data @text.txt --max-documents 0",
        "sample @model --num 0",
        "sample @model --steps none",
        "sample @model --grid spiral",
        "sample",
        "sample @model --no-such-option",
        "nonsense",
        "train --nothing",
        "corrupt",
        "corrupt text --steps 0",
        "score @model",
        "score @model @answers.jsonl --draws 2",
        "score @model @answers.jsonl --batch-size 0",
    ],
)
def test_a_wrong_usage_is_explained(shelf: Path, words: str) -> None:
    code, out, err = invoke(shelf, words)
    assert (code, out) == (2, "") and err.startswith("dlm: ") and err.count("\n") == 1 and "--help" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sample @model --stepss 3", ["no such option: --stepss", "did you mean --steps?", "see dlm sample --help"]),
        ("sample @model --length 0", ["'--length'", "see dlm sample --help"]),
        ("sampel", ["no such command 'sampel'; did you mean 'sample'?; see dlm --help"]),
        ("bench trian", ["'trian'", "'train'", "see dlm bench --help"]),
        ("sample", ["missing argument", "see dlm sample --help"]),
    ],
)
def test_a_wrong_usage_says_what_was_meant(shelf: Path, words: str, said: list[str]) -> None:
    _, _, err = invoke(shelf, words)
    assert all(part in err for part in said), err


@pytest.mark.parametrize("words", ["", "bench"])
def test_no_words_show_the_help(shelf: Path, words: str) -> None:
    code, out, err = invoke(shelf, words)
    assert code in (0, 2) and "Usage: " in out + err and "dlm: " not in out + err


@pytest.mark.parametrize(
    "words", ["sample @none", "train @none.yaml", "eval @none", "infill @none [MASK:1]", "score @none @answers.jsonl"]
)
def test_debug_shows_where(shelf: Path, words: str) -> None:
    code, out, err = invoke(shelf, words + " --debug")
    assert (code, out) == (2, "") and err.startswith("Traceback") and "Error: " in err
    assert err.splitlines()[-1].startswith("dlm: ")


def test_a_bug_says_how_to_see_it(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines [bold]")

    monkeypatch.setattr(DiffusionLM, "stream", broken)
    code, out, err = invoke(shelf, "sample @model")
    expected = "dlm: RuntimeError: two lines [bold]; run it again with --debug for the traceback\n"
    assert (code, out, err) == (1, "", expected)
    monkeypatch.setattr(DiffusionLM, "stream", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert invoke(shelf, "sample @model") == (130, "", "dlm: interrupted\n")


def test_bytes_that_are_no_text_on_stdin(shelf: Path) -> None:
    for words in (["infill", str(shelf / "model"), "-"], ["corrupt", "-"]):
        told = commands.refusal(*words, stdin=b"caf\xe9[MASK:1]")
        assert told == (
            "dlm: stdin is not UTF-8 text: byte 3, on line 1, cannot be read; if it is text in Latin-1, iconv -f "
            "LATIN1 -t UTF-8 converts it\n"
        )


def test_a_seed_of_any_size(shelf: Path) -> None:
    for seed in ("-1", str(2**64), str(10**30)):
        code, out, err = invoke(shelf, f"sample @model --length 2 --seed {seed}")
        assert code == 0 and out, err


def test_unknown_characters_are_told(tmp_path: Path, make_lm: MakeLM, shelf: Path) -> None:
    from dlm.config import Characters
    from dlm.model.tokenizer import build_tokenizer

    lm = make_lm(build_tokenizer(Characters(), lambda: iter(["some words to tra in on, again."])), 32)
    lm.save_pretrained(tmp_path / "model")
    (tmp_path / "odd.txt").write_text("some §§§ words to train on " * 4)
    out, err = commands.dlm("eval", tmp_path / "model", "--data", tmp_path / "odd.txt", "--json")
    assert json.loads(out)["unknown_tokens"] == 12 and err.startswith("12 tokens stand for characters")


@pytest.mark.filterwarnings("error")
def test_an_infinite_bound_names_the_tokens_that_the_model_never_predicts(tmp_path: Path, make_lm: MakeLM) -> None:
    from dlm.config import Characters
    from dlm.model.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(Characters(), lambda: iter(["some words to train on, again."]))
    tokenizer.add_special_tokens({"mask_token": "w"})  # a letter of the text: none of its spellings is another token
    make_lm(tokenizer, 32).save_pretrained(tmp_path / "model")
    (tmp_path / "odd.txt").write_text("some words to train on " * 4)
    out, err = commands.dlm("eval", tmp_path / "model", "--data", tmp_path / "odd.txt")
    assert "nan" not in out and "inf" in out
    assert err.splitlines()[1].startswith(
        "the bound is infinite: the text holds tokens that the model never predicts: 'w' (4 times)"
    )
    out, _ = commands.dlm("eval", tmp_path / "model", "--data", tmp_path / "odd.txt", "--json")
    found = json.loads(out)
    assert found["impossible_tokens"] == {"w": 4}
    assert found["nats_per_token"] is found["monte_carlo_se"] is found["sampling_se"] is None  # JSON has no infinity


TELLS = """
import sys
from dlm.lm import writer
from dlm.cli.app import main

def tells(*args, real=writer.sample, **options):
    print("begun", file=sys.stderr, flush=True)
    return real(*args, **options)

writer.sample = tells
main()
"""


@pytest.mark.long
@pytest.mark.parametrize("interrupted", [True, False])
def test_in_a_process_of_its_own(shelf: Path, interrupted: bool) -> None:
    model = shelf / ("model" if interrupted else "truncated")
    endless = ["--num", "1000000", "--batch-size", "1"]
    command = [sys.executable, "-c", TELLS, "sample", str(model), *endless]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        try:
            if interrupted:
                assert process.stderr is not None and process.stderr.readline() == "begun\n"
                process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (130 if interrupted else 2, "") and "Traceback" not in err
    told = [line for line in err.splitlines() if line != "begun"]
    assert len(told) == 1
    assert told[0] == "dlm: interrupted" if interrupted else told[0].startswith("dlm: cannot load a model")
