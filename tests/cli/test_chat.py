"""`dlm chat`: every answer is written after all that was said, live at a terminal and plain elsewhere."""

import builtins
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from dlm.cli import chat
from dlm.config import Bytes
from dlm.film.layout import legible
from dlm.lm import DiffusionLM, Guidance, Sampler
from dlm.model.tokenizer import build_tokenizer
from tests.support.commands import dlm, invoke, refusal
from tests.support.fixtures import MakeLM
from tests.support.launchers import ENVIRONMENT

CONTEXT = 48
TEMPLATE = "{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }}\n{% endfor %}a:"


@pytest.fixture(scope="module")
def lm(make_lm: MakeLM) -> DiffusionLM:
    """A byte model that knows chats."""
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    tokenizer.chat_template = TEMPLATE
    return make_lm(tokenizer, CONTEXT)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, lm: DiffusionLM) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    lm.save_pretrained(folder)
    return folder


SHORT = ["--length", "6", "--precision", "fp32"]


def expected(lm: DiffusionLM, *said: str, system: str | None = None, length: int = 6) -> list[str]:
    """The answers, each to the whole conversation as the template writes it."""
    text = f"s:{system}\n" if system else ""
    answers: list[str] = []
    for place, message in enumerate(said):
        text += f"u:{message}\na:"
        ((found,),) = lm.generate_each({place: text}, length=length)
        answers.append(found.continuation)
        text += f"{found.continuation}\n"
    return answers


def test_a_message_a_line_in_and_answers_out(model: Path, lm: DiffusionLM) -> None:
    out, err = dlm("chat", model, *SHORT, stdin="hi\n\nand?\r\n")
    assert out == "".join(f"{answer}\n" for answer in expected(lm, "hi", "and?"))
    assert "\x1b" not in err
    assert dlm("chat", model, *SHORT, "--seed", "1", stdin="hi\n\nand?\r\n")[0] != out
    told = dlm("chat", model, *SHORT, "--system", "be", stdin="hi\n")[0]
    assert told == f"{expected(lm, 'hi', system='be')[0]}\n" != f"{expected(lm, 'hi')[0]}\n"
    assert dlm("chat", model, stdin="\n") == ("", "")


def test_answers_are_guided_by_the_conversation(model: Path, lm: DiffusionLM) -> None:
    plain = dlm("chat", model, *SHORT, stdin="hi\nand?\n")[0]
    assert dlm("chat", model, *SHORT, "--guidance", "0", stdin="hi\nand?\n")[0] == plain
    guided = Sampler(guidance=Guidance(3.0))
    first = lm.generate([{"role": "user", "content": "hi"}], length=6, sampler=guided)[0].continuation
    out = dlm("chat", model, *SHORT, "--guidance", "3", stdin="hi\n")[0]
    assert out == f"{first}\n" and not plain.startswith(out)
    away = dlm("chat", model, *SHORT, "--guidance", "3", "--negative-prompt", "no", stdin="hi\n")[0]
    assert away not in (out, plain)
    assert dlm("chat", model, "--guidance", "3", "--negative-prompt", "no, longer", stdin="hi\n")[0].strip()


def test_an_answer_without_an_end_is_told(model: Path, lm: DiffusionLM) -> None:
    message = "x" * (CONTEXT - 8)  # u:..\na: takes five more, and three are left
    (answer,) = expected(lm, message, length=3)
    out, err = dlm("chat", model, *SHORT, stdin=message)
    assert out == f"{answer}\n"
    ended = len(answer.encode()) < 3
    assert err == ("" if ended else "answer 1 has no end after 3 tokens, and the context is full\n")
    said = [dlm("chat", model, *SHORT, "--seed", seed, stdin="hi")[1] for seed in range(4)]
    assert "answer 1 has no end after 6 tokens, and --length allows no more\n" in said


def test_what_does_not_fit_is_one_line(model: Path, lm: DiffusionLM) -> None:
    found = invoke("chat", model, *SHORT, stdin="hi\n" + "x" * CONTEXT + "\nhi\n")
    assert found.exit_code == 2 and found.stdout == f"{expected(lm, 'hi')[0]}\n"
    assert found.stderr.splitlines()[-1].startswith("dlm: line 2: the chat takes ")
    assert f"the context of this model is {CONTEXT}: " in found.stderr
    assert refusal("chat", model, "--system", "x" * CONTEXT, stdin="hi\n").startswith("dlm: the chat takes ")
    assert refusal("chat", model, stdin=b"caf\xe9\n").startswith("dlm: line 1 is not UTF-8: ")


def test_mistakes_are_told_before_the_first_message(
    tiny_lm: DiffusionLM, model: Path, make_lm: MakeLM, lm: DiffusionLM, tmp_path: Path
) -> None:
    tiny_lm.save_pretrained(tmp_path / "plain")
    told = refusal("chat", tmp_path / "plain", stdin="")
    assert "no chat template" in told and "a prompt of plain text" in told
    make_lm(lm.tokenizer, CONTEXT, noise={"name": "uniform"}).save_pretrained(tmp_path / "uniform")
    assert "--order" in refusal("chat", tmp_path / "uniform", "--order", "random", stdin="")
    assert "no model at" in refusal("chat", tmp_path / "none", stdin="")
    assert "different budgets" in refusal("chat", model, "--steps", "4", "--threshold", "0.9", stdin="")


def at_terminal(monkeypatch: pytest.MonkeyPatch, model: Path, *said: str | type[BaseException]) -> Result:
    """A conversation at a terminal; an exception stands for a key."""
    lines: Iterator[str | type[BaseException]] = iter(said)

    def ask(prompt: str) -> str:
        assert prompt == "> "
        line = next(lines)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr(builtins, "input", ask)
    monkeypatch.setattr(chat, "is_terminal", lambda stream: True)
    return invoke("chat", model, *SHORT)


@pytest.mark.parametrize("key", [EOFError, KeyboardInterrupt])
def test_a_conversation_at_a_terminal_goes_on_until_it_is_ended(
    model: Path, lm: DiffusionLM, monkeypatch: pytest.MonkeyPatch, key: type[BaseException]
) -> None:
    found = at_terminal(monkeypatch, model, "hi", " ", "x" * CONTEXT, "half \udce9", "and?", key)
    assert found.exit_code == 0 and "Traceback" not in found.stderr and "dlm:" not in found.stderr
    answers = expected(lm, "hi", "and?")  # what was refused is no part of it
    assert found.stdout == "".join(f"{legible(answer)}\n" for answer in answers)
    assert found.stderr.count("the chat takes ") == 1 and "half of a character" in found.stderr


def test_ctrl_c_in_an_answer_ends_the_conversation(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dlm.lm.writer.sample", interrupted)
    found = at_terminal(monkeypatch, model, "hi")
    assert (found.exit_code, found.stdout) == (0, "") and "Traceback" not in found.stderr
    monkeypatch.setattr(chat, "is_terminal", lambda stream: False)
    assert invoke("chat", model, *SHORT, stdin="hi\n").exit_code == 130  # a script learns that it is not whole


@pytest.mark.long
def test_a_terminal_sees_the_answer_alone_being_denoised(model: Path, lm: DiffusionLM) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dlm", "chat", str(model), *SHORT]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**ENVIRONMENT, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        seen = b""
        said = [b"what?\n", b"\x04"]
        try:
            while True:
                if said and seen.count(b"> ") >= 3 - len(said):
                    os.write(ours, said.pop(0))
                try:
                    part = os.read(ours, 1024)
                except OSError:  # Linux says so at the end of a terminal
                    break
                if not part:
                    break
                seen += part
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            os.close(ours)
    live = seen.decode("utf-8", "replace").partition("what?")[2]
    assert "\x1b[?2026h" in live and "░░" in live and "0/6 tokens" in live
    assert "u:what?" not in live  # the template and what was said are not shown again
