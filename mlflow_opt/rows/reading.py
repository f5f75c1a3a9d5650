"""Read a data set's files: parquet, csv and npz, a folder of them, local or wherever MLflow can download from."""

from __future__ import annotations

import csv
import gzip
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mlflow_opt.rows.batches import Batch

SPLIT = "split"
_KINDS = {".parquet": "parquet", ".csv": "csv", ".csv.gz": "csv", ".npz": "npz"}
_DELIMITERS = ",;\t|"


def read_content(data: str) -> Batch:
    """Read every column or array of a data set, target and split included.

    Args:
        data: path of a `.parquet`, `.csv`, `.csv.gz` or `.npz` file or of a folder of files of one kind; or a URI that
            MLflow can download (`runs:/...`, `models:/...`, `mlflow-artifacts:/...`, `s3://...`, `file:///...`).

    Returns:
        A table with plain column types, or arrays by name.

    Raises:
        ValueError: if there is nothing to read, or what is there cannot be read.

    """
    # Two letters at least: "C:\data" is a path.
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", data):
        return _read_local(Path(data))
    with tempfile.TemporaryDirectory() as folder:
        return _read_local(_download(data, folder))


def _download(uri: str, folder: str) -> Path:
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
    # MLflow answers an address that it has no artifact store for with a bare ValueError.
    except (MlflowException, OSError, ValueError) as error:
        raise ValueError(
            f"data must be a URI that MLflow can download, got {uri!r}: {error}; check it and the tracking URI, or save the file first"
            " (MLflow does not download plain web pages)."
        ) from error


def _read_local(path: Path) -> Batch:
    if not path.exists():
        raise ValueError(f"data must be a file, a folder, a URI or a bundled name, got {str(path)!r}, which is not there; check it.")
    files = _files_in(path) if path.is_dir() else [path]
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1 and "npz" in kinds:
        raise ValueError(f"a folder must hold tables or npz files, got both in {path}; move them apart.")
    if kinds == {"npz"}:
        return _join_arrays([_guarded(file) for file in files], files)
    return _join_tables([_guarded(file) for file in files], files)


def _files_in(folder: Path) -> list[Path]:
    # Names that start with a dot or an underscore are bookkeeping (_SUCCESS, _delta_log, .DS_Store).
    files = (file for file in folder.rglob("*") if file.is_file())
    found = sorted(file for file in files if not re.search(r"(^|/)[._]", file.relative_to(folder).as_posix()))
    if not found:
        raise ValueError(f"a folder must hold parquet, csv or npz files, got none in {folder}; check the path.")
    return found


def _kind(file: Path) -> str:
    for ending, kind in _KINDS.items():
        if file.name.lower().endswith(ending):
            return kind
    raise ValueError(f"a data file must end in {', '.join(_KINDS)}, got {file}; convert it, or move it out of the folder.")


def _guarded(file: Path) -> Batch:
    readers: dict[str, Callable[[Path], Batch]] = {"parquet": _read_parquet, "csv": _read_csv, "npz": _read_npz}
    if file.stat().st_size == 0:
        raise ValueError(f"a data file must not be empty, got {file} with 0 bytes; write it again.")
    try:
        return readers[_kind(file)](file)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"a data file must be readable as {_kind(file)}, got {file}: {error}; check it, or write it again.") from error


def _read_parquet(file: Path) -> pd.DataFrame:
    import pyarrow.parquet

    _check_names(pyarrow.parquet.read_schema(file).names)
    return _plain_types(pd.read_parquet(file).reset_index(drop=True))


def _read_csv(file: Path) -> pd.DataFrame:
    opener = gzip.open if file.name.lower().endswith(".gz") else open
    with opener(file, "rt", encoding="utf-8-sig", newline="") as lines:
        header = lines.readline()
    delimiter = max(_DELIMITERS, key=header.count)
    _check_names(next(csv.reader([header], delimiter=delimiter), []))
    return _plain_types(pd.read_csv(file, sep=delimiter, encoding="utf-8-sig"))


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    # Object arrays would need pickle, which runs code from the file.
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array; store named arrays with numpy.savez_compressed")
        return _pair_up({name: archive[name] for name in archive.files})


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"column names must differ, got {', '.join(map(repr, twice))} more than once")


def _plain_types(table: pd.DataFrame) -> pd.DataFrame:
    # Nullable and arrow types (Int32, boolean, string) are unknown to several runtimes; numpy's say the same.
    plain: dict[str, pd.Series] = {}
    for name, dtype in table.dtypes.items():
        if pd.api.types.is_object_dtype(dtype) and {type(value) for value in table[name].dropna()} == {bool}:
            # pandas' own result where a boolean is missing, which neither scikit-learn nor MLflow takes.
            plain[str(name)] = table[name].astype("float64")
        if isinstance(dtype, pd.CategoricalDtype) or not isinstance(dtype, pd.api.extensions.ExtensionDtype):
            continue
        if pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype):
            plain[str(name)] = _plain_numbers(table[name])
        elif pd.api.types.is_string_dtype(dtype):
            plain[str(name)] = table[name].astype("str")
    return table.assign(**plain) if plain else table


def _plain_numbers(column: pd.Series) -> pd.Series:
    if column.isna().any():
        return column.astype("float64")
    return pd.Series(column.to_numpy(dtype=getattr(column.dtype, "numpy_dtype", None)), index=column.index)


def _pair_up(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Join `X_train` and `X_test` to `X` and say in `split` where each row came from, if every array has its pair."""
    stems = [name.removesuffix("_train") for name in arrays if name.endswith("_train")]
    if not stems or sorted(arrays) != sorted(f"{stem}_{part}" for stem in stems for part in ("train", "test")):
        return arrays
    _check_lengths({name: array for name, array in arrays.items() if name.endswith("_train")})
    _check_lengths({name: array for name, array in arrays.items() if name.endswith("_test")})
    joined = {stem: np.concatenate([arrays[f"{stem}_train"], arrays[f"{stem}_test"]]) for stem in stems}
    counts = [len(arrays[f"{stems[0]}_{part}"]) for part in ("train", "test")]
    return {**joined, SPLIT: np.repeat(["train", "test"], counts)}


def _check_lengths(arrays: dict[str, np.ndarray]) -> None:
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the arrays of an npz must have the same number of rows, got {lengths}")


def _join_tables(tables: Sequence[Batch], files: Sequence[Path]) -> pd.DataFrame:
    frames = [table for table in tables if isinstance(table, pd.DataFrame)]
    wanted = set(frames[0].columns)
    for frame, file in zip(frames, files, strict=True):
        if set(frame.columns) != wanted:
            differing = ", ".join(map(repr, sorted(wanted ^ set(frame.columns))))
            raise ValueError(f"the tables of a folder must have the same columns, got {files[0]} and {file}, which differ in {differing}.")
    frames = _name_parts(frames, files)
    if len(frames) == 1:
        return frames[0]
    # An empty frame would decide a column's type without having a value.
    filled = [frame for frame in frames if len(frame)] or frames[:1]
    return pd.concat(_same_categories(filled), ignore_index=True)


def _name_parts(frames: list[pd.DataFrame], files: Sequence[Path]) -> list[pd.DataFrame]:
    """Take files named `train` and `test`, and no others, as the parts that their names say."""
    names = [file.name.split(".")[0] for file in files]
    if sorted(names) != ["test", "train"] or SPLIT in frames[0].columns:
        return frames
    return [frame.assign(**{SPLIT: name}) for frame, name in zip(frames, names, strict=True)]


def _same_categories(frames: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    joined = {}
    for name in frames[0].columns:
        if all(isinstance(frame[name].dtype, pd.CategoricalDtype) for frame in frames):
            joined[name] = pd.api.types.union_categoricals([frame[name] for frame in frames]).dtype
    return [frame.astype(joined) for frame in frames]


def _join_arrays(archives: Sequence[Batch], files: Sequence[Path]) -> dict[str, np.ndarray]:
    found = [archive for archive in archives if isinstance(archive, dict)]
    for archive, file in zip(found, files, strict=True):
        if set(archive) != set(found[0]):
            differing = ", ".join(map(repr, sorted(set(found[0]) ^ set(archive))))
            raise ValueError(f"the npz files of a folder must hold the same arrays, got {files[0]} and {file}: they differ in {differing}.")
    try:
        joined = {name: np.concatenate([archive[name] for archive in found]) for name in found[0]}
    except ValueError as error:
        raise ValueError(f"the npz files of a folder must hold arrays of the same shapes, got {error}; write them again.") from error
    _check_lengths(joined)
    return joined
