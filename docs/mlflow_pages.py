"""MLflow's pages as a user sees them, driven in a headless Chromium.

As a command, it makes the pictures of ``docs/record.md`` from the runs of ``make demo``:

    python -m docs.mlflow_pages --runs runs

It needs Chromium (Debian: ``chromium``) and the extra ``test``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["MLflowPages", "find_chromium", "open_pages"]

PICTURES = Path(__file__).parent / "images"
_SIZE = {"width": 1600, "height": 760}
# Without it a new store opens with the pages of language models, which a user switches off once.
_WORKFLOW = "workflowType=machine_learning"
_WAIT_MS = 60_000  # the first page loads megabytes of scripts


def find_chromium() -> str | None:
    """The installed browser, if there is one: none is downloaded."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class MLflowPages:
    """What a user does on the pages of one experiment.

    Args:
        page (playwright.sync_api.Page): of the browser.
        url (str): of the server.
        experiment_id (str): the experiment.
    """

    def __init__(self, page: Any, url: str, experiment_id: str) -> None:
        self.page = page
        self.experiment_id = experiment_id
        self._runs = f"{url}/#/experiments/{experiment_id}/runs"

    def open_runs(self) -> None:
        """Opens the list of runs."""
        self.page.goto(f"{self._runs}?{_WORKFLOW}")
        self._run_links().first.wait_for()

    def _run_links(self) -> Any:
        return self.page.locator('[role="row"] a[href*="/runs/"]')

    def list_run_names(self) -> list[str]:
        """Names as shown, from top to bottom."""
        # The table puts rows in their places by style: their order in the document is another.
        rows: list[list[Any]] = self._run_links().evaluate_all(
            """(links) => links.map((link) => [
                Number(link.closest('[role="row"]').getAttribute("row-index")), link.innerText])"""
        )
        return [name for _, name in sorted(rows)]

    def sort_by(self, metric: str) -> None:
        """Sorts the list by a metric, the largest first, and shows the metric as a column."""
        self.page.get_by_role("button", name="Columns").click()
        self.page.get_by_placeholder("Search columns").fill(metric)
        columns = self.page.get_by_test_id("column-selector-tree")
        line = columns.locator('[class*="tree-treenode"]').filter(has_text=metric).last
        line.locator('[class*="tree-checkbox"]').first.click()
        self.page.keyboard.press("Escape")
        self.page.get_by_role("columnheader", name=metric).first.wait_for()
        self.page.get_by_role("button", name="Sort:").click()
        menu = self.page.get_by_role("menu")
        menu.get_by_placeholder("Search").fill(metric)
        with self.page.expect_response("**/mlflow/runs/search"):
            menu.get_by_text(metric, exact=True).click()
        self.page.get_by_role("button", name=f"Sort: {metric}").wait_for()
        self.page.wait_for_timeout(1000)  # nothing on the page tells when its rows are drawn anew

    def open_charts(self) -> None:
        """Shows the runs' curves side by side."""
        self.page.goto(f"{self._runs}?{_WORKFLOW}&compareRunsMode=CHART")
        self.page.locator(".js-plotly-plot").first.wait_for()

    def read_charts(self) -> dict[str, dict[str, Any]]:
        """What each chart in sight draws.

        Returns:
            By metric: ``"x"``, the title of its axis, and by the runs' names their ``"points"``,
            each ``(step, value)``, and their ``"colors"``.
        """
        charts: list[dict[str, Any]] = self.page.evaluate(_READ_CHARTS)
        return {chart["metric"]: chart for chart in charts if chart["metric"]}

    def open_artifact(self, run_id: str, path: str) -> None:
        """Opens a run's file by clicking through its folders."""
        self.page.goto(f"{self._runs}/{run_id}/artifacts?{_WORKFLOW}")
        *folders, name = path.split("/")
        for folder in folders:
            self.page.get_by_text(folder, exact=True).first.click()
        self.page.get_by_text(name, exact=True).first.click()

    def hide_path(self) -> None:
        """Hides where on this machine the file that is shown lies."""
        self.page.evaluate(
            """() => [...document.querySelectorAll("div, span")]
                .filter((element) => element.innerText?.startsWith("Path:"))
                .forEach((element) => { element.style.visibility = "hidden" })"""
        )

    def measure_picture(self) -> tuple[int, int]:
        """Width and height of the picture that is shown, once it is loaded."""
        found = self.page.wait_for_function(
            """() => [...document.querySelectorAll("img")]
                .filter((image) => image.src.startsWith("blob:") && image.naturalWidth > 0)
                .map((image) => [image.naturalWidth, image.naturalHeight])[0]"""
        )
        width, height = found.json_value()
        return width, height

    def play_video(self, seconds: float) -> dict[str, float]:
        """Plays the video that is shown, up to a time.

        Returns:
            ``"width"`` in pixels, ``"duration"`` and the reached ``"time"`` in seconds.
        """
        self.page.locator("video").wait_for()
        self.page.evaluate("() => document.querySelector('video').play()")
        self.page.wait_for_function(
            "(until) => document.querySelector('video').currentTime >= until", arg=seconds
        )
        return self.page.evaluate(
            """() => { const video = document.querySelector("video"); return {
                width: video.videoWidth, duration: video.duration, time: video.currentTime } }"""
        )


# The curves as plotly has them, and not the pixels. A card's heading is the metric.
_READ_CHARTS = """() => [...document.querySelectorAll(".js-plotly-plot")].map((plot) => ({
    metric: plot.closest('[data-testid="experiment-view-compare-runs-card"]')
        ?.querySelector("h1, h2, h3, h4, h5, [title]")?.innerText ?? "",
    x: plot.layout.xaxis?.title?.text ?? "",
    points: Object.fromEntries(plot.data.map((line) =>
        [line.name, Array.from(line.x ?? []).map((x, i) => [x, line.y[i]])])),
    colors: Object.fromEntries(plot.data.map((line) => [line.name, line.marker?.color])),
}))"""


@contextlib.contextmanager
def open_pages(store: str, experiment: str) -> Iterator[MLflowPages]:
    """Serves a store on the loopback interface and opens a browser on it.

    Args:
        store (str): URI of the MLflow store.
        experiment (str): name of the experiment.

    Raises:
        FileNotFoundError: if there is no Chromium.
        ValueError: if the store has no such experiment.
        TimeoutError: if the server does not answer within five minutes.
    """
    from mlflow import MlflowClient
    from playwright.sync_api import sync_playwright

    chromium = find_chromium()
    if chromium is None:
        raise FileNotFoundError("There is no Chromium: install it (Debian: apt install chromium).")
    found = MlflowClient(store).get_experiment_by_name(experiment)
    if found is None:
        raise ValueError(f"{store} has no experiment {experiment!r}.")
    with _serve(store) as url, sync_playwright() as playwright:
        # As root, which containers run as, Chromium starts only without its sandbox.
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"] if root else []
        )
        page = browser.new_page(viewport=_SIZE)
        page.set_default_timeout(_WAIT_MS)
        # MLflow's assistant opens itself on the first visit and covers a quarter of the page.
        page.add_init_script(
            "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"
            "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');"
        )
        yield MLflowPages(page, url, found.experiment_id)
        browser.close()


@contextlib.contextmanager
def _serve(store: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # One user, one worker: each of the usual four imports all of MLflow.
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--backend-store-uri", store]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # its workers end with it
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, server)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(30)
            os.killpg(server.pid, signal.SIGKILL)  # of what has not ended
        server.wait(30)


def _wait_for(url: str, server: subprocess.Popen[bytes], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        time.sleep(0.3)
    raise TimeoutError(f"mlflow ui did not answer at {url} within {seconds:.0f} s.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="of make demo")
    parser.add_argument("--experiment", default="demo")
    parser.add_argument("--out", type=Path, default=PICTURES)
    args = parser.parse_args()
    from mlflow import MlflowClient

    store = f"sqlite:///{(args.runs / 'mlflow.db').resolve()}"
    with open_pages(store, args.experiment) as pages:

        def take(name: str) -> None:
            pages.page.wait_for_timeout(2000)  # charts and menus move into place
            pages.page.screenshot(path=args.out / f"mlflow_{name}.png")
            print(args.out / f"mlflow_{name}.png")

        pages.open_runs()
        pages.sort_by("final/return")
        take("runs")
        best = pages.list_run_names()[0]
        pages.open_charts()
        take("charts")
        (run, *_) = MlflowClient(store).search_runs([pages.experiment_id], f"run_name = '{best}'")
        pages.open_artifact(run.info.run_id, "figures/open_loop_state.png")
        pages.measure_picture()
        pages.hide_path()
        take("figure")
        pages.open_artifact(run.info.run_id, "videos/final_policy.mp4")
        pages.play_video(1.0)
        pages.hide_path()
        take("video")


if __name__ == "__main__":
    main()
