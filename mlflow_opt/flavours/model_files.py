"""The files of a model: where a URI's files come from, what they say they are, and a digest of them that stays the same.

No runtime is imported here, and MLflow only to download, so that a timing session or a server plugin can read a folder cheaply.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MLMODEL = "MLmodel"
# Key of our own entry in MLmodel's `metadata`; its presence makes a folder a drop-in variant.
METADATA = "mlflow_opt"
# What MLflow writes anew when it logs, copies, registers or downloads a model; none of it changes what the model answers.
_REWRITTEN_KEYS = (
    "run_id",
    "model_id",
    "model_uuid",
    "artifact_path",
    "utc_time_created",
    "model_size_bytes",
    "prompts",
    "is_signature_from_type_hint",
)
_REWRITTEN_FILES = ("registered_model_meta",)
_CHUNK = 1 << 20
TRAINABLE = "trainable"


@dataclass(frozen=True)
class Source:
    """Where a model's files are on this machine, and which logged model they are (`""` if none)."""

    path: Path
    model_id: str


@dataclass(frozen=True)
class Described:
    """What an MLmodel file says: its flavours, our own metadata, the logged model it belongs to, the signature as written."""

    flavours: dict[str, Any]
    metadata: dict[str, Any]
    model_id: str
    signature: dict[str, Any] = field(default_factory=dict)


def locate(uri: str) -> Source:
    """Find a model's files, downloading them once per process if they are not local.

    Raises:
        ValueError: there is no such file, run, version or alias.
    """
    if not uri:
        raise ValueError("a model is named by an MLflow URI, a local model folder or an .onnx file, got an empty name.")
    local = Path(uri.removeprefix("file://"))
    if local.exists():
        return Source(local.resolve(), read_mlmodel(local).model_id if local.is_dir() else "")
    if "://" not in uri and not uri.startswith(("models:/", "runs:/")):
        raise ValueError(f"no such model folder or .onnx file: '{uri}'; give an existing path, models:/NAME/VERSION or runs:/RUN/PATH.")
    pinned, model_id = _pin(uri)
    import mlflow

    path = _download(mlflow.get_tracking_uri(), mlflow.get_registry_uri(), pinned)
    return Source(path, model_id or read_mlmodel(path).model_id)


def read_mlmodel(folder: Path) -> Described:
    """Read what a model folder says it is.

    Raises:
        ValueError: the folder has no readable MLmodel file.
    """
    file = folder / MLMODEL
    if not file.is_file():
        raise ValueError(f"an MLflow model folder holds a file named MLmodel, {folder} has none; give the folder that `save_model` wrote.")
    said = yaml.safe_load(file.read_text())
    if not isinstance(said, dict) or not isinstance(said.get("flavors"), dict):
        raise ValueError(f"an MLmodel file names its flavours, {file} does not; save the model again with MLflow.")
    metadata = said.get("metadata") or {}
    return Described(said["flavors"], metadata.get(METADATA) or {}, said.get("model_id") or "", said.get("signature") or {})


def folder_digest(path: Path) -> str:
    """Digest a model's files by name and content, leaving out what MLflow rewrites when it logs or registers them.

    Args:
        path: a model folder, or one `.onnx` file.

    Returns:
        A sha256 in hexadecimal.
    """
    whole = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _counts(file, path))
    for file in files:
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        content = _mlmodel_digest(file) if name == MLMODEL else _file_digest(file)
        whole.update(f"{name}\0{content}\n".encode())
    return whole.hexdigest()


def size_bytes(path: Path) -> int:
    """Sum the sizes of a model's files; what is only there to go on training (`trainable/`) is not part of what is served."""
    files = (
        [path] if path.is_file() else [file for file in path.rglob("*") if _counts(file, path) and (path / TRAINABLE) not in file.parents]
    )
    return sum(file.stat().st_size for file in files)


def stamp(folder: Path, model_id: str, run_id: str) -> None:
    """Write into a variant's MLmodel which logged model and run it belongs to; the digest does not depend on it."""
    rewrite(folder, lambda said: said | {"model_id": model_id, "run_id": run_id})


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change what a folder's MLmodel says."""
    file = folder / MLMODEL
    file.write_text(yaml.safe_dump(change(yaml.safe_load(file.read_text())), sort_keys=False, allow_unicode=True))


def _pin(uri: str) -> tuple[str, str]:
    # An alias may move while the process runs, so what is cached is the version that it named.
    if not uri.startswith("models:/") or uri.startswith("models:/m-"):
        return uri, uri.removeprefix("models:/") if uri.startswith("models:/m-") else ""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    named = uri.removeprefix("models:/").strip("/")
    client = MlflowClient()
    try:
        if "@" in named:
            name, alias = named.rsplit("@", 1)
            version = client.get_model_version_by_alias(name, alias)
        else:
            name, number = named.rsplit("/", 1)
            version = client.get_model_version(name, number) if number != "latest" else _latest(client, name)
    except (MlflowException, ValueError) as error:
        remedy = "give models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID of one that the registry has"
        raise ValueError(f"no such registered model, version or alias: '{uri}' ({_first_line(error)}); {remedy}.") from error
    source = version.source or ""
    model_id = version.model_id or (source.removeprefix("models:/") if source.startswith("models:/m-") else "")
    return f"models:/{version.name}/{version.version}", model_id


def _latest(client: Any, name: str) -> Any:
    versions = client.search_model_versions(f"name = '{name}'")
    if not versions:
        raise ValueError(f"'{name}' has no version")
    return max(versions, key=lambda version: int(version.version))


@functools.lru_cache(maxsize=256)
def _download(tracking: str, registry: str, uri: str) -> Path:
    # The two store addresses are part of the key only: the same name may mean another model in another store.
    del tracking, registry
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    target = tempfile.mkdtemp(dir=_cache_folder().name)
    try:
        return Path(download_artifacts(artifact_uri=uri, dst_path=target))
    except (MlflowException, OSError) as error:
        raise ValueError(
            f"the model '{uri}' could not be fetched ({_first_line(error)}); check its name and the tracking server."
        ) from error


@functools.cache
def _cache_folder() -> tempfile.TemporaryDirectory[str]:
    # Cached so that it lives as long as the process, which removes it at exit.
    return tempfile.TemporaryDirectory(prefix="mlflow-opt-models-", ignore_cleanup_errors=True)


def _counts(file: Path, root: Path) -> bool:
    # Python writes __pycache__ beside a model's code when it is loaded.
    return file.is_file() and file.relative_to(root).as_posix() not in _REWRITTEN_FILES and "__pycache__" not in file.parts


def _mlmodel_digest(file: Path) -> str:
    said = yaml.safe_load(file.read_text())
    kept = {key: value for key, value in said.items() if key not in _REWRITTEN_KEYS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def _file_digest(file: Path) -> str:
    content = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            content.update(chunk)
    return content.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
