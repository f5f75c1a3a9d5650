"""Linear classifiers whose own answer is a decision value, and linear discriminant analysis, in double precision.

skl2onnx has the former in single precision only and under options that differ from class to class, and gives wrong
probabilities for discriminant analysis of two classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflow_opt.export.writer import Converters, Writer, both_classes, give_classes


def linear_converters() -> Converters:
    """List the converters of linear classifiers: class -> (converter, number of output columns, whether it classifies)."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import Perceptron, RidgeClassifier, RidgeClassifierCV
    from sklearn.svm import LinearSVC

    kinds = (LinearSVC, Perceptron, RidgeClassifier, RidgeClassifierCV, LinearDiscriminantAnalysis)
    return {kind: (convert_linear, lambda estimator: len(estimator.classes_), True) for kind in kinds}


def convert_linear(writer: Writer, operator: Any) -> None:
    """Write decision values, of two classes as (-d, d), or probabilities where the estimator has them."""
    model = operator.raw_operator
    coefficients = np.atleast_2d(model.coef_)
    weights = writer.constant(coefficients.T.astype(writer.dtype))
    product = writer.then("MatMul", writer.joined(operator.inputs), weights)
    decision = writer.then("Add", product, writer.constant(np.broadcast_to(model.intercept_, (1, len(coefficients))).astype(writer.dtype)))
    if len(model.classes_) > 2:
        give_classes(writer, operator, writer.then("Softmax", decision, axis=1) if hasattr(model, "predict_proba") else decision)
    elif hasattr(model, "predict_proba"):
        give_classes(writer, operator, both_classes(writer, writer.then("Sigmoid", decision)))
    else:
        give_classes(writer, operator, writer.then("Concat", writer.then("Neg", decision), decision, axis=1))
