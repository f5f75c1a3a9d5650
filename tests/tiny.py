"""Small real tasks with small trained models, for running a whole recipe in seconds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TELCO = ROOT / "mlflow_opt/datasets/telco_churn.parquet"


@dataclass(frozen=True)
class Tiny:
    """A data file, the name of its target, and the folder of an MLflow model trained on it."""

    data: Path
    target: str
    model: Path


def tiny_table(folder: Path, rows: int = 1500) -> Tiny:
    """Take some customers of the bundled churn table and fit a one-hot logistic regression."""
    import mlflow.sklearn
    import pandas as pd
    from mlflow.models import infer_signature
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    table = pd.read_parquet(TELCO).head(rows)
    table.to_parquet(folder / "churn.parquet")
    features = table.drop(columns=["target", "split"])
    texts = [str(name) for name in features if not pd.api.types.is_numeric_dtype(features[name])]
    numbers = [str(name) for name in features if name not in texts]
    encode = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), texts), (StandardScaler(), numbers))
    model = make_pipeline(encode, SimpleImputer(), LogisticRegression(max_iter=500)).fit(features, table["target"])
    # MLflow warns of whole-number columns, which could not hold a missing value.
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        signature = infer_signature(features, model.predict(features))
    kept = {"skops_trusted_types": ["numpy.dtype"], "pip_requirements": ["scikit-learn"]}
    mlflow.sklearn.save_model(model, str(folder / "table"), signature=signature, **kept)
    return Tiny(folder / "churn.parquet", "target", folder / "table")


def tiny_network(folder: Path) -> Tiny:
    """Take scikit-learn's handwritten digits and train a one-convolution network."""
    import mlflow.pytorch
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    np.savez(folder / "digits.npz", images=images, target=digits.target)
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(144, 10))
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rows, labels = torch.from_numpy(images), torch.from_numpy(digits.target)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(torch.nn.functional.cross_entropy(model(rows), labels))
        optimizer.step()
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 1, 8, 8))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 10))]),
    )
    kept = {"serialization_format": "pickle", "pip_requirements": ["torch"]}
    mlflow.pytorch.save_model(model.eval(), str(folder / "network"), signature=signature, **kept)
    return Tiny(folder / "digits.npz", "target", folder / "network")


def tiny_ensemble(folder: Path, rows: int = 1500) -> Tiny:
    """Take some customers of the bundled churn table and let four models vote, of which the forest costs most by far."""
    import mlflow.sklearn
    import pandas as pd
    from mlflow.models import infer_signature
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, VotingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    table = pd.read_parquet(TELCO).head(rows)
    table.to_parquet(folder / "churn.parquet")
    features = table.drop(columns=["target", "split"])
    texts = [str(name) for name in features if not pd.api.types.is_numeric_dtype(features[name])]
    numbers = [str(name) for name in features if name not in texts]
    filled = make_pipeline(SimpleImputer(), StandardScaler())
    encode = make_column_transformer((OneHotEncoder(handle_unknown="ignore", sparse_output=False), texts), (filled, numbers))
    members = [
        ("linear", LogisticRegression(max_iter=500)),
        ("forest", RandomForestClassifier(150, min_samples_leaf=5, random_state=0)),
        ("boosting", HistGradientBoostingClassifier(max_iter=20, random_state=0)),
        ("bayes", GaussianNB()),
    ]
    model = make_pipeline(encode, VotingClassifier(members, voting="soft")).fit(features, table["target"])
    # MLflow warns of whole-number columns, which could not hold a missing value.
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        signature = infer_signature(features, model.predict(features))
    kept = {"serialization_format": "cloudpickle", "pip_requirements": ["scikit-learn"]}
    mlflow.sklearn.save_model(model, str(folder / "ensemble"), signature=signature, **kept)
    return Tiny(folder / "churn.parquet", "target", folder / "ensemble")


def tiny_trees(folder: Path, rows: int = 1500) -> Tiny:
    """Take the numbers of some customers of the bundled churn table and fit boosted trees."""
    import lightgbm
    import mlflow.lightgbm
    import pandas as pd
    from mlflow.models import infer_signature

    table = pd.read_parquet(TELCO).head(rows)
    numbers = [str(name) for name in table if pd.api.types.is_numeric_dtype(table[name]) and name != "target"]
    table = table[[*numbers, "target"]].astype(dict.fromkeys(numbers, float))
    table.to_parquet(folder / "numbers.parquet")
    features = table.drop(columns="target")
    fitted = lightgbm.LGBMClassifier(n_estimators=60, num_leaves=15, verbose=-1, n_jobs=1).fit(features, table["target"])
    signature = infer_signature(features, fitted.predict(features))
    mlflow.lightgbm.save_model(fitted, str(folder / "trees"), signature=signature, pip_requirements=["lightgbm"])
    return Tiny(folder / "numbers.parquet", "target", folder / "trees")
