"""The report of a run: what a browser makes of it, and what it says of runs that are not as they should be."""

import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeRun
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from contrails.cli.main import cli
from contrails.errors import RunError, StorageError
from contrails.files import append_json_line
from contrails.runs.folder import Run
from contrails.train.fold import train_fold

from pages import CLONE

pytestmark = pytest.mark.usefixtures("restore_process")
_NUM_RECORDS = 12


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium: Debian's, installed by scripts/test."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


def report(run: Run, *arguments: str | Path) -> str:
    cli(["report", str(run.path), *map(str, arguments)], standalone_mode=False)
    return run.report.read_text()


def opened(browser: Browser, run: Run, **options: object) -> tuple[Page, list[str]]:
    """Open the report; the list gets whatever goes wrong, and whatever it asks of a network."""
    page, problems = browser.new_page(**options), list[str]()  # type: ignore[arg-type]
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if "data:" not in request.url[:5] else None)
    page.goto(run.report.as_uri())
    assert problems.pop(0) == run.report.as_uri()
    return page, problems


def column(page: Page, table: str, index: int) -> list[str]:
    return page.locator(f"{table} tbody tr td:nth-child({index})").all_inner_texts()


def test_the_page_in_a_browser(aggregated: Run, browser: Browser) -> None:
    report(aggregated)
    page, problems = opened(browser, aggregated, viewport={"width": 1280, "height": 900})
    assert page.locator("h1").inner_text() == "Läufe & <b>"
    pictures = page.locator(".record img")
    assert pictures.count() == 4 * _NUM_RECORDS
    page.wait_for_function("[...document.querySelectorAll('.record img')].every(image => image.naturalWidth === 32)")

    heading = page.locator("#folds th").nth(4)
    for order in ("ascending", "descending"):
        heading.locator("button").press("Enter")
        assert heading.get_attribute("aria-sort") == order
        scores = [float(text) for text in column(page, "#folds", 5)]
        assert scores == sorted(scores, reverse=order == "descending")

    page.locator("#order").select_option("missed down")
    missed = [int(text) for text in re.findall(r"missed (\d+)", page.locator(".records").inner_text())]
    assert missed == sorted(missed, reverse=True)
    page.locator('.filters button[value="worst"]').click()
    assert {record.get_attribute("data-kind") for record in page.locator(".record:visible").all()} == {"worst"}

    page.locator(".record:visible button").first.press("Enter")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("+")
    assert page.locator(".panes").evaluate("panes => panes.style.getPropertyValue('--zoom')") == "2"
    first = page.locator("dialog p").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog p").inner_text() != first
    page.keyboard.press("Escape")
    assert page.locator("dialog").is_hidden()

    page.locator("#curves .legend button").first.click()
    assert page.locator('#curves .chart >> nth=0 >> .line[data-name="fold 0"]').is_hidden()
    page.locator("#curves .chart").first.hover()
    assert "fold 1: 0." in page.locator("#tip").inner_text()
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_is_blank_and_nothing_sticks_out(aggregated: Run, browser: Browser, scheme: str, width: int) -> None:
    report(aggregated)
    page, problems = opened(browser, aggregated, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    shown = page.locator(".tile, .card, figure, .record").filter(visible=True)
    assert shown.count() > 20
    for part in shown.all():
        pixels = np.asarray(Image.open(BytesIO(part.screenshot())).convert("L"), np.float64)
        assert pixels.std() > 3, part.inner_html()[:200]
    background = np.asarray(Image.open(BytesIO(page.screenshot(clip={"x": 0, "y": 0, "width": 5, "height": 5}))))
    assert (background[..., :3].mean() < 60) == (scheme == "dark")
    assert problems == []


def test_the_part_that_the_first_page_shows(aggregated: Run, browser: Browser) -> None:
    report(aggregated)
    extract = runpy.run_path(str(CLONE / "scripts/images/make.py"))["EXTRACT"]
    aggregated.report.write_text(aggregated.report.read_text() + extract)
    page, problems = opened(browser, aggregated, viewport={"width": 1240, "height": 900}, color_scheme="dark")
    sections = page.locator("main > section").filter(visible=True)
    assert sections.locator("h2").all_inner_texts() == ["Folds", "Training", "Gallery"]
    assert page.locator("#curves figure").filter(visible=True).count() == 3
    scores = page.locator(".record").evaluate_all("all => all.map(record => +record.dataset.dice)")
    assert scores == sorted(scores, reverse=True)
    assert page.locator(".record").filter(visible=True).count() == 4
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(245, 246, 248)"  # light
    assert problems == []


def test_while_training_runs(make_run: MakeRun, browser: Browser) -> None:
    run = make_run()
    assert "no attempt has begun yet" in report(run)
    train_fold(run.fold("1"))
    run.fold("1").done.unlink()
    state = run.fold("1").attempt(1).state
    state.write_text(json.dumps(json.loads(state.read_text()) | {"status": "running"}))
    (run.fold("0").path / "attempts").mkdir(parents=True)
    page = report(run)
    assert "1 folds" not in page
    assert "0 of 2" in page
    assert "state-running" in page
    assert f"run `contrails aggregate {run.typed}`" in page
    opened_page, problems = opened(browser, run)
    assert opened_page.locator("#curves .line").count() > 0
    assert problems == []


def test_metrics_that_are_cut_or_not_finite(make_run: MakeRun) -> None:
    run = make_run()
    train_fold(run.fold("0"))
    metrics = run.fold("0").attempt(1).metrics
    append_json_line(metrics, {"step": 12, "epoch": 3, "val/dice": math.nan, "val/loss": None, "train/loss/own": -1.5})
    with metrics.open("a") as file:
        file.write('{"step": 12, "epoch": 3, "val/di')
    page = re.sub(r"<style>.*?</style>|<script>.*", "", report(run), flags=re.DOTALL)
    assert "nan" not in page.lower()
    assert "train/loss/own" in page
    assert "last: fold 0 -1.5" in page


def test_ten_thousand_epochs_make_a_small_page(make_run: MakeRun) -> None:
    run = make_run()
    train_fold(run.fold("0"))
    done = json.loads(run.fold("0").done.read_text())
    run.fold("0").done.write_text(json.dumps(done | {"step": 10_000}))
    rows = [{"step": step, "epoch": step, "val/dice": 0.5 + 0.4 * math.sin(step)} for step in range(1, 10_001)]
    run.fold("0").attempt(1).metrics.write_text("\n".join(map(json.dumps, rows)))
    page = report(run)
    assert len(page) < 200_000
    path = re.search(r'data-name="fold 0" d="([^"]*)"', page)
    assert path is not None
    assert 200 < len(re.findall("[ML]", path[1])) < 400


def test_a_run_of_an_older_version(aggregated: Run) -> None:
    content = json.loads((aggregated.aggregate("default") / "ensemble.json").read_text())
    (aggregated.aggregate("default") / "ensemble.json").write_text(json.dumps(content | {"version": 1}))
    aggregated.toml.write_text(aggregated.toml.read_text().replace("[recipe.loss]", "[recipe.loss]\nforgotten = 1"))
    aggregated.journal.write_text('{"event": "intent", "fold": "0", "time": 1.0}\n')
    page = report(aggregated)
    assert "made by another version of contrails" in page
    assert "forgotten = 1" in page
    assert "3 of 3" in page


def test_a_dataset_that_is_gone(aggregated: Run) -> None:
    path = aggregated.aggregate("default") / "ensemble.json"
    content = json.loads(path.read_text())
    content["request"]["dataset"]["path"] = "/gone/train.h5"
    path.write_text(json.dumps(content))
    assert "expected a dataset file at /gone/train.h5" in report(aggregated)


def test_a_run_folder_that_may_not_be_written(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    run.path.chmod(0o500)
    drop = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []
    if drop and subprocess.run([*drop, "true"], check=False, capture_output=True).returncode:
        pytest.skip("root may write every folder here")
    command = [*drop, sys.executable, "-m", "contrails", "report", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "")
    assert "report.html: Permission denied" in done.stderr
    assert "-o" in done.stderr
    elsewhere = subprocess.run([*command, "-o", "over there.html"], cwd=tmp_path, check=False)
    assert elsewhere.returncode == 0
    assert (tmp_path / "over there.html").is_file()


def test_a_folder_as_the_file(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is a folder; give the name of the HTML file"):
        report(make_run(), "-o", tmp_path)
    with pytest.raises(StorageError, match="cannot write"):
        report(make_run("other"), "-o", tmp_path / "other" / "run.toml" / "r.html")


def test_the_class_of_the_masks_has_a_name(aggregated: Run) -> None:
    assert "share of pixels that are contrail" in report(aggregated)  # as the file of GOES records says
    text = aggregated.toml.read_text().replace('target_name = ""', 'target_name = "cell <membrane>"')
    aggregated.toml.write_text(text)
    page = report(aggregated)
    assert "share of pixels that are cell &lt;membrane&gt;" in page
    assert '<th scope="row" class="left">cell &lt;membrane&gt;</th>' in page
    assert "that are contrail" not in page
