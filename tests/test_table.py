import math

import numpy as np
import pytest

from diffreg.report.table import Column, Row, Table, shown, shown_alike


@pytest.fixture
def table():
    return Table(
        [Column("NCC", "", ".2f", "higher"), ("time", "ms", ".1f", "lower"), ("cells", "", ",d")],
        [
            Row("identity", [0.5, None, 9000], "a <-> b"),
            ("LU-net", [0.904, 4.6, 9000], "a <-> b"),
            ("variational", [np.float32(0.9), 1900.0, 9000], "a <-> b"),
            ("identity", [0.1, math.nan, 12], "b & c"),
            ("LU-net", [-0.2, 4.0, 12], "b & c"),
        ],
        label="method",
    )


def test_the_best_of_a_group_is_found_as_printed(table):
    best = table.best()
    assert best[:3] == [[False, False, False], [True, True, False], [True, False, False]]
    assert best[3:] == [[True, False, False], [False, False, False]]  # one time alone is not best


def test_the_best_of_many_rows_are_found_in_one_pass(monkeypatch):
    printed = []
    monkeypatch.setattr("diffreg.report.table.shown", lambda *of: printed.append(of) or shown(*of))
    columns = [Column("NCC", "", ".2f", "higher"), Column("pairs", "", "d")]
    page = Table(columns, [(f"{k}", [0.01 * k, k]) for k in range(200)]).html()
    assert page.count('class="best"') == 1
    assert len(printed) < 200 * 2 * 3  # not all of a group for each


def test_html_has_groups_bold_best_values_and_escapes(table):
    html = table.html()
    assert html.count('class="group"') == 2
    assert "a &lt;-&gt; b" in html and "b &amp; c" in html
    assert '<td class="best">0.90</td><td class="best">4.6</td><td>9,000</td>' in html
    assert "higher is better" in html and "<small>ms</small>" in html
    assert "<td>\N{MINUS SIGN}0.20</td>" in html and "<td>\N{EN DASH}</td>" in html


def test_text_lines_up(table):
    lines = table.text().splitlines()
    assert lines[0].startswith("method") and "NCC \N{UPWARDS ARROW}" in lines[0]
    assert lines[3] == "[a <-> b]"
    values = [line for line in lines if line.startswith(("identity", "LU-net", "variational"))]
    assert len({line.rstrip("* ").rfind("00") for line in values[:3]}) == 1
    assert "0.90 *" in values[1]


def test_a_table_without_rows_is_a_head():
    assert "<tbody></tbody>" in Table([("NCC",)]).html()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.41234, "0.412"),
        (-1.204, "\N{MINUS SIGN}1.20"),
        (0.00042, "0.00042"),
        (95.24, "95.2"),
        (12345.6, "12,346"),
        (math.inf, "\N{INFINITY}"),
        (np.float32(0.5), "0.500"),
        (True, "True"),
        (None, "\N{EN DASH}"),
        (math.nan, "\N{EN DASH}"),
        ("a-b", "a-b"),
    ],
)
def test_numbers_are_printed_with_three_digits_that_count(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1.0, 0.79), ["1.00", "0.79"]),
        ((0.9433, 0.987), ["0.943", "0.987"]),
        ((3, 0), ["3", "0"]),
        ((math.nan, 0.5), ["\N{EN DASH}", "0.500"]),
        (("off", "on"), ["off", "on"]),
    ],
)
def test_before_and_after_have_the_same_decimals(values, text):
    assert shown_alike(values) == text


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="row 'LU-net' must have 1 values, got 2"):
        Table([("NCC",)], [("LU-net", [1, 2])])
    with pytest.raises(
        ValueError, match="better of column 'NCC' must be 'higher', 'lower' or None"
    ):
        Table([("NCC", "", ".3f", "more")])
