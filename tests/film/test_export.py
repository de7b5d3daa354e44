"""A film is written whole, in the form that its suffix says, or not at all."""

from functools import partial
from pathlib import Path

import pytest

from dlm.cli.options import check_export
from dlm.errors import ConfigError
from dlm.film.export import export
from dlm.film.frames import Film
from tests.support.films import STORY, film, frame


@pytest.mark.parametrize("name", ["film.html", "film.svg", "FILM.SVG"])
@pytest.mark.parametrize(
    "story", [STORY, film(()), film(frame(""), frame("")), film(frame(None), frame(None), footer="")]
)
def test_the_same_film_is_the_same_file(tmp_path: Path, name: str, story: Film) -> None:
    export(story, tmp_path / name)
    once = (tmp_path / name).read_bytes()
    export(story, tmp_path / name)
    assert (tmp_path / name).read_bytes() == once
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.html", "a.svg", "a.SVG", "a.Html", "a.gif", "svg", "a.svg.gz"])
def test_the_command_line_knows_the_same_suffixes(tmp_path: Path, name: str) -> None:
    """What is refused is refused before anything is computed for it, and nothing else is."""
    told = []
    for check in (partial(check_export, tmp_path / name), partial(export, STORY, tmp_path / name)):
        try:
            check()
            told.append("")
        except ConfigError as error:
            told.append(str(error))
    assert told[0] == told[1] and bool(told[0]) == (name.lower() not in ("a.html", "a.svg"))


def test_a_film_goes_into_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    export(STORY, Path("~/film.svg"))
    assert (tmp_path / "film.svg").exists()


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.html.*\.svg.*'film\.gif'") as refusal:
        export(STORY, tmp_path / "film.gif")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        export(STORY, tmp_path / "nowhere" / "film.html")
    (tmp_path / "taken.svg").mkdir()
    with pytest.raises(ConfigError, match="taken"):
        export(STORY, tmp_path / "taken.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.svg"]
