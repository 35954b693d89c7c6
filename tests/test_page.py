"""The page of a report: what it draws, what it sorts by, and that nothing in it is code."""

import re
from dataclasses import replace

import pytest

from converter.report.page import (
    _error_chart,
    _layer_chart,
    _sorted_by,
    _time_chart,
)
from converter.report.report import LayerRow

TIMED = LayerRow("a", "tucker", [8, 16], 1000, 100, 0.25, 2.0, 0.5, None)
KEPT = LayerRow("b", None, None, 500, 500, None, 1.0, None, "it is small")
UNTIMED = LayerRow("c", "lvh", 16, 500, 50, 0.5, None, None, None)


def test_the_bars_of_time_add_up_to_the_layers():
    chart = _time_chart([TIMED, KEPT], " in int8")
    assert chart.layout.barmode == "stack"
    assert "in int8" in chart.layout.title.text
    assert [sum(bar.x[n] for bar in chart.data) for n in range(2)] == [3.0, 1.5]


def test_a_layer_whose_form_was_not_timed_counts_as_before():
    chart = _time_chart([TIMED, KEPT, UNTIMED], "")
    assert {bar.name: bar.x for bar in chart.data} == {
        "a": (2.0, 0.5),
        "b": (1.0, 1.0),
        "c": (0.0, 0.0),
    }


def test_errors_are_drawn_of_converted_layers_only():
    (bars,) = _error_chart([TIMED, KEPT, UNTIMED]).data
    assert dict(zip(bars.y, bars.x)) == {"a": 0.25, "c": 0.5}


def test_of_long_names_the_end_is_shown():
    name = "model.features.stage4.unit12.body.conv3x3.branch7"
    axis = _layer_chart([replace(KEPT, name=name), KEPT]).layout.yaxis
    assert axis.tickvals == (name, "b")
    assert axis.ticktext == ("…" + name[-28:], "b")


def test_cells_are_sorted_by_numbers_not_by_how_they_are_written():
    assert _sorted_by(TIMED) == ["a", "tucker", 8, 1000, 100, 2.0, 0.5, 0.25, ""]
    assert _sorted_by(KEPT) == ["b", "", "", 500, 500, 1.0, "", "", "it is small"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page whose names would be code if they were not escaped."""
    from networks import make_net, noise

    import converter
    from converter.options import Options

    folder = tmp_path_factory.mktemp("page")
    path = make_net(folder / "net.onnx", channels=(3, 16, 16))
    text = path.read_bytes().replace(b"conv1.weight", b"<b>1.weight<")
    path.write_bytes(text)
    options = Options.of(form=("channel",), rank=("4",))
    result = converter.convert(path, options=options, calib=noise(8, 3, 8, 8))
    result.save(folder / "out")
    return (folder / "out" / "report.html").read_text()


def test_names_of_layers_are_text(page):
    assert "&lt;b&gt;1" in page
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    assert not any("<" in cell for cell in cells)


def test_the_page_asks_for_nothing(page):
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)=\"(?!data:)", outside)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page and "beforeprint" in page


def test_every_layer_has_its_row_and_its_values(page):
    rows = re.findall(r"<tr>(.*?)</tr>", page.partition('id="layers"')[2], re.DOTALL)
    cells = [re.findall(r'data-value="([^"]*)"', row) for row in rows[1:]]
    assert {len(row) for row in cells} == {len(_sorted_by(KEPT))}
    assert [(row[1], row[2], int(row[3])) for row in cells] == [
        ("channel", "4", 64 * 16 * 3 * 9),
        ("channel", "4", 64 * 16 * 16 * 9),
        ("", "", 4 * 16),
    ]
