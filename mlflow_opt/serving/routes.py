"""Everything but `/invocations`: health, readiness, version, metrics, and the OpenAPI document with the model's own columns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi

from mlflow_opt.serving.replies import refusal

if TYPE_CHECKING:
    from mlflow_opt.serving.app import Application

_JSON_TYPES = {"double": "number", "float": "number", "long": "integer", "integer": "integer", "boolean": "boolean", "string": "string"}


def make_routes(application: Application) -> FastAPI:
    """Make the routes of an application, which also start and stop it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await application.start()
        yield
        await application.stop()

    routes = FastAPI(title="mlflow-opt", summary="A registered model behind MLflow's scoring protocol.", lifespan=lifespan)

    def ping() -> Response:
        return Response("\n", 200 if application.live.loaded else 404, media_type="application/json")

    def ready() -> Response:
        able = application.live.loaded and not application.draining
        return Response("\n", 200 if able else 503, media_type="application/json")

    def version() -> dict[str, Any]:
        return describe(application)

    def metrics() -> Response:
        application.telemetry.flush(application.taken)
        return Response(application.telemetry.show(), media_type="text/plain; version=0.0.4")

    # Async so that they run on the event loop: a thread of Starlette's pool may be taken by nobody else here.
    async def on_loop(answer: Any) -> Any:
        return answer()

    for path, answer, words in (
        ("/ping", ping, "The process is up and a model is loaded."),
        ("/health", ping, "The same as /ping."),
        ("/ready", ready, "Send requests here; 503 while the server shuts down."),
        ("/version", version, "What is served: version, verdict, settings."),
        ("/metrics", metrics, "Prometheus metrics."),
    ):
        routes.get(path, summary=words, response_model=None)(_bound(on_loop, answer))
    routes.api_route("/invocations", methods=["GET", "PUT", "PATCH", "DELETE"], include_in_schema=False)(_only_post)
    routes.openapi = lambda: _document(routes, application)  # type: ignore[method-assign]
    return routes


async def _only_post() -> Response:
    reply = refusal(405, "BAD_REQUEST", "rows are sent to /invocations by POST; see /docs for what a request looks like.")
    return Response(reply.body, reply.status, {"allow": "POST"}, "application/json")


def describe(application: Application) -> dict[str, Any]:
    """Say what is served and what is proven of it."""
    import mlflow

    facts, refused = application.live.served.facts, application.live.refused
    return {
        "mlflow": mlflow.__version__,
        "model": facts.version.uri,
        "serving": facts.version.pinned,
        "name": facts.version.name,
        "version": facts.version.number,
        "model_id": facts.version.model_id,
        "digest": facts.digest,
        "verdict": asdict(facts.standing),
        "fast_path": facts.engine,
        "batching": facts.batches,
        "settings": asdict(facts.settings) | {"redis_url": _without_password(facts.settings.redis_url)},
        "swaps": application.live.swaps,
        "refused": {"version": refused.pinned, "why": refused.why} if refused else None,
    }


def _bound(on_loop: Any, answer: Any) -> Any:
    async def route() -> Any:
        return await on_loop(answer)

    return route


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _document(routes: FastAPI, application: Application) -> dict[str, Any]:
    # Not cached: a swap may bring other columns.
    document = get_openapi(title=routes.title, version="1", summary=routes.summary, routes=routes.routes)
    problem = {"type": "object", "properties": {"error_code": {"type": "string"}, "message": {"type": "string"}}}
    answers = {
        str(code): {"description": words, "content": {"application/json": {"schema": problem}}}
        for code, words in (
            (400, "The input is not what the model's signature asks for."),
            (408, "The request did not arrive in time."),
            (413, "The body is too large."),
            (415, "Another content type than JSON, csv or parquet."),
            (429, "Too many requests wait; see retry-after."),
            (504, "The deadline passed."),
        )
    }
    predictions = {"type": "object", "required": ["predictions"], "properties": {"predictions": {}}}
    answers["200"] = {"description": "One prediction per row.", "content": {"application/json": {"schema": predictions}}}
    body = {
        "required": True,
        "content": {"application/json": {"schema": _request(application)}, "text/csv": {"schema": {"type": "string"}}},
    }
    post = {"summary": "Predict.", "operationId": "invocations", "requestBody": body, "responses": answers}
    document["paths"]["/invocations"] = {"post": post}
    return document


def _request(application: Application) -> dict[str, Any]:
    """Write the request formats as a JSON schema, with the columns of the model where it has any."""
    signature = application.live.served.signature if application.live.loaded else None
    columns: dict[str, Any] = {}
    required: list[str] = []
    if (
        signature is not None
        and signature.inputs is not None
        and signature.inputs.has_input_names()
        and not signature.inputs.is_tensor_spec()
    ):
        for spec in signature.inputs.inputs:
            columns[spec.name] = {"type": _JSON_TYPES.get(getattr(spec.type, "name", ""), "string")}
            if spec.required:
                required.append(spec.name)
    record = {"type": "object", "properties": columns, "required": required}
    table = {
        "type": "object",
        "required": ["data"],
        "properties": {"columns": {"type": "array", "items": {"type": "string"}}, "data": {"type": "array"}},
    }
    forms = {"dataframe_split": table, "dataframe_records": {"type": "array", "items": record}, "instances": {}, "inputs": {}}
    return {"oneOf": [{"type": "object", "required": [name], "properties": {name: form}} for name, form in forms.items()]}
