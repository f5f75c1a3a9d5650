"""Write the Dockerfile of a server, for running as many of them as needed behind any load balancer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from mlflow_opt.serving.settings import TUNED, Settings

_TEXT = """\
# One process a container: scale by starting more of them behind a load balancer that asks /ready.
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
# A drop-in variant needs nothing else. Another model needs its own library as well, and LightGBM is faster with onnx beside it.
RUN pip install --no-cache-dir 'mlflow-opt[serve]=={version}'
# The registry: docker run -e MLFLOW_TRACKING_URI=https://mlflow.example.com ...
ENV MLFLOW_TRACKING_URI=""
RUN useradd --create-home server
USER server
WORKDIR /home/server
EXPOSE 8080
HEALTHCHECK --start-period=60s --interval=5s CMD ["python", "-c", {check}]
# Exec form, so that SIGTERM reaches the server, which then answers what it has taken.
STOPSIGNAL SIGTERM
CMD {command}
"""


def text(model: str, settings: Mapping[str, Any]) -> str:
    """Write the Dockerfile of a server of a model with these settings."""
    check = json.dumps("import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/ready', timeout=2)")
    words = ["mlflow-opt", "start_server", "--model", model, "--host", "0.0.0.0", "--port", "8080"]  # noqa: S104 - inside a container
    usual = asdict(Settings())
    for name, value in settings.items():
        # A tuned setting that was given must win over the one stored with the model, also where it is the usual one.
        if value == usual[name] and name not in TUNED:
            continue
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return _TEXT.format(version=version("mlflow-opt"), check=check, command=json.dumps(words))
