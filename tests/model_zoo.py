"""Small models of every flavour, trained on real tables, saved as MLflow models: what loading, exporting and drop-ins are tested on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import Schema, TensorSpec

# The package has no types.
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import nn

from mlflow_opt import models
from mlflow_opt.models import Model
from mlflow_opt.records import Task
from tests.tiny import TELCO


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Train on one thread: OpenMP's threads wait for each other, which takes seconds on a machine that is busy."""
    with threadpool_limits(1):
        yield


TRAINED = slice(0, 1500)
BINARY = Task("binary", (0, 1))


def telco(*, holes: bool = False, categories: bool = False) -> tuple[pd.DataFrame, np.ndarray]:
    """Read the churn table; with holes, a twentieth of its text and of two number columns is missing."""
    table = pd.read_parquet(TELCO).head(3000)
    labels = table.pop("target").to_numpy()
    table = table.drop(columns="split")
    text = text_columns(table)
    if holes:
        random = np.random.default_rng(0)
        table[text] = table[text].astype(object)
        table[["tenure", "monthly_charges"]] = table[["tenure", "monthly_charges"]].astype(float)
        for column in [*text, "tenure", "monthly_charges"]:
            table.loc[random.random(len(table)) < 0.05, column] = np.nan
    if categories:
        table[text] = table[text].astype("category")
    return table, labels


def text_columns(table: pd.DataFrame) -> list[str]:
    return [str(name) for name in table if not pd.api.types.is_numeric_dtype(table[name].dtype)]


def number_columns(table: pd.DataFrame) -> list[str]:
    return [str(name) for name in table if pd.api.types.is_numeric_dtype(table[name].dtype)]


def housing() -> tuple[pd.DataFrame, np.ndarray]:
    """Make a regression of the churn table's numbers: what a customer has paid so far."""
    table, _ = telco()
    table = table[["tenure", "monthly_charges", "partner", "dependents"]].astype(float)
    return table, (table["tenure"] * table["monthly_charges"] + np.sin(table["monthly_charges"]) * 50).to_numpy()


def save(folder: Path, native: Any, rows: Any, answer: Any = None, flavour: str = "sklearn", **kept: Any) -> Model:
    """Save a native model with a signature inferred from rows and load it through its flavour."""
    import mlflow.lightgbm
    import mlflow.pytorch
    import mlflow.sklearn

    save_model = getattr(mlflow, flavour).save_model
    if flavour == "sklearn":
        kept = {"serialization_format": "cloudpickle", **kept}
    answer = native.predict(rows[:5]) if answer is None else answer
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    # MLflow warns of whole-number columns, which could not hold a missing value.
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        save_model(native, str(folder), signature=infer_signature(rows, answer), pip_requirements=["mlflow"], **kept)
    logger.setLevel(level)
    return models.load(str(folder))


def save_network(folder: Path, module: nn.Module, inputs: list[TensorSpec], outputs: tuple[int, ...], **kept: Any) -> Model:
    import mlflow.pytorch

    signature = ModelSignature(Schema([*inputs]), Schema([TensorSpec(np.dtype(np.float32), (-1, *outputs))]))
    kept = {"serialization_format": "pickle", **kept}
    logging.getLogger("mlflow.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch.export warns of torch's own use of torch.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pytorch.save_model(module.eval(), str(folder), signature=signature, pip_requirements=["torch"], **kept)
    return models.load(str(folder))


def encoded(last: Any, table: pd.DataFrame, text: Any = None, numbers: Any = None) -> Any:
    """Put a ColumnTransformer over text and numbers before an estimator."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    text = OneHotEncoder(handle_unknown="ignore") if text is None else text
    numbers = make_pipeline(SimpleImputer(), StandardScaler()) if numbers is None else numbers
    return make_pipeline(make_column_transformer((text, text_columns(table)), (numbers, number_columns(table))), last)


@dataclass(frozen=True)
class Estimator:
    """An estimator not yet fitted, for a table with or without holes."""

    make: Callable[[pd.DataFrame], Any]
    holes: bool = False


def _sklearn() -> dict[str, Estimator]:
    from lightgbm import LGBMClassifier
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier, VotingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
    from sklearn.svm import LinearSVC

    def logistic() -> Any:
        return LogisticRegression(max_iter=500)

    def ordinal(missing: float) -> Any:
        return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=missing)

    def dense() -> Any:
        return OneHotEncoder(handle_unknown="ignore", sparse_output=False)

    def voters(table: pd.DataFrame) -> list[tuple[str, Any]]:
        forest = encoded(RandomForestClassifier(10, random_state=0), table)
        return [
            ("a", forest),
            ("b", encoded(logistic(), table)),
            ("c", encoded(LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1), table, dense())),
        ]

    scaled = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    imputed = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    filled = make_pipeline(SimpleImputer(strategy="constant", fill_value="none"), OneHotEncoder(handle_unknown="ignore"))
    rare = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=300, drop="if_binary")
    return {
        "logistic": Estimator(lambda t: encoded(logistic(), t)),
        "imputed_one_hot": Estimator(lambda t: encoded(logistic(), t, imputed, scaled), True),
        "filled_one_hot": Estimator(lambda t: encoded(logistic(), t, filled), True),
        "missing_is_a_category": Estimator(lambda t: encoded(logistic(), t), True),
        "rare_categories": Estimator(lambda t: encoded(logistic(), t, rare), True),
        "ordinal_missing_nan": Estimator(
            lambda t: encoded(LGBMClassifier(n_estimators=20, verbose=-1, n_jobs=1), t, ordinal(np.nan), "passthrough"), True
        ),
        "ordinal_missing_coded": Estimator(
            lambda t: encoded(LGBMClassifier(n_estimators=20, verbose=-1, n_jobs=1), t, ordinal(-2), "passthrough"), True
        ),
        "forest": Estimator(lambda t: encoded(RandomForestClassifier(50, random_state=0, n_jobs=2), t)),
        "gradient_boosting": Estimator(lambda t: encoded(GradientBoostingClassifier(n_estimators=10), t, dense())),
        "histogram_boosting": Estimator(lambda t: encoded(HistGradientBoostingClassifier(max_iter=10), t, dense(), "passthrough"), True),
        "voting_soft": Estimator(lambda t: VotingClassifier(voters(t), voting="soft")),
        "voting_hard": Estimator(lambda t: VotingClassifier(voters(t))),
        "linear_svc": Estimator(lambda t: encoded(LinearSVC(), t)),
        "ridge": Estimator(lambda t: encoded(RidgeClassifier(), t)),
        "discriminant": Estimator(lambda t: encoded(LinearDiscriminantAnalysis(), t, dense())),
        "grid_search": Estimator(lambda t: GridSearchCV(encoded(logistic(), t), {"logisticregression__C": [0.1, 1]}, cv=2)),
        "no_column_transformer": Estimator(lambda t: make_pipeline(ordinal(np.nan), HistGradientBoostingClassifier(max_iter=5)), True),
    }


SKLEARN = _sklearn()


class Convolutions(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.relu(self.norm(self.first(x)))
        return self.last((x + torch.relu(self.second(x))).mean((2, 3)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds, self.last = nn.Embedding(50, 8), nn.Embedding(2, 8), nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor) -> Any:
        return self.last((self.words(input_ids) + self.kinds(token_type_ids)).mean(1))


class Series(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory, self.last = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.memory(x)[0][:, -1])


class Eigenvalues(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return torch.linalg.eigvals(x).real


def images(folder: Path, **kept: Any) -> tuple[Model, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    rows = {"pixels": np.random.default_rng(0).normal(size=(40, 1, 12, 12)).astype(np.float32)}
    if kept.get("serialization_format") == "pt2":
        kept["input_example"] = rows["pixels"][:3]
    return save_network(folder, Convolutions(), [TensorSpec(np.dtype(np.float32), (-1, 1, 12, 12))], (10,), **kept), rows


def sentences(folder: Path) -> tuple[Model, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    rows = {"token_type_ids": random.integers(0, 2, (30, 7)), "input_ids": random.integers(0, 50, (30, 7))}
    whole = np.dtype(np.int64)
    specs = [TensorSpec(whole, (-1, -1), "input_ids"), TensorSpec(whole, (-1, -1), "token_type_ids")]
    return save_network(folder, TwoInputs(), specs, (3,)), rows


def series(folder: Path) -> tuple[Model, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    rows = {"x": np.random.default_rng(0).normal(size=(30, 9, 4))}
    return save_network(folder, Series(), [TensorSpec(np.dtype(np.float32), (-1, 9, 4))], (1,)), rows


def boosters() -> dict[str, Callable[[Path], tuple[Model, Any, Task]]]:
    """List LightGBM models by name: what makes one gives the model, its rows and the task."""
    import lightgbm

    quiet: dict[str, Any] = {"n_estimators": 30, "verbose": -1, "num_threads": 1}

    def classifier(folder: Path, *, categories: bool) -> tuple[Model, Any, Task]:
        table, labels = telco(categories=categories, holes=categories)
        table = table if categories else table[number_columns(table)].astype(float)
        native = lightgbm.LGBMClassifier(**quiet).fit(table[TRAINED], labels[TRAINED])
        return save(folder, native, table, flavour="lightgbm"), table, BINARY

    def booster(folder: Path, *, categories: bool) -> tuple[Model, Any, Task]:
        table, labels = telco(categories=categories)
        table = table if categories else table[number_columns(table)].astype(float)
        native = lightgbm.train(
            {"objective": "binary", "verbose": -1, "num_threads": 1}, lightgbm.Dataset(table[TRAINED], labels[TRAINED]), 20
        )
        return save(folder, native, table, flavour="lightgbm"), table, BINARY

    def multiclass(folder: Path) -> tuple[Model, Any, Task]:
        table, values = housing()
        native = lightgbm.LGBMClassifier(**quiet).fit(table, np.digitize(values, [500, 2000]))
        return save(folder, native, table, flavour="lightgbm"), table, Task("multiclass", (0, 1, 2))

    def regressor(folder: Path) -> tuple[Model, Any, Task]:
        table, values = housing()
        native = lightgbm.LGBMRegressor(**quiet).fit(table, values)
        return save(folder, native, table, flavour="lightgbm"), table, Task("regression")

    return {
        "classifier": lambda folder: classifier(folder, categories=False),
        "classifier_categories": lambda folder: classifier(folder, categories=True),
        "booster": lambda folder: booster(folder, categories=False),
        "booster_categories": lambda folder: booster(folder, categories=True),
        "multiclass": multiclass,
        "regressor": regressor,
    }


BOOSTERS = boosters()
