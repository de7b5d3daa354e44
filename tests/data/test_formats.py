"""A reader gives the documents as they are, every one of them once, or says in a line why it cannot."""

import bz2
import gzip
import json
import lzma
import os
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, IterableDataset, Value

from dlm.config import Data, HeldOut, Separator, Source
from dlm.data.choosing import source_of
from dlm.data.files import TextUnit, texts_of
from dlm.data.formats import FORMATS, Hub
from dlm.data.lines import lines_of
from dlm.data.reading import read, read_splits
from dlm.data.streaming import open_stream
from dlm.errors import ConfigError, DataError
from dlm.settings import parse_config
from tests.support.fixtures import Refused

Documents = Literal["file", "paragraph", "line"]

HOSTILE = [
    "plain",
    "two\r\nlines\rand a half\n",
    " leading and trailing \n\n",
    "quotes \" ' , ; \\ \\n \t",
    "<|endoftext|>[MASK:3]",
    "\u00e9\u4e2d\u6587\U0001f600\u2028\u0085\ufeff",
    '{"text": 1}',
]


def texts(source: Source) -> list[str]:
    return list(read(source, "data.train").texts())


def write_table(kind: str, path: Path, rows: list[dict[str, Any]]) -> Source:
    """A table as its own format's usual writer leaves it."""
    table = pa.Table.from_pylist(rows)
    match kind:
        case "jsonl":
            path = path.with_suffix(".jsonl")
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case "csv":
            path = path.with_suffix(".csv")
            pyarrow.csv.write_csv(table, path)
        case "tsv":
            path = path.with_suffix(".tsv")
            pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(delimiter="\t"))
        case "parquet":
            path = path.with_suffix(".parquet")
            pq.write_table(table, path)
        case "saved":
            Dataset.from_list(rows).save_to_disk(path)
    return Source(kind, str(path))


# What is read


@pytest.mark.parametrize("text", [*HOSTILE, "\r\n", "a\ufeffb", "no final newline", "\x00\x1b[0m", "x" * 100_000])
def test_a_text_file_is_read_byte_for_byte(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert texts(Source("text", str(tmp_path / "a.txt"))) == [text]


@pytest.mark.parametrize("documents", ["file", "paragraph", "line", Separator("--")])
def test_a_byte_order_mark_belongs_to_the_file_and_not_to_its_text(tmp_path: Path, documents: TextUnit) -> None:
    """Only the first one: a second is a character of the text."""
    for name, content in (("a", "\ufeffone"), ("b", "\ufeff"), ("c", "\ufeff\ufefftwo"), ("d", "\ufeff\n\n")):
        (tmp_path / f"{name}.txt").write_text(content, encoding="utf-8")
    (tmp_path / "e.txt").write_text("\ufeff--\n\ufeffthree", encoding="utf-8")
    found = list(filter(str.strip, texts(Source("text", str(tmp_path), documents=documents))))
    expected = {"file": ["--\n\ufeffthree"], "paragraph": ["--\n\ufeffthree"], "line": ["--", "\ufeffthree"]}
    last = ["\ufeffthree"] if isinstance(documents, Separator) else expected[documents]
    assert found == ["one", "\ufefftwo", *last]
    (tmp_path / "b.txt").replace(tmp_path / "b")
    with pytest.raises(DataError, match="no text at all"):
        read(Source("text", str(tmp_path / "b")), "data.train")


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", ["text", "jsonl", "csv"])
def test_utf16_is_refused_by_its_name(tmp_path: Path, refused: Refused, code: str, kind: str) -> None:
    path = tmp_path / "a"
    for content in ('{"text": "a"}\n', '\n{"text": "b"}\n'):
        path.write_bytes(content.encode(code))
        with refused(DataError, "data.train", str(path), f"is {code[:6].upper()},", f"iconv -f {code[:6].upper()}"):
            read(Source(kind, str(path)), "data.train")


def test_a_folder_and_a_glob_give_each_file_once_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", "d.md"):
        (tmp_path / name).write_text(name)
    assert texts(Source("text", str(tmp_path))) == ["a.txt", "b.txt", "sub/c.txt"]
    assert texts(Source("text", str(tmp_path / "*.txt"))) == ["a.txt", "b.txt"]
    assert texts(Source("text", str(tmp_path / "**" / "*"))) == ["a.txt", "b.txt", "d.md", "sub/c.txt"]


def test_a_folder_without_the_files_that_are_looked_for_first_gives_its_others(
    tmp_path: Path, refused: Refused
) -> None:
    for name in ("b.md", "sub/a.py", "c.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    source = Source("text", str(tmp_path))
    assert texts(source) == texts(source_of(str(tmp_path))) == ["b.md", "sub/a.py"]
    with refused(DataError, str(tmp_path), "no *.csv file", "1 *.md, 1 *.bin, 1 *.py"):
        read(Source("csv", str(tmp_path)), "data.train")
    (tmp_path / "d.txt").write_text("d.txt")
    assert texts(source) == ["d.txt"]
    tables = tmp_path / "sub"
    (tables / "a.py").rename(tables / "a.json")
    (tables / "a.json").write_text('[{"text": "a"}]')
    assert texts(Source("jsonl", str(tables))) == texts(source_of(str(tables))) == ["a"]


HIDDEN = [".git/x.txt", ".ipynb_checkpoints/a.txt", "sub/.cache/b.txt", "._a.txt", "sub/~$b.txt"]


def test_hidden_files_are_read_only_where_they_are_named(tmp_path: Path, refused: Refused) -> None:
    for name in ("a.txt", "sub/b.txt", *HIDDEN):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for found in (tmp_path, tmp_path / "**", tmp_path / "**/*.txt", tmp_path / "**/**/*"):
        assert texts(Source("text", str(found))) == ["a.txt", "sub/b.txt"], found
    assert texts(Source("text", str(tmp_path / "*.txt"))) == ["a.txt"]
    assert texts(Source("text", str(tmp_path / "sub/*"))) == ["sub/b.txt"]
    for name in HIDDEN:
        for found in (tmp_path / name, tmp_path / "**" / name):
            assert texts(Source("text", str(found))) == [name], found
    assert texts(Source("text", str(tmp_path / ".git"))) == [".git/x.txt"]
    expected = [".git/x.txt", ".ipynb_checkpoints/a.txt", "sub/.cache/b.txt"]
    assert texts(Source("text", str(tmp_path / "**/.*/*.txt"))) == expected
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/.a.txt").write_text("a")
    with refused(DataError, "no *.txt file", "hidden ones alone"):
        read(Source("text", str(tmp_path / "hidden")), "data.train")


@pytest.mark.parametrize("pattern", ["", "**", "**/*.txt", "*/**/*.txt"])
def test_links_to_folders_are_followed_without_end_or_double(tmp_path: Path, pattern: str) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for name in (folder / "sub/a.txt", folder / "sub/b.txt", elsewhere / "c.txt"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(name.name)
    for link, target in (
        ("sub/up", folder),
        ("sub/also", folder / "sub"),
        ("twin", folder / "sub"),
        ("out", elsewhere),
    ):
        (folder / link).symlink_to(target)
    (elsewhere / "back").symlink_to(folder)
    (folder / "sub/c.txt").symlink_to(elsewhere / "c.txt")
    assert sorted(texts(Source("text", str(folder / pattern)))) == ["a.txt", "b.txt", "c.txt"]


@pytest.mark.parametrize("path", [".", "./", "**", "*/*", "../here"])
def test_a_path_may_begin_in_the_folder_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "here/sub").mkdir(parents=True)
    (tmp_path / "here/sub/a.txt").write_text("a")
    monkeypatch.chdir(tmp_path / "here")
    assert texts(source_of(path)) == ["a"]


def test_a_compressed_file_is_known_by_the_name_of_its_link(tmp_path: Path) -> None:
    """In a cache of the Hub, the file itself has a hash for a name."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs/0a1b").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    (tmp_path / "snapshot/a.jsonl.gz").symlink_to("../blobs/0a1b")
    for name in ("snapshot", "snapshot/a.jsonl.gz", "snapshot/*", "", "**"):
        assert texts(source_of(str(tmp_path / name))) == ["a"]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, refused: Refused) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with refused(DataError, "data.train", str(tmp_path / "a.txt"), "read twice"):
        read(Source("text", str(tmp_path / "a.txt")), "data.train")


def test_a_name_with_the_signs_of_a_glob_is_a_file_first(tmp_path: Path) -> None:
    (tmp_path / "[1]*.txt").write_text("odd")
    (tmp_path / "1x.txt").write_text("other")
    assert texts(Source("text", str(tmp_path / "[1]*.txt"))) == ["odd"]


def test_empty_files_among_others_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text("b")
    assert texts(Source("text", str(tmp_path))) == ["b"]


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", ["one\ntwo\n\nthree\r\n\r\n\n\nfour"]),
        ("paragraph", ["one\ntwo", "three", "four"]),
        ("line", ["one", "two", "three", "four"]),
    ],
)
def test_paragraphs_and_lines(tmp_path: Path, documents: Documents, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\nthree\r\n\r\n\n\nfour")
    assert texts(Source("text", str(tmp_path / "a.txt"), documents=documents)) == expected


@pytest.mark.parametrize("documents", ["paragraph", "line"])
def test_a_document_is_given_out_before_the_next_is_read(tmp_path: Path, documents: Documents) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"one\r\n\r\ntwo\n\n\xe9")
    found = filter(None, (row["text"] for row in texts_of([str(path)], documents, "")))
    assert [next(found), next(found)] == ["one", "two"]
    with pytest.raises(DataError, match="byte 12, on line 5, cannot be read"):
        next(found)


def test_paragraphs_and_lines_keep_all_but_what_parts_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("a\r\nb\x0c\u2028\x85c\r\n\r\nd\r\n".encode())
    path = str(tmp_path / "a.txt")
    assert texts(Source("text", path, documents="paragraph")) == ["a\r\nb\x0c\u2028\x85c", "d"]
    assert texts(Source("text", path, documents="line")) == ["a", "b\x0c\u2028\x85c", "d"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_table_whose_name_has_the_signs_of_a_glob_is_not_its_neighbour(tmp_path: Path, kind: str) -> None:
    source = write_table(kind, tmp_path / "[1]", [{"text": "odd"}])
    write_table(kind, tmp_path / "1", [{"text": "neighbour"}])
    assert texts(source) == ["odd"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "saved"])
def test_words_that_stand_for_nothing_elsewhere_are_text(tmp_path: Path, kind: str) -> None:
    words = ["NA", "null", "None", "nan", "N/A", "text"]
    assert texts(write_table(kind, tmp_path / "t", [{"text": word} for word in words])) == words


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "saved"])
def test_a_table_gives_back_what_was_written(tmp_path: Path, kind: str) -> None:
    source = write_table(kind, tmp_path / "t", [{"n": i, "text": text} for i, text in enumerate(HOSTILE)])
    assert texts(source) == HOSTILE


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved"])
def test_another_column_and_rows_without_text(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [
        {"n": 1, "text": "no", "body": "yes"},
        {"n": 2, "text": "no", "body": ""},
        {"n": 3, "text": "no", "body": None},
        {"n": 4, "text": "no", "body": "last"},
    ]
    source = write_table(kind, tmp_path / "t", rows)
    assert texts(Source(kind, source.path, field="body")) == ["yes", "last"]


def test_a_folder_of_tables(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_table("jsonl", tmp_path / name, [{"text": name}])
    assert texts(Source("jsonl", str(tmp_path))) == ["a", "b"]


def test_a_split_of_a_saved_dataset(tmp_path: Path, refused: Refused) -> None:
    DatasetDict({name: Dataset.from_dict({"text": [name]}) for name in ("train", "test")}).save_to_disk(tmp_path / "d")
    path = str(tmp_path / "d")
    assert texts(Source("saved", path)) == ["train"]
    assert texts(Source("saved", path, split="test")) == ["test"]
    with refused(ConfigError, "data.train.split", "'dev'", "train, test"):
        read(Source("saved", path, split="dev"), "data.train")


def test_python_stdlib_leaves_out_tests_packages_and_what_is_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    kept = {"os.py": "import sys\n", "json/decoder.py": "# \u00e9\n"}
    dropped = ["test/test_os.py", "json/tests/a.py", "site-packages/x.py", "idlelib/idle_test/b.py", "notes.txt"]
    for name, text in {**kept, **dict.fromkeys(dropped, "left out")}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert sorted(texts(Source("python-stdlib"))) == sorted(kept.values())
    for name in kept:
        (tmp_path / name).unlink()
    with refused(DataError, "data.train", "standard library", str(tmp_path)):
        read(Source("python-stdlib"), "data.train")


def test_a_number_in_a_csv_is_the_text_that_stands_there(tmp_path: Path) -> None:
    """Further down than the ten thousand lines that pandas reads at a time, and guesses a type from."""
    path = tmp_path / "t.csv"
    path.write_text("text\n" + "word\n" * 10_000 + "007\n" * 3 + "1.50\n", encoding="utf-8")
    source = Source("csv", str(path))
    assert texts(source)[-4:] == ["007", "007", "007", "1.50"]
    stream = open_stream(Data(source, validation=source, streaming=True))
    assert [row["text"] for row in stream.train][-4:] == ["007", "007", "007", "1.50"]


def test_files_have_no_splits_to_choose_from(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n', encoding="utf-8")
    assert texts(Source("jsonl", str(path), split="train")) == ["a"]
    with pytest.raises(ConfigError, match=r"split: jsonl has no splits, got 'test'"):
        read(Source("jsonl", str(path), split="test"), "data.train")


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "parquet"])
def test_new_content_of_the_same_size_and_time_is_read_anew(tmp_path: Path, kind: str) -> None:
    def write(text: str) -> Source:
        if kind == "text":
            (tmp_path / "t").write_text(text)
            return Source("text", str(tmp_path / "t"))
        return write_table(kind, tmp_path / "t", [{"text": text}])

    source = write("before")
    assert source.path is not None
    before = Path(source.path).stat()
    assert texts(source) == ["before"]
    write("behind")
    os.utime(source.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = Path(source.path).stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert texts(source) == ["behind"]


def test_the_same_saved_folder_written_anew_is_read_anew(tmp_path: Path) -> None:
    import shutil

    for text in ("before", "behind"):
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        source = write_table("saved", tmp_path / "d", [{"text": text}])
        assert texts(source) == [text]


def test_a_saved_folder_of_other_text_under_the_same_fingerprint_is_another_dataset(tmp_path: Path) -> None:
    found = []
    for text in ("before", "behind"):
        documents = Dataset.from_dict({"text": [text]})
        documents._fingerprint = "same"
        documents.save_to_disk(tmp_path / text)
        found.append(read(Source("saved", str(tmp_path / text)), "data.train"))
    assert [list(documents.texts()) for documents in found] == [["before"], ["behind"]]
    assert found[0].rows._fingerprint != found[1].rows._fingerprint  # the cache of tokens goes by it


@pytest.mark.parametrize("by", ["documents", "tail"])
@pytest.mark.parametrize(
    "columns", [{}, {"prompt": "q", "response": "text"}, {"prompt": ("q", "n"), "response": "text"}, {"messages": "m"}]
)
def test_nothing_is_written_beside_a_saved_dataset(
    tmp_path: Path, quiet_machine: Path, by: Literal["documents", "tail"], columns: dict[str, Any]
) -> None:
    """And what was made of it is found again, in the cache of datasets."""

    def there() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    said = [[{"role": role, "content": f"{role} {i}"} for role in ("user", "assistant")] for i in range(60)]
    rows = [{"text": f"text {i}", "q": f"{i}", "n": f"{by} ", "m": chat * 2} for i, chat in enumerate(said)]
    source = write_table("saved", tmp_path / "d", [*rows, {**rows[0], "text": None}])
    before = there()
    made: list[set[Path]] = []
    for _ in range(2):
        documents = read(Source("saved", source.path, **columns), "data.train")
        parts = documents.split(HeldOut(by, 0.3))
        assert all(map(len, parts))
        files = {Path(file["filename"]) for part in parts for file in part.rows.cache_files}
        made.append({file for file in files if tmp_path not in file.parents})
        assert made[-1] and all(quiet_machine in file.parents for file in made[-1])
    assert made[0] == made[1]
    assert there() == before


def test_a_split_of_a_dataset_that_has_none_is_refused(tmp_path: Path, refused: Refused) -> None:
    source = write_table("saved", tmp_path / "d", [{"text": "a"}])
    with refused(ConfigError, "data.train.split", "'dev'", "no splits"):
        read(Source("saved", source.path, split="dev"), "data.train")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("a.json", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.JSONL", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("sub/a.csv.xz", "csv"),
        ("a.md", "text"),
        ("~/a/b", "text"),
        ("owner/name-1.0", "hub"),
        ("name.v2", "hub"),
        ("a.csv", "csv"),
        ("a.tsv.gz", "tsv"),
        ("a.parquet", "parquet"),
        ("a.txt", "text"),
        ("./folder", "text"),
        ("*.md", "text"),
        ("python-stdlib", "python-stdlib"),
        ("owner/name", "hub"),
        ("name", "hub"),
    ],
)
def test_the_format_that_a_name_means(name: str, kind: str) -> None:
    assert source_of(name).format == kind
    assert kind in FORMATS


def test_a_suffix_and_a_mark_belong_to_one_format() -> None:
    for declared in ("suffixes", "marks"):
        found = [each for choice in FORMATS.values() for each in getattr(choice, declared)]
        assert found and len(found) == len(set(found))


def test_a_saved_folder_is_known_by_its_files(tmp_path: Path) -> None:
    source = write_table("saved", tmp_path / "d", [{"text": "a"}])
    DatasetDict({"test": Dataset.from_dict({"text": ["b"]})}).save_to_disk(tmp_path / "e")
    assert source.path is not None
    assert texts(source_of(source.path)) == ["a"]
    assert texts(source_of(str(tmp_path / "e"), split="test")) == ["b"]


# What is held out


def corpus(folder: Path, documents: list[str]) -> Source:
    return write_table("jsonl", folder / "corpus", [{"text": text} for text in documents])


def held_out(source: Source, by: Literal["documents", "tail"], share: float) -> tuple[list[str], list[str]]:
    splits = read_splits(Data(source, held_out=HeldOut(by, share)))
    return list(splits.train.texts()), list(splits.validation.texts())


def test_held_out_documents_are_a_partition_that_the_order_does_not_change(tmp_path: Path) -> None:
    documents = [f"document {i}" for i in range(400)] + ["twice"] * 2
    train, validation = held_out(corpus(tmp_path, documents), "documents", 0.25)
    assert Counter(train) + Counter(validation) == Counter(documents)
    assert not set(train) & set(validation)
    assert 60 <= len(validation) <= 140  # 100 expected, standard deviation 8.7
    (tmp_path / "b").mkdir()
    again = held_out(corpus(tmp_path / "b", documents[::-1]), "documents", 0.25)
    assert (set(again[0]), set(again[1])) == (set(train), set(validation))


def test_a_larger_share_holds_out_more_of_the_same(tmp_path: Path) -> None:
    source = corpus(tmp_path, [f"document {i}" for i in range(200)])
    small, large = (set(held_out(source, "documents", share)[1]) for share in (0.1, 0.3))
    assert small < large


@pytest.mark.parametrize(
    ("by", "share", "advice"),
    [
        ("tail", 0.0, "validate on; raise the share, or name"),
        ("documents", 0.0, "validate on; raise the share, or name"),
        ("documents", 0.01, "validate on; hold out by tail, raise the share, or name"),
    ],
)
def test_no_advice_is_what_is_set_already(
    tmp_path: Path, refused: Refused, by: Literal["documents", "tail"], share: float, advice: str
) -> None:
    with refused(DataError, advice):
        held_out(corpus(tmp_path, ["a text"]), by, share)


@pytest.mark.parametrize("share", [0.05, 0.1, 1 / 3, 0.5, 0.9])
def test_the_tail_begins_at_the_share_of_the_characters(tmp_path: Path, share: float) -> None:
    documents = ["\u00e9\U0001f600" * 500, "short text", "0123456789" * 7]
    train, validation = held_out(corpus(tmp_path, documents), "tail", share)
    cuts = [int(len(text) * (1 - share)) for text in documents]
    # int(10 * 0.1) is 0 in floats: of that text nothing is left to train on
    assert train == [text[:cut] for text, cut in zip(documents, cuts, strict=True) if cut]
    assert validation == [text[cut:] for text, cut in zip(documents, cuts, strict=True)]


def test_a_validation_source_of_its_own_leaves_the_training_text_whole(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    splits = read_splits(Data(corpus(tmp_path, ["a", "b"]), corpus(tmp_path / "v", ["c"])))
    assert (list(splits.train.texts()), list(splits.validation.texts())) == (["a", "b"], ["c"])


@pytest.mark.parametrize(("by", "share"), [("documents", 0.05), ("tail", 0.0), ("documents", 0.0)])
def test_a_share_that_holds_nothing_out_is_refused(
    tmp_path: Path, refused: Refused, by: Literal["documents", "tail"], share: float
) -> None:
    with refused(DataError, "data.held_out", "data.validation"):
        held_out(corpus(tmp_path, ["one document"]), by, share)


# What is refused


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "parquet", "saved"])
@pytest.mark.parametrize("name", ["nothing", "*.nothing"])
def test_a_missing_file(tmp_path: Path, refused: Refused, kind: str, name: str) -> None:
    with refused(DataError, "data.train", str(tmp_path / name)):
        read(Source(kind, str(tmp_path / name)), "data.train")


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "parquet", "saved"])
def test_an_empty_folder(tmp_path: Path, refused: Refused, kind: str) -> None:
    with refused(DataError, "data.train", str(tmp_path)):
        read(Source(kind, str(tmp_path)), "data.train")


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("several", [False, True])
def test_an_empty_file(tmp_path: Path, refused: Refused, kind: str, several: bool) -> None:
    suffix = "txt" if kind == "text" else kind
    for name in ("a", "b"):
        (tmp_path / f"{name}.{suffix}").touch()
    path = str(tmp_path if several else tmp_path / f"a.{suffix}")
    with refused(DataError, "data.train", path):
        read(Source(kind, path), "data.train")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "saved", "splits"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_without_rows(tmp_path: Path, refused: Refused, kind: str, streaming: bool) -> None:
    nothing = Dataset.from_dict({"text": []}, features=Features({"text": Value("string")}))
    path = tmp_path / f"t.{kind}"
    match kind:
        case "jsonl":
            path.write_text("\n\n")
        case "parquet":
            nothing.to_parquet(path)
        case "saved":
            nothing.save_to_disk(path)
        case "splits":
            DatasetDict({"train": nothing, "test": Dataset.from_dict({"text": ["a"]})}).save_to_disk(path)
        case _:
            path.write_text("text\n")
    source = Source("saved" if kind == "splits" else kind, str(path))
    with refused(DataError, "data.train", str(path), "holds no row, so there is no text at all"):
        if streaming:
            open_stream(Data(source, validation=source, streaming=True))
        read(source, "data.train")
    if kind == "splits":
        assert texts(replace(source, split="test")) == ["a"]


def test_a_dataset_of_the_hub_without_rows(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    nothing = Dataset.from_dict({"text": []}, features=Features({"text": Value("string")}))
    monkeypatch.setattr(Hub, "read", lambda self, key: nothing)
    monkeypatch.setattr(Hub, "stream", lambda self, key: IterableDataset.from_generator(lambda: iter(())))
    source = Source("hub", "owner/name")
    with refused(DataError, "data.train: owner/name holds no row, so there is no text at all"):
        read(source, "data.train")
    with refused(DataError, "data.train: owner/name holds no row, so there is no text at all"):
        open_stream(Data(source, validation=source, streaming=True))


@pytest.mark.parametrize("streaming", [False, True])
def test_parts_of_parquet_without_rows_are_no_hindrance(tmp_path: Path, streaming: bool) -> None:
    """A file of none among others, and a group of none at the beginning of a file."""
    nothing = pa.table({"text": pa.array([], pa.string())})
    pq.write_table(nothing, tmp_path / "a.parquet")
    with pq.ParquetWriter(tmp_path / "b.parquet", nothing.schema) as writer:
        for table in (nothing, pa.table({"text": ["b"]}), nothing):
            writer.write_table(table)
    source = Source("parquet", str(tmp_path))
    if streaming:
        stream = open_stream(Data(source, validation=source, streaming=True))
        assert [row["text"] for row in stream.train] == ["b"]
    assert texts(source) == ["b"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "saved"])
def test_a_table_with_no_text_in_it(tmp_path: Path, refused: Refused, kind: str) -> None:
    source = write_table(kind, tmp_path / "t", [{"n": 1, "text": ""}, {"n": 2, "text": ""}])
    with refused(DataError, "data.train"):
        read(source, "data.train")


@pytest.mark.parametrize(("raw", "byte"), [(b"abc\xff", 3), (b"\x80", 0), (b"ab\xc3", 2)])
def test_a_text_that_is_not_utf8_names_the_byte(tmp_path: Path, refused: Refused, raw: bytes, byte: int) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    with refused(DataError, str(tmp_path / "a.txt"), f"byte {byte}", "UTF-8"):
        read(Source("text", str(tmp_path / "a.txt")), "data.train")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_table_that_is_not_utf8_names_the_file_and_the_byte(tmp_path: Path, refused: Refused, kind: str) -> None:
    write_table(kind, tmp_path / "a", [{"text": "good"}])
    first = b"text\n" if kind == "csv" else b'{"text": "x"}\n'
    bad = tmp_path / f"b.{kind}"
    bad.write_bytes(first + (b"h\xe9\n" if kind == "csv" else b'{"text": "h\xe9"}\n'))
    with refused(DataError, "data.train", str(bad), f"byte {bad.read_bytes().index(0xE9)}", "UTF-8"):
        read(Source(kind, str(tmp_path)), "data.train")


def test_a_compressed_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress('{"text": "\u00e9"}\n'.encode()))
    assert texts(Source("jsonl", str(tmp_path / "a.jsonl.gz"))) == ["\u00e9"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("raw", [bytes(range(256)) * 8, b"\x00\xff\xfe{{{\n" * 20, b'{"text": "cut of'])
def test_a_table_of_garbage(tmp_path: Path, refused: Refused, kind: str, raw: bytes) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(raw)
    with refused(DataError, "data.train"):
        read(Source(kind, str(path)), "data.train")


def test_a_damaged_saved_folder(tmp_path: Path, refused: Refused) -> None:
    source = write_table("saved", tmp_path / "d", [{"text": "a"}])
    for file in (tmp_path / "d").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:20])
    with refused(DataError, "data.train", str(tmp_path / "d")):
        read(source, "data.train")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved"])
def test_a_field_that_is_not_there_names_the_nearest(tmp_path: Path, refused: Refused, kind: str) -> None:
    source = write_table(kind, tmp_path / "t", [{"body": "a", "title": "b"}])
    with refused(DataError, "data.train.field", "'bodi'", "did you mean body?", "body, title"):
        read(Source(kind, source.path, field="bodi"), "data.train")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_a_field_that_holds_no_text(tmp_path: Path, refused: Refused, kind: str) -> None:
    source = write_table(kind, tmp_path / "t", [{"n": 7, "text": "a"}])
    held = "line 1 of" if kind == "jsonl" else "int64"
    with refused(DataError, "data.train.field", "'n'", held, "not text"):
        read(Source(kind, source.path, field="n"), "data.train")


def test_a_field_of_lists(tmp_path: Path, refused: Refused) -> None:
    source = write_table("jsonl", tmp_path / "t", [{"text": ["a", "b"]}])
    with refused(DataError, "data.train.field", "not text"):
        read(source, "data.train")


def test_an_unknown_format_names_the_nearest(refused: Refused) -> None:
    with refused(ConfigError, "data.train.format", "'json'", "did you mean jsonl?", "python-stdlib"):
        read(Source("json", "x"), "data.train")


@pytest.mark.parametrize("kind", [name for name, choice in FORMATS.items() if fields(choice)])
def test_a_path_left_out(refused: Refused, kind: str) -> None:
    with refused(ConfigError, "data.train.path", "--set data.train.path="):
        read(Source(kind), "data.train")


def test_a_hub_that_cannot_be_reached_is_said_at_once(refused: Refused) -> None:
    start = time.monotonic()
    with refused(DataError, "data.train", "owner/name-of-nothing", "Hub"):
        read(Source("hub", "owner/name-of-nothing"), "data.train")
    assert time.monotonic() - start < 10


# Records of text files: only what was asked for is read, and it stays text


def test_a_column_that_no_one_asked_for_may_hold_anything(tmp_path: Path) -> None:
    """It is null for longer than a reader looks ahead for its type, then a text, a number and a list."""
    path = tmp_path / "t.jsonl"
    others = [*[None] * 2_000, "a", 7, ["b"], {"c": 1}]
    rows = [{"text": f"{i} {'x' * 6_000}", "other": other} for i, other in enumerate(others)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert path.stat().st_size > 10 * 2**20
    source = Source("jsonl", str(path))
    assert texts(source) == [row["text"] for row in rows]
    stream = open_stream(Data(source, validation=source, streaming=True))
    assert [row["text"] for row in stream.train] == [row["text"] for row in rows]


def test_a_number_that_becomes_a_word_in_a_column_of_csv_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,text\n" + "1,a\n" * 12_000 + "x7,b\n", encoding="utf-8")
    assert texts(Source("csv", str(path))) == ["a"] * 12_000 + ["b"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "saved"])
def test_dates_numbers_and_truths_in_quotes_are_text(tmp_path: Path, kind: str) -> None:
    words = ["2020-01-01", "2020-01-01T00:00:00Z", "12:30", "007", "1e3", "true", "-", "0x1F", "1,5", "NaN"]
    assert texts(write_table(kind, tmp_path / "t", [{"text": word} for word in words])) == words


def test_parquet_files_may_differ_where_no_one_looks(tmp_path: Path) -> None:
    for name, other in (("a", None), ("b", "x"), ("c", 7)):
        pq.write_table(pa.Table.from_pylist([{"other": other, "text": name}]), tmp_path / f"{name}.parquet")
    assert texts(Source("parquet", str(tmp_path))) == ["a", "b", "c"]


def test_text_of_any_kind_in_parquet_is_text(tmp_path: Path) -> None:
    """And a file in which the column is empty does not decide what it holds in the others."""
    kinds = [pa.null(), pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    for number, kind in enumerate(kinds):
        cells = [None, None] if kind == pa.null() else [str(number), None]
        pq.write_table(pa.table({"text": pa.array(cells, kind)}), tmp_path / f"{number}.parquet")
    source = Source("parquet", str(tmp_path))
    assert texts(source) == ["1", "2", "3", "4"]
    stream = open_stream(Data(source, validation=source, streaming=True))
    assert [row["text"] for row in stream.train if row["text"]] == ["1", "2", "3", "4"]


def test_only_line_feeds_and_carriage_returns_end_a_record(tmp_path: Path) -> None:
    odd = ["a\u2028b", "c\x85d", "e\x0cf", "g\x1dh", "\u2029"]
    path = tmp_path / "t.jsonl"
    path.write_bytes("\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in odd).encode())
    assert texts(Source("jsonl", str(path))) == odd
    path = tmp_path / "t.csv"
    path.write_bytes(("text\r" + "\r".join(f'"{text}"' for text in odd)).encode())
    assert texts(Source("csv", str(path))) == odd


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\ufefftext\na\n", encoding="utf-8")
    (tmp_path / "t.jsonl").write_text('\ufeff{"text": "a"}\n', encoding="utf-8")
    assert texts(Source("csv", str(tmp_path / "t.csv"))) == texts(Source("jsonl", str(tmp_path / "t.jsonl"))) == ["a"]


def test_an_array_of_objects_is_a_table_too(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"text": "a"}, {"other": 1}, {"text": "b", "other": "x"}], indent=1), encoding="utf-8")
    assert texts(Source("jsonl", str(path))) == ["a", "b"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_a_name_that_stands_twice_is_refused_where_it_is_wanted(tmp_path: Path, refused: Refused, kind: str) -> None:
    path = tmp_path / f"t.{kind}"
    match kind:
        case "parquet":
            columns = [pa.array(["a"]), pa.array([1]), pa.array(["b"]), pa.array(["c"])]
            pq.write_table(pa.Table.from_arrays(columns, ["x", "x", "y", "text"]), path)
        case "csv":
            path.write_text("x,x,y,text\na,1,b,c\n")
        case "jsonl":
            path.write_text('{"x": "a", "x": 1, "y": {"z": 1, "z": 2}, "text": "c"}\n')
        case "json":
            path.write_text('[{"x": "a", "x": 1, "y": {"z": 1, "z": 2}, "text": "c"}]')
    source = source_of(str(path))
    assert texts(source) == ["c"]
    source = replace(source, field="x")
    with refused(DataError, "data.train.field", str(path), "'x' stands there twice"):
        read(source, "data.train")
    with refused(DataError, "data.train.field", str(path), "'x' stands there twice"):
        open_stream(Data(source, validation=source, streaming=True))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps({"text": "a", "n": 1}, indent=2), ("line 1 of", "the line ends before its object does")),
        (json.dumps({"data": [{"text": "a"}]}, indent=2), ("line 1 of", "the line ends before its object does")),
        ('{"text": "a"}\n{"text":\n"b"}\n', ("line 2 of", "the line ends before its object does")),
        ('{"text": "ab', ("line 1 of", "Unterminated string starting at character 10")),
        ('{"text": "a"},\n', ("line 1 of", "Extra data at character 14")),
        ('["a"]\n["b"]\n', ("Extra data at line 2, character 1",)),
        (f'{{"text": "a", "n": {"1" * 5_000}}}', ("line 1 of", "a number", "more than 4,300 digits")),
        (f'[{{"text": "a", "n": {"1" * 5_000}}}]', ("a number", "more than 4,300 digits")),
        (f'{{"text": "a", "n": {"[" * 99_999}{"]" * 99_999}}}', ("line 1 of", "nested too deeply")),
        (f"{'[' * 99_999}{']' * 99_999}", ("nested too deeply",)),
    ],
    ids=[
        "pretty",
        "in an object",
        "second",
        "cut",
        "comma",
        "lists",
        "digits",
        "digits in an array",
        "deep",
        "deep array",
    ],
)
def test_json_that_is_no_json_lines_says_what_is_read(
    tmp_path: Path, refused: Refused, content: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    with refused(DataError, "data.train", str(path), "one object a line, or one array of objects", *words):
        read(Source("jsonl", str(path)), "data.train")


def test_names_in_messages_show_their_blanks(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "t.csv"
    path.write_text('id, text,"a, b",c\u200b\n1,2,3,4\n', encoding="utf-8")
    with refused(DataError, "did you mean ' text'?", "it has id, ' text', 'a, b', 'c\\u200b'"):
        read(Source("csv", str(path)), "data.train")
    with refused(DataError, f"'{tmp_path}/t '"):
        read(Source("csv", f"{tmp_path}/t "), "data.train")


def test_a_column_may_begin_late(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"n": 1}\n' * 12_000 + '{"text": "late"}\n', encoding="utf-8")
    assert texts(Source("jsonl", str(path))) == ["late"]


def test_long_values_and_line_breaks_in_csv(tmp_path: Path) -> None:
    long = "x" * 200_000
    path = tmp_path / "t.csv"
    path.write_text(f'text,n\n"{long}",1\n\n"a\r\nb\n\n""c""",2\n', encoding="utf-8", newline="")
    assert texts(Source("csv", str(path))) == [long, 'a\r\nb\n\n"c"']


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.jsonl", '{"text": "a"}\n\n{"text": \n', ("line 3 of", "not JSON")),
        ("t.jsonl", '{"text": "a"}\n["a"]\n', ("line 2 of", "no object")),
        ("t.jsonl", '{"text": "a"}\n{"text": {"a": 1}}\n', ("data.train.field", "line 2 of", "'text'", '{"a": 1}')),
        ("t.jsonl", '{"text": "\\ud800"}\n', ("line 1 of", r"'\ud800'", "half of a character")),
        ("t.json", '[{"text": "a"}, 7]', ("record 2 of", "no object")),
        ("t.csv", 'n,text\n1,a\n2,"a\nb"\n3\n', ("line 5 of", "has 1 value,", "2 columns")),
        ("t.csv", "n,text\n1,a,b\n", ("line 2 of", "3 values", "2 columns")),
        ("t.csv", 'n,text\n1,"a\n', ("line 2 of", "unexpected end")),
        ("t.csv", "text,text\na,b\n", ("data.train.field", "line 1 of", "'text' stands there twice")),
        ("t.csv", "\n\ntext,text\na,b\nc,d\n", ("data.train.field", "line 3 of", "'text' stands there twice")),
        ("t.csv", "text\n", ("holds no row, so there is no text at all",)),
    ],
)
def test_a_record_that_cannot_be_used_is_named(
    tmp_path: Path, refused: Refused, name: str, content: str, words: tuple[str, ...]
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with refused(DataError, "data.train", str(tmp_path / name), *words):
        read(Source("csv" if name.endswith("csv") else "jsonl", str(tmp_path / name)), "data.train")


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_files_are_read_by_name_and_in_folders(
    tmp_path: Path, refused: Refused, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    for name, content in (
        ("a.jsonl", '{"text": "\u00e9"}\n'),
        ("a.ndjson", '{"text": "\u00e9"}\n'),
        ("a.csv", "text\n\u00e9\n"),
        ("a.txt", "\u00e9"),
        ("a.md", "\u00e9"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        path = folder / f"{name}{suffix}"
        path.write_bytes(pack(content.encode()))
        source = source_of(str(path))
        assert texts(source) == ["\u00e9"]
        if name != "a.md":
            assert texts(source_of(str(folder))) == ["\u00e9"]
        path.write_bytes(pack(content.encode() * 9)[:-5])
        with refused(DataError, "data.train", str(path), "cannot be"):
            read(source, "data.train")
        path.write_bytes(b"no archive")
        with refused(DataError, "data.train", str(path), "cannot be"):
            read(source, "data.train")


def test_a_compression_that_needs_a_package_says_which(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.txt.zst").write_bytes(b"x")
    with refused(DataError, "data.train", "pip install zstandard"):
        read(source_of(str(tmp_path / "a.txt.zst")), "data.train")


# Text with separators


def test_documents_parted_by_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"one\n\ntwo <|endoftext|>\n<|endoftext|>\r\n<|endoftext|>\nthree\n <|endoftext|> \n\nfour\n")
    expected = ["one\n\ntwo <|endoftext|>", "three", "four"]
    source = Source("text", str(path), documents=Separator("<|endoftext|>"))
    assert texts(source) == expected
    stream = open_stream(Data(source, validation=source, streaming=True))
    assert [row["text"] for row in stream.train] == expected


def test_a_separator_that_is_in_no_file_is_refused(tmp_path: Path, refused: Refused) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("one <|endoftext|> two\n", encoding="utf-8")
    source = Source("text", str(tmp_path), documents=Separator("<|endoftext|>"))
    with refused(DataError, "data.train.documents", "<|endoftext|>", "a line of its own"):
        read(source, "data.train")
    with refused(DataError, "data.train.documents", "<|endoftext|>", "a line of its own"):
        open_stream(Data(source, validation=source, streaming=True))
    (tmp_path / "b.txt").write_text("one\n<|endoftext|>\ntwo\n", encoding="utf-8")
    assert texts(source) == ["one <|endoftext|> two", "one", "two"]


@pytest.mark.parametrize("blank", ["", "  ", "\t", " \t \r"])
def test_a_line_of_blanks_parts_paragraphs(tmp_path: Path, blank: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(f"  one\n two \n{blank}\nthree\n".encode())
    assert texts(Source("text", str(path), documents="paragraph")) == ["  one\n two ", "three"]
    path.write_bytes(b"one\rtwo\r\rthree\r")
    assert texts(Source("text", str(path), documents="paragraph")) == ["one\rtwo", "three"]


# Names


def test_a_file_in_no_known_format_is_refused_with_the_known_ones(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    for name in ("a.xlsx", "*.xlsx"):
        with refused(ConfigError, name, ".xlsx", "jsonl (.jsonl .ndjson)", "csv (.csv)", "--format"):
            source_of(str(tmp_path / name))
    assert source_of(str(tmp_path / "a.xlsx"), format="text").format == "text"
    (tmp_path / "README").write_text("plain")
    assert texts(source_of(str(tmp_path / "README"))) == ["plain"]


def test_a_folder_is_read_in_the_format_of_its_files(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.ndjson").write_text('{"text": "a"}\n')
    (tmp_path / "notes.json").write_text('{"about": 1}')
    assert texts(source_of(str(tmp_path))) == ["a"]
    (tmp_path / "b.txt").write_text("b")
    with refused(ConfigError, str(tmp_path), "text, jsonl", "name one by --format"):
        source_of(str(tmp_path))
    assert texts(source_of(str(tmp_path), format="jsonl")) == ["a"]
    assert texts(source_of(str(tmp_path), format="text")) == ["b"]
    with refused(ConfigError, str(tmp_path), "name files of one, such as '*.txt'"):  # which has no option --format
        source_of(str(tmp_path), key="--reference")
    (tmp_path / "none").mkdir()
    with refused(ConfigError, str(tmp_path / "none"), "no file of a format that is known"):
        source_of(str(tmp_path / "none"))


def test_a_glob_is_read_in_the_format_of_its_files(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "a.ndjson").write_text('{"text": "a"}\n')
    assert texts(source_of(str(tmp_path / "*"))) == ["a"]
    (tmp_path / "LICENSE").write_text("b")
    assert texts(source_of(str(tmp_path / "L*"))) == ["b"]
    (tmp_path / "b.txt").write_text("b")
    with refused(ConfigError, str(tmp_path / "*"), "text, jsonl", "name files of one, such as '*.txt'"):
        source_of(str(tmp_path / "*"))
    assert texts(source_of(str(tmp_path / "*.txt"))) == ["b"]
    with refused(ConfigError, "--data", f"there is no file {tmp_path}/*.nothing"):
        source_of(str(tmp_path / "*.nothing"))


@pytest.mark.parametrize("option", ["split", "subset"])
def test_a_blank_is_no_name(tmp_path: Path, refused: Refused, option: str) -> None:
    source = replace(write_table("saved", tmp_path / "d", [{"text": "a"}]), format="hub", **{option: " "})  # type: ignore[arg-type]
    with refused(ConfigError, f"data.train.{option}: name a {option}, got ' '"):
        read(source, "data.train")


def test_records_without_names_are_rows(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "t.jsonl").write_text("{}\n{}\n")
    with refused(DataError, "data.train.field", "has no field 'text'; it has none"):
        read(Source("jsonl", str(tmp_path / "t.jsonl")), "data.train")


@pytest.mark.parametrize("name", ["", " ", "\t\n"])
def test_a_blank_is_no_path(refused: Refused, name: str) -> None:
    """As a path it would be the folder that the command is run in."""
    with refused(ConfigError, "--data", repr(name), "a file, a folder or a glob"):
        source_of(name)
    for kind in [name for name, choice in FORMATS.items() if fields(choice)]:
        with refused(ConfigError, "data.train.path", repr(name)):
            read(Source(kind, name), "data.train")


def test_messages_call_an_option_by_the_name_that_its_user_gives_it(tmp_path: Path, refused: Refused) -> None:
    path = write_table("csv", tmp_path / "t", [{"body": "a"}]).path
    for key, field, split in (("data.train", "data.train.field", "data.train.split"), ("--data", "--field", "--split")):
        with refused(DataError, f"{field}: {path} has no field 'text'"):
            read(Source("csv", path), key)
        with refused(ConfigError, f"{split}: csv has no splits"):
            read(Source("csv", path, split="x"), key)
    with refused(DataError, "--data, with data.train.prompt of the model's run: "):
        read(Source("csv", path, prompt="x", response="body"), "--data")


def test_a_home_is_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for kind in ("jsonl", "csv", "parquet", "saved"):
        source = write_table(kind, tmp_path / kind, [{"text": "a"}])
        assert source.path is not None
        assert texts(Source(kind, f"~/{Path(source.path).name}")) == ["a"]
        assert source_of(f"~/{Path(source.path).name}").format == kind


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved", "text"])
def test_only_a_dataset_on_the_hub_has_subsets(tmp_path: Path, refused: Refused, kind: str) -> None:
    with refused(ConfigError, "data.train.subset", kind, "'x'"):
        read(Source(kind, str(tmp_path), subset="x"), "data.train")


@pytest.mark.parametrize("kind", [name for name, choice in FORMATS.items() if not choice.tabular])
@pytest.mark.parametrize(
    ("key", "columns"),
    [
        ("prompt", {"prompt": "a", "response": "b"}),
        ("messages", {"messages": "m"}),
        ("field", {"field": "body"}),
    ],
)
def test_columns_of_a_format_that_has_none_are_refused(
    tmp_path: Path, refused: Refused, kind: str, key: str, columns: dict[str, str]
) -> None:
    (tmp_path / "a.txt").write_text("a")
    words = (f"data.train.{key}", f"{kind} has no columns", repr(columns[key]), "jsonl, csv, tsv, parquet, saved, hub")
    with refused(ConfigError, *words):
        read(Source(kind, None if kind == "python-stdlib" else str(tmp_path / "a.txt"), **columns), "data.train")  # type: ignore[arg-type]


def test_an_option_that_a_format_has_no_use_for_is_refused(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "a.txt").write_text("a")
    with refused(ConfigError, "data.train.path: python-stdlib has no path", str(tmp_path), "data.train.format"):
        read(Source("python-stdlib", str(tmp_path / "a.txt")), "data.train")
    for kind in ("jsonl", "csv", "tsv", "parquet", "saved", "hub"):
        with refused(ConfigError, f"data.train.documents: a document of {kind} is no part of a text file"):
            read(Source(kind, str(tmp_path / "a.txt"), documents="line"), "data.train")


# What a file is instead


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"PAR1\x15\x04\x15\xff\xfe", ("a Parquet file", "format parquet")),
        (b"PK\x03\x04\x14\0\0\0\x08\0\0\0\xff", ("a zip archive", "unpack it")),
        (b"%PDF-1.7\n\xe2\xe3\n", ("a PDF", "pdftotext")),
        (gzip.compress(b"text " * 40, mtime=0), ("gzip", ".gz")),
        (bz2.compress(b"text " * 40), ("bzip2", ".bz2")),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path: Path, refused: Refused, head: bytes, words: tuple[str, ...]) -> None:
    (tmp_path / "a.txt").write_bytes(head)
    with refused(DataError, str(tmp_path / "a.txt"), "no text", *words):
        [*lines_of(str(tmp_path / "a.txt"))]


def test_a_text_that_begins_as_another_file_does_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("PAR1 is how such a file begins\n")
    assert [*lines_of(str(tmp_path / "a.txt"))] == ["PAR1 is how such a file begins\n"]


def test_excel_says_what_parts_its_columns(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "t.csv"
    path.write_text('sep=;\r\nid;text\r\n1;"a, b; c"\r\n2;d\r\n', encoding="utf-8")
    source = Source("csv", str(path))
    assert [*read(source, "data.train").texts()] == ["a, b; c", "d"]
    path.write_text("sep=;\nid;text\n1;a\n2;b;c\n", encoding="utf-8")
    with refused(DataError, "line 4 of", "has 3 values", "are 2 columns"):
        read(source, "data.train")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "id;text;preis\n1;a, b;3,5\n", ("has semicolons", "commas are read", "sep=;")),
        ("t.csv", "id\ttext\n1\ta\n", ("has tabs", "commas are read", "tsv")),
        ("t.tsv", "id,text\n1,a\n", ("has commas", "tabs are read", "csv")),
        ("t.csv", "text\na\nb,c\n", ("line 3 of", "has 2 values", "there is 1 column")),
    ],
)
def test_columns_that_something_else_parts(
    tmp_path: Path, refused: Refused, name: str, content: str, words: tuple[str, ...]
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with refused(DataError, name, *words):
        read(Source(name[2:], str(tmp_path / name)), "data.train")


def test_equal_documents_cannot_be_parted(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "t.txt").write_text("the same\n" * 100)
    data = parse_config({"data": {"train": {"format": "text", "path": str(tmp_path / "t.txt"), "documents": "line"}}})
    with refused(DataError, "data.held_out", "100 documents", "equal ones stay together"):
        read_splits(data.data)
