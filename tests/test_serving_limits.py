"""Limits: a full queue, a late answer, a slow or huge body, bad rows beside good ones, the feature hook, and what is shown of it all."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest

from mlflow_opt.serving.answering import load_hook
from mlflow_opt.serving.app import Application
from mlflow_opt.serving.settings import SETTINGS_TAG, Settings, changed, from_json, to_json, tuned, with_tag
from tests.serving_models import NUMBERS, answered_by, client, numbers, save_booster, serving_models, split, with_application

__all__ = ["serving_models"]

JSON = {"content-type": "application/json"}


class Waiting:
    """A model without a fast path that answers when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def predict(self, model_input: Any, params: Any = None) -> Any:
        self.go.wait(20)
        return [1.0] * len(model_input)


async def _post(application: Application, body: Any, **headers: str) -> httpx.Response:
    named = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
    return await client(application).post("/invocations", content=body, headers=named)


def _slow(application: Application) -> Waiting:
    """Make the loaded model wait before it answers."""
    waiting = Waiting()
    application.live.served._scorer.model.predict = waiting.predict
    return waiting


def test_server_answers_429_when_the_queue_is_full(serving_models: Mapping[str, Path]) -> None:
    async def check(application: Application) -> None:
        model = _slow(application)
        taken = [asyncio.create_task(_post(application, split(numbers(1)))) for _ in range(3)]
        await asyncio.sleep(0.1)
        refused = await _post(application, split(numbers(1)))
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert "at most 3 requests" in refused.json()["message"]
        model.go.set()
        assert [answer.status_code for answer in await asyncio.gather(*taken)] == [200] * 3
        assert (await _post(application, split(numbers(1)))).status_code == 200

    with_application(serving_models["pipeline_on_numbers"], check, queue=3, concurrency=2)


@pytest.mark.parametrize("header", [False, True], ids=["setting", "header"])
def test_server_answers_504_when_the_deadline_passes(serving_models: Mapping[str, Path], header: bool) -> None:
    async def check(application: Application) -> None:
        model = _slow(application)
        late = await _post(application, split(numbers(1)), **({"x_deadline_ms": "80"} if header else {}))
        assert late.status_code == 504
        assert late.json()["message"] == "Request processing time exceeded limit"
        model.go.set()
        assert (await _post(application, split(numbers(1)))).status_code == 200
        assert application.taken == 0

    with_application(serving_models["pipeline_on_numbers"], check, deadline_ms=20_000.0 if header else 80.0)


def test_server_keeps_to_its_own_deadline_when_a_client_asks_for_more(serving_models: Mapping[str, Path]) -> None:
    async def check(application: Application) -> None:
        model = _slow(application)
        assert (await _post(application, split(numbers(1)), x_deadline_ms="60000")).status_code == 504
        model.go.set()

    with_application(serving_models["pipeline_on_numbers"], check, deadline_ms=80.0)


async def _parts(count: int, pause: float) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(pause)
        yield b" " * 100_000


def test_server_answers_413_when_a_body_is_too_large(serving_models: Mapping[str, Path]) -> None:
    async def check(application: Application) -> None:
        announced = await _post(application, b" " * 1_000_001)
        unannounced = await _post(application, _parts(12, 0))
        assert [announced.status_code, unannounced.status_code] == [413, 413]
        assert announced.headers["connection"] == "close"
        assert "at most 1 MB" in announced.json()["message"]
        assert (await _post(application, split(numbers(1)))).status_code == 200

    with_application(serving_models["booster"], check, max_body_mb=1.0)


def test_server_answers_others_when_many_bodies_never_come(serving_models: Mapping[str, Path]) -> None:
    async def check(application: Application) -> None:
        slow = [asyncio.create_task(_post(application, _parts(10, 0.2))) for _ in range(30)]
        await asyncio.sleep(0.05)
        assert (await _post(application, split(numbers(1)))).status_code == 200
        assert {answer.status_code for answer in await asyncio.gather(*slow)} == {408}

    with_application(serving_models["booster"], check, deadline_ms=400.0, queue=2)


def test_server_holds_a_bounded_amount_when_a_crowd_sends_large_bodies(serving_models: Mapping[str, Path]) -> None:
    async def check(application: Application) -> None:
        answers = await asyncio.gather(*(_post(application, _parts(9, 0.05)) for _ in range(60)))
        codes = [answer.status_code for answer in answers]
        # 60 bodies of 0.9 MB where 32 of the largest size, 1 MB, may be on their way.
        assert set(codes) == {400, 429}
        assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)
        assert (await _post(application, split(numbers(1)))).status_code == 200

    with_application(serving_models["booster"], check, max_body_mb=1.0)


def test_server_answers_408_when_a_body_is_slow(serving_models: Mapping[str, Path]) -> None:
    async def check(application: Application) -> None:
        slow = asyncio.create_task(_post(application, _parts(10, 0.1)))
        quick = await _post(application, split(numbers(1)))
        assert quick.status_code == 200
        assert (await slow).status_code == 408
        assert application.taken == 0

    with_application(serving_models["booster"], check, deadline_ms=150.0)


def test_server_answers_every_good_request_when_bad_ones_come_beside(serving_models: Mapping[str, Path]) -> None:
    bad = [b"{", b'{"dataframe_split": {"columns": ["a"], "data": [[1]]}}', b"[]", b'{"inputs": {"a": ["x"]}}', b'{"instances": 3}']

    async def check(application: Application) -> None:
        good = [split(numbers(1, seed=seed)) for seed in range(155)]
        mixed: list[bytes] = []
        for index, body in enumerate(good):
            mixed += [body] if index % 31 else [body, bad[index // 31]]
        answers = await asyncio.gather(*(_post(application, body) for body in mixed))
        assert [answer.status_code for answer, body in zip(answers, mixed, strict=True) if body in bad] == [400] * 5
        for answer, body in zip(answers, mixed, strict=True):
            if body not in bad:
                alone = await _post(application, body)
                assert answer.status_code == 200
                assert answer.content == alone.content

    application = with_application(serving_models["trees_variant"], check)
    assert answered_by(application)["fast"] == 310


def test_server_says_415_when_no_content_type_is_named(serving_models: Mapping[str, Path]) -> None:
    async def check(application: Application) -> None:
        answer = await client(application).post("/invocations", content=b"{}")
        assert answer.status_code == 415
        assert "content-type: application/json" in answer.json()["message"]

    with_application(serving_models["booster"], check)


def test_server_answers_400_when_json_is_nested_too_deeply(serving_models: Mapping[str, Path]) -> None:
    async def check(application: Application) -> None:
        assert (await _post(application, b'{"instances":' + b"[" * 100_000 + b"]" * 100_000 + b"}")).status_code == 400
        assert (await _post(application, split(numbers(1)))).status_code == 200

    with_application(serving_models["booster"], check)


def test_server_shows_what_it_serves_when_asked(serving_models: Mapping[str, Path]) -> None:
    async def check(application: Application) -> None:
        http = client(application)
        await _post(application, split(numbers(3)))
        assert [(await http.get(path)).status_code for path in ("/ping", "/health", "/ready", "/docs")] == [200] * 4
        assert (await http.get("/nowhere")).status_code == 404
        wrong = await http.get("/invocations")
        assert (wrong.status_code, wrong.headers["allow"], "by POST" in wrong.text) == (405, "POST", True)
        shown = (await http.get("/version")).json()
        assert shown["mlflow"] == mlflow.__version__
        assert (shown["fast_path"], shown["batching"], shown["verdict"]["outcome"]) == ("lightgbm, trees by onnxruntime", "yes", "NONE")
        assert "secret" not in json.dumps(shown)
        metrics = (await http.get("/metrics")).text
        assert 'mlflow_opt_requests_total{path="fast",status="200"} 1.0' in metrics
        assert "mlflow_opt_batch_rows_sum 3.0" in metrics
        record = (await http.get("/openapi.json")).json()["paths"]["/invocations"]["post"]["requestBody"]
        forms = record["content"]["application/json"]["schema"]["oneOf"]
        assert forms[1]["properties"]["dataframe_records"]["items"]["required"] == NUMBERS
        application.draining = True
        assert (await http.get("/ready")).status_code == 503
        assert (await _post(application, split(numbers(1)))).headers["connection"] == "close"

    with_application(serving_models["booster"], check, redis_url="redis://:secret@127.0.0.1:1/0")


def test_server_uses_no_fast_path_when_its_answers_differ(tmp_path: Path, serving_models: Mapping[str, Path]) -> None:
    # A variant whose own code answers otherwise than this version's: its folder says so, and pyfunc is right.
    import shutil

    folder = tmp_path / "variant"
    shutil.copytree(serving_models["trees_variant"], folder)
    code = folder / "dropin_code.py"
    answered = "answer(self.session, self.spec, model_input)"
    code.write_text(code.read_text().replace(f"return {answered}", f"return {answered} * 2"))

    async def check(application: Application) -> None:
        assert "differ" in application.live.served.facts.engine
        assert (await _post(application, split(numbers(1)))).status_code == 200

    assert answered_by(with_application(folder, check)) == {"pyfunc": 1}


def test_server_does_not_start_when_the_model_fails_on_its_own_example(tmp_path: Path) -> None:
    folder = save_booster(tmp_path / "model")
    (folder / "serving_input_example.json").write_text('{"dataframe_split": {"columns": ["a"], "data": [[1]]}}')

    async def check(application: Application) -> None:
        raise AssertionError("it must not start")

    with pytest.raises(ValueError, match="must answer its own input example"):
        with_application(folder, check)


def test_server_completes_requests_when_a_feature_hook_is_given(serving_models: Mapping[str, Path], tmp_path: Path) -> None:
    hook = tmp_path / "features.py"
    hook.write_text(
        "import asyncio\n"
        "async def fetch(request):\n"
        "    await asyncio.sleep(0.05)\n"
        "    if request['dataframe_records'][0]['a'] == 13:\n"
        "        raise LookupError('no such customer')\n"
        "    return {'dataframe_records': [{'b': 2.0, 'c': 3.0, 'd': 4.0, **row} for row in request['dataframe_records']]}\n"
    )

    async def check(application: Application) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        bodies = [json.dumps({"dataframe_records": [{"a": float(value)}]}).encode() for value in range(20)]
        answers = await asyncio.gather(*(_post(application, body) for body in bodies))
        assert [answer.status_code for answer in answers] == [502 if value == 13 else 200 for value in range(20)]
        assert "no such customer" in answers[13].json()["message"]
        # Fetched at the same time: one after another would take a second.
        assert loop.time() - begun < 0.8

    with_application(serving_models["booster"], check, features=f"{hook}:fetch")


def test_hook_is_refused_when_it_is_not_async(tmp_path: Path) -> None:
    (tmp_path / "features.py").write_text("def fetch(request):\n    return request\n")
    with pytest.raises(ValueError, match="async function"):
        load_hook(f"{tmp_path}/features.py:fetch")
    with pytest.raises(ValueError, match="there is no file"):
        load_hook(f"{tmp_path}/nothing.py:fetch")


def test_settings_survive_text_when_written_and_read() -> None:
    given = changed(Settings(), {"max_batch": "16", "cache": "memory", "require_verdict": "true", "window_ms": 2})
    assert from_json(to_json(given)) == given
    stored = with_tag(Settings(queue=7), {SETTINGS_TAG: tuned(given)})
    assert (stored.max_batch, stored.cache, stored.window_ms, stored.queue, stored.require_verdict) == (16, "memory", 2.0, 7, False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_batch": 0}, "max_batch must be more than 0"),
        ({"cache": "disk"}, "cache must be off, memory or redis"),
        ({"window_ms": "soon"}, "window_ms must be of type float"),
        ({"windows": 1}, "must be one of"),
        ({"require_verdict": "perhaps"}, "must be of type bool"),
    ],
    ids=["range", "choice", "text", "name", "truth"],
)
def test_settings_are_refused_when_a_value_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(Settings(), values)


def test_settings_tag_is_refused_when_it_sets_what_it_may_not() -> None:
    with pytest.raises(ValueError, match="must hold a JSON object"):
        with_tag(Settings(), {SETTINGS_TAG: '{"require_verdict": false}'})
