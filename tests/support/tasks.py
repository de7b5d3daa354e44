"""Tasks of lm-evaluation-harness in a folder: one of each kind of request, over documents on the disk."""

import json
from pathlib import Path
from typing import Any

import yaml

DOCUMENTS: list[dict[str, Any]] = [
    {"question": "the king ", "choices": ["is dead", "was"], "gold": 0, "text": "to be or not to be"},
    {"question": "a queen said", "choices": [" no", " yes my lord"], "gold": 1, "text": "the rest is silence"},
    {"question": "what", "choices": [" now", " hen"], "gold": 1, "text": "a horse, my kingdom for a horse and a line"},
]
KINDS: dict[str, dict[str, Any]] = {
    "own_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "own_last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc"}],
    },
    "own_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "own_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(folder: Path, **changes: Any) -> Path:
    """Writes the tasks and their documents.

    Args:
        folder: Where.
        **changes: Keys of every task that are others.

    Returns:
        The folder.
    """
    folder.mkdir(exist_ok=True)
    (folder / "documents.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in DOCUMENTS))
    files = {"data_files": {"test": str(folder / "documents.jsonl")}}
    where = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
    for name, kind in KINDS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **where, **kind, **changes}))
    return folder
