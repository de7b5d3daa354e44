"""A template is its text, cut at the holes: nothing is lost, added or taken for something else."""

import random
import re

import pytest

from dlm.errors import DataError
from dlm.template import Hole, mistaken, parse_template


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[MASK:3]", (Hole(3),)),
        ("a[MASK:3]b", ("a", Hole(3), "b")),
        ("[MASK:1][MASK:2]", (Hole(1), Hole(2))),
        ("a [MASK:1] b [MASK:20] c", ("a ", Hole(1), " b ", Hole(20), " c")),
        (r"\[MASK:3] [MASK:1]", ("[MASK:3] ", Hole(1))),
        (r"\\[MASK:3]", ("\\", Hole(3))),
        (r"\\\[MASK:3][MASK:1]", ("\\[MASK:3]", Hole(1))),
        (r"C:\[dir] [MASK:1]", ("C:\\[dir] ", Hole(1))),
        ("[mask:3][MASK:1][MASK 2]", ("[mask:3]", Hole(1), "[MASK 2]")),
        ("[MASK:007]", (Hole(7),)),
        ("[[MASK:2]]", ("[", Hole(2), "]")),
        ("[MASK]", (Hole(1, 32),)),
        ("a [MASK:0-5][MASK:3-3] b", ("a ", Hole(0, 5), Hole(3), " b")),
        (r"\[MASK] [MASK:1]", ("[MASK] ", Hole(1))),
        ("line\r\n[MASK:2]\r\n", ("line\r\n", Hole(2), "\r\n")),
    ],
)
def test_parts(text: str, parts: tuple[str | Hole, ...]) -> None:
    assert parse_template(text) == parts


@pytest.mark.parametrize(
    "size",
    [
        "0",
        "00",
        "-1",
        "1.5",
        "",
        " ",
        "x",
        "1e3",
        "9" * 10,
        "9" * 400,
        "\u0663",
        "\u00b2",
        "0-0",
        "-3",
        "3-",
        "1-2-3",
    ],
)
def test_a_size_that_is_no_positive_number_is_refused(size: str) -> None:
    with pytest.raises(DataError, match="at least 1") as caught:
        parse_template(f"a[MASK:{size}]b")
    assert "\n" not in str(caught.value)


def test_a_range_that_ends_before_it_begins_is_told_as_it_is_meant() -> None:
    with pytest.raises(DataError, match="ends before it begins") as caught:
        parse_template("a[MASK:3-2]b")
    meant = str(caught.value).rsplit("write ", 1)[1]
    assert parse_template(f"a{meant}b") == ("a", Hole(2, 3), "b")
    with pytest.raises(DataError, match="ends before it begins") as caught:
        parse_template("a[MASK:3-2:/c+/]b")
    meant = str(caught.value).rsplit("write ", 1)[1]
    assert parse_template(f"a{meant}b") == ("a", Hole(2, 3, "c+"), "b")


@pytest.mark.parametrize(
    "text", ["", "no hole", r"\[MASK:3]", r"\[MASK]", "[MASK", "[MASK:3", "[MASK:\n3]", "<|mask|>"]
)
def test_a_text_without_a_hole_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="no span"):
        parse_template(text)


def test_another_marker_leaves_the_usual_one_as_text() -> None:
    assert parse_template("[MASK:3][GAP.:2]", "GAP.") == ("[MASK:3]", Hole(2))
    with pytest.raises(DataError, match=r"\[GAP:12\]"):
        parse_template("[MASK:3]", "GAP")
    with pytest.raises(DataError):
        parse_template("[GAPX:2]", "GAP.")  # a marker is a word, not a pattern


def test_escaping_a_text_and_parsing_it_gives_it_back() -> None:
    stream = random.Random(0)
    alphabet = ["\\", "[", "]", "MASK", "3", "[MASK]", "[MASK:3]", "\\[MASK:0]", "\n", "é", "x"]
    for _ in range(500):
        given: list[str | Hole] = []
        written = ""
        for _ in range(stream.randint(1, 3)):
            text, hole = "".join(stream.choices(alphabet, k=stream.randint(0, 6))), Hole(stream.randint(1, 30))
            given += [text, hole]
            written += doubled(escaped(text)) + f"[MASK:{hole.tokens}]"
        tail = "".join(stream.choices(alphabet, k=stream.randint(0, 6)))
        assert parse_template(written + escaped(tail)) == tuple(part for part in (*given, tail) if part != "")


def escaped(text: str) -> str:
    """Every hole made literal: the backslashes before it doubled, and one more."""
    return re.sub(r"(\\*)(\[MASK(?::[^\]\n]*)?\])", r"\1\1\\\2", text)


def doubled(text: str) -> str:
    """The same text, to stand before a hole: the backslashes at its end doubled."""
    return text + "\\" * (len(text) - len(text.rstrip("\\")))


@pytest.mark.parametrize(
    ("text", "hole"),
    [
        ("[MASK:/[0-9]{4}/]", Hole(0, 32, "[0-9]{4}")),
        ("[MASK:3:/[^]]+/]", Hole(3, None, "[^]]+")),
        ("[MASK:3-8:/a|b:c/]", Hole(3, 8, "a|b:c")),
        (r"[MASK:/a\/]\\/]", Hole(0, 32, r"a\/]\\")),
        ("[MASK://]", Hole(0, 32, "")),
    ],
)
def test_expressions(text: str, hole: Hole) -> None:
    assert parse_template(f"a {text} b") == ("a ", hole, " b")
    assert parse_template(f"\\{text} [MASK:1]") == (f"{text} ", Hole(1))


@pytest.mark.parametrize("text", ["[MASK:/a]", "[MASK:/[0-9]]", "[MASK:2:/a]", "[MASK:/a\\/]"])
def test_an_expression_without_an_end_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="begins an expression that does not end"):
        parse_template(f"a {text} b")


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("[MASK:/a/b/]", r"[MASK:/a\/b/]"),
        ("[MASK:2-3:/a/b/]", r"[MASK:2-3:/a\/b/]"),
        (r"[MASK:/a\/b/c/]", r"[MASK:/a\/b\/c/]"),
    ],
)
def test_a_slash_within_an_expression_is_shown_as_it_is_written(text: str, mended: str) -> None:
    with pytest.raises(DataError, match="has a slash within its expression") as told:
        parse_template(f"a {text} b")
    assert str(told.value).endswith(f"write {mended}") and isinstance(parse_template(mended)[0], Hole)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("[MASK:1] [mask:3] [ MASK:3] [MASK 4] [Mask]", ["[mask:3]", "[ MASK:3]", "[MASK 4]", "[Mask]"]),
        ("[MASK:1] [MASK:3", ["[MASK:3"]),
        ("[MASK:1] [MASK:3\n]", ["[MASK:3"]),
        ("[MASK:1] [mask]ed [mask:/a/] [MASK3] [MASK-12] x[mask:3] x[MASK 3]", None),
        (r"[MASK:1] [MASK] [MASK:/[mask]/] \[MASK:3] \[mask:3] [MASKED] [unmask] mask [5] (MASK:3)", []),
        ("[MASK:1] loss[mask] [mask == 1] w[mask, 0] [mask](url) x[mask2] f()[mask] [mask_ids] [MASK_3D]", []),
    ],
)
def test_what_only_looks_like_a_hole_is_named(text: str, near: list[str] | None) -> None:
    """And nothing that stands in code."""
    if near is None:
        near = re.findall(r"\[[^]]*\]", text)[1:]
    assert mistaken(text) == near
    kept = "".join(part for part in parse_template(text) if isinstance(part, str))
    assert all(each in kept for each in near)


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("[MASK:/b/:3]", "[MASK:3:/b/]"),
        ("[MASK:/b/:0]", "[MASK:/b/]"),
        ("[MASK:/b/:5-3]", "[MASK:3-5:/b/]"),
        ("[MASK:/[b]/:3]", "[MASK:3:/[b]/]"),
        ("[MASK:2:/b/:3]", "[MASK:2:/b/]"),
        ("[MASK:/a/b/:3]", r"[MASK:3:/a\/b/]"),
    ],
)
def test_a_length_behind_its_expression_is_told_as_it_is_written(text: str, mended: str) -> None:
    with pytest.raises(DataError) as told:
        parse_template(f"a {text} b")
    assert str(told.value).endswith(f": write {mended}") and text in str(told.value)
    assert isinstance(parse_template(mended)[0], Hole)
    assert parse_template(f"\\{text} [MASK]")[0] == f"{text} "  # it is text where it is meant so


def test_choices_are_for_holes_that_say_nothing() -> None:
    one, other = parse_template("a [MASK] [MASK:2]", choices=["x.y", "(", "x.y"])[1::2]
    assert isinstance(one, Hole) and one.choices == ("x.y", "(") and other == Hole(2)
    assert one.pattern == r"x\.y|\(" and {1, 3} <= {*one.lengths}
    (ranged,) = parse_template("[MASK:1-32] [MASK]", choices=["x"])[:1]
    assert ranged == Hole(1, 32)  # it says its length, and so is no choice
    for text, choices, told in (("a [MASK:2]", ["x"], "no plain"), ("[MASK]", ["x", ""], "none of them is empty")):
        with pytest.raises(DataError, match=told):
            parse_template(text, choices=choices)
