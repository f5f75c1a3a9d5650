"""scikit-learn's trees, and LightGBM inside a pipeline, as TreeEnsemble nodes that decide as the library does.

skl2onnx writes thresholds in single precision or leaves double precision half done, and sums votes in single precision,
which is what turns ties at 0.5. Here thresholds and leaves are doubles, features are rounded to single precision first
where the library does so, and the mean is taken after the sum.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from mlflow_opt.export.lightgbm_trees import booster_nodes
from mlflow_opt.export.tree_columns import NodeArrays, TreeColumns
from mlflow_opt.export.writer import Converters, Writer, both_classes, give_classes

# skl2onnx writes graphs of ai.onnx.ml 3 and refuses newer nodes; `settle_opsets` raises the version of the finished graph.
_PLACEHOLDER = 3


def tree_converters() -> Converters:
    """List the converters of tree models: class -> (converter, number of output columns, whether it classifies)."""
    from sklearn import ensemble, tree

    found: Converters = {}
    for kind in (ensemble.RandomForestClassifier, ensemble.ExtraTreesClassifier, tree.DecisionTreeClassifier, tree.ExtraTreeClassifier):
        found[kind] = (convert_forest, _class_count, True)
    for kind in (ensemble.RandomForestRegressor, ensemble.ExtraTreesRegressor, tree.DecisionTreeRegressor, tree.ExtraTreeRegressor):
        found[kind] = (convert_forest, lambda estimator: int(estimator.n_outputs_), False)
    found[ensemble.GradientBoostingClassifier] = (convert_boosting, _class_count, True)
    found[ensemble.GradientBoostingRegressor] = (convert_boosting, _one, False)
    found[ensemble.HistGradientBoostingClassifier] = (convert_histogram_boosting, _class_count, True)
    found[ensemble.HistGradientBoostingRegressor] = (convert_histogram_boosting, _one, False)
    return found | _boosting_converters()


def convert_forest(writer: Writer, operator: Any) -> None:
    """Write a decision tree or a forest; of two classes only the later one's share is summed."""
    forest = operator.raw_operator
    members = [one.tree_ for one in getattr(forest, "estimators_", [forest])]
    classifies = hasattr(forest, "classes_")
    if classifies and forest.n_outputs_ > 1:
        raise NotImplementedError("a forest with several targets has no export; train one per target")
    values = [_leaf_values(tree, classifies=classifies) for tree in members]
    first = 1 if classifies and values[0].shape[1] == 2 else 0
    summed = _sum_trees(writer, _single(writer, operator), [(tree, value[:, first:]) for tree, value in zip(members, values, strict=True)])
    mean = summed if len(members) == 1 else writer.then("Div", summed, writer.constant(np.array(len(members), writer.dtype)))
    if not classifies:
        writer.give(mean, operator.outputs[0])
        return
    give_classes(writer, operator, both_classes(writer, mean) if first else mean)


def convert_boosting(writer: Writer, operator: Any) -> None:
    """Write GradientBoosting: a constant start, then the sum of its trees, then the loss's link."""
    model = operator.raw_operator
    start = model._raw_predict_init(np.zeros((2, model.n_features_in_), np.float32))
    if not np.array_equal(start[0], start[1]) or not _constant_start(model):
        raise NotImplementedError("GradientBoosting that starts from another model has no export; use the default init")
    columns = model.estimators_.shape[1]
    trees = []
    for stage in model.estimators_:
        for at, one in enumerate(stage):
            spread = np.zeros((one.tree_.node_count, columns))
            spread[:, at] = one.tree_.value[:, 0, 0] * model.learning_rate
            trees.append((one.tree_, spread))
    raw = writer.then("Add", _sum_trees(writer, _single(writer, operator), trees), writer.constant(start[:1].astype(writer.dtype)))
    if not hasattr(model, "classes_"):
        writer.give(raw, operator.outputs[0])
        return
    doubled = model.loss == "exponential"
    if doubled:
        raw = writer.then("Mul", raw, writer.constant(np.array(2, writer.dtype)))
    give_classes(
        writer, operator, both_classes(writer, writer.then("Sigmoid", raw)) if columns == 1 else writer.then("Softmax", raw, axis=1)
    )


def convert_histogram_boosting(writer: Writer, operator: Any) -> None:
    """Write HistGradientBoosting, whose trees compare doubles."""
    model = operator.raw_operator
    if model.is_categorical_ is not None:
        raise NotImplementedError("HistGradientBoosting with categorical features has no export; one-hot encode them in the pipeline")
    columns = TreeColumns()
    for stage in model._predictors:
        for target, one in enumerate(stage):
            nodes = one.nodes
            left, right = (np.where(nodes["is_leaf"], -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
            missing = nodes["missing_go_to_left"]
            tree = NodeArrays(left, right, nodes["feature_idx"], nodes["num_threshold"], missing, nodes["value"], nodes["count"])
            columns.grow(tree, target)
    start = np.asarray(model._baseline_prediction, dtype=writer.dtype).reshape(1, -1)
    summed = _ensemble(writer, writer.joined(operator.inputs), columns, int(model.n_features_in_), start.shape[1])
    raw = writer.then("Add", summed, writer.constant(start))
    link = type(model._loss.link).__name__
    operators = {"IdentityLink": "", "LogLink": "Exp", "LogitLink": "Sigmoid", "MultinomialLogit": "Softmax"}
    if link not in operators:
        raise NotImplementedError(f"HistGradientBoosting with the link {link} has no export; use another loss")
    axis: dict[str, Any] = {"axis": 1} if link == "MultinomialLogit" else {}
    answer = writer.then(operators[link], raw, **axis) if operators[link] else raw
    if not hasattr(model, "classes_"):
        writer.give(answer, operator.outputs[0])
        return
    give_classes(writer, operator, both_classes(writer, answer) if start.shape[1] == 1 else answer)


def convert_lightgbm(writer: Writer, operator: Any) -> None:
    """Write a LightGBM model of the scikit-learn API that is part of a pipeline or an ensemble."""
    model = operator.raw_operator
    given = writer.scope.get_unique_variable_name("boosted")
    nodes, constants = booster_nodes(model.booster_, writer.joined(operator.inputs), given, writer.dtype, prefix=f"{given}_")
    _add(writer, nodes, constants)
    _give_boosted(writer, operator, given, columns=model.booster_.num_model_per_iteration())


def convert_xgboost(writer: Writer, operator: Any) -> None:
    """Write an XGBoost model of the scikit-learn API that is part of a pipeline or an ensemble."""
    from mlflow_opt.export import from_xgboost
    from mlflow_opt.flavours.boosting import best_iterations

    model = operator.raw_operator
    given = writer.scope.get_unique_variable_name("boosted")
    learner = from_xgboost.read_booster(model.get_booster(), best_iterations(model))
    nodes, constants = from_xgboost.booster_nodes(learner, _single(writer, operator, back=False), given, prefix=f"{given}_")
    _add(writer, nodes, constants)
    _give_boosted(writer, operator, writer.number(given), columns=from_xgboost.columns_of(learner))


def _add(writer: Writer, nodes: list[Any], constants: list[Any]) -> None:
    from onnx import helper, numpy_helper

    names = {one.name: writer.constant(numpy_helper.to_array(one)) for one in constants}
    for node in nodes:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        version = {"op_version": _PLACEHOLDER} if node.op_type == "TreeEnsemble" else {}
        inputs = [names.get(one, one) for one in node.input]
        name = writer.scope.get_unique_operator_name(node.op_type)
        writer.container.add_node(node.op_type, inputs, list(node.output), op_domain=node.domain, name=name, **version, **attributes)


def _give_boosted(writer: Writer, operator: Any, given: str, *, columns: int) -> None:
    if not hasattr(operator.raw_operator, "classes_"):
        writer.give(given, operator.outputs[0])
        return
    give_classes(writer, operator, both_classes(writer, given) if columns == 1 else given)


def _boosting_converters() -> Converters:
    # Looked for and not required: a pipeline without them must export where they are not installed.
    found: Converters = {}
    if importlib.util.find_spec("lightgbm"):
        import lightgbm

        found |= {lightgbm.LGBMClassifier: (convert_lightgbm, _class_count, True), lightgbm.LGBMRegressor: (convert_lightgbm, _one, False)}
    if importlib.util.find_spec("xgboost"):
        import xgboost

        found |= {xgboost.XGBClassifier: (convert_xgboost, _class_count, True), xgboost.XGBRegressor: (convert_xgboost, _one, False)}
    return found


def _one(estimator: Any) -> int:
    del estimator
    return 1


def _class_count(estimator: Any) -> int:
    return len(estimator.classes_)


def _constant_start(model: Any) -> bool:
    return model.init_ == "zero" or type(model.init_).__name__.startswith("Dummy")


def _leaf_values(tree: Any, *, classifies: bool) -> np.ndarray:
    # (nodes, targets, classes): a classifier has one target here, a regressor one class.
    values: np.ndarray = tree.value[:, 0, :] if classifies else tree.value[:, :, 0]
    return values / values.sum(axis=1, keepdims=True) if classifies else values


def _single(writer: Writer, operator: Any, *, back: bool = True) -> str:
    """Round the features to single precision, and back as scikit-learn's trees do before they compare with a double."""
    from onnx import TensorProto

    rounded = writer.then("Cast", writer.joined(operator.inputs), to=TensorProto.FLOAT)
    return writer.number(rounded) if back else rounded


def _sum_trees(writer: Writer, taken: str, trees: list[tuple[Any, np.ndarray]]) -> str:
    """Add one TreeEnsemble over scikit-learn trees with their leaf values (nodes, targets)."""
    targets = trees[0][1].shape[1]
    columns = TreeColumns()
    for tree, values in trees:
        missing = getattr(tree, "missing_go_to_left", None)
        missing = np.zeros(tree.node_count, bool) if missing is None else np.asarray(missing, bool)
        # A leaf has one target in this operator, so a tree whose leaves hold several is repeated for each that it holds.
        for target in range(targets):
            if targets == 1 or np.any(values[:, target]):
                ways = tree.children_left, tree.children_right, tree.feature, tree.threshold
                columns.grow(NodeArrays(*ways, missing, values[:, target], tree.n_node_samples), target)
    return _ensemble(writer, taken, columns, int(trees[0][0].n_features), targets)


def _ensemble(writer: Writer, taken: str, columns: TreeColumns, width: int, targets: int) -> str:
    """Add a TreeEnsemble over a matrix of so many columns, which is doubled where its decisions ask for that."""
    if columns.likely_last(width, writer.dtype):
        taken = writer.then("Concat", taken, writer.then("Neg", taken), axis=1)
    attributes = columns.attributes(targets, 1, writer.dtype)
    return writer.then("TreeEnsemble", taken, domain="ai.onnx.ml", op_version=_PLACEHOLDER, **attributes)
