"""Who asks: only what the server itself authenticated, never what a request says about itself."""

from __future__ import annotations

UNAUTHENTICATED = "unauthenticated"


def caller() -> str:
    """Return the user that MLflow's basic-auth app authenticated for this request, else `unauthenticated`."""
    from flask import g, has_request_context

    if not has_request_context():
        return UNAUTHENTICATED
    return str(getattr(g, "mlflow_authenticated_user", None) or UNAUTHENTICATED)
