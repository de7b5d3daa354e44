"""The report of real runs, in a real browser: whole, legible, self-contained and accessible; and what it refuses."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest

from dlm.data.batches import Sequences
from dlm.evaluate.bootstrap import Ratio
from dlm.film.layout import legible
from dlm.model.tokenizer import Affixes
from dlm.report.gather import Settings, _same_text, paired, read_runs, with_models
from dlm.report.page import to_page
from tests.support.commands import dlm, refusal
from tests.support.corpora import counted
from tests.support.films import HOSTILE
from tests.support.tiny_runs import altered, bounds, describe, train

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
HELD: Any = {"device": "cpu", "dtype": "fp32", "load": None}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on the same text, one of them shorter, and one in another context."""
    folder = tmp_path_factory.mktemp("reports")
    train(folder / "one", describe(folder))
    train(folder / "two", describe(folder, steps=6))
    train(folder / "long", altered(describe(folder), "data", length=24))
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    out, err = dlm("report", runs / "one", runs / "two", "-o", runs / "report.html", "--draws", 4)
    assert out == "" and err == f"measuring one\nmeasuring two\ndone: {runs / 'report.html'}\n"
    return runs / "report.html"


def test_the_page_needs_nothing_outside_itself_and_is_small(page: Path) -> None:
    text = page.read_text()
    assert len(text.encode()) < 1_000_000
    assert not re.search(r"https?://(?!www\.w3\.org)|\bsrc=|<link|@import|url\(|{{", text.replace("srcdoc=", ""))
    assert len(ids := re.findall(r'\bid="([^"]+)"', text.partition("<iframe")[0])) == len(set(ids))


def test_the_page_says_what_the_runs_wrote(runs: Path, page: Path) -> None:
    text = page.read_text()
    for run in ("one", "two"):
        assert f"{min(bounds(runs / run)):.4f}" in text
    for heading in ("Training", "Samples", "Where the bound comes from", "How a text is written", "Paired differences"):
        assert f"<h2>{heading}</h2>" in text
    assert text.count('<pre class="heat">') == 2 and text.count("<iframe") == 2
    assert "train.steps" in text  # in which the two differ


def test_without_models_there_is_what_runs_wrote_alone(runs: Path, tmp_path: Path) -> None:
    out, err = dlm("report", runs / "one", "-o", tmp_path / "r.html", "--no-model")
    text = (tmp_path / "r.html").read_text()
    assert out == "" and err.startswith("done: ") and "<h2>Training</h2>" in text and "<h2>Samples</h2>" in text
    assert "heat-" not in text and "<iframe" not in text and "data.train.path" in text


def test_the_pages_difference_is_that_of_the_same_tokens(runs: Path) -> None:
    parts = with_models(read_runs([runs / "one", runs / "two", runs / "long"]), HELD, Settings(draws=4), lambda _: None)
    close, far = paired(parts, 0)
    assert parts[0].model and parts[1].model and close.difference
    one, two = (part.model.measured.report.nats_per_token for part in parts[:2] if part.model)
    assert close.difference.value == pytest.approx(two - one, abs=1e-9) and close.name == "two, any-order"
    assert far.difference is None and "contexts differ" in far.why
    assert "not compared: their texts" in to_page(parts, [close, far])
    same, *_ = paired([parts[0], parts[0]], 0)
    assert same.difference == Ratio(0.0, 0.0, (0.0, 0.0))
    alone = [part.model.measured.report.nats_per_token_ci95 or (0.0, 0.0) for part in parts[:2] if part.model]
    low, high = close.difference.interval or (0.0, 0.0)
    assert 0.0 < high - low < min(b - a for a, b in alone)  # what is hard counts for neither


def test_runs_are_paired_where_every_row_is_the_same() -> None:
    """Other tokens, borders, contexts, packing or special tokens around a row make other rows of one text."""
    tokens = counted([5, 1, 3, 10, 2])
    one = Sequences(tokens, 8, "pack", 0)
    assert _same_text(one, Sequences(counted([5, 1, 3, 10, 2]), 8, "pack", 0))
    around = Affixes((70,), ())
    for other in (
        replace(one, length=7),
        replace(one, packing="pad"),
        replace(one, affixes=around),
        replace(one, tokens=replace(tokens, ids=tokens.ids[::-1])),
        replace(one, tokens=counted([5, 1, 3, 9, 3])),
    ):
        assert not _same_text(one, other) and not _same_text(other, one)


def test_a_run_whose_text_is_gone_says_so_and_is_shown(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "one")
    text = (tmp_path / "one/config.yaml").read_text()
    (tmp_path / "one/config.yaml").write_text(text.replace(str(runs / "text.txt"), str(tmp_path / "gone.txt")))
    _, err = dlm("report", tmp_path / "one", "-o", tmp_path / "r.html")
    assert "one was not measured: " in err and "gone.txt" in err
    assert "one was not measured: " in (tmp_path / "r.html").read_text()


def test_hostile_names_and_samples_are_text(runs: Path, tmp_path: Path) -> None:
    (part,) = read_runs([runs / "one"])
    for text in HOSTILE:
        validations = tuple(replace(each, sample=text) for each in part.history.validations)
        odd = replace(part, name=text, why=text, history=replace(part.history, validations=validations))
        found = to_page([odd, replace(part, name="two")], footer=text)
        assert text not in found or escape(legible(text)) == text
        assert found.count("<script") == 0


def test_nothing_is_overwritten_unasked(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("mine")
    words = ("report", runs / "one", "-o", tmp_path / "r.html", "--no-model")
    assert "exists already" in refusal(*words) and (tmp_path / "r.html").read_text() == "mine"
    dlm(*words, "--overwrite")
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("@none -o @r.html", "there is no such folder"),
        ("@text.txt -o @r.html", "it is no run folder"),
        ("@one/checkpoints/last -o @r.html", "it is no run folder"),
        ("@one @one -o @r.html", "is given twice"),
        ("@one", "missing option '--output'"),
        ("@one -o @r.txt", "--output writes a page, such as report.html"),
        ("@one -o @none/r.html", "there is no folder"),
        ("@one -o @r.html --draws 5", "--draws must be even, got 5"),
        ("@one -o @r.html --no-model --draws 8", "--draws says how models are measured"),
        ("@one -o @r.html --no-model --max-documents 8", "--max-documents says how models are measured"),
        ("@one -o @r.html --dtype fp8", "--dtype is auto, bf16, fp16, fp32, got fp8"),
        ("@one -o @r.html --device cuda:99", "--device cuda:99 cannot be used here"),
        ("@begun -o @r.html", "has taken no step yet"),
        ("@broken -o @r.html", "is damaged"),
        ("@odd -o @r.html --no-model", "odd cannot be shown: configuration key data is missing"),
        ("@lost -o @r.html --no-model", "has checkpoints and no steps in metrics.jsonl"),
    ],
)
def test_what_is_refused_in_one_line(words: str, message: str, runs: Path) -> None:
    for name in ("begun", "broken", "odd", "lost"):
        if not (runs / name).exists():
            (runs / name).mkdir()
            shutil.copy(runs / "one/config.yaml", runs / name)
    (runs / "odd/config.yaml").write_text("trainn: {}\n")
    (runs / "lost/checkpoints/step-000001").mkdir(parents=True, exist_ok=True)
    (runs / "broken/metrics.jsonl").write_text('{"step": 1, "loss": "x"}\n["a"]\n')
    err = refusal("report", *(word.replace("@", f"{runs}/") for word in words.split()))
    assert message in err and err.count("\n") == 1, err
    assert not (runs / "r.html").exists()


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("there is no Chromium or Chrome on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright, of the extra dev, is not installed")
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"{BROWSER} does not start: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_all_of_it(browser: Any, page: Path, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab, heard = context.new_page(), list[str]()
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("request", lambda request: heard.append(request.url) if not request.url.startswith("file:") else None)
    tab.goto(page.as_uri())
    assert heard == []  # no error, and nothing from elsewhere
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    backgrounds = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", backgrounds))) < 200) == (scheme == "dark")

    def shown(axis: str) -> int:
        return int(tab.locator(f"svg.chart.by-{axis}:visible").count())

    assert shown("steps") > 4 and shown("tokens") == shown("seconds") == 0
    for axis in ("tokens", "seconds"):
        tab.get_by_role("radio", name=axis, exact=True).check()
        assert shown(axis) > 4 and shown("steps") == 0
    tab.get_by_role("radio", name="steps", exact=True).check()
    legible = tab.evaluate(
        "[...document.querySelectorAll('svg.chart.by-steps text')].map(t => t.getBoundingClientRect().height)"
    )
    assert min(legible) >= 9
    tab.locator("#loss summary").click()
    assert tab.locator("#loss table").is_visible()
    frame = tab.locator("iframe").first
    frame.scroll_into_view_if_needed()
    inner = frame.element_handle().content_frame()
    inner.wait_for_selector("#controls:not([hidden])")
    assert inner.locator("#count").inner_text().startswith("step ")
    context.close()


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_passes_axe(browser: Any, page: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe, of the extra dev, is not installed")
    # The page's own policy keeps scripts from elsewhere out, axe among them.
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = axe.Axe().run(tab)
    assert found.violations_count == 0, found.generate_snapshot()
    context.close()


@pytest.mark.long
def test_the_page_prints(browser: Any, page: Path) -> None:
    context = browser.new_context(color_scheme="dark", viewport={"width": 740, "height": 1000})
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.querySelector('figure')).backgroundColor") == "rgb(255, 255, 255)"
    assert not tab.locator("fieldset").is_visible() and not tab.locator("iframe").first.is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.pdf(format="A4").startswith(b"%PDF")
    context.close()
