"""A report as one page that loads nothing from elsewhere."""

import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from dlm.evaluate.bootstrap import Interval, Ratio
from dlm.evaluate.profile import TokenTerm
from dlm.film.layout import legible
from dlm.film.page import to_html as film_page
from dlm.report.chart import Series, chart, number, thinned
from dlm.report.gather import Paired, RunPart
from dlm.settings import dump_config, flatten

SAMPLES = 12
"""The most samples of a run that are shown: the first, the last, and some between them."""

HOTTEST = 12
"""Tokens of a text that its table names, the least likely first."""


def to_page(parts: Sequence[RunPart], pairs: Sequence[Paired] = (), footer: str = "") -> str:
    """Makes the page.

    Args:
        parts: The runs, the first of which the others are compared with.
        pairs: How their bounds differ on the same text.
        footer: How to make the page again.

    Returns:
        The page, `page.html` with its places filled in.
    """
    title = f"Training run {parts[0].name}" if len(parts) == 1 else f"{len(parts)} training runs"
    about = (
        "Losses and bounds are in nats a token, intervals hold 95%, and a lower bound of one reading is a better one."
    )
    sections = [
        _overview(parts, pairs),
        _training(parts),
        *map("".join, (_samples(parts), _bounds(parts), _films(parts))),
    ]
    values = {
        "title": escape(legible(title)),
        "about": escape(about),
        "body": "\n".join(section for section in sections if section),
        "footer": escape(legible(footer)),
    }
    template = files("dlm.report").joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"{{(\w+)}}", lambda name: values[name[1]], template)


def _text(text: str) -> str:
    """A text as it stands in the page."""
    return escape(legible(text))


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """A table whose cells are ready, the first of each row being its head."""
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table><thead><tr>'
        f"{''.join(f'<th scope=col>{head}</th>' for head in heads)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _interval(value: float, interval: Interval | None, sign: str = "") -> str:
    """A value with its interval."""
    ends = "" if interval is None else f" ({interval[0]:{sign}.4f} to {interval[1]:{sign}.4f})"
    return f"{value:{sign}.4f}{ends}"


def _overview(parts: Sequence[RunPart], pairs: Sequence[Paired]) -> str:
    """What each run is, how they differ, and how their bounds do."""
    rows = []
    for part in parts:
        last, best, speed = part.history.steps[-1], part.history.best, part.history.speed()
        rows.append(
            [
                _text(part.name),
                _text(part.state.state),
                f"<span class=figure>{last.step:,} of {part.config.train.steps:,}</span>",
                f"{last.tokens:,}",
                _duration(part.history.seconds[-1]),
                "-" if speed is None else f"{speed:,.0f}",
                "-"
                if best is None
                else f"{_interval(best.judged.nats_per_token, best.judged.interval)} {best.reading}, "
                f"step {best.step:,}",
                *(["-" if part.model is None else _measured(part)] if any(each.model for each in parts) else []),
            ]
        )
    heads = ["run", "state", "step", "tokens seen", "training time", "tokens/s", "best validation"]
    heads += ["best checkpoint, measured anew"] * any(each.model for each in parts)
    found = f'<section class="card">{_grid(heads, rows, "The runs")}{_missing(parts)}</section>'
    return found + _paired(pairs) + _configurations(parts)


def _measured(part: RunPart) -> str:
    """The bound of the best checkpoint, and of what."""
    assert part.model is not None
    report = part.model.measured.report
    exact = "" if report.estimator == "exact" else "\u2264 "
    value = _interval(report.nats_per_token, report.nats_per_token_ci95)
    return (
        f"{exact}{value}, {_text(report.reading)} reading of {report.tokens:,} tokens; "
        f"{report.bits_per_byte:.4f} bits/byte; {part.model.parameters:,} parameters"
    )


def _missing(parts: Sequence[RunPart]) -> str:
    """Why some runs were not measured."""
    return "".join(
        f'<p class="quiet">{_text(part.name)} was not measured: {_text(part.why)}</p>' for part in parts if part.why
    )


def _paired(pairs: Sequence[Paired]) -> str:
    """How the bounds of runs differ on the same text."""
    if not pairs:
        return ""
    rows = [
        [
            _text(pair.name),
            f"not compared: {_text(pair.why)}"
            if pair.difference is None
            else f"{_interval(pair.difference.value, pair.difference.interval, '+')} {_verdict(pair.difference)}",
            pair.resampled,
        ]
        for pair in pairs
    ]
    heads = ["run", f"less the bound of {_text(pairs[0].other)}, nats a token", "paired by"]
    return (
        '<section><h2>Paired differences</h2><div class="card"><p class="quiet">Both bounds are of the same text under '
        "the same noise, so that what is hard in the text counts for neither.</p>"
        f"{_grid(heads, rows, 'Paired differences')}</div></section>"
    )


def _verdict(difference: Ratio) -> str:
    """What an interval says in words."""
    if difference.interval is None:
        return ""
    low, high = difference.interval
    return "better" if high < 0.0 else "worse" if low > 0.0 else "no difference to be seen"


def _configurations(parts: Sequence[RunPart]) -> str:
    """The keys in which runs differ; of one run all of them."""
    trees = [flatten(dump_config(part.config)) for part in parts]
    keys = [*dict.fromkeys(key for tree in trees for key in tree)]
    values = {key: [str(tree.get(key, "-")) for tree in trees] for key in keys}
    shown = [key for key in keys if len(parts) == 1 or len({*values[key]}) > 1]
    if not shown:
        return '<section><p class="quiet">The configurations of these runs are the same.</p></section>'
    rows = [[_text(key), *map(_text, values[key])] for key in shown]
    what = "Configuration" if len(parts) == 1 else "What the configurations differ in"
    return (
        f'<section class="card"><details{"" if len(parts) == 1 else " open"}><summary>{what}</summary>'
        f"{_grid(['key', *(_text(part.name) for part in parts)], rows, what)}</details></section>"
    )


def _duration(seconds: float) -> str:
    """A time in the two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _training(parts: Sequence[RunPart]) -> str:
    """What was reported at each step and validation."""
    unit, loss = "Nats a token", "What was minimised, which may be weighted otherwise than the bound."
    figures = [
        chart("loss", "Training loss", "Nats a token it counts", _steps(parts, "loss"), about=loss),
        chart("bound", "Validation", unit, _validations(parts), about="With 95% intervals."),
        chart("next", "Next tokens", unit, _steps(parts, "next_token"), about="Their cross-entropy in training."),
        chart("rate", "Learning rate", "Share of its peak", _steps(parts, "lr")),
        chart("norm", "Gradient norm", "Norm before clipping", _steps(parts, "grad_norm")),
        chart("speed", "Speed", "Tokens a second", _steps(parts, "tokens_per_second")),
    ]
    axes = "".join(
        f'<label><input type="radio" name="axis" id="axis-{name}"{checked}> {name}</label>'
        for checked, name in ((" checked", "steps"), ("", "tokens"), ("", "seconds"))
    )
    return (
        f"<section><h2>Training</h2><fieldset><legend>Horizontal axis</legend>{axes}</fieldset>"
        f'<div class="grid2">{"".join(figures)}</div></section>'
    )


def _steps(parts: Sequence[RunPart], name: str) -> list[Series]:
    """One quantity of every step, a line a run."""
    found = []
    for place, part in enumerate(parts):
        steps = part.history.steps
        values = [getattr(step, name) for step in steps]
        axes = {
            "steps": [step.step for step in steps],
            "tokens": [step.tokens for step in steps],
            "seconds": part.history.seconds,
        }
        (_, y), *_ = lines = [thinned(x, values) for x in axes.values()]
        x = {axis: each for axis, (each, _) in zip(axes, lines, strict=True)}
        found.append(Series(part.name, y, x, colour=place, dash=place))
    return found


def _validations(parts: Sequence[RunPart]) -> list[Series]:
    """The bounds, a line a run; of a single run a line a reading."""
    found = []
    for place, part in enumerate(parts):
        history = part.history
        at = {step.step: (step.tokens, seconds) for step, seconds in zip(history.steps, history.seconds, strict=True)}
        known = [each for each in history.validations if each.step in at]
        readings = [*known[0].bounds] if known else []
        for number_, reading in enumerate(readings if len(parts) == 1 else readings[:1]):
            here = [each for each in known if reading in each.bounds]
            bounds = [each.bounds[reading] for each in here]
            x = {
                "steps": [float(each.step) for each in here],
                "tokens": [float(at[each.step][0]) for each in here],
                "seconds": [at[each.step][1] for each in here],
            }
            ends = [each.interval or (each.nats_per_token, each.nats_per_token) for each in bounds]
            look = number_ if len(parts) == 1 else place
            name = reading if len(parts) == 1 else f"{part.name}, {reading}"
            y, low, high = [each.nats_per_token for each in bounds], [e[0] for e in ends], [e[1] for e in ends]
            found.append(Series(name, y, x, low, high, colour=look, dash=look, dots=True))
    return found


def _samples(parts: Sequence[RunPart]) -> Iterator[str]:
    """What runs wrote after their validations."""
    shown = [part for part in parts if any(each.sample for each in part.history.validations)]
    if not shown:
        return
    yield "<section><h2>Samples</h2>"
    for part in shown:
        wrote = [each for each in part.history.validations if each.sample]
        stride = max(-(-len(wrote) // SAMPLES), 1)
        kept = wrote[::-stride][::-1]
        yield f'<div class="card"><h3>{_text(part.name)}, after validations</h3>'
        for each in kept:
            yield f'<div class="sample"><span class="quiet">step {each.step:,}</span>'
            yield f"<pre>{_text(each.sample)}</pre></div>"
        yield "</div>"
    yield "</section>"


def _bounds(parts: Sequence[RunPart]) -> Iterator[str]:
    """Where the bounds of the best checkpoints come from."""
    models = [(place, part, part.model) for place, part in enumerate(parts) if part.model]
    if not models:
        return
    levels = [
        Series(
            part.name,
            [term.nats.value for term in model.levels],
            {"level:noise level, 1 - alpha": [term.level for term in model.levels]},
            *_ends([term.nats for term in model.levels]),
            colour=place,
            dash=place,
            dots=True,
        )
        for place, part, model in models
    ]
    positions = [
        Series(
            part.name,
            [term.nats.value for term in model.positions],
            {"position:position in the row": [(term.first + term.last) / 2 for term in model.positions]},
            *_ends([term.nats for term in model.positions]),
            colour=place,
            dash=place,
            dots=True,
        )
        for place, part, model in models
    ]
    about = "The area under the line is the bound, but for its terms at both ends of time."
    yield '<section><h2>Where the bound comes from</h2><div class="grid2">'
    yield chart("levels", "The bound by noise level", "Nats a token", levels, about=about)
    yield chart(
        "positions", "The bound by position", "Nats a token", positions, about="The mean over tokens is the bound."
    )
    yield "</div>"
    for place, part, model in models:
        yield _heat(f"heat-{place}", part.name, model.tokens, exact=model.measured.report.estimator == "exact")
    yield "</section>"


def _ends(terms: Sequence[Ratio]) -> tuple[list[float], list[float]]:
    """The lower and the upper ends of intervals."""
    ends = [term.interval or (term.value, term.value) for term in terms]
    return [low for low, _ in ends], [high for _, high in ends]


def _heat(key: str, name: str, tokens: Sequence[TokenTerm], *, exact: bool) -> str:
    """A text whose tokens are the darker the more nats they take."""
    if not tokens:
        return ""
    most = max(sorted(term.nats for term in tokens)[int(0.98 * (len(tokens) - 1))], 1e-9)
    spans = "".join(
        f'<span style="--h:{min(max(round(10 * term.nats / most), 0), 10)}" title="{term.nats:.2f} nats">'
        f"{_text(term.text)}</span>"
        for term in tokens
    )
    hottest = sorted(range(len(tokens)), key=lambda place: -tokens[place].nats)[:HOTTEST]
    rows = [[_text(repr(tokens[place].text)), str(place), f"{tokens[place].nats:.2f}"] for place in hottest]
    what = "Exact nats" if exact else "Nats of the bound, an estimate for each token"
    return (
        f'<div class="card" id="{key}"><h3>A validation text, read by {_text(name)}</h3>'
        f'<p class="quiet">{what}, of the '
        f"text's beginning; the mean is {sum(term.nats for term in tokens) / len(tokens):.4f}.</p>"
        f'<div class="scale"><span>0</span><i></i><span>{number(most)} nats and more</span></div>'
        f'<pre class="heat">{spans}</pre><details><summary>The least likely tokens</summary>'
        f"{_grid(['token', 'position', 'nats'], rows, f'The least likely tokens by {legible(name)}')}</details></div>"
    )


def _films(parts: Sequence[RunPart]) -> Iterator[str]:
    """The best model of each run writes a text."""
    films = [part.model.film for part in parts if part.model and part.model.film]
    if not films:
        return
    yield '<section class="film"><h2>How a text is written</h2>'
    for film in films:
        page = escape(film_page(film), quote=True)
        yield f'<iframe loading="lazy" title="{_text(film.title)}" sandbox="allow-scripts" srcdoc="{page}"></iframe>'
    yield "</section>"
