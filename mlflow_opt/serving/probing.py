"""Make up requests that a model should answer, to warm it, to time it, and to compare its fast path with pyfunc."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_opt.export import dropin_code
from mlflow_opt.serving.answers import Answers, divide, same
from mlflow_opt.serving.engines import Chunk, Engine

logger = logging.getLogger(__name__)

_ROWS = (1, 3, 16)
_SINGLE_ROWS = 96
_SCALES = (1.0, 0.1, 10.0, 100.0, 1.0, 1000.0, 30.0, 1e5)
_SIZES = (2, 3, 5, 8, 17, 33)
_SECONDS = 2.0


def requests_like(example: bytes | None, schema: Any, texts: Mapping[str, Sequence[str]] | None = None) -> list[bytes]:
    """Make requests of several sizes and formats from an input example, else from the signature alone.

    Args:
        example: the request that the model's input example makes.
        schema: MLflow's input schema, None if the model has none.
        texts: column -> the texts that the model takes, where it refuses others.

    Returns:
        Bodies; empty if nothing is known of the model.

    """
    own = [example] if example is not None else []
    if schema is None:
        return own
    try:
        made = _tensors(schema) if schema.is_tensor_spec() else _tables(schema, example, texts or {})
    except (KeyError, TypeError, ValueError) as error:
        logger.info("No further requests could be made from the signature (%s).", error)
        made = []
    return own + [json.dumps(request).encode() for request in made]


def alike_in_batches(engine: Engine, chunks: Sequence[Chunk], max_batch: int) -> bool:
    """Tell whether requests get bit for bit the same answers together as alone, at several batch sizes.

    Trees add up in the same order for every row. A matrix product does not: its kernels differ by the number of rows.
    """
    until = time.monotonic() + _SECONDS
    alone: list[Answers] = []
    while len(alone) < len(chunks) and time.monotonic() < until:
        alone.append(engine.run([chunks[len(alone)]]))
    start = 0
    for size in (*_SIZES, max_batch, max_batch):
        # Each size gets other requests than the one before.
        picked = [index % len(alone) for index in range(start, start + size)]
        sizes = [chunks[index].rows for index in picked]
        start += size
        try:
            together = engine.run([chunks[index] for index in picked])
        # A graph whose number of rows is fixed refuses; that it does so is the answer.
        except Exception as error:  # noqa: BLE001
            logger.info("The model refuses a batch (%s): each request is answered by itself.", error)
            return False
        if not all(same(alone[index], part) for index, part in zip(picked, divide(together, sizes), strict=True)):
            return False
    return True


def texts_of(folder: Path) -> dict[str, list[str]]:
    """Name the texts that a drop-in variant takes in columns where it refuses others; empty for other models."""
    file = folder / "artifacts" / dropin_code.VARIANT_FILE
    feeds = dropin_code.read_spec(file).binding.inputs if file.is_file() else ()
    return {name: [text for text in texts if text != dropin_code.MISSING] for feed in feeds for name, texts in feed.known.items()}


def _tables(schema: Any, example: bytes | None, texts: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    names = schema.input_names()
    known = _example_rows(example, names)
    rng = random.Random(0)  # noqa: S311 - made-up rows, no secret
    made: list[dict[str, Any]] = []
    for count in _ROWS:
        rows = [known[index % len(known)] if known else [_value(spec, rng, texts) for spec in schema.inputs] for index in range(count)]
        made.append({"dataframe_split": {"columns": names, "data": rows}})
        made.append({"dataframe_records": [dict(zip(names, row, strict=True)) for row in rows]})
        made.append({"instances": [dict(zip(names, row, strict=True)) for row in rows]})
        made.append({"inputs": {name: [row[place] for row in rows] for place, name in enumerate(names)}})
    gaps = [None if getattr(spec.type, "name", "") in ("double", "float", "string") else _value(spec, rng, texts) for spec in schema.inputs]
    made.append({"dataframe_split": {"columns": names, "data": [gaps, *(known[:1] or [])]}})
    # Rows of many scales: a tree that splits incomes tells no two rows apart whose values are all near 1.
    for index in range(_SINGLE_ROWS):
        scale = _SCALES[index % len(_SCALES)]
        made.append({"dataframe_split": {"columns": names, "data": [[_value(spec, rng, texts, scale) for spec in schema.inputs]]}})
    return made


def _example_rows(example: bytes | None, names: list[str]) -> list[list[Any]]:
    said = json.loads(example) if example else {}
    table = said.get("dataframe_split") if isinstance(said, dict) else None
    if not isinstance(table, dict) or table.get("columns") != names:
        return []
    return list(table["data"])


def _value(spec: Any, rng: random.Random, texts: Mapping[str, Sequence[str]], scale: float = 1.0) -> Any:
    kind = getattr(spec.type, "name", str(spec.type))
    if kind in ("double", "float"):
        return rng.choice((rng.gauss(0, scale), abs(rng.gauss(0, scale)), rng.randrange(1 + int(scale))))
    if kind in ("long", "integer"):
        return rng.randrange(2 + int(scale))
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "string":
        return rng.choice(texts.get(spec.name) or ("a", "b", ""))
    raise ValueError(f"no value can be made up for column {spec.name} of type {kind}")


def _tensors(schema: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    made: list[dict[str, Any]] = []
    for count in (*_ROWS, *([1] * _SINGLE_ROWS)):
        arrays = {spec.name or "": _array(spec, count, rng).tolist() for spec in schema.inputs}
        made.append({"inputs": arrays if schema.has_input_names() else arrays[""]})
        if not schema.has_input_names() and count > 1:
            made.append({"instances": arrays[""]})
    return made


def _array(spec: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    shape = [count, *(8 if size == -1 else size for size in tuple(spec.shape)[1:])]
    dtype = np.dtype(spec.type)
    if dtype.kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    if dtype.kind not in "fb":
        raise ValueError(f"no array can be made up of type {dtype}")
    return rng.normal(size=shape).astype(dtype)
