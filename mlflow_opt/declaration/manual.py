"""The help text of a recipe or command: what it does, when it helps, each parameter, a command to try."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from mlflow_opt.declaration.parameter import Parameter, to_text

if TYPE_CHECKING:
    from mlflow_opt.signature import Signature

_WIDTH = 100
# What an example command shows for the parameters that users change first.
_SAMPLES = {"model": "models:/churn/3", "data": "holdout.parquet", "name": "churn", "version": "3"}


def manual(signature: Signature) -> str:
    """Write the help text of a recipe or command.

    Args:
        signature: what it takes.

    Returns:
        Text for a terminal, with a closing newline.
    """
    parts = [f"mlflow-opt {signature.name}: {signature.summary}", signature.details]
    if signature.parameters:
        parts.append("Parameters (--name value or --name=value; with `mlflow run`, -P name=value):")
        parts.extend(_paragraph(parameter) for parameter in signature.parameters)
    # A docstring's own example is for a terminal unless it is a doctest.
    own = signature.example if not signature.example.startswith(">>>") else ""
    parts.append(f"Example:\n  {own or example(signature)}")
    parts.append(signature.background)
    return "\n\n".join(part for part in parts if part) + "\n"


def example(signature: Signature) -> str:
    """Write a command that shows the parameters that people change first.

    Args:
        signature: what it takes.
    """
    shown = [item for item in signature.parameters if item.name in _SAMPLES or item.default is None]
    flags = [f"--{item.name} {_SAMPLES.get(item.name) or to_text(next(iter(item.choices), item.name.upper()))}" for item in shown]
    return " ".join(["mlflow-opt", signature.name, *flags])


def _paragraph(parameter: Parameter) -> str:
    default = "required" if parameter.default is None else f"default {to_text(parameter.default) or 'none given'}"
    head = f"  --{parameter.name}  {parameter.expected}; {default}"
    return f"{head}\n" + textwrap.fill(parameter.doc, _WIDTH, initial_indent="      ", subsequent_indent="      ")
