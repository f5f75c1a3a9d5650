"""One loaded version, checked and warm: what a request is given to, and what a swap puts in its place."""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_opt import models
from mlflow_opt.serving import settings as options
from mlflow_opt.serving import versions
from mlflow_opt.serving.batcher import Batcher, CallFailed, Pace, Taker
from mlflow_opt.serving.engines import Chunk, Engine, Unsuitable, open_engine
from mlflow_opt.serving.probing import alike_in_batches, requests_like, texts_of
from mlflow_opt.serving.replies import Reply, written
from mlflow_opt.serving.scoring import Scorer, example_request
from mlflow_opt.serving.settings import Settings
from mlflow_opt.serving.versions import Standing, Version

logger = logging.getLogger(__name__)

_JSON = "application/json"
# Each comparison costs a call of pyfunc, some milliseconds.
_COMPARED = 40


@dataclass(frozen=True)
class Facts:
    """What `/version` tells about a loaded version.

    Args:
        version: as the registry names it.
        digest: of its files.
        standing: what is proven of it.
        engine: runtime of the fast path, or why there is none.
        batches: whether requests are joined, or why not.
        settings: in force for it.

    """

    version: Version
    digest: str
    standing: Standing
    engine: str
    batches: str
    settings: Settings


class Served:
    """A loaded version; requests hold it while they are answered, so that a swap disturbs none of them."""

    def __init__(self, facts: Facts, scorer: Scorer, engine: Engine | None, batcher: Batcher | None) -> None:
        """Take what `load` has made."""
        self.facts = facts
        # Before a content type, as the key under which answers are kept.
        self.identity = f"{facts.version.pinned}:{facts.digest}:"
        self._scorer, self._engine, self._batcher = scorer, engine, batcher
        self._pool = ThreadPoolExecutor(facts.settings.concurrency, thread_name_prefix="pyfunc")
        self.users = 0
        self._retired = False

    @property
    def signature(self) -> Any:
        """Return MLflow's signature of the model, None if it has none."""
        return self._scorer.signature

    @property
    def waiting(self) -> int:
        """Return how many requests wait for a call of the fast path."""
        return self._batcher.waiting if self._batcher else 0

    async def answer(self, body: bytes, content_type: str) -> Reply:
        """Answer a request: by the fast path if it takes the request, else by MLflow's own code in a thread."""
        chunk = self.read(body, content_type)
        if chunk is not None and self._batcher is not None:
            try:
                return Reply(200, await self._batcher.submit(chunk), "fast")
            except CallFailed:
                logger.debug("The fast path refused a request; MLflow's own code answers it.")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._scorer.answer, body, content_type)

    def read(self, body: bytes, content_type: str) -> Chunk | None:
        """Read a request for the fast path, None if it is not for it."""
        if self._engine is None or content_type != _JSON:
            return None
        return self._engine.read(body)

    def put(self, chunk: Chunk, taker: Taker) -> None:
        """Queue a request that `read` has read; the taker gets the body of its answer, or `CallFailed`."""
        if self._batcher is None:
            raise RuntimeError("only what read() has read may be queued.")
        self._batcher.put(chunk, taker)

    def retire(self) -> None:
        """Free the threads once nobody is being answered any more."""
        self._retired = True
        self.release(0)

    def release(self, users: int = 1) -> None:
        """Let go of a request's hold."""
        self.users -= users
        if self._retired and self.users == 0:
            self._pool.shutdown(wait=False)
            if self._batcher:
                self._batcher.close()


def load(version: Version, given: Settings, fixed: frozenset[str], record: Callable[[int], object]) -> Served:
    """Load, check and warm a version. It takes seconds and belongs into a thread.

    Args:
        version: what to load.
        given: settings of the server.
        fixed: names of the settings that whoever started the server gave; the others come from the model's tag.
        record: told the rows of every call of the fast path.

    Raises:
        ValueError: it does not load, does not answer its own example, or has no PASS where one is required.

    """
    model = models.load(version.pinned)
    model_id = version.model_id or model.model_id
    tags = versions.tags_of(model_id) if model_id else {}
    known = Version(version.uri, version.pinned, version.name, version.number, model_id)
    proven = versions.standing(known, model.digest, tags)
    if given.require_verdict and not proven.passed:
        raise ValueError(f"{version.pinned} must have a PASS to be served with require_verdict, got {proven.outcome}: {proven.text}.")
    chosen = options.with_tag(given, tags)
    chosen = options.changed(chosen, {name: getattr(given, name) for name in fixed})
    scorer = Scorer(model.path)
    samples = _samples(model.path, scorer)
    engine, why = _engine(model.path, scorer, chosen, samples)
    pace, batches = _pace(engine, chosen, samples)
    batcher = Batcher(engine.run, pace, record, written) if engine else None
    facts = Facts(known, model.digest, proven, engine.name if engine else f"pyfunc: {why}", batches, chosen)
    logger.info("Loaded %s (%s, verdict %s, batching: %s).", version.pinned, facts.engine, proven.outcome, batches)
    return Served(facts, scorer, engine, batcher)


def _samples(folder: Path, scorer: Scorer) -> list[bytes]:
    example = example_request(folder)
    if example is not None:
        answered = scorer.answer(example, _JSON)
        if answered.status != 200:
            raise ValueError(f"a model must answer its own input example, got {answered.status}: {answered.body.decode()[:500]}")
    return requests_like(example, scorer.schema, texts_of(folder))


def _engine(folder: Path, scorer: Scorer, chosen: Settings, samples: list[bytes]) -> tuple[Engine | None, str]:
    """Open the fast path and compare it with MLflow's own answers; where they differ there is none."""
    try:
        engine = open_engine(folder, scorer.schema, chosen.threads)
    except Unsuitable as error:
        return None, str(error)
    compared = 0
    for body in samples[:_COMPARED]:
        chunk = engine.read(body)
        wanted = scorer.answer(body, _JSON)
        if chunk is None or wanted.status != 200:
            continue
        compared += 1
        if json.loads(written(engine.run([chunk]), [chunk.rows])[0]) != json.loads(wanted.body):
            logger.warning("The fast path answers otherwise than pyfunc, so it is not used: %s.", folder)
            return None, "the fast path's answers differ from pyfunc's"
    return (engine, "") if compared else (None, "no request could be made up to compare the fast path with pyfunc; save an input example")


def _pace(engine: Engine | None, chosen: Settings, samples: list[bytes]) -> tuple[Pace, str]:
    """Find out how long calls take, and whether a batch answers as its rows do alone."""
    if engine is None:
        return Pace(), "no: pyfunc"
    found = [chunk for chunk in (engine.read(body) for body in samples) if chunk is not None and _takes(engine, chunk)]
    one = next((chunk for chunk in found if chunk.rows == 1), found[0])
    short = _seconds(engine, [one])
    if chosen.batching == "off":
        return Pace(1, 0.0, short, 0.0), "no: batching is off"
    same = not engine.uncertain and alike_in_batches(engine, found, chosen.max_batch)
    why = engine.uncertain or "seen"
    if not same and chosen.batching == "exact":
        # Still taken together, so that they share a turn of the event loop or of the thread, and called one by one.
        return Pace(chosen.max_batch, 0.0, 0.0, short / one.rows, joins=False), f"no: beside other rows the last bits may differ ({why})"
    several = [one] * max(1, chosen.max_batch // one.rows)
    long = _seconds(engine, several)
    per_row = max(0.0, (long - short) / max(1, (len(several) - 1) * one.rows))
    pace = Pace(chosen.max_batch, chosen.window_ms / 1000, short, per_row)
    return pace, "yes" if same else f"yes, perhaps with other last bits ({why})"


def _takes(engine: Engine, chunk: Chunk) -> bool:
    try:
        engine.run([chunk])
    except ValueError:
        # A made-up row that this model refuses, such as one with a gap in a column of text.
        return False
    return True


def _seconds(engine: Engine, chunks: list[Chunk]) -> float:
    taken: list[float] = []
    until = time.perf_counter() + 0.2
    while len(taken) < 3 or (time.perf_counter() < until and len(taken) < 50):
        start = time.perf_counter()
        engine.run(chunks)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
