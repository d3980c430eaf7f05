"""The page in headless Chromium, whose network is refused; skipped where there is no browser or no selenium."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.page.render import render_page
from bench.results.ledger import Ledger
from bench.results.questions import sweep_records
from bench.results.schema import Measurement, Membership, TrialFacts, rows_table

BROWSER, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
EVIL = "<img src=x onerror=\"window.pwned=1\"><a href='https://evil.example'>b</a>&\u202e"
CLASSES = ("one", "<script>window.pwned=2</script>")
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --host-resolver-rules=MAP,*,~NOTFOUND""".split()  # noqa: SIM905

pytestmark = [
    pytest.mark.skipif(not Path(BROWSER).exists(), reason=f"no {BROWSER}: Debian's package chromium has it"),
    pytest.mark.skipif(not Path(DRIVER).exists(), reason=f"no {DRIVER}: Debian's package chromium-driver has it"),
]


def write_results(out: Path) -> None:
    """Three configurations and a control on two datasets and two seeds, with hostile names."""
    names = {"alpha": "best", EVIL: "baseline", "gamma": "baseline", "random_init": "control"}
    for seed in range(2):
        for place, (name, role) in enumerate(names.items()):
            trial = f"{seed}{place}".ljust(64, "a")
            facts = TrialFacts(
                trial_id=trial,
                pretrain_id=trial,
                membership=Membership(sweep="s", sweep_id="s" * 64, stage="confirm", configuration=name, role=role),  # type: ignore[arg-type]
                configuration_id=name,
                method="simclr",
                encoder="small",
                seed=seed,
                status="finished",
                config={"objective": "linear", "name": EVIL},
                objective=0.5,
                device_seconds=10.0 * (3 - place),
                git_commit=EVIL,
            )
            rows = []
            for dataset in ("leaves", EVIL):
                common: dict[str, Any] = {"dataset": dataset, "protocol": "linear", "split": "test", "samples": 40}
                score = 0.6 - place / 10 + seed / 50 * place
                rows.append(Measurement(**common, metric="top1", headline=True, value=score))
                confusion = {"confusion": [5, 5, 2, 8], "classes": CLASSES}
                rows.append(Measurement(**common, metric="confusion", value=None, **confusion))
            Ledger(out).write(rows_table(facts, rows))
            folder = out / "trials" / trial[:16]
            folder.mkdir(parents=True, exist_ok=True)
            epochs = [{"number": number, "losses": {EVIL: 1 / number}} for number in (1, 2, 3)]
            (folder / "trial.json").write_text(json.dumps({"epochs": epochs}))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    write_results(out)
    path = out / "page.html"
    path.write_text(render_page(Ledger(out).read().frame, out=out, records=sweep_records(out)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("selenium", reason="selenium is not installed: it comes with the extra `test`")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    profile = tmp_path_factory.mktemp("profile")
    options = ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1400,1000"):
        options.add_argument(flag.replace("MAP,*,", "MAP * "))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture
def browser(chromium: Any, page: Path) -> Any:
    """A browser that has just opened the page, with a log that starts there."""
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    chromium.get("about:blank")
    chromium.get(page.as_uri())
    yield chromium
    assert [entry for entry in chromium.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert requests_of(chromium) <= {page.as_uri()}
    assert chromium.execute_script("return window.pwned === undefined")


def requests_of(browser: Any) -> set[str]:
    """Every address that was asked for, apart from those that hold their data."""
    asked = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"].split("#")[0])
    return {address for address in asked if not address.startswith(("data:", "blob:", "about:", "chrome:"))}


def names(browser: Any) -> list[str]:
    """The first words of the rows that the first leaderboard shows, in order."""
    script = "return [...document.querySelectorAll('.board tbody tr')].filter(r => !r.hidden).map(r => r.dataset.role)"
    return list(browser.execute_script(script))


def click(browser: Any, selector: str) -> None:
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


def draw_all(browser: Any) -> int:
    """Draw every figure; the number of those drawn."""
    return int(
        browser.execute_async_script(
            """const done = arguments[0]; window.dispatchEvent(new Event('beforeprint'));
            const every = [...document.querySelectorAll('.canvas')];
            const ready = () => every.every(c => c.querySelector('.main-svg'));
            const look = () => ready() ? done(every.length) : setTimeout(look, 50);
            look();"""
        )
    )


def test_headers_sort_and_sort_back(browser: Any) -> None:
    assert names(browser) == ["best", "baseline", "baseline", "control"]
    click(browser, ".board th[data-dataset] button")
    assert browser.execute_script("return document.querySelector('.board th[data-dataset]').ariaSort") == "descending"
    click(browser, ".board th[data-dataset] button")
    assert names(browser) == ["control", "baseline", "baseline", "best"]
    click(browser, ".board th[data-dataset] button")
    assert names(browser) == ["best", "baseline", "baseline", "control"]


def test_headers_are_reached_and_pressed_by_keys(browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    sorter = browser.find_elements(By.CSS_SELECTOR, ".board th button")[1]
    sorter.send_keys(Keys.ENTER)
    assert sorter.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    assert browser.execute_script("return document.activeElement.textContent") == "rank"


def test_filters_narrow_the_leaderboard(browser: Any) -> None:
    from selenium.webdriver.common.by import By

    box = browser.find_element(By.CSS_SELECTOR, ".filters input[type=search]")
    box.send_keys("GAMMA")
    assert names(browser) == ["baseline"]
    assert browser.find_element(By.CSS_SELECTOR, ".filters output").text == "1 of 4 rows"
    box.clear()
    box.send_keys("x")
    box.send_keys("\b")
    click(browser, ".filters input[type=checkbox]")
    assert names(browser) == ["best", "baseline", "baseline"]
    browser.execute_script(
        "const s = document.querySelector('.filters [name=dataset]'); s.value = '2';"
        "s.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    hidden = "return [...document.querySelectorAll('.board thead [data-dataset]')].map(c => c.hidden)"
    assert browser.execute_script(hidden) == [True, False]


def test_links_open_the_trial(browser: Any) -> None:
    click(browser, ".seeds a")
    opened = "return [...document.querySelectorAll('details.trial[open]')].map(d => '#' + d.id)"
    browser.execute_async_script("setTimeout(arguments[0], 200)")
    assert browser.execute_script(opened) == [browser.execute_script("return location.hash")]


def test_theme_changes_page_and_figures(browser: Any) -> None:
    draw_all(browser)
    ground = "return getComputedStyle(document.body).backgroundColor"
    ink = "return document.querySelector('.canvas .xtick text').style.fill"
    seen = []
    for _ in range(3):
        click(browser, "#theme")
        browser.execute_async_script("setTimeout(arguments[0], 300)")
        seen.append((browser.execute_script(ground), browser.execute_script(ink)))
    assert seen[0] != seen[1]
    assert seen[0][1] != seen[1][1]


def test_hostile_names_are_drawn_as_text(browser: Any) -> None:
    assert draw_all(browser) >= 6
    browser.execute_async_script(
        """const done = arguments[0]; const every = [...document.querySelectorAll('.canvas')];
        const point = (c) => c._fullData[0].type === 'heatmap' ? [0, 1] : 1;
        for (const c of every) Plotly.Fx.hover(c, [{curveNumber: 0, pointNumber: point(c)}]);
        setTimeout(done, 300);"""
    )
    found = (
        "return document.querySelectorAll('img[src=x], a[href*=evil], .canvas a, .canvas img, .canvas script').length"
    )
    assert browser.execute_script(found) == 0
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.canvas text')].map(t => t.textContent).join()"
    )
    assert "<img src=x onerror" in drawn
    assert "window.pwned" in drawn


@pytest.mark.parametrize("width", [390, 1400])
def test_page_fits_its_screen(browser: Any, width: int) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    draw_all(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_tables_stand_without_scripts(chromium: Any, page: Path) -> None:
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chromium.get(page.as_uri())
        source = chromium.page_source
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert source.count("<tr data-role") == 4
    assert 'form class="filters" hidden' in source


def test_policy_refuses_requests_and_foreign_scripts(browser: Any) -> None:
    refused = browser.execute_async_script(
        """const done = arguments[0]; const script = document.createElement('script');
        script.textContent = 'window.foreign = 1'; document.body.append(script);
        fetch('http://127.0.0.1:9/').then(() => done('sent'), () => done(window.foreign === undefined));"""
    )
    assert refused is True
    browser.get_log("browser")  # what the policy said of it
