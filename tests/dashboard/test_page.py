"""The page in a real browser (Debian's chromium), as somebody uses it."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import uvicorn

from deepcac2.dashboard.app import create_app
from deepcac2.dashboard.fetch import VEGA, VENDOR
from deepcac2.imaging.labels import ARTERIES, NOT_CORONARY, NOT_SURE

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which is not here")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which is not here")
CHARTS = all((VENDOR / "vega" / f"{package.name}.min.js").is_file() for package in VEGA)
needs_charts = pytest.mark.skipif(not CHARTS, reason="needs Vega's files: make viewer")


class Site:
    """A server over results, and what a browser that looks at it asked for and said."""

    def __init__(self, results: Path, **options: Any) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.origin = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(create_app(results, **options), log_level="error", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()
        while not self._server.started:
            time.sleep(0.02)
        self.asked: list[str] = []
        self.said: list[str] = []

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    def watch(self, page: Any) -> None:
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))

    def open(self, page: Any, address: str = "/") -> None:
        page.goto(self.origin + address)
        settle(page)


def settle(page: Any) -> None:
    """Until the page has drawn what was asked for last."""
    page.wait_for_selector(".view")
    page.wait_for_load_state("networkidle")
    page.wait_for_selector(".view:not([aria-busy])")


@pytest.fixture(scope="module")
def site(dashboard_results: Path) -> Iterator[Site]:
    site = Site(dashboard_results)
    yield site
    site.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(site: Site, browser: Any) -> Iterator[Any]:
    """A fresh page; whatever a test does, nothing leaves the origin and nothing is complained about."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(15_000)
    site.asked.clear()
    site.said.clear()
    site.watch(page)
    yield page
    context.close()
    assert [url for url in site.asked if not url.startswith((site.origin + "/", "data:"))] == []
    assert site.said == []


@pytest.fixture(scope="module")
def table(dashboard_results: Path) -> pd.DataFrame:
    return pd.read_parquet(dashboard_results / "results.parquet")


def rows(page: Any) -> list[str]:
    """Text of every row of the case table."""
    return [str(row) for row in page.locator("table.cases tbody tr").all_inner_texts()]


def column(page: Any, name: str) -> list[str]:
    heads = [re.sub(r"[▲▼↕\s]+$", "", h) for h in page.locator("table.cases thead th").all_inner_texts()]
    nth = heads.index(name) + 1
    return list(page.locator(f"table.cases tbody tr > :nth-child({nth})").all_inner_texts())


def told(page: Any) -> str:
    return str(page.locator("p.counts").first.inner_text())


def numbers(page: Any, chart: str) -> dict[str, str]:
    """The table of a chart's numbers: first cell to last one."""
    cells = page.locator(f'[data-chart="{chart}"] table.numbers tbody tr').evaluate_all(
        "rows => rows.map(r => [r.cells[0].textContent, r.cells[r.cells.length - 1].textContent])"
    )
    return dict(cells)


def bars(page: Any, chart: str) -> int:
    return int(page.locator(f'[data-chart="{chart}"] svg .mark-rect path').count())


def test_a_filter_changes_table_and_charts(site: Site, page: Any, table: pd.DataFrame) -> None:
    site.open(page)
    scored = table[table.status == "scored"]
    assert told(page).startswith(f"{len(scored)} series of {scored.patient_id.nunique()} patients")
    before = numbers(page, "time_point")
    page.locator('[data-filter="kernel"]').get_by_label("LUNG").check()
    settle(page)
    chosen = scored[scored.kernel == "LUNG"]
    assert told(page).startswith(f"{len(chosen)} series")
    assert set(column(page, "Kernel")) == {"LUNG"}
    assert numbers(page, "kernel") == {"LUNG": str(len(chosen))}
    assert numbers(page, "time_point") != before
    assert "kernel=LUNG" in page.url
    # the other kernels are still offered, and taking the filter off brings everything back
    assert page.locator('[data-filter="kernel"] input[type=checkbox]').count() > 3
    page.get_by_role("button", name="remove Kernel: LUNG").click()
    settle(page)
    assert told(page).startswith(f"{len(scored)} series")
    page.go_back()
    settle(page)
    assert told(page).startswith(f"{len(chosen)} series")


@needs_charts
def test_a_click_on_a_bar_filters(site: Site, page: Any, table: pd.DataFrame) -> None:
    site.open(page)
    scored = table[table.status == "scored"]
    assert bars(page, "risk_group") == 4
    page.locator('[data-chart="risk_group"] svg .mark-rect path').nth(3).click()
    settle(page)
    assert told(page).startswith(f"{int((scored.risk_group == 3).sum())} series")
    assert bars(page, "risk_group") == 1
    assert "risk_group=3" in page.url
    page.locator('[data-chart="risk_group"] svg .mark-rect path').first.click()
    settle(page)
    assert bars(page, "risk_group") == 4


@needs_charts
def test_charts_can_be_read_without_seeing_them(site: Site, page: Any, table: pd.DataFrame) -> None:
    site.open(page)
    label = page.locator('[data-chart="risk_group"] [role=img]').get_attribute("aria-label")
    n = int((table.risk_group == 3).sum())
    assert f"3 high: {n}" in label


def test_sort_and_page(site: Site, page: Any, table: pd.DataFrame) -> None:
    site.open(page)
    page.get_by_role("button", name="Agatston score", exact=False).first.focus()
    page.locator("table.cases thead button", has_text="Agatston score").click()
    settle(page)
    scores = [float(s.removesuffix(" !").replace(",", "")) for s in column(page, "Agatston score")]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(table.agatston_score.max(), abs=0.06)
    head = page.locator("table.cases thead th", has_text="Agatston score")
    assert head.get_attribute("aria-sort") == "descending"
    first = rows(page)
    page.get_by_role("button", name="next page").click()
    settle(page)
    assert "page 2 of" in told(page)
    later = [float(s.removesuffix(" !").replace(",", "")) for s in column(page, "Agatston score")]
    assert later[0] <= scores[-1]
    assert not {*rows(page)} & {*first}
    page.locator("table.cases thead button", has_text="Agatston score").click()
    settle(page)
    assert head.get_attribute("aria-sort") == "ascending"
    assert "page 1 of" in told(page)


def test_search(site: Site, page: Any) -> None:
    site.open(page)
    page.get_by_label("Search").fill("sim-0003")
    page.wait_for_url("**search=sim-0003**")
    settle(page)
    assert len(rows(page)) == 1
    page.get_by_label("Search").fill("nobody at all")
    page.wait_for_url("**nobody**")
    settle(page)
    assert rows(page) == ["No series fits all filters."]


def test_text_of_the_table_is_never_markup(site: Site, page: Any) -> None:
    site.open(page, "/?kernel=<b>x</b>")
    assert set(column(page, "Kernel")) == {"<b>x</b>"}
    assert page.locator("table.cases b").count() == 0


def test_a_case_by_its_address(site: Site, page: Any, table: pd.DataFrame) -> None:
    row = table[table.patient_id == "SIM-0003"].iloc[0]
    site.open(page, f"/case/{row.series_uid}")
    assert page.locator("h2").inner_text() == "SIM-0003"
    shown = page.locator(".result strong").first.inner_text()
    assert float(shown.replace(",", "")) == pytest.approx(row.agatston_score, abs=0.06)
    lesions = page.locator('section[aria-label="Lesions"] tbody tr')
    assert lesions.count() == row.n_lesions
    assert page.locator("img.preview").evaluate("image => image.naturalWidth") > 300
    assert "make viewer" in page.locator(".columns").inner_text()
    page.get_by_role("link", name="all cases").click()
    settle(page)
    assert len(rows(page)) == 50


def test_a_result_that_needs_a_caution_is_marked(site: Site, page: Any, table: pd.DataFrame) -> None:
    said = "in spite of derived: the images are MPR"
    (row,) = (r for r in table.itertuples() if r.caution)
    assert row.caution == said
    site.open(page, f"/?search={row.series_uid}")
    marks = page.locator("table.cases .mark")
    assert [m.get_attribute("title") for m in marks.all()] == [said]
    assert column(page, "Agatston score") == [f"{row.agatston_score:,.1f} !"]
    site.open(page, f"/case/{row.series_uid}")
    head = page.get_by_role("region", name="Result")
    assert head.locator(".mark").get_attribute("title") == said
    assert head.locator(".caution").inner_text() == said
    other = next(r for r in table.itertuples() if r.status == "scored" and not r.caution)
    site.open(page, f"/case/{other.series_uid}")
    assert page.locator(".mark, .caution").count() == 0


def test_from_case_to_case_in_the_order_of_the_table(site: Site, page: Any, table: pd.DataFrame) -> None:
    """Over the end of a page of the table, with links and with keys, and back to the page of the case."""
    chosen = table[(table.status == "scored") & (table.kernel == "LUNG")]
    order = chosen.sort_values(["agatston_score", "patient_id", "study_date", "series_uid"])
    uids = order.series_uid.tolist()
    site.open(page, "/?status=scored&kernel=LUNG&sort=agatston_score&size=25")
    page.locator("table.cases tbody tr").nth(24).get_by_role("link").first.click()
    page.wait_for_selector(".around a[rel=next]")
    assert f"/case/{uids[24]}?" in page.url
    assert f"25 of {len(uids)}" in page.locator(".around").inner_text()
    page.get_by_role("link", name="next case").click()
    page.wait_for_url(f"**/case/{uids[25]}?*")
    page.wait_for_selector(".around a[rel=next]")
    page.keyboard.press(".")
    page.wait_for_url(f"**/case/{uids[26]}?*")
    page.wait_for_selector(".around a[rel=prev]")
    page.keyboard.press(",")
    page.wait_for_url(f"**/case/{uids[25]}?*")
    page.wait_for_selector(".around a[rel=prev]")
    page.get_by_role("link", name="all cases").click()
    settle(page)
    assert "page 2 of" in told(page)
    assert uids[25] in page.locator("table.cases tbody tr").first.get_by_role("link").first.get_attribute(
        "href"
    )


def test_small_pictures_come_with_the_rows_that_are_seen(site: Site, page: Any) -> None:
    site.open(page)
    asked = [url for url in site.asked if url.endswith("/thumbnail.png")]
    assert len(asked) < 10  # of 50 rows
    box = page.locator(".scroll.tall")
    box.scroll_into_view_if_needed()
    last = page.locator("table.cases tbody tr").last.get_by_role("link").first.get_attribute("href")
    uid = last.removeprefix("/case/").partition("?")[0]
    with page.expect_request(f"**/{uid}/thumbnail.png"):
        box.evaluate("e => { e.scrollTop = e.scrollHeight; }")
    assert len([url for url in site.asked if url.endswith("/thumbnail.png")]) < 45
    # the heading of the table and the filters stay in sight
    box_top = box.bounding_box()["y"]
    assert page.locator("table.cases thead th").nth(1).bounding_box()["y"] == pytest.approx(box_top, abs=2)
    assert page.evaluate("scrollY") > 300
    assert page.locator(".filters summary").first.bounding_box()["y"] >= 0


def test_the_visits_of_a_patient(site: Site, page: Any, table: pd.DataFrame) -> None:
    known = table[(table.status == "scored") & table.agatston_score.notna()]
    visits = known.groupby("patient_id").study_date.nunique()
    patient = visits[visits == 3].index[0]
    own = known[known.patient_id == patient].iloc[0]
    site.open(page, f"/case/{own.series_uid}")
    section = page.get_by_role("region", name="Visits of this patient")
    said = section.get_by_role("img").get_attribute("aria-label")
    listed = table[(table.patient_id == patient) & (table.code != "not-ct")]
    for row in listed[listed.agatston_score.notna()].itertuples():
        day = f"{row.study_date[:4]}-{row.study_date[4:6]}-{row.study_date[6:]}"
        assert f"{day} {row.kernel} " in said
    dates = section.locator("tbody tr td:first-child").all_inner_texts()
    assert len(dates) == len(listed)
    assert dates == sorted(dates)
    assert section.locator("b[aria-current]").count() == 1
    assert section.locator("svg.timeline circle.own").count() == 1
    once = visits[visits == 1].index[0]
    site.open(page, f"/case/{known[known.patient_id == once].series_uid.iloc[0]}")
    assert page.locator("svg.timeline").count() == 0  # one date is no course


def test_queries_are_saved_in_the_browser(site: Site, page: Any) -> None:
    site.open(page, "/?status=scored&kernel=LUNG&sort=agatston_score")
    page.locator(".saved summary").click()
    page.get_by_label("Name", exact=True).fill("<b>sharp</b>")
    page.get_by_role("button", name="Save what is shown").click()
    page.goto(f"{site.origin}/?status=scored")
    settle(page)
    page.locator(".saved summary").click()
    page.get_by_role("link", name="<b>sharp</b>").click()
    page.wait_for_url("**kernel=LUNG**")
    settle(page)
    assert set(column(page, "Kernel")) == {"LUNG"}
    page.locator(".saved summary").click()
    page.get_by_role("button", name="forget <b>sharp</b>").click()
    page.locator(".saved", has_text="None yet").wait_for()
    site.open(page, "/sql?q=SELECT+7")
    page.locator(".saved summary").click()
    page.locator(".saved", has_text="None yet").wait_for()
    page.get_by_label("Name", exact=True).fill("seven")
    page.keyboard.press("Enter")
    page.locator(".saved", has_text="seven").wait_for()
    assert not [url for url in site.asked if "seven" in url or "sharp" in url]


@needs_charts
def test_a_chart_as_a_file(site: Site, page: Any, table: pd.DataFrame, tmp_path: Path) -> None:
    """Dark on white however the page looks; the picture fit for print."""
    from PIL import Image

    page.emulate_media(color_scheme="dark")
    site.open(page, "/?status=scored&kernel=LUNG")
    files = {}
    for kind in ("PNG", "SVG"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=f"Risk group as {kind}").click()
        files[kind] = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(files[kind])
    assert [path.name for path in files.values()] == ["deepcac2-risk_group.png", "deepcac2-risk_group.svg"]
    text = files["SVG"].read_text()
    assert "var(" not in text
    assert "Kernel: LUNG" in text
    assert "2 moderate" in text
    with Image.open(files["PNG"]) as picture:
        assert picture.width > 1500
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_the_colours_of_arteries_are_named_with_their_scores(
    named_case: Any, viewer_case: Any, browser: Any, tmp_path: Path
) -> None:
    """What is there, in the order of the table and the colours of the pictures; what has no score is known
    from the SEG alone."""
    site = Site(named_case.results, ct=viewer_case.ct, vendor=tmp_path)
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        site.watch(page)
        site.open(page, f"/case/{viewer_case.series}")
        page.wait_for_selector(".slices img[src]")
        settle(page)
        rows = page.locator(".legend li:visible")
        shown = [text.split("\n") for text in rows.all_inner_texts()]
        wanted = {"LAD": "lad", "RCA": "rca", "artery not sure": "unsure", "aorta": "aorta"}
        assert [name for name, _ in shown] == [*wanted, "pericardium"]
        for name, score in shown[:-1]:
            expected = named_case.scores[f"score_{wanted[name]}"]
            assert float(score.replace(",", "")) == pytest.approx(expected, abs=0.06)
        assert shown[-1][1] == "0"
        colours = rows.locator(".swatch").evaluate_all(
            "all => all.map(e => getComputedStyle(e).backgroundColor)"
        )
        labels = {label.name: label.colour for label in (*ARTERIES, NOT_SURE, *NOT_CORONARY)}
        assert colours == [f"rgb{labels[name]}" for name, _ in shown]
        assert len(set(colours)) == len(colours)
        assert "colours below" in page.locator("img.preview").get_attribute("alt")
        # from a lesion to its slice
        lesion = page.locator('section[aria-label="Lesions"] tbody tr').last
        first, _, last = lesion.locator("td").nth(6).inner_text().partition("–")
        lesion.get_by_role("button").click()
        said = re.match(r"slice (\d+) of", page.locator(".slices output").inner_text())
        assert said is not None
        assert int(first) <= int(said[1]) <= int(last or first)
        page.close()
        assert site.said == []
    finally:
        site.stop()


def test_a_case_without_names_has_no_legend(site: Site, page: Any, table: pd.DataFrame) -> None:
    site.open(page, f"/case/{table[table.patient_id == 'SIM-0003'].series_uid.iloc[0]}")
    assert page.locator(".legend").count() == 0
    assert "counted calcium in red" in page.locator("img.preview").get_attribute("alt")


def test_from_the_table_to_a_case_and_back(site: Site, page: Any) -> None:
    site.open(page, "/?search=sim-0003")
    page.get_by_role("link", name="SIM-0003").click()
    page.wait_for_selector(".case-head")
    page.go_back()
    settle(page)
    assert len(rows(page)) == 1


def test_not_scored(site: Site, page: Any, table: pd.DataFrame) -> None:
    site.open(page)
    page.get_by_role("link", name="Not scored").click()
    page.wait_for_selector('section[aria-label="Reasons"]')
    text = page.locator('section[aria-label="Reasons"]').inner_text()
    for code in set(table.code) - {""}:
        assert code in text
    page.get_by_role("link", name="metal").first.click()
    page.wait_for_url("**code=metal**")
    page.wait_for_selector("h3:has-text('Series: metal')")
    states = page.locator('section[aria-label="Series"] .state').all_inner_texts()
    assert states
    assert all(state.endswith(": metal") for state in states)


def test_sql(site: Site, page: Any, table: pd.DataFrame) -> None:
    site.open(page, "/sql")
    box = page.get_by_label("SQL statement")
    box.fill("SELECT count(*) AS n FROM results WHERE status = 'scored'")
    box.press("Control+Enter")
    cell = page.locator("section.panel td").first
    cell.wait_for()
    assert cell.inner_text() == str(int((table.status == "scored").sum()))


def test_sql_that_is_refused(site: Site, page: Any) -> None:
    site.open(page, "/sql")
    page.get_by_label("SQL statement").fill("DROP TABLE results")
    page.get_by_role("button", name="Run").click()
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "only SELECT is possible here" in alert.inner_text()
    # the browser itself notes the refused request; there is no other complaint
    assert all("422" in text for text in site.said)
    site.said.clear()


def test_with_the_keyboard(site: Site, page: Any) -> None:
    """The skip link, a filter and a sort without a mouse; the focus stays where it was."""
    site.open(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    box = page.locator('[data-filter="time_point"]').get_by_label("T1")
    box.focus()
    page.keyboard.press("Space")
    settle(page)
    assert page.evaluate("document.activeElement.dataset.key") == "time_point=T1"
    assert set(column(page, "Time point")) == {"T1"}
    page.locator("table.cases thead button", has_text="Kernel").focus()
    page.keyboard.press("Enter")
    settle(page)
    assert page.evaluate("document.activeElement.dataset.key") == "sort kernel"
    kernels = column(page, "Kernel")
    given = [k for k in kernels if k != "–"]
    assert given == sorted(given)
    page.locator('[data-chart="risk_group"] summary').focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**risk_group=0**")
    settle(page)
    assert set(column(page, "Risk group")) == {"0 very low"}


@pytest.mark.slow
def test_names_and_roles(site: Site, page: Any) -> None:
    """Every field, button and picture has a name; every view says what this software is not."""
    for address in ("/", "/not-scored", "/sql"):
        site.open(page, address)
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll('input, select, textarea, button, a[href], [role=img]')]
            .filter(e => e.offsetParent && !e.closest('[aria-hidden=true]'))
            .filter(e => !(e.getAttribute('aria-label') || e.labels?.length
                || e.textContent.trim()))
            .map(e => e.outerHTML)"""
        )
        assert unnamed == []
        assert "Not a medical device" in page.locator("body").inner_text()
        assert page.locator("h1").count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_is_wider_than_the_window(site: Site, page: Any, table: pd.DataFrame, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    uid = table.series_uid[table.patient_id == "SIM-0003"].iloc[0]
    for address in ("/", f"/case/{uid}", "/not-scored"):
        site.open(page, address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def contrast(page: Any, selector: str) -> float:
    """Of text and background by WCAG 2."""
    return float(
        page.evaluate(
            """selector => {
            const e = document.querySelector(selector);
            let ground = e;
            const colour = e => getComputedStyle(e).backgroundColor;
            while (colour(ground) === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
            const light = text => {
                const [r, g, b] = text.match(/[\\d.]+/g).map(v => v / 255)
                    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const pair = [light(getComputedStyle(e).color), light(colour(ground))];
            return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        }""",
            selector,
        )
    )


@pytest.mark.slow
def test_light_and_dark(site: Site, page: Any) -> None:
    """As the system has it, or as the switch says; readable in both (WCAG AA: 4.5)."""
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        site.open(page)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for selector in (
            "h1",
            "#run",
            ".notice",
            "table.cases th button",
            "table.cases tbody a",
            ".choice .n",
        ):
            assert contrast(page, selector) >= 4.5, (scheme, selector)
    assert grounds[0] != grounds[1]
    page.get_by_role("button", name="Light").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[0]
    page.reload()
    settle(page)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[0]


def test_without_the_files_of_the_charts(
    dashboard_results: Path, browser: Any, tmp_path: Path, table: pd.DataFrame
) -> None:
    site = Site(dashboard_results, vendor=tmp_path)
    try:
        page = browser.new_page()
        site.watch(page)
        site.open(page)
        assert "make viewer" in page.locator(".charts").inner_text()
        assert numbers(page, "risk_group")["3 high"] == str(int((table.risk_group == 3).sum()))
        assert len(rows(page)) == 50
        page.close()
        assert site.said == []
    finally:
        site.stop()
