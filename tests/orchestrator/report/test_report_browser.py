"""The page in a real browser: nothing overflows, nothing is asked for, in both widths and both modes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.image import imread

from ablatrix.orchestrator.report.build import build, compare
from tests.support import chromium
from tests.support.chromium import Browser
from tests.support.hostile_names import HOSTILE
from tests.support.studies import FEATURES, Plan, write_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(chromium.find() is None, reason="no chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


def pages(folder: Path) -> dict[str, Path]:
    studies = {
        "plain": Plan(
            effects={"swiglu": -0.1, "warmup": 0.2},
            domains=("web", "code", "books"),
            fates={("rope", 1): "diverged", ("cosine", 2): "failed", ("warmup", 1): "lost"},
        ),
        "hostile": Plan(features=HOSTILE, seeds=(1, 2)),
        "single": Plan(seeds=(1,)),
    }
    found = {}
    for name, plan in studies.items():
        build(folder / name, write_study(folder / name, plan))
        found[name] = folder / name / "report" / "report.html"
    found["both"] = next(p for p in compare([folder / "plain", folder / "single"]).paths if p.suffix == ".html")
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return pages(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("name", ["plain", "hostile", "single", "both"])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_nothing_overflows_and_nothing_is_asked_for(
    browser: Browser, made: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(made[name], width, dark)
    assert browser.evaluate("document.readyState") == "complete"
    assert browser.evaluate("document.querySelectorAll('section').length") >= 2
    assert browser.evaluate(chromium.SCROLLED) <= 0
    assert browser.evaluate(chromium.OVERFLOWING) == []
    assert [url for url in browser.requests() if not url.startswith("data:,")] == [made[name].as_uri()]
    assert browser.complaints() == []


def test_dark_mode_is_dark_and_legible(browser: Browser, made: dict[str, Path]) -> None:
    script = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    seen = {}
    for dark in (False, True):
        browser.open(made["plain"], 1280, dark)
        seen[dark] = [luminance(color) for color in browser.evaluate(script)]
    for paper, ink in seen.values():
        assert contrast(paper, ink) >= 7
    assert seen[True][0] < 0.1 < 0.9 < seen[False][0]


def test_small_text_has_contrast(browser: Browser, made: dict[str, Path]) -> None:
    script = """[...document.querySelectorAll('svg text')].slice(0, 40).map(t => getComputedStyle(t).fill)
      .concat([getComputedStyle(document.body).backgroundColor])"""
    for dark in (False, True):
        browser.open(made["plain"], 1280, dark)
        *fills, paper = [luminance(color) for color in browser.evaluate(script)]
        assert min(contrast(fill, paper) for fill in fills) >= 4.5


def test_markers_are_light_on_a_dark_page(browser: Browser, made: dict[str, Path], tmp_path: Path) -> None:
    browser.open(made["single"], 1280, dark=True)
    boxes = browser.evaluate(
        "[...document.querySelectorAll('#verdict .mark')].map(u => u.getBoundingClientRect())"
        ".map(b => [b.left, b.top + scrollY, b.right, b.bottom + scrollY])"
    )
    assert len(boxes) == len(FEATURES) + 1
    browser.screenshot(tmp_path / "dark.png")
    page = imread(tmp_path / "dark.png")
    for left, top, right, bottom in boxes:
        assert page[int(top) : int(bottom), int(left) : int(right), :3].min(axis=2).max() > 0.6


@pytest.mark.parametrize(("width", "variant"), [(1280, "wide"), (390, "narrow")])
def test_values_are_shown_at_the_pointer(browser: Browser, made: dict[str, Path], width: int, variant: str) -> None:
    browser.open(made["plain"], width)
    area = f"document.querySelector('svg.{variant}[data-figure=loss_curves] [data-panel]')"
    left, top, across, down = browser.evaluate(
        f"(() => {{ {area}.scrollIntoView({{block: 'center'}}); const b = {area}.getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height]; })()"
    )
    move(browser, left + 0.6 * across, top + 0.8 * down)
    rows = "[...document.querySelectorAll('#tip div')].map(row => [...row.children].map(cell => cell.textContent))"
    (axis, tokens), *values = browser.evaluate(rows)
    assert axis == "tokens trained on" and tokens.endswith(" k")
    assert {label for label, _ in values} == {"baseline", *FEATURES, "all_on"}
    shown = {label: float(value) for label, value in values}
    assert min(shown, key=lambda label: shown[label]) == "swiglu" and 3 < shown["swiglu"] < 4
    assert browser.evaluate(chromium.SCROLLED) <= 0 and not browser.evaluate("document.querySelector('#tip').hidden")
    move(browser, 2, 2)
    assert browser.evaluate("document.querySelector('#tip').hidden")


def move(browser: Browser, x: float, y: float) -> None:
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


@pytest.mark.parametrize(("width", "variant"), [(1280, "wide"), (390, "narrow")])
def test_one_layout_of_each_figure_is_shown_with_legible_text(
    browser: Browser, made: dict[str, Path], width: int, variant: str
) -> None:
    browser.open(made["plain"], width)
    sizes = browser.evaluate(
        "[...document.querySelectorAll('figure > svg')].filter(s => s.getBoundingClientRect().width)"
        ".map(s => [s.getAttribute('class'), 8 * s.getBoundingClientRect().width / s.viewBox.baseVal.width])"
    )
    drawn = "document.querySelectorAll('figure').length - document.querySelectorAll('figure > .forest').length"
    assert len(sizes) == browser.evaluate(drawn) >= 4
    assert {name for name, _ in sizes} == {variant}
    assert min(size for _, size in sizes) >= 10  # pixels


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.1) of rgb(r, g, b)."""
    parts = [int(p) / 255 for p in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
