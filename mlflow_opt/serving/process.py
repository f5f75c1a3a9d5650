"""The server process: uvicorn with one worker or several, which on SIGTERM first says that it is leaving and then leaves."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import tempfile
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.supervisors.multiprocess import Multiprocess

from mlflow_opt.serving import settings as options
from mlflow_opt.serving import versions
from mlflow_opt.serving.app import Application
from mlflow_opt.serving.settings import Settings
from mlflow_opt.serving.wire import Wire

logger = logging.getLogger(__name__)

# How the supervisor tells its workers what to serve: they are fresh processes.
_ENVIRONMENT = "MLFLOW_OPT_SERVING"
# Until a worker must have loaded its model, and until a silent one counts as hung: importing and loading hold Python's lock.
_WORKER_S = 120


class DrainingApplication(Application):
    """An application that goes on answering for a moment after SIGTERM.

    uvicorn closes idle connections at once: a request that is on its way on one of them is lost. Here the server first
    answers `/ready` with 503 and every request with `connection: close`, so that clients and load balancers go elsewhere.
    """

    async def start(self) -> None:
        """Load, and put the draining before what uvicorn does on a signal; it has its handlers by now, in any of its workers."""
        await super().start()
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, partial(self._leave, signal.getsignal(one)))

    def _leave(self, before: Any, received: int, frame: FrameType | None) -> None:
        """Begin to leave; a second signal leaves at once."""
        if self.draining:
            before(received, frame)
            return
        self.draining = True
        asyncio.get_running_loop().call_later(self.settings.drain_s, before, received, None)


def serve(model: str, settings: Settings, fixed: frozenset[str], host: str, port: int) -> None:
    """Serve a model until SIGTERM or SIGINT.

    Args:
        model: URI.
        settings: how; what is not among `fixed` may come from the model's own tag.
        fixed: names of settings that were given.
        host: address to listen on.
        port: to listen on.

    Raises:
        ValueError: the model cannot be served.

    """
    workers = _workers(model, settings, fixed)
    logger.info("Serving %s on http://%s:%d with %d worker%s.", model, host, port, workers, "s" if workers > 1 else "")
    if workers == 1:
        application = DrainingApplication(model, settings, fixed)
        application.live.load()
        _serve_alone(_configured(application, host, port, workers))
        return
    os.environ[_ENVIRONMENT] = json.dumps({"model": model, "settings": options.to_json(settings), "fixed": sorted(fixed)})
    config = _configured("mlflow_opt.serving.process:make_application", host, port, workers)
    with tempfile.TemporaryDirectory(prefix="mlflow-opt-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        Multiprocess(config, sockets=[config.bind_socket()]).run()


def make_application() -> DrainingApplication:
    """Make a worker's application from what the starting process left in the environment."""
    from mlflow_opt.signature import log_to_stderr

    log_to_stderr()
    said = json.loads(os.environ[_ENVIRONMENT])
    application = DrainingApplication(said["model"], options.from_json(said["settings"]), frozenset(said["fixed"]))
    try:
        application.live.load()
    except ValueError as error:
        # By this exit code the supervisor knows that another try would end alike.
        logger.error("%s", error)
        sys.exit(uvicorn.config.STARTUP_FAILURE)
    return application


def _configured(application: Application | str, host: str, port: int, workers: int) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        factory=isinstance(application, str),
        host=host,
        port=port,
        workers=workers,
        log_level="warning",
        access_log=False,
        backlog=4096,
        timeout_worker_healthcheck=_WORKER_S,
        http=Wire,
        server_header=False,
        # It would wrap the application, and costs every request a look at its headers; nothing here needs a client's address.
        proxy_headers=False,
    )


def _serve_alone(config: uvicorn.Config) -> None:
    server = uvicorn.Server(config)
    try:
        server.run()
    except KeyboardInterrupt:
        logger.info("Interrupted.")
    if not server.started:
        sys.exit(uvicorn.config.STARTUP_FAILURE)


def _workers(model: str, settings: Settings, fixed: frozenset[str]) -> int:
    """Look into the model's tag before anything is loaded: the number of workers is needed first."""
    if "workers" in fixed:
        return settings.workers
    return options.with_tag(settings, versions.tags_of(versions.resolve(model).model_id)).workers
