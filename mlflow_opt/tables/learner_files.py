"""A table's trained model as files without pickle, and the place beside a variant where it is kept for later training."""

from __future__ import annotations

import logging
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from mlflow_opt import models
from mlflow_opt.flavours.model_files import TRAINABLE
from mlflow_opt.models import Model
from mlflow_opt.tables.learners import Fitted, native_of, typed

logger = logging.getLogger(__name__)

# Whose classes are plain data or the library's own loader; a class of the user's own would have to be pickled.
_TRUSTED = ("sklearn.", "lightgbm.", "xgboost.", "numpy.", "scipy.", "collections.", "builtins.", "joblib.", "pandas.")


def save(fitted: Fitted, rows: pd.DataFrame, folder: Path) -> Model:
    """Save a trained estimator in its library's own format and load it.

    Args:
        fitted: what was trained.
        rows: some rows, for the signature.
        folder: must not exist.

    Raises:
        ValueError: it holds classes that would have to be pickled.
    """
    from mlflow.models import infer_signature

    some = typical(typed(rows, fitted.columns, fitted.categories))
    with warnings.catch_warnings():
        # MLflow's advice on integer columns; that they have no missing values is what the training rows say.
        warnings.filterwarnings("ignore", message="Hint: Inferred schema contains integer column")
        _write(fitted.estimator, infer_signature(some, fitted.estimator.predict(some)), folder)
    return models.load(str(folder), 1)


def typical(rows: pd.DataFrame) -> pd.DataFrame:
    """Make two rows that show what every column holds: a value, and nothing where the column has missing values.

    A signature read from the first rows of a table calls a text that is missing there a column of any type, and MLflow then
    hands the model a number in its place.

    Example:
        >>> typical(pd.DataFrame({"town": [None, None, "x"], "age": [3, 4, 5]})).to_dict("list")
        {'town': ['x', nan], 'age': [3, 3]}

    Args:
        rows: one or more.
    """
    missing = rows.isna()
    places = {name: (int((~missing[name]).to_numpy().argmax()), int(missing[name].to_numpy().argmax())) for name in rows}
    return pd.DataFrame({name: rows[name].iloc[[at, gone]].reset_index(drop=True) for name, (at, gone) in places.items()})


def carry(source: Model, folder: Path) -> bool:
    """Put a table's model beside a variant of it, as `trainable/`.

    Args:
        source: scikit-learn, LightGBM or XGBoost, or a variant that carries one.
        folder: of the variant.

    Returns:
        Whether it can be trained again; if not, the reason is logged.
    """
    try:
        native = native_of(source)
        if any(native.path.rglob("*.pkl")):
            _write(native.native, native.signature, folder / TRAINABLE)
        else:
            shutil.copytree(native.path, folder / TRAINABLE)
    except ValueError as why:
        logger.info("The variant cannot be trained again: %s", why)
        shutil.rmtree(folder / TRAINABLE, ignore_errors=True)
        return False
    return True


def _write(estimator: Any, signature: Any, folder: Path) -> None:
    import mlflow.lightgbm
    import mlflow.sklearn
    import mlflow.xgboost

    kind = type(estimator).__name__
    if kind.startswith("LGBM") or kind == "Booster":
        mlflow.lightgbm.save_model(estimator, str(folder), signature=signature, pip_requirements=_pinned("lightgbm", "scikit-learn"))
    elif kind.startswith("XGB"):
        pins = _pinned("scikit-learn")
        mlflow.xgboost.save_model(estimator, str(folder), signature=signature, pip_requirements=["xgboost", *pins], model_format="json")
    else:
        mlflow.sklearn.save_model(
            estimator,
            str(folder),
            signature=signature,
            serialization_format="skops",
            skops_trusted_types=_trusted(estimator),
            pip_requirements=_pinned("scikit-learn", "lightgbm", "skops"),
        )


def _trusted(estimator: Any) -> list[str]:
    import skops.io

    found = skops.io.get_untrusted_types(data=skops.io.dumps(estimator))
    strange = [name for name in found if not name.startswith(_TRUSTED)]
    if strange:
        raise ValueError(f"a model is saved without pickle, and {', '.join(strange)} would need it; use the libraries' own transformers.")
    return list(found)


def _pinned(*packages: str) -> list[str]:
    return [f"{name}=={version(name)}" for name in ("pandas", "numpy", *packages)]
