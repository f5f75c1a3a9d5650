"""The only reader of parameters: a function's signature and its `Args:` block become flags, help, MLproject and logged parameters.

A recipe declares its parameters once, as keyword-only annotated arguments. `run` is what a recipe's file calls when it is
started as a program: it reads the command line strictly, calls the function and turns what happens into an exit code.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from mlflow_opt.declaration.docstring import read_docstring
from mlflow_opt.declaration.manual import manual
from mlflow_opt.declaration.parameter import Parameter, make_parameter, nearest, to_text
from mlflow_opt.records import Outcome, Param, Verdict

EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 2}
COULD_NOT_RUN = 3
INTERRUPTED = 130


@dataclass(frozen=True)
class Signature:
    """What a recipe or command takes, with the words that explain it.

    Args:
        name: of the function, the module and the entry point.
        summary: one sentence: what it does.
        details: when it helps and when not.
        background: what the file's own docstring adds, `""` where only the function was read.
        example: a command to try, `""` if the docstring has none.
        parameters: in the order written.
    """

    name: str
    summary: str
    details: str
    background: str
    example: str
    parameters: tuple[Parameter, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Name the parameters, in the order written."""
        return tuple(parameter.name for parameter in self.parameters)


def read(function: Callable[..., Any]) -> Signature:
    '''Read what a function takes.

    Example:
        >>> def halve(*, share: float = 0.5) -> None:
        ...     """Halve it.
        ...
        ...     Args:
        ...         share: of what is kept.
        ...     """
        >>> read(halve).parameters[0].default
        0.5

    Args:
        function: a recipe or command: keyword-only annotated parameters and a Google-style docstring.

    Returns:
        Its signature.

    Raises:
        TypeError: a parameter that is not keyword-only, not annotated, or whose type or default text cannot carry.
        ValueError: the docstring has no summary, or its `Args:` block does not name exactly the parameters.
    '''
    document = read_docstring(function.__doc__ or "")
    given = inspect.signature(function).parameters
    if not document.summary or set(document.args) != set(given):
        differ = ", ".join(sorted(set(document.args) ^ set(given))) or "no summary"
        raise ValueError(f"{function.__name__} must have a summary and an Args: block of exactly its parameters; these differ: {differ}.")
    hints = _hints(function)
    parameters = tuple(_parameter(function.__name__, item, hints, document.args[name]) for name, item in given.items())
    example = document.sections.get("Example", document.sections.get("Examples", ""))
    return Signature(function.__name__, document.summary, document.prose, "", example, parameters)


def parse(signature: Signature, argv: Sequence[str]) -> dict[str, Param]:
    """Read a command line strictly: no abbreviation, nothing unknown, nothing twice, nothing of another type.

    Args:
        signature: what is taken.
        argv: `--flag value` or `--flag=value`; every flag takes one value, booleans too, because `mlflow run` passes text.

    Returns:
        A value for every parameter.

    Raises:
        ValueError: with the rule, what came, and what to write instead.
    """
    known = {parameter.name: parameter for parameter in signature.parameters}
    values: dict[str, Param] = {}
    for name, text in _pairs(signature, argv):
        if name in values:
            raise ValueError(f"--{name} must be given once, got it twice; leave one out.")
        values[name] = known[name].read(text)
    missing = [parameter.name for parameter in signature.parameters if parameter.default is None and parameter.name not in values]
    if missing:
        raise ValueError(
            f"{signature.name} must be given {', '.join('--' + name for name in missing)}; see `mlflow-opt {signature.name} --help`."
        )
    defaults = {name: parameter.default for name, parameter in known.items() if parameter.default is not None}
    return {name: values.get(name, defaults.get(name, "")) for name in known}


def logged_params(function: Callable[..., Any], values: Mapping[str, Param]) -> dict[str, str]:
    """Write a call's parameters as MLflow logs them.

    `mlflow run` has logged them before the recipe starts, quoted for the shell (`''` for an empty one), and MLflow refuses
    another spelling: log only what is missing.

    Args:
        function: the recipe.
        values: what it was called with; what is not among them has its default.
    """
    return {item.name: to_text(values.get(item.name, item.default)) for item in read(function).parameters}


def run(function: Callable[..., Verdict | None]) -> NoReturn:
    """Be the program of a recipe: read the command line, call it, leave with its exit code.

    Use it as the last line of a recipe or command: `if __name__ == "__main__": run(quantize)`.

    Args:
        function: the recipe or command.
    """
    sys.exit(execute(function, sys.argv[1:]))


def execute(function: Callable[..., Verdict | None], argv: Sequence[str]) -> int:
    """Call a recipe or command by its command line.

    Args:
        function: keyword-only and annotated; it returns the verdict that its work ended with, or None.
        argv: the flags.

    Returns:
        0 when the work completed; for a function without a `strict` parameter, or with `strict=true`, 0, 1 or 2 for a
        verdict of PASS, FAIL or INCONCLUSIVE, and 1 where `strict=true` found nothing to judge; 3 where it could not run;
        130 where it was interrupted.
    """
    return guard(function.__name__, lambda: _call(function, argv))


def guard(name: str, action: Callable[[], int]) -> int:
    """Be a program's outermost frame: turn what goes wrong into one message on stderr and an exit code.

    Args:
        name: said before the message.
        action: the program; it returns its exit code.

    Returns:
        The action's own code; 3 if it failed, with a traceback only for what was not foreseen or at `MLFLOW_OPT_DEBUG=1`;
        130 if it was interrupted.
    """
    try:
        return action()
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted.\n")
        return INTERRUPTED
    # Nothing carries on from here: whatever the failure, it is shown and the exit code says so.
    except Exception as error:  # noqa: BLE001
        sys.stderr.write(f"{name}: {_explain(error)}\n")
        return COULD_NOT_RUN


def log_to_stderr() -> None:
    """Show the project's log on stderr, one line a message, and nothing of MLflow's that a recipe's user cannot act on.

    Programs call it, the library never does.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("mlflow_opt", "recipes", "__main__"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False
    # Said once for every variant that is loaded or logged: a variant's own code takes any kind of rows on purpose.
    logging.getLogger("mlflow.models.signature").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r".*Add type hints to the `predict` method")
    warnings.filterwarnings("ignore", message=r".*Any type hint is inferred as AnyType")
    # A bar for every small file would bury the recipe's own progress.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def _call(function: Callable[..., Verdict | None], argv: Sequence[str]) -> int:
    signature = read(function)
    if "-h" in argv or "--help" in argv:
        sys.stdout.write(manual(signature))
        return 0
    values = parse(signature, argv)
    log_to_stderr()
    verdict = function(**values)
    if not values.get("strict", True):
        return 0
    if verdict is None:
        # Asked to be strict, a recipe that had nothing to judge has proven nothing.
        return EXIT_CODES[Outcome.FAIL] if "strict" in values else 0
    return EXIT_CODES[verdict.outcome]


def _parameter(owner: str, item: inspect.Parameter, hints: Mapping[str, Any], doc: str) -> Parameter:
    if item.kind is not inspect.Parameter.KEYWORD_ONLY or item.name not in hints or item.default is None:
        raise TypeError(f"{owner} must take keyword-only annotated parameters without None, got '{item}'; use '' or 0 for 'not given'.")
    return make_parameter(item.name, hints[item.name], None if item.default is inspect.Parameter.empty else item.default, doc)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    # The return annotation may name what is imported for type checking alone, so it is left out before the rest is evaluated.
    def bare() -> None: ...

    bare.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    return inspect.get_annotations(bare, globals=getattr(function, "__globals__", {}), eval_str=True)


def _pairs(signature: Signature, argv: Sequence[str]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    words = iter(argv)
    for word in words:
        flag, equals, text = word.partition("=")
        _check_flag(signature, flag)
        name = flag.removeprefix("--")
        if not equals:
            following = next(words, None)
            # A value may look like a flag, because `mlflow run` passes any text; one that is a flag of ours is a value left out.
            if following is None or following.partition("=")[0] in {f"--{each}" for each in signature.names}:
                raise ValueError(f"{flag} must be followed by a value, got {following or 'nothing'}; write {flag}=VALUE.")
            text = following
        pairs.append((name, text))
    return pairs


def _check_flag(signature: Signature, flag: str) -> None:
    name = flag.removeprefix("--")
    if flag.startswith("--") and name in signature.names:
        return
    takes = ", ".join(f"--{each}" for each in signature.names) or "none"
    if not flag.startswith("--"):
        raise ValueError(f"{signature.name} must be given every value after its flag, got '{flag}'; it takes {takes}.")
    close = nearest(name.replace("-", "_"), signature.names)
    raise ValueError(f"{signature.name} must be given flags that it has, unabbreviated, got '{flag}'{close} It takes {takes}.")


def _explain(error: Exception) -> str:
    # MLflow is not imported for its exception type: --help must stay fast, and where it was never imported it raised nothing.
    mlflow_exceptions = sys.modules.get("mlflow.exceptions")
    foreseen = (ValueError, TypeError, OSError, ModuleNotFoundError, *([mlflow_exceptions.MlflowException] if mlflow_exceptions else []))
    if not isinstance(error, foreseen) or os.environ.get("MLFLOW_OPT_DEBUG") == "1":
        return "".join(traceback.format_exception(error)).rstrip()
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; recipes need `pip install 'mlflow-opt[recipes]'`, the server needs `mlflow-opt[serve]`."
    return str(error) or type(error).__name__
