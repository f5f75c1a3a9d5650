"""Take the pictures of the docs: a recipe's run as MLflow's own pages show it, by a headless Chromium.

Run with `python -m docs.screenshots` (it runs `compile`, some steps of `pipeline` and `compare` on the bundled churn table first, some
minutes), or give a store that holds such runs: `python -m docs.screenshots sqlite:///mlflow.db`. Writes docs/images/*.png.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from mlflow import MlflowClient
from mlflow.entities import Run

from tests import browser
from tests.servers import free_port

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
NAME = "churn"
WIDTH, HEIGHT = 1360, 850
MADE = (
    ("compile", "--register_as", NAME),
    ("pipeline", "--steps", "baseline,compile,select_features,threshold", "--time_budget_s", "300"),
    ("compare",),
)
# Sections of a pipeline's page that tell its story.
STORY = ("What each step brought", "What became of each step")
# MLflow's pages load their parts one by one and say nowhere that they are done: so long nothing may change.
QUIET_S, PATIENCE_S = 3.0, 60.0
# Turned off or on in the table of runs.
COLUMNS = ("Dataset", "Source", "Models", "speedup", "roc_auc", "latency_p50_ms", "size_mb", "mlflow_opt.standing", "pareto")
# The pages of model training, not those of agents.
TRAINING = "?workflowType=machine_learning"


def main(argv: list[str]) -> None:
    """Take every picture.

    Args:
        argv: a store's URI, or nothing.
    """
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="screenshots-") as folder:
        store = argv[0] if argv else _made(Path(folder))
        with _server(store, Path(folder)) as address, browser.open_browser() as tab:
            tab.look(WIDTH, HEIGHT)
            _without_assistant(tab, address)
            for name, page in _pages(MlflowClient(store)).items():
                tab.open(f"{address}/{page}", "document.querySelector('#root')", 60)
                _settle(tab)
                if name == "runs":
                    _choose_columns(tab)
                # Where the artifacts lie on this machine is of no interest.
                tab.evaluate(
                    "[...document.querySelectorAll('*')].filter(e => /^Path:/.test(e.innerText)).forEach(e => e.style.opacity = 0)"
                )
                _keep(tab.picture(IMAGES / f"{name}.png"), page)
            _chain_of_steps(tab, MlflowClient(store), Path(folder))


def _without_assistant(tab: browser.Browser, address: str) -> None:
    """Close the panel that MLflow opens at a browser's first visit; it remembers that."""
    close = "document.querySelector('[data-component-id=\"mlflow.assistant.chat_panel.close\"]')"
    tab.open(f"{address}/", close, 60)
    tab.evaluate(f"{close}.click()")


def _choose_columns(tab: browser.Browser) -> None:
    """Show what a recipe's runs are told apart by, and open the first run that has children."""
    find = "[...document.querySelectorAll('{}')].find(e => e.innerText.trim() === '{}')"
    tab.evaluate(f"{find.format('button', 'Columns')}.click()")
    time.sleep(1)
    for name in COLUMNS:
        tab.evaluate(f"{find.format('.du-bois-light-tree-title', name)}.click()")
        time.sleep(0.3)
    tab.evaluate(f"{find.format('button', 'Columns')}.click()")
    tab.evaluate("document.querySelector('[data-component-id*=runnamecellrenderer]').click()")
    _settle(tab)


def _chain_of_steps(tab: browser.Browser, client: MlflowClient, folder: Path) -> None:
    """Take the part of a pipeline's page that shows what each step brought."""
    experiments = [one.experiment_id for one in client.search_experiments()]
    run = _newest(client, experiments, "tags.`mlflow_opt.recipe` = 'pipeline' and status = 'FINISHED'", parent=True)
    page = Path(client.download_artifacts(run.info.run_id, "report.html", str(folder)))
    tab.look(1000, HEIGHT)
    tab.open(page.as_uri(), "document.body.dataset.drawn", 60)
    find = f"[...document.querySelectorAll('section')].filter(one => {json.dumps(STORY)}.includes(one.querySelector('h2').innerText))"
    first, last = tab.evaluate(f"{find}.map(one => one.getBoundingClientRect()).map(one => [one.top + scrollY, one.bottom + scrollY])")
    # What lies below the window is not drawn.
    tab.look(1000, int(last[1]) + HEIGHT)
    clip = {"x": 0, "y": first[0], "width": 1000, "height": last[1] - first[0] + 12}
    _keep(tab.picture(IMAGES / "pipeline.png", clip=clip), "report.html of a pipeline")


def _keep(path: Path, page: str) -> None:
    _shrink(path)
    sys.stdout.write(f"{path.name}  {path.stat().st_size // 1024} KB  {page}\n")


def _settle(tab: browser.Browser) -> None:
    """Wait until the page has text and has not changed for a while."""
    before, since, until = "", time.monotonic(), time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        now = str(tab.evaluate("document.body.innerText.length + '/' + document.querySelectorAll('*').length"))
        if now != before:
            before, since = now, time.monotonic()
        if time.monotonic() - since > QUIET_S and not tab.evaluate("!!document.querySelector('[class*=skeleton i]')"):
            return
        time.sleep(0.3)


def _made(folder: Path) -> str:
    """Run the recipes that the pictures show, in a store of their own."""
    store = f"sqlite:///{folder / 'mlflow.db'}"
    environment = os.environ | {"MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT)}
    for command in MADE:
        # The words are those above.
        subprocess.run(  # noqa: S603
            [sys.executable, "-m", "mlflow_opt.cli", *command], cwd=folder, env=environment, check=True
        )
    return store


def _pages(client: MlflowClient) -> dict[str, str]:
    """Name the pages of the newest run that chose something, of its comparison, and of the model."""
    experiments = [one.experiment_id for one in client.search_experiments()]
    parent = _newest(
        client, experiments, "tags.`mlflow_opt.recipe` = 'compile' and status = 'FINISHED' and metrics.gate_passed = 1", parent=True
    )
    compared = _newest(client, experiments, "tags.`mlflow_opt.recipe` = 'compare' and status = 'FINISHED'", parent=True)
    home = f"#/experiments/{parent.info.experiment_id}/runs"
    children = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    ids = json.dumps([run.info.run_id for run in children]).replace(" ", "")
    return {
        "runs": f"{home}{TRAINING}",
        "run": f"{home}/{parent.info.run_id}{TRAINING}",
        "report": f"{home}/{parent.info.run_id}/artifacts/report.html{TRAINING}",
        "compare-runs": f'#/compare-runs?runs={ids}&experiments=["{parent.info.experiment_id}"]&{TRAINING[1:]}',
        "comparison": f"#/experiments/{compared.info.experiment_id}/runs/{compared.info.run_id}/artifacts/comparison.html{TRAINING}",
        "model": f"#/models/{NAME}{TRAINING}",
    }


def _newest(client: MlflowClient, experiments: list[str], condition: str, *, parent: bool) -> Run:
    found = [run for run in client.search_runs(experiments, condition) if parent != ("mlflow.parentRunId" in run.data.tags)]
    if not found:
        raise ValueError(
            f"the store must hold a run with {condition}, and holds none; run `mlflow-opt compile` and `mlflow-opt compare` first."
        )
    return found[0]


def _shrink(path: Path) -> None:
    """Store a picture again in as few bytes as PNG allows."""
    from PIL import Image

    with Image.open(path) as image:
        image.convert("RGB").save(path, optimize=True)


@contextmanager
def _server(store: str, folder: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "server.log").open("w") as log:
        ours = [*command, "--backend-store-uri", store]
        # MLflow's own server, on a port and a store that the user gave.
        process = subprocess.Popen(ours, cwd=folder, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
        try:
            _await(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)


def _await(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            if requests.get(f"{address}/health", timeout=2).ok:
                return
        except requests.RequestException:
            time.sleep(0.3)
    raise RuntimeError("the server must answer within two minutes and did not.")


if __name__ == "__main__":
    main(sys.argv[1:])
