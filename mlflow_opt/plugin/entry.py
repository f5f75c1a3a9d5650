"""What MLflow loads by entry point when it starts: as light as possible, because every `import mlflow` pays for it.

MLflow resolves the entry points of all registry stores in every process, clients included. The store itself imports
SQLAlchemy and MLflow's own store (0.6 s), so it is imported when a `gated+...` URI is opened and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow_opt.plugin.store import GatedStore

SCHEME = "gated+"


def open_store(store_uri: str) -> GatedStore:
    """Open the gated registry of a `gated+<dialect>[+driver]://` URI; MLflow calls it with the URI given to the server."""
    from mlflow_opt.plugin.store import GatedStore

    return GatedStore(store_uri)
