"""How a graph that somebody else made is called: which input takes what, and which output holds the scores."""

from __future__ import annotations

from typing import Any

from mlflow_opt.export.dropin_code import Binding, Feed, Output
from mlflow_opt.flavours.contracts import columns_of

# ONNX Runtime's names of tensor types -> numpy's.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(string)": "str",
    "tensor(bool)": "bool",
} | {f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_SCORES = ("probabilities", "output_probability", "scores", "logits")


def bind_session(session: Any, signature: Any) -> Binding:
    """Read from a session how it is fed and where its scores come out.

    One input takes a table's columns as a matrix, in the signature's order, or the only array; several take the column or
    array of their own name. The scores are the output called `probabilities`, `output_probability`, `scores` or `logits`,
    else the only floating-point output, else, of several, the first.

    Raises:
        ValueError: an input's type is unknown, or no output holds numbers.
    """
    inputs = session.get_inputs()
    names = columns_of(signature, None) or []
    feeds = []
    for one in inputs:
        if one.type not in _DTYPES:
            raise ValueError(f"a graph's inputs must be tensors, '{one.name}' is {one.type}; export the model with tensor inputs.")
        feeds.append(Feed(one.name, _DTYPES[one.type], _columns(one, len(inputs), names)))
    return Binding(tuple(feeds), _scores_output(session.get_outputs()))


def _columns(one: Any, inputs: int, names: list[str]) -> tuple[str, ...]:
    if inputs == 1:
        return tuple(names)
    return (one.name,) if one.name in names or (len(one.shape) == 2 and one.shape[1] == 1) else ()


def _scores_output(outputs: list[Any]) -> Output:
    floating = [one for one in outputs if one.type in ("tensor(float)", "tensor(double)", "tensor(float16)") or "map(" in one.type]
    labels = [one.name for one in outputs if one.type in ("tensor(int64)", "tensor(string)")]
    if not floating:
        given = ", ".join(f"{one.name}: {one.type}" for one in outputs)
        raise ValueError(f"one output must hold scores as floating-point numbers, got {given}; export the model with its probabilities.")
    chosen = next((one for name in _SCORES for one in floating if one.name == name), floating[0])
    if labels:
        return Output(chosen.name, "probabilities", labels[0])
    width = chosen.shape[-1] if chosen.shape and len(chosen.shape) > 1 else 1
    return Output(chosen.name, "values" if width == 1 else "logits")
