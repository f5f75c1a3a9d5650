"""Follow the registry: what an alias names is loaded and warmed beside what is served, and takes its place in one step."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from mlflow_opt.serving import versions
from mlflow_opt.serving.served import Served, load
from mlflow_opt.serving.settings import Settings
from mlflow_opt.serving.telemetry import Telemetry

logger = logging.getLogger(__name__)

# A version that was refused is tried again after so long: its download may have failed, its evidence may have come.
_RETRY_S = 60.0


@dataclass(frozen=True)
class Refused:
    """A version that the alias named and that is not served: its URI, why, and when it was tried (monotonic seconds)."""

    pinned: str
    why: str
    tried: float


class Live:
    """The version being served, and the watch over the alias that names it."""

    def __init__(self, uri: str, settings: Settings, fixed: frozenset[str], telemetry: Telemetry) -> None:
        """Prepare; `start` loads.

        Args:
            uri: of the model, as given.
            settings: of the server.
            fixed: names of the settings that a model's tag must not change.
            telemetry: where swaps and calls are counted.

        """
        self._uri, self._settings, self._fixed, self._telemetry = uri, settings, fixed, telemetry
        self._served: Served | None = None
        self._watching: asyncio.Task[None] | None = None
        self.refused: Refused | None = None
        self.swaps = 0

    @property
    def served(self) -> Served:
        """Return the version being served."""
        if self._served is None:
            raise RuntimeError("nothing is loaded yet; await start() first.")
        return self._served

    @property
    def loaded(self) -> bool:
        """Tell whether a version is loaded."""
        return self._served is not None

    def load(self) -> None:
        """Load the version that the URI names: before there is an event loop, so that what is wrong with it ends the process.

        Raises:
            ValueError: it cannot be served.

        """
        self._served = self._load(versions.resolve(self._uri))

    async def start(self) -> None:
        """Load the version that the URI names unless `load` did, and watch the alias if it is one.

        Raises:
            ValueError: it cannot be served; a server that cannot answer does not start.

        """
        if self._served is None:
            await asyncio.to_thread(self.load)
        if versions.follows_alias(self._uri) and self._settings.watch_s > 0:
            self._watching = asyncio.create_task(self._watch(), name="watch-alias")

    async def stop(self) -> None:
        """Stop watching, and let go of the model; it stays until its requests are answered."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._served is not None:
            self._served.retire()
            self._served = None

    async def look(self) -> None:
        """Look at the alias once, and swap if it names another version that can be served."""
        from mlflow.exceptions import MlflowException

        try:
            named = await asyncio.to_thread(versions.resolve, self._uri)
        # The registry being away, or the alias being gone for a moment, is no reason to stop answering.
        except (MlflowException, OSError, ValueError) as error:
            self._telemetry.swaps.add("unreachable")
            logger.warning(
                "The registry does not say what %s is (%s); still serving %s.", self._uri, error, self.served.facts.version.pinned
            )
            return
        if named.pinned == self.served.facts.version.pinned:
            self.refused = None
            return
        if self.refused and self.refused.pinned == named.pinned and time.monotonic() < self.refused.tried + _RETRY_S:
            return
        await self._swap(named)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.watch_s)
            await self.look()

    async def _swap(self, named: versions.Version) -> None:
        before = self.served
        try:
            made = await asyncio.to_thread(self._load, named)
        # A new version may fail in any way that its own code can fail; the old one goes on, and /version says why.
        except Exception as error:  # noqa: BLE001
            self.refused = Refused(named.pinned, str(error)[:1000], time.monotonic())
            self._telemetry.swaps.add("refused")
            logger.warning("%s is not served (%s); still serving %s.", named.pinned, error, before.facts.version.pinned)
            return
        self._served, self.refused = made, None
        self.swaps += 1
        self._telemetry.swaps.add("done")
        logger.info("Now serving %s instead of %s.", named.pinned, before.facts.version.pinned)
        before.retire()

    def _load(self, named: versions.Version) -> Served:
        return load(named, self._settings, self._fixed, self._telemetry.batch_rows.observe)
