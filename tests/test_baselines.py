from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from mlflow_opt.baselines import train_baseline, train_network, train_pipeline
from mlflow_opt.data import Dataset, Split, read, split
from mlflow_opt.models import load


def _split(rows: Any, labels: np.ndarray) -> Split:
    return split(Dataset("made", rows, labels, "target", "made", None, ""))


def _first(data: Split) -> np.ndarray:
    assert isinstance(data.gate.rows, dict)
    return next(iter(data.gate.rows.values()))


def _pictures(shape: tuple[int, ...], dtype: Any = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """Make pictures whose class is the brighter half."""
    random = np.random.default_rng(0)
    labels = np.arange(300) % 2
    pictures = random.integers(0, 120, (300, *shape))
    axis = 2 if np.issubdtype(dtype, np.floating) and len(shape) == 3 else 1
    half = [slice(None)] * pictures.ndim
    half[axis] = slice(0, pictures.shape[axis] // 2)
    pictures[tuple(half)] += (100 * labels).reshape(-1, *[1] * len(shape))
    return pictures.astype(dtype), labels


@pytest.fixture(scope="module")
def telco(tmp_path_factory: pytest.TempPathFactory) -> tuple[Split, Path]:
    data = split(read("telco_churn"))
    return data, train_baseline(data, tmp_path_factory.mktemp("telco") / "model", 0)


def test_baseline_of_a_table_is_good_when_the_data_are_real(telco: tuple[Split, Path]) -> None:
    from sklearn.metrics import roc_auc_score

    data, folder = telco
    assert roc_auc_score(data.gate.labels, load(str(folder)).predict(data.gate.rows)[:, 1]) > 0.82


def test_baseline_of_a_table_answers_as_mlflow_expects_when_loaded(telco: tuple[Split, Path]) -> None:
    data, folder = telco
    loaded = mlflow.pyfunc.load_model(str(folder))
    assert set(np.unique(loaded.predict(data.gate.rows))) == {0, 1}
    assert not list(folder.rglob("*.pkl")), "nothing of it is pickled"
    assert loaded.metadata.get_input_schema().input_names() == list(data.gate.rows)


def test_baseline_of_a_table_is_the_same_when_the_seed_is(telco: tuple[Split, Path]) -> None:
    data, folder = telco
    assert isinstance(data.train.rows, pd.DataFrame)
    again, other = (train_pipeline(data.train.rows, data.train.labels, data.task, seed) for seed in (0, 1))
    scores = load(str(folder)).predict(data.gate.rows)
    assert (again.predict_proba(data.gate.rows) == scores).all()
    assert (other.predict_proba(data.gate.rows) != scores).any()


def test_baseline_of_a_table_takes_what_users_have_when_columns_are_mixed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "text": pd.Series(random.choice(np.array(["a", "b", None], dtype=object), 400), dtype="str"),
            "kind": pd.Categorical(random.choice(["c", "d"], 400)),
            "flag": random.random(400) < 0.5,
            "maybe": random.choice(np.array([True, False, None], dtype=object), 400),
            "number": np.where(random.random(400) < 0.2, np.nan, random.normal(size=400)),
            "when": pd.Timestamp("2025-01-01") + pd.to_timedelta(np.arange(400), unit="h"),
        }
    )
    rows.assign(target=np.where(rows["kind"] == "c", "yes", "no")).to_parquet(tmp_path / "mixed.parquet")
    data = split(read(str(tmp_path / "mixed.parquet")))
    with caplog.at_level(logging.WARNING):
        folder = train_baseline(data, tmp_path / "model", 0)
    assert "leaves out the date columns when" in caplog.text
    model = load(str(folder))
    assert (model.predict(data.gate.rows).argmax(1) == (data.gate.labels == "yes")).all()
    assert isinstance(data.gate.rows, pd.DataFrame)
    unseen = data.gate.rows.assign(text="never seen")
    assert np.isfinite(model.predict(unseen)).all()


def test_baseline_of_a_table_predicts_numbers_when_a_regression(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = pd.DataFrame({"a": random.normal(size=600), "b": random.normal(size=600)})
    data = _split(rows, (3 * rows["a"] + rows["b"]).to_numpy())
    scores = load(str(train_baseline(data, tmp_path / "model", 0))).predict(data.gate.rows)
    assert np.corrcoef(scores, data.gate.labels)[0, 1] > 0.95


def test_baseline_of_a_table_is_refused_when_there_are_only_dates() -> None:
    rows = pd.DataFrame({"when": pd.Timestamp("2025-01-01") + pd.to_timedelta(np.arange(400), unit="h")})
    data = _split(rows, np.arange(400) % 2)
    with pytest.raises(ValueError, match="got only when; give model="):
        train_pipeline(rows, np.arange(400) % 2, data.task, 0)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((8, 8), np.uint8), ((8, 8, 3), np.uint8), ((3, 8, 8), np.float32)],
    ids=["hw", "hwc", "chw"],
)
def test_network_learns_when_given_pictures(shape: tuple[int, ...], dtype: Any) -> None:
    pictures, labels = _pictures(shape, dtype)
    data = _split({"image": pictures / 255 if dtype == np.float32 else pictures}, labels)
    assert _accuracy(train_network(data, 0), data) > 0.9


def _accuracy(network: Any, data: Split) -> float:
    import torch

    values = torch.from_numpy(_first(data).astype(np.float32) if _first(data).dtype != np.uint8 else _first(data))
    with torch.inference_mode():
        return float((network(values).argmax(1).numpy() == data.gate.labels).mean())


def test_network_has_twenty_convolutions_when_built_for_pictures() -> None:
    from torch import nn

    from mlflow_opt.networks.networks import ResNet

    modules = list(ResNet(1, 10).modules())
    assert sum(isinstance(module, nn.Conv2d) for module in modules) == 20


def test_network_learns_when_given_numbers_or_series() -> None:
    random = np.random.default_rng(0)
    numbers = random.normal(5, 3, (800, 6)).astype(np.float32)
    labels = (numbers[:, 0] > numbers[:, 1]).astype(int)
    assert _accuracy(train_network(data := _split({"x": numbers}, labels), 0), data) > 0.9
    series = random.normal(size=(900, 5, 2)).astype(np.float32)
    labels = (series[:, -1, 0] > 0).astype(int)
    assert _accuracy(train_network(data := _split({"x": series}, labels), 0), data) > 0.85


def test_network_answers_in_the_target_s_units_when_a_regression(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(800, 3)).astype(np.float32)
    data = _split({"x": numbers}, 1000 + 50 * numbers[:, 0].astype(float))
    scores = load(str(train_baseline(data, tmp_path / "model", 0))).predict(data.gate.rows)
    assert scores.shape == data.gate.labels.shape
    assert np.abs(scores - data.gate.labels).mean() < 10


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"a": np.zeros((300, 2)), "b": np.arange(300.0)[:, None]}, "takes one array, got a, b; give model="),
        ({"a": np.where(np.arange(600).reshape(300, 2) == 7, np.nan, 1.0 * np.arange(600).reshape(300, 2))}, "1 rows with NaN; fill"),
        ({"a": np.arange(300 * 16, dtype=np.int64).reshape(300, 2, 2, 2, 2)}, "no default network for int64 arrays"),
        ({"a": np.arange(300).astype(str)[:, None]}, "no default network for <U"),
    ],
    ids=["several", "nan", "shape", "texts"],
)
def test_network_is_refused_when_no_default_fits(rows: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train_network(_split(rows, np.arange(300) % 2), 0)


def test_saved_network_loads_when_mlflow_opt_is_not_installed(tmp_path: Path) -> None:
    pictures, labels = _pictures((8, 8))
    data = _split({"image": pictures}, labels)
    folder = train_baseline(data, tmp_path / "model", 0)
    expected = mlflow.pyfunc.load_model(str(folder)).predict(_first(data))
    np.save(tmp_path / "rows.npy", _first(data))
    code = f"""
import importlib, json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path = [place for place in sys.path if not (__import__("pathlib").Path(place) / "mlflow_opt").exists()]
try:
    importlib.import_module("mlflow_opt.records")
except ModuleNotFoundError:
    sys.modules.pop("mlflow_opt", None)
else:
    raise SystemExit("mlflow_opt is still there")
import mlflow, numpy
answer = mlflow.pyfunc.load_model({str(folder)!r}).predict(numpy.load({str(tmp_path / "rows.npy")!r}))
print(json.dumps(answer.tolist()))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert shown.returncode == 0, shown.stderr
    assert np.allclose(json.loads(shown.stdout.splitlines()[-1]), expected, atol=1e-5)


@pytest.mark.slow
def test_baseline_of_pictures_is_good_when_the_data_are_real(tmp_path: Path) -> None:
    data = split(read("fashion_mnist"))
    scores = load(str(train_baseline(data, tmp_path / "model", 0))).predict(data.gate.rows)
    assert (scores.argmax(1) == data.gate.labels).mean() > 0.875
