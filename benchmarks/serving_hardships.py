"""What a server must get through: bad rows beside good ones, thousands of idle connections, a soak, SIGTERM in flight, alias swaps.

Run with `python -m benchmarks.serving_hardships`. SERVING_SOAK_S is the length of the soak (600 s, which the bound is for).
Nothing here is a speed: client and server may share one core.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.results_file import save
from benchmarks.serving import bodies, save_booster
from benchmarks.serving_peers import hardships


def main() -> None:
    """Measure and write results/serving_hardships.*."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        booster = save_booster(folder / "booster", seed=0)
        # The soak lasts ten minutes and the swaps not much less, so they run beside each other, each with its own server.
        with ProcessPoolExecutor(1, get_context("spawn")) as beside:
            swapping = beside.submit(hardships.swaps, folder, booster, bodies(200))
            said = hardships.measure(folder, booster, bodies(200), float(os.environ.get("SERVING_SOAK_S", "600")))
            said["swaps"] = swapping.result()
    figures: dict[str, Any] = {"hardships": said, "load_average": os.getloadavg()}
    save("serving_hardships", figures, [f"- {line}" for line in said.values()])


if __name__ == "__main__":
    main()
