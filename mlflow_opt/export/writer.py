"""How our converters add to the graph that skl2onnx is building."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Estimator class -> (converter, number of output columns, whether it classifies).
Converters = dict[type, tuple[Callable[..., None], Callable[..., int], bool]]


class Writer:
    """Adds nodes to the graph that skl2onnx is building, under names of its own."""

    def __init__(self, scope: Any, container: Any, dtype: Any) -> None:
        self.scope = scope
        self.container = container
        self.dtype = np.dtype(dtype)

    def then(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and name that."""
        given = self.scope.get_unique_variable_name(operator.lower())
        self.container.add_node(
            operator, list(inputs), [given], op_domain=domain, name=self.scope.get_unique_operator_name(operator), **attributes
        )
        return str(given)

    def constant(self, values: Any) -> str:
        """Add a constant and name it."""
        from onnx import helper

        array = np.asarray(values)
        name = self.scope.get_unique_variable_name("constant")
        element = helper.np_dtype_to_tensor_dtype(np.dtype(object) if array.dtype.kind in "UO" else array.dtype)
        content = [str(one).encode() for one in array.ravel()] if array.dtype.kind in "UO" else array.ravel().tolist()
        self.container.add_initializer(name, element, list(array.shape), content)
        return str(name)

    def number(self, name: str) -> str:
        """Cast to the number type of this export."""
        from onnx import helper

        return self.then("Cast", name, to=helper.np_dtype_to_tensor_dtype(self.dtype))

    def give(self, name: str, output: Any) -> None:
        """Let a value be what the operator answers."""
        self.container.add_node("Identity", [name], [output.full_name], name=self.scope.get_unique_operator_name("Identity"))

    def columns(self, inputs: Sequence[Any]) -> list[tuple[str, bool]]:
        """Split the operator's inputs into single columns (rows, 1) and tell of each whether it holds text."""
        from skl2onnx.common.data_types import StringTensorType

        found = []
        for one in inputs:
            text, width = isinstance(one.type, StringTensorType), one.type.shape[1]
            name = one.full_name if text else self.number(one.full_name)
            if width == 1:
                found.append((name, text))
            else:
                found += [(self.then("Gather", name, self.constant(np.array([at])), axis=1), text) for at in range(width)]
        return found

    def joined(self, inputs: Sequence[Any]) -> str:
        """Join the operator's numeric inputs into one matrix."""
        names = [self.number(one.full_name) for one in inputs]
        return names[0] if len(names) == 1 else self.then("Concat", *names, axis=1)


def both_classes(writer: Writer, later: str) -> str:
    """Make two columns from the later class's probability."""
    return writer.then("Concat", writer.then("Sub", writer.constant(np.array(1, writer.dtype)), later), later, axis=1)


def give_classes(writer: Writer, operator: Any, probabilities: str) -> None:
    """Give probabilities and, as skl2onnx expects of a classifier, the label of the largest; the first of equal ones."""
    classes = np.asarray(operator.raw_operator.classes_)
    best = writer.then("ArgMax", probabilities, axis=1, keepdims=0)
    labels = writer.constant(classes if classes.dtype.kind in "UOT" else classes.astype(np.int64))
    writer.give(writer.then("Gather", labels, best, axis=0), operator.outputs[0])
    writer.give(probabilities, operator.outputs[1])


def is_text(one: Any) -> bool:
    """Tell whether an operator's input holds text."""
    from skl2onnx.common.data_types import StringTensorType

    return isinstance(one.type, StringTensorType)
