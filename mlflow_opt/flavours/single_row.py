"""LightGBM's own quick way to answer one row: the C function that keeps what it set up for the next row.

`Booster.predict` reads its parameters, allocates and starts its threads at every call, which costs more than a small model's
trees. `LGBM_BoosterPredictForMatSingleRowFast` does this once. Python's package does not offer it, so it is called by ctypes.

Source: LightGBM's C API (documentation), `c_api.h`.
"""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_opt.flavours import model_files
from mlflow_opt.models import Model

# Entry of MLmodel's `lightgbm` flavour that asks for this call; MLflow's own loader does not look at it.
_ENTRY, _QUICK = "mlflow_opt_call", "single_row"
_FUNCTIONS = ("BoosterPredictForMatSingleRowFastInit", "BoosterPredictForMatSingleRowFast", "FastConfigFree")
_FLOAT64, _NORMAL, _ALL_ROUNDS, _FROM_START = 1, 0, -1, 0


class SingleRow:
    """A booster's answers to single rows, bit for bit those of its `predict`."""

    def __init__(self, booster: Any, threads: int) -> None:
        """Set up the call.

        Args:
            booster: a `lightgbm.Booster`; it must outlive this and not change.
            threads: of one call.

        Raises:
            ValueError: the installed LightGBM has no such function, or refuses the booster.
        """
        import lightgbm

        # The package's own handle of the C library, which has no public name.
        library: Any = vars(lightgbm.basic)["_LIB"]
        try:
            begin, self._answer, self._end = (getattr(library, f"LGBM_{name}") for name in _FUNCTIONS)
        except AttributeError as error:
            raise ValueError(f"one row's quick way needs LightGBM 3.0 or later, this one lacks it ({error}); update it.") from error
        self._booster, self._width = booster, booster.num_feature()
        self._columns = booster.num_model_per_iteration()
        self._made, self._length, self._answers = ctypes.c_void_p(), ctypes.byref(ctypes.c_int64()), ctypes.c_double * self._columns
        # What `predict` stops at: the best iteration of a booster that stopped early.
        rounds = booster.best_iteration if booster.best_iteration > 0 else _ALL_ROUNDS
        said = ctypes.c_char_p(f"num_threads={threads}".encode())
        numbers = (ctypes.c_int(one) for one in (_NORMAL, _FROM_START, rounds, _FLOAT64, self._width))
        if begin(booster._handle, *numbers, said, ctypes.byref(self._made)):
            raise ValueError(f"LightGBM refuses to answer single rows: {library.LGBM_GetLastError().decode()}; call `predict`.")

    def __call__(self, row: np.ndarray) -> np.ndarray:
        """Answer one row.

        Args:
            row: float64, shape (1, features).

        Returns:
            What `predict` gives: (1,), or (1, classes).
        """
        if row.shape != (1, self._width) or row.dtype != np.float64:
            raise ValueError(f"the row must be float64 of shape (1, {self._width}), got {row.dtype} {row.shape}; convert it.")
        # Copying a row takes a tenth of a microsecond, asking numpy for its address more than one.
        given = row.tobytes()
        found = self._answers()
        # Every call writes the same length, so that threads may share its place.
        if self._answer(self._made, given, self._length, found):
            raise RuntimeError("LightGBM failed to answer a row; its own `predict` says why.")
        answer = np.frombuffer(found)
        return answer if self._columns == 1 else answer[None, :]

    def __del__(self) -> None:
        """Give LightGBM's memory back."""
        if getattr(self, "_made", None):
            self._end(self._made)


def save_quick(model: Model, folder: Path) -> Model:
    """Copy a LightGBM model so that this project calls it by its quick way for one row.

    Helps to compare: the copy is no drop-in, since MLflow's pyfunc goes on calling `predict`.

    Args:
        model: of the flavour `lightgbm`.
        folder: must not exist.
    """
    shutil.copytree(model.path, folder)

    def ask(said: dict[str, Any]) -> dict[str, Any]:
        flavours = said["flavors"]
        return said | {"flavors": flavours | {"lightgbm": flavours["lightgbm"] | {_ENTRY: _QUICK}}}

    model_files.rewrite(folder, ask)
    return Model(folder.resolve(), "lightgbm", threads=model.threads)


def asks_quick(folder: Path) -> bool:
    """Tell whether a LightGBM model's folder asks for this call."""
    return bool(model_files.read_mlmodel(folder).flavours.get("lightgbm", {}).get(_ENTRY) == _QUICK)
