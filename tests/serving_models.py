"""Small real models for the tests of the server, and the server's application beside MLflow's own, both in this process."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import lightgbm
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from mlflow.models.signature import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.types.schema import ColSpec, Schema, TensorSpec

from mlflow_opt import models
from mlflow_opt.export import dropin, exporting
from mlflow_opt.records import Task
from mlflow_opt.serving.app import Application
from mlflow_opt.serving.settings import Settings, changed

NUMBERS = ["a", "b", "c", "d"]
MIXED = ["age", "income", "visits", "plan"]


def numbers(rows: int, seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(seed).normal(size=(rows, 4)), columns=NUMBERS)


def mixed(rows: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"age": rng.normal(50, 9, rows), "income": rng.normal(size=rows), "visits": rng.integers(0, 30, rows)})
    table["plan"] = rng.choice(["basic", "plus", "pro"], rows)
    table["income"] = table.income.where(np.arange(rows) % 7 != 0)
    table["plan"] = table.plan.where(np.arange(rows) % 9 != 0)
    return table


def save_booster(folder: Path, trees: int = 20, *, seed: int = 0, example: bool = True) -> Path:
    """Save a LightGBM booster on four doubles."""
    rows = numbers(400)
    labels = (rows.a + rows.b * rows.c + 0.1 * seed > 0).astype(int)
    settings = {"objective": "binary", "verbose": -1, "num_leaves": 15, "seed": seed}
    booster = lightgbm.train(settings, lightgbm.Dataset(rows, labels), trees)
    signature = infer_signature(rows, booster.predict(rows))
    shown = rows.iloc[:2] if example else None
    with warnings.catch_warnings():
        # MLflow compares an example's columns with a range, which pandas will read otherwise in its next version.
        warnings.filterwarnings("ignore", message="Operation with range is deprecated")
        mlflow.lightgbm.save_model(booster, str(folder), signature=signature, input_example=shown, pip_requirements=["lightgbm"])
    return folder


def save_classifier(folder: Path) -> Path:
    """Save a LightGBM classifier under the scikit-learn API, with three text labels."""
    rows = numbers(300)
    labels = np.array(["high", "low", "mid"])[np.digitize(rows.a + rows.b, [-0.5, 0.5])]
    fitted = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(rows, labels)
    mlflow.lightgbm.save_model(fitted, str(folder), signature=infer_signature(rows, fitted.predict(rows)), pip_requirements=["lightgbm"])
    return folder


def save_pipeline(folder: Path, *, unknown: str = "ignore") -> Path:
    """Save a scikit-learn pipeline on numbers, whole numbers and text with missing values."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rows = mixed(400)
    labels = ((rows.age > 50) ^ (rows.plan == "pro")).astype(int)
    text = make_pipeline(SimpleImputer(strategy="constant", fill_value="none"), OneHotEncoder(handle_unknown=unknown))
    steps = ColumnTransformer([("numbers", SimpleImputer(), MIXED[:3]), ("text", text, MIXED[3:])])
    fitted = make_pipeline(steps, RandomForestClassifier(20, max_depth=5, random_state=0)).fit(rows, labels)
    # Spelt out, because MLflow warns when it infers a whole-number column.
    kinds = zip(("double", "double", "long", "string"), MIXED, strict=True)
    signature = ModelSignature(Schema([ColSpec(kind, name) for kind, name in kinds]), Schema([ColSpec("long")]))
    mlflow.sklearn.save_model(
        fitted, str(folder), signature=signature, pip_requirements=["scikit-learn"], serialization_format="cloudpickle"
    )
    return folder


def save_plain_pipeline(folder: Path) -> Path:
    """Save a scikit-learn model on the four doubles: one that has no fast path."""
    from sklearn.linear_model import LinearRegression

    rows = numbers(50)
    fitted = LinearRegression().fit(rows, rows.a)
    signature = infer_signature(rows, fitted.predict(rows))
    mlflow.sklearn.save_model(
        fitted, str(folder), signature=signature, pip_requirements=["scikit-learn"], serialization_format="cloudpickle"
    )
    return folder


def save_variant(baseline: Path, folder: Path, example: Any, task: Task) -> Path:
    """Save the drop-in variant of a model."""
    model = models.load(str(baseline))
    graph = exporting.to_onnx(model, example, task)
    dropin.save_dropin(graph, model, folder, session=dropin.SessionOptions(threads=1), example=example)
    return folder


def save_network(folder: Path) -> Path:
    """Save a network, 12 numbers to 3 classes, as an ONNX model with a tensor signature."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in (("w", (12, 3)), ("z", (3,)))]
    nodes = [helper.make_node("Gemm", ["x", "w", "z"], ["h"]), helper.make_node("Softmax", ["h"], ["y"], axis=1)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size]) for name, size in (("x", 12), ("y", 3))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    signature = ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 12))]), Schema([TensorSpec(np.dtype("float32"), (-1, 3))]))
    onnx.checker.check_model(proto)
    mlflow.onnx.save_model(proto, str(folder), signature=signature, pip_requirements=["onnxruntime"])
    return folder


@pytest.fixture(scope="session")
def serving_models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Save one model of each kind that the server treats in its own way."""
    root = tmp_path_factory.mktemp("serving-models")
    booster, pipeline, network = save_booster(root / "booster"), save_pipeline(root / "pipeline"), save_network(root / "network")
    return {
        "booster": booster,
        "classifier": save_classifier(root / "classifier"),
        "pipeline": pipeline,
        "pipeline_on_numbers": save_plain_pipeline(root / "pipeline_on_numbers"),
        "trees_variant": save_variant(booster, root / "trees_variant", numbers(64), Task("binary", (0, 1))),
        "strict_variant": save_variant(
            save_pipeline(root / "strict", unknown="error"), root / "strict_variant", mixed(64), Task("binary", (0, 1))
        ),
        "mixed_variant": save_variant(pipeline, root / "mixed_variant", mixed(64), Task("binary", (0, 1))),
        "network_variant": save_variant(network, root / "network_variant", {"x": _images(8)}, Task("multiclass", (0, 1, 2))),
    }


def _images(rows: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(rows, 12)).astype(np.float32)


class Pair:
    """Our application and MLflow's own for one model, asked the same."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.application = Application(str(folder), settings, frozenset({"workers"}))
        self.reference = scoring_server.init(mlflow.pyfunc.load_model(str(folder)))

    async def both(self, body: bytes, content_type: str = "application/json") -> tuple[httpx.Response, httpx.Response]:
        headers = {"content-type": content_type}
        ours = await client(self.application).post("/invocations", content=body, headers=headers)
        return ours, await client(self.reference).post("/invocations", content=body, headers=headers)


def client(application: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://server")


def answered_by(application: Application) -> dict[str, int]:
    """Count the answers so far by who gave them."""
    application.telemetry.flush(0)
    samples = [sample for metric in application.telemetry.requests.counter.collect() for sample in metric.samples]
    counts: dict[str, int] = {}
    for sample in samples:
        if sample.name.endswith("_total"):
            counts[sample.labels["path"]] = counts.get(sample.labels["path"], 0) + int(sample.value)
    return counts


def with_application(folder: Path | str, check: Callable[[Application], Awaitable[None]], **given: Any) -> Application:
    """Run a check against a started application."""

    async def run() -> Application:
        application = Application(str(folder), changed(Settings(), given), frozenset(given))
        await application.start()
        try:
            await check(application)
        finally:
            await application.stop()
        return application

    return asyncio.run(run())


def split(rows: pd.DataFrame, **more: Any) -> bytes:
    """Write rows as a dataframe_split request."""
    return json.dumps({"dataframe_split": json.loads(rows.to_json(orient="split", double_precision=15)) | more}).encode()
