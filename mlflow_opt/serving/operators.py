"""Which operators an ONNX graph has, and whether each gives a row the same bits in a batch as alone.

Comparing rows at start-up would not do: a vectorised sigmoid computes the rows that fill a register and those left over by
different code, and only a few rows in a hundred come out with another last bit. So joining is exact only for graphs of
operators that treat every row alike: comparisons, look-ups, trees, and the operations that IEEE 754 rounds exactly.

The server does without the package `onnx`, so the file's protocol-buffer fields are walked here: ModelProto.graph (7),
GraphProto.node (1), NodeProto.op_type (4), by the numbers that the ONNX specification (onnx.proto3) has fixed for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_GRAPH, _NODE, _OP_TYPE = 7, 1, 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

ROW_BY_ROW = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "ArgMax",
        "ArgMin",
        "ArrayFeatureExtractor",
        "Binarizer",
        "Cast",
        "CastLike",
        "CategoryMapper",
        "Ceil",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Dropout",
        "Equal",
        "Expand",
        "FeatureVectorizer",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "Greater",
        "GreaterOrEqual",
        "Identity",
        "Imputer",
        "IsInf",
        "IsNaN",
        "LabelEncoder",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Not",
        "OneHot",
        "OneHotEncoder",
        "Or",
        "Pad",
        "Relu",
        "Reshape",
        "Round",
        "Scaler",
        "Shape",
        "Sign",
        "Slice",
        "Split",
        "Sqrt",
        "Squeeze",
        "StringNormalizer",
        "Sub",
        "Transpose",
        "TreeEnsemble",
        "TreeEnsembleClassifier",
        "TreeEnsembleRegressor",
        "Unsqueeze",
        "Where",
        "Xor",
        "ZipMap",
    ]
)


def uncertain_operators(graph: Path) -> list[str]:
    """Name the operators of a graph whose answers for a row may depend on the rows beside it; empty if there are none."""
    return sorted(operator_types(graph.read_bytes()) - ROW_BY_ROW)


def operator_types(model: bytes) -> set[str]:
    """Read the operator types of a serialised ONNX model; those inside `If`, `Loop` and `Scan` are not looked at.

    Raises:
        ValueError: the bytes are no protocol buffer.

    """
    view = memoryview(model)
    nodes = (node for graph in _fields(view, _GRAPH) for node in _fields(graph, _NODE))
    return {bytes(name).decode() for node in nodes for name in _fields(node, _OP_TYPE)}


def _fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError(f"an ONNX file must be a protocol buffer, this one ends inside a field at {at}; export the model again.")
            if tag >> 3 == wanted:
                yield message[at : at + size]
            at += size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"an ONNX file must be a protocol buffer, got a field of kind {kind} at byte {at}; export the model again.")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("an ONNX file must be a protocol buffer, this one ends inside a number; export the model again.")
