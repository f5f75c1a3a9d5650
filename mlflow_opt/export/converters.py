"""Converters for skl2onnx that follow scikit-learn where its own do not: missing strings, unknown categories, encoders of numbers.

skl2onnx's own write a missing category as the text "nan", drop `unknown_value=0`, take only whole numbers as numeric
categories and one node per category column. What is registered here is taken back when the conversion is done, so that
a user's own use of skl2onnx in the same process is untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mlflow_opt.export.dropin_code import MISSING
from mlflow_opt.export.writer import Converters, Writer, is_text

_NO_CATEGORY = -1


def is_missing(value: Any) -> bool:
    """Tell whether a category stands for a missing value: None, NaN or pandas' NA."""
    import pandas as pd

    return bool(pd.isna(value))


def convert_one_hot(writer: Writer, operator: Any) -> None:
    """One-hot codes: every output column compares its input column with its category, all in one comparison per kind of input."""
    encoder = operator.raw_operator
    pieces = []
    for at, (name, text) in enumerate(writer.columns(operator.inputs)):
        places = _places(encoder, at)
        width = int(encoder._n_features_outs[at])
        code = _codes(writer, name, text, encoder.categories_[at], places, _unknown_place(encoder, at, places))
        wanted = writer.constant(np.arange(width, dtype=writer.dtype)[None, :])
        pieces.append(writer.number(writer.then("Equal", code, wanted)))
    writer.give(pieces[0] if len(pieces) == 1 else writer.then("Concat", *pieces, axis=1), operator.outputs[0])


def convert_ordinal(writer: Writer, operator: Any) -> None:
    """Ordinal codes, with scikit-learn's own rule for unknown and missing values."""
    encoder = operator.raw_operator
    unknown = np.nan if encoder.handle_unknown == "error" else float(encoder.unknown_value)
    pieces = []
    if _alike(encoder) and len(operator.inputs) == 1 and is_text(operator.inputs[0]):
        # One look-up for all columns: at one row each operator costs about as much as the trees behind it.
        values = [float(encoder.encoded_missing_value) if is_missing(one) else float(i) for i, one in enumerate(encoder.categories_[0])]
        writer.give(_codes(writer, operator.inputs[0].full_name, True, encoder.categories_[0], values, unknown), operator.outputs[0])
        return
    for at, (name, text) in enumerate(writer.columns(operator.inputs)):
        categories = encoder.categories_[at]
        grouped = _grouped(encoder, at, len(categories))
        values = [float(encoder.encoded_missing_value) if is_missing(one) else float(grouped[i]) for i, one in enumerate(categories)]
        pieces.append(_codes(writer, name, text, categories, values, unknown))
    writer.give(pieces[0] if len(pieces) == 1 else writer.then("Concat", *pieces, axis=1), operator.outputs[0])


def convert_imputer(writer: Writer, operator: Any) -> None:
    """Fill missing values, of text too, and add the indicator columns if they are asked for."""
    imputer = operator.raw_operator
    if is_text(operator.inputs[0]):
        names = [one.full_name for one in operator.inputs]
        whole = names[0] if len(names) == 1 else writer.then("Concat", *names, axis=1)
        token = MISSING if is_missing(imputer.missing_values) else str(imputer.missing_values)
        gone = _equals_text(writer, whole, token)
        fill = np.array([str(one) for one in imputer.statistics_], dtype=object)[None, :]
    else:
        whole = writer.joined(operator.inputs)
        gone = writer.then("IsNaN", whole)
        if not is_missing(imputer.missing_values):
            gone = writer.then("Equal", whole, writer.constant(np.array(imputer.missing_values, writer.dtype)))
        fill = np.asarray(imputer.statistics_, dtype=writer.dtype)[None, :]
    filled = writer.then("Where", gone, writer.constant(fill), whole)
    kept = [at for at, one in enumerate(imputer.statistics_) if not is_missing(one) or imputer.keep_empty_features]
    if len(kept) < len(imputer.statistics_):
        filled = writer.then("Gather", filled, writer.constant(np.array(kept)), axis=1)
    if imputer.add_indicator:
        if is_text(operator.inputs[0]):
            raise NotImplementedError("SimpleImputer(add_indicator=True) on text columns has no export; use MissingIndicator on numbers")
        shown = writer.then("Gather", gone, writer.constant(np.asarray(imputer.indicator_.features_)), axis=1)
        filled = writer.then("Concat", filled, writer.number(shown), axis=1)
    writer.give(filled, operator.outputs[0])


@contextmanager
def converters(dtype: Any, more: Converters) -> Iterator[None]:
    """Register our converters with skl2onnx for one conversion.

    Args:
        dtype: np.float64 or np.float32, of the numbers in the graph.
        more: estimator class -> (converter, number of output columns, whether it is a classifier).
    """
    from skl2onnx import update_registered_converter
    from skl2onnx._parse import sklearn_parsers_map
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    ours = {
        OneHotEncoder: (convert_one_hot, lambda encoder: int(sum(encoder._n_features_outs)), False),
        OrdinalEncoder: (convert_ordinal, lambda encoder: len(encoder.categories_), False),
        SimpleImputer: (convert_imputer, _imputed_columns, False),
    } | more
    before = {kind: (sklearn_operator_name_map.get(kind), sklearn_parsers_map.get(kind)) for kind in ours}
    try:
        for kind, (convert, width, classifies) in ours.items():
            options = {"zipmap": [True, False, "columns"], "nocl": [True, False], "raw_scores": [True, False]} if classifies else None
            alias = f"MlflowOpt{kind.__module__.split('.')[0]}{kind.__name__}{np.dtype(dtype).name}"
            made = _converter(convert, dtype), _shapes(width, dtype, classifies=classifies)
            parser = None if kind in more else _parser(alias, dtype)
            update_registered_converter(kind, alias, made[1], made[0], overwrite=True, options=options, parser=parser)
        yield
    finally:
        for kind, (alias, parser) in before.items():
            _restore(sklearn_operator_name_map, kind, alias)
            _restore(sklearn_parsers_map, kind, parser)


def _restore(registry: dict[type, Any], kind: type, value: Any) -> None:
    if value is None:
        registry.pop(kind, None)
    else:
        registry[kind] = value


def _converter(convert: Callable[..., None], dtype: Any) -> Callable[[Any, Any, Any], None]:
    def run(scope: Any, operator: Any, container: Any) -> None:
        convert(Writer(scope, container, dtype), operator)

    return run


def _parser(alias: str, dtype: Any) -> Callable[..., Any]:
    # Left to itself skl2onnx guesses from a text input that single precision comes out, and believes it to the end.
    def run(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
        del custom_parsers
        operator = scope.declare_local_operator(alias, model)
        operator.inputs = inputs
        kept_text = is_text(inputs[0]) and type(model).__name__ == "SimpleImputer"
        operator.outputs.append(
            scope.declare_local_variable("encoded", _number_type(dtype)() if not kept_text else inputs[0].type.__class__())
        )
        return operator.outputs

    return run


def _number_type(dtype: Any) -> Any:
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    return DoubleTensorType if np.dtype(dtype) == np.float64 else FloatTensorType


def _shapes(width: Callable[..., int], dtype: Any, *, classifies: bool) -> Callable[[Any], None]:
    def run(operator: Any) -> None:
        from skl2onnx.common.data_types import Int64TensorType, StringTensorType

        number = _number_type(dtype)
        estimator, rows = operator.raw_operator, operator.inputs[0].get_first_dimension()
        if classifies:
            text = np.asarray(estimator.classes_).dtype.kind in "UOT"
            operator.outputs[0].type = (StringTensorType if text else Int64TensorType)([rows])
        elif is_text(operator.inputs[0]) and type(estimator).__name__ == "SimpleImputer":
            number = StringTensorType
        operator.outputs[-1].type = number([rows, width(estimator)])

    return run


def _imputed_columns(imputer: Any) -> int:
    kept = sum(1 for one in imputer.statistics_ if not is_missing(one) or imputer.keep_empty_features)
    return kept + (len(imputer.indicator_.features_) if imputer.add_indicator else 0)


def _equals_text(writer: Writer, name: str, token: str) -> str:
    from onnx import TensorProto

    found = writer.then("LabelEncoder", name, domain="ai.onnx.ml", op_version=2, keys_strings=[token], values_int64s=[1], default_int64=0)
    return writer.then("Cast", found, to=TensorProto.BOOL)


def _alike(encoder: Any) -> bool:
    # The same values in the same order for every column, and no groups of rare ones.
    first = list(map(str, encoder.categories_[0]))
    return not getattr(encoder, "_infrequent_enabled", False) and all(list(map(str, one)) == first for one in encoder.categories_[1:])


def _grouped(encoder: Any, at: int, count: int) -> Sequence[int]:
    # With max_categories or min_frequency several categories share one code.
    groups = getattr(encoder, "_default_to_infrequent_mappings", None) if getattr(encoder, "_infrequent_enabled", False) else None
    mapping = groups[at] if groups is not None else None
    return range(count) if mapping is None else [int(one) for one in mapping]


def _places(encoder: Any, at: int) -> list[float]:
    places = [float(one) for one in _grouped(encoder, at, len(encoder.categories_[at]))]
    dropped = encoder._drop_idx_after_grouping
    if dropped is None or dropped[at] is None:
        return places
    return [_NO_CATEGORY if one == dropped[at] else one - (one > dropped[at]) for one in places]


def _unknown_place(encoder: Any, at: int, places: list[float]) -> float:
    infrequent = encoder._infrequent_indices[at] if getattr(encoder, "_infrequent_enabled", False) else None
    if encoder.handle_unknown in ("infrequent_if_exist", "warn") and infrequent is not None:
        return places[int(infrequent[0])]
    return _NO_CATEGORY


def _codes(writer: Writer, name: str, text: bool, categories: Any, values: Sequence[float], otherwise: float) -> str:
    """Look a column's values up: (rows, 1) of numbers."""
    if text:
        keys = [MISSING if is_missing(one) else str(one) for one in categories]
        floats = [float(one) for one in values]
        code = writer.then(
            "LabelEncoder", name, domain="ai.onnx.ml", op_version=2, keys_strings=keys, values_floats=floats, default_float=float(otherwise)
        )
        return writer.number(code)
    known = np.array([np.nan if is_missing(one) else float(one) for one in categories], writer.dtype)[None, :]
    same = writer.then("Equal", name, writer.constant(known))
    if np.isnan(known).any():
        gone = writer.then("And", writer.then("IsNaN", name), writer.constant(np.isnan(known)))
        same = writer.then("Or", same, gone)
    # An unknown value matches no category, so the sum over none of them must become the code for unknown values.
    table = np.array(values, writer.dtype)
    finite = writer.constant(np.nan_to_num(table)[:, None])
    picked = writer.then("MatMul", writer.number(same), finite)
    if np.isnan(table).any():
        missing = writer.then("MatMul", writer.number(same), writer.constant(np.isnan(table).astype(writer.dtype)[:, None]))
        half = writer.constant(np.array(0.5, writer.dtype))
        picked = writer.then("Where", writer.then("Greater", missing, half), writer.constant(np.array(np.nan, writer.dtype)), picked)
    hits = writer.then("MatMul", writer.number(same), writer.constant(np.ones((known.size, 1), writer.dtype)))
    found = writer.then("Greater", hits, writer.constant(np.array(0.5, writer.dtype)))
    return writer.then("Where", found, picked, writer.constant(np.array(otherwise, writer.dtype)))
