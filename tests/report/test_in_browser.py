"""The report in headless Chromium, as a reader opens it: from a file, without a network."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import made_up_run
import pytest

from ctdb.report import write

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed; it comes with ctdb[test]")

PROGRAMS = {"browser": ("chromium", "chromium-browser", "google-chrome"), "driver": ("chromedriver",)}
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip
WIDE, NARROW = (1280, 900), (390, 844)
SECONDS = 30


def programs() -> dict[str, str]:
    """Paths of a browser and its driver; those that are found."""
    return {role: path for role, names in PROGRAMS.items() for path in map(shutil.which, names) if path}


@pytest.fixture(scope="session")
def chromium() -> dict[str, str]:
    """Chromium and its driver, installed by apt-get where they are not and can be; else the tests are skipped."""
    if len(programs()) < 2 and shutil.which("apt-get") and os.geteuid() == 0:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["update", "-qq"],
            ["install", "-y", "-qq", "--no-install-recommends", "chromium", "chromium-driver"],
        ):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(["apt-get", *command], env=environment, capture_output=True, timeout=180)
    if len(programs()) < 2:
        pytest.skip("Chromium and chromedriver are not installed, and cannot be: install them to test the report")
    return programs()


class Reader:
    """A browser in which the report is open."""

    def __init__(self, driver, address: str):
        self.driver = driver
        driver.get_log("performance")
        driver.get(address)
        self.wait("return document.documentElement.dataset.ready === 'true'")

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments):
        """Until a script gives something true; what it gives."""
        end = time.monotonic() + SECONDS
        while not (value := self.run(script, *arguments)):
            assert time.monotonic() < end, f"not within {SECONDS} s: {script}; {self.errors()}"
            time.sleep(0.05)
        return value

    def show(self, width: int, height: int, scheme: str) -> None:
        """Take a size and a colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def choose(self, select: str, value: str) -> None:
        self.run(
            "const one = document.getElementById(arguments[0]); one.value = arguments[1];"
            "one.dispatchEvent(new Event('change', {bubbles: true}))",
            select,
            value,
        )

    def column(self, heading: str) -> list[str]:
        """Texts of a column of the leaderboard as shown, by its heading."""
        return self.run(
            "const at = [...document.querySelectorAll('#board thead th')]"
            ".findIndex((one) => one.innerText.trim().replace(/\\s+/g, ' ').startsWith(arguments[0]));"
            "return [...document.querySelectorAll('#board tbody tr')].map((row) => row.cells[at].innerText.trim())",
            heading,
        )

    def headings(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('#board thead th')].map((one) => one.innerText.trim().replace(/\\s+/g, ' '))")  # fmt: skip

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened, but for its own parts and the browser's pages."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                found.append(message["params"].get("request", message["params"])["url"])
        return [one for one in found if not one.startswith(("data:", "blob:null/", "chrome://"))]


@pytest.fixture(scope="module")
def opened(tmp_path_factory, chromium):
    folder = tmp_path_factory.mktemp("opened")
    plan, config = made_up_run.make(folder)
    write(plan, config, "config.yaml")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium["browser"]
    for option in [*OPTIONS, f"--user-data-dir={folder / 'browser'}", f"--window-size={WIDE[0]},{WIDE[1]}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromium["driver"]))
    yield driver, Path(plan["results"], "report.html").as_uri()
    driver.quit()


@pytest.fixture
def reader(opened):
    """The report, freshly opened; it must not have erred, nor asked for anything, when a test is done with it."""
    driver, address = opened
    one = Reader(driver, address)
    one.show(*WIDE, "light")
    yield one
    assert one.errors() == []
    assert one.requests() == [address]


def test_the_leaderboard_is_sorted_by_its_headings_with_mouse_and_keyboard(reader):
    before = reader.column("Model")
    assert before == ["ceiling_true_rates", "sae_gru", "lds", "floor_mean_rate", "sae_gru"]
    heading = (
        "return [...document.querySelectorAll('#board thead th')].find((one) => one.innerText.includes('rate R²'))"
    )
    reader.run(f"{heading}.querySelector('.dt-column-order').click()".removeprefix("return "))
    assert reader.column("Model") == ["ceiling_true_rates", "sae_gru", "floor_mean_rate", "lds", "sae_gru"]
    assert reader.run(heading).get_attribute("aria-sort") == "descending"
    button = reader.run(heading).find_element("css selector", "[tabindex='0']")
    reader.run("arguments[0].focus()", button)
    button.send_keys("\n")
    sorted_up = f"{heading}.getAttribute('aria-sort') === 'ascending'"
    reader.wait(sorted_up)  # a key is answered in a turn of the page's own
    assert reader.column("Model") == ["lds", "floor_mean_rate", "sae_gru", "ceiling_true_rates", "sae_gru"]
    assert reader.column("rate R²")[-1] == "–"  # what has no value stays last


def test_the_low_end_of_a_likelihood_comes_first(reader):
    reader.run(
        "[...document.querySelectorAll('#board thead th')].find((one) => one.dataset.metric === 'poisson_nll')"
        ".querySelector('.dt-column-order').click()"
    )
    assert reader.column("Model")[:2] == ["ceiling_true_rates", "sae_gru"]


def test_one_choice_filters_tables_and_figures_by_task_or_dataset(reader):
    groups = "return [...document.querySelectorAll('.group')].filter((one) => !one.hidden).map((one) => one.id)"
    assert reader.run(groups) == ["group-flip", "group-mine"]
    reader.choose("subject", "task:flip")
    assert set(reader.column("Data set")) == {"flip"}
    assert reader.run(groups) == ["group-flip"]
    reader.choose("subject", "dataset:mine")
    assert reader.column("Model") == ["sae_gru"]
    assert reader.column("Role") == ["fit"]
    assert "Data set" not in reader.headings()
    assert not any("rate R²" in heading for heading in reader.headings())  # which nothing here has
    assert reader.run(groups) == ["group-mine"]
    reader.choose("subject", "")
    assert len(reader.column("Model")) == 5
    assert any("rate R²" in heading for heading in reader.headings())


def test_rows_are_found_by_a_word(reader):
    field = reader.driver.find_element("css selector", "#leaderboard input[type=search]")
    assert field.accessible_name == "Find"
    field.send_keys("floor")
    assert reader.column("Model") == ["floor_mean_rate"]


def test_the_data_of_a_figure_opens_as_a_table_whose_cells_are_text(reader):
    reader.run("document.querySelector('#figure-rates details.data').open = true")
    rows = "#figure-rates details.data table tbody tr"
    shown = reader.wait(f"return [...document.querySelectorAll({rows!r})].map((row) => row.innerText)")
    assert len(shown) == 25
    assert shown[0].startswith('a, "b" <i>0</i>')
    assert reader.run("return document.querySelectorAll('#figure-rates td i').length") == 0
    reader.run(
        "document.querySelector('#figure-rates .dt-paging button.next, #figure-rates .dt-paging [data-dt-idx=next]').click()"
    )
    assert len(reader.run(f"return [...document.querySelectorAll({rows!r})].map((row) => row.innerText)")) == 15
    region = reader.driver.find_element("css selector", "#figure-rates details.data [role=region]")
    assert region.get_attribute("tabindex") == "0"
    assert region.accessible_name == "Data of rates"
    link = reader.driver.find_element("css selector", "#figure-rates a.csv")
    assert (link.get_attribute("download"), link.text) == ("rates.csv", "Download rates.csv")
    assert link.get_attribute("href").startswith("blob:")


def test_a_plot_turns_by_mouse_and_by_buttons_and_shows_one_system(reader):
    assert reader.run("return typeof Plotly") == "undefined"  # not before it is looked at
    reader.run(
        "document.documentElement.style.scrollBehavior = 'auto'; document.querySelector('a[data-space=points]').click()"
    )
    reader.wait(
        "return document.querySelector('#plot canvas') !== null && !document.getElementById('space-system').disabled"
    )
    assert "truth in space" in reader.run("return document.getElementById('space-status').textContent")
    assert reader.run("return document.getElementById('space-data').getAttribute('href')") == "#figure-points"
    camera = "const eye = document.getElementById('plot')._fullLayout.scene._scene.getCamera().eye; return [eye.x, eye.y, eye.z]"
    start = reader.run(camera)
    reader.run("document.querySelector('[data-turn=left]').click()")
    reader.wait(
        f"return (() => {{ {camera} }})().some((value, index) => Math.abs(value - arguments[0][index]) > 0.1)", start
    )
    turned = reader.run(camera)
    assert sum(value**2 for value in turned) == pytest.approx(sum(value**2 for value in start), rel=1e-6)
    assert turned[2] == pytest.approx(start[2])
    plot = reader.driver.find_element("css selector", "#plot canvas")
    actions = webdriver.ActionChains(reader.driver).move_to_element(plot).click_and_hold()
    actions.move_by_offset(60, 20).move_by_offset(40, 10).release().perform()
    reader.wait(
        f"return (() => {{ {camera} }})().some((value, index) => Math.abs(value - arguments[0][index]) > 0.05)", turned
    )
    reader.run("document.querySelector('[data-turn=reset]').click()")
    reader.wait(
        f"return (() => {{ {camera} }})().every((value, index) => Math.abs(value - arguments[0][index]) < 1e-3)", start
    )
    visible = "return document.getElementById('plot').data.map((trace) => trace.visible)"
    assert reader.run(visible) == [True, True]
    reader.choose("space-system", "1")
    assert reader.wait(f"const seen = (() => {{ {visible} }})(); return seen[0] === false && seen") == [False, True]
    reader.choose("space-figure", "states")
    reader.wait("return document.getElementById('space-status').textContent.includes('true states in space')")
    assert reader.run("return document.getElementById('space-system').checkVisibility()")
    reader.choose("space-figure", "near")
    reader.wait("return document.getElementById('space-status').textContent === 'near'")
    assert not reader.run("return document.getElementById('space-system').checkVisibility()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_it_fits_laptops_and_phones_in_light_and_dark(reader, size, scheme, tmp_path):
    reader.show(*size, scheme)
    reader.run("for (const one of document.querySelectorAll('details')) one.open = true")
    reader.wait("return document.querySelectorAll('details.data table tbody tr').length > 0")
    assert reader.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    colours = "const style = getComputedStyle(document.querySelector(arguments[0])); return [style.color, style.backgroundColor]"
    for element, ground in (("body", "body"), (".muted", "body"), ("a[href='#failures']", "body"), ("caption", ".scroll"), ("#board thead th", "#board thead th"), ("figcaption", "body")):  # fmt: skip
        ink, page = reader.run(colours, element)[0], reader.run(colours, ground)[1]
        assert contrast(ink, page) >= 4.5, (element, ink, page)
    assert (luminance(reader.run(colours, "body")[1]) < 0.2) == (scheme == "dark")
    assert reader.driver.save_screenshot(str(tmp_path / "page.png"))


def luminance(colour: str) -> float:
    """Relative luminance of a CSS colour, as WCAG 2.2 defines it."""
    parts = [float(one) / 255 for one in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(ink: str, ground: str) -> float:
    dark, light = sorted((luminance(ink), luminance(ground)))
    return (light + 0.05) / (dark + 0.05)


def test_every_control_is_reached_by_the_tab_key_and_has_a_name(reader):
    reader.wait("return !document.getElementById('subject').disabled")
    names = []
    body = reader.driver.find_element("css selector", "body")
    for _ in range(40):
        body.send_keys("\t")
        one = reader.driver.switch_to.active_element
        names.append((one.tag_name, one.accessible_name))
    assert names[0] == ("a", "Skip to the report")
    assert ("select", "Show") in names
    assert ("div", "Leaderboard") in names
    assert all(name for _, name in names)
