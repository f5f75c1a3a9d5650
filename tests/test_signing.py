"""What a signature holds for: this key, this run, these metrics, these tags, and nothing else."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_opt.verdicts import signing
from mlflow_opt.verdicts.evidence import DOUBT, PREFIX, VERDICT

METRICS = {"gate_speedup": 1.8, "gate_speedup_lo": 1.7, "gate_speedup_hi": 1.9, "gate_speedup_n": 900.0, "gate_passed": 1.0}
TAGS = {f"{PREFIX}model_id": "m-1", f"{PREFIX}data_digest": "rows", f"{PREFIX}measured_at": "5", VERDICT: "PASS"}
PRIVATE, PUBLIC = signing.make_key()
_, OTHER = signing.make_key()


@pytest.fixture(autouse=True, scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("keys") / "own.key"
    path.write_bytes(PRIVATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(signing.VARIABLE, str(path))
        yield path


def signed(run_id: str = "r1") -> dict[str, str]:
    return TAGS | signing.signature_tag(run_id, METRICS, TAGS)


def test_signature_is_accepted_when_nothing_changed() -> None:
    assert signing.objection("r1", METRICS, signed(), [OTHER, PUBLIC]) == ""
    assert signing.own_public_key() == PUBLIC


@given(st.sampled_from(sorted(METRICS)), st.floats(allow_nan=True, allow_infinity=True))
def test_signature_is_refused_when_any_metric_changed(name: str, value: float) -> None:
    told = signing.objection("r1", METRICS | {name: value}, signed(), [PUBLIC])
    assert bool(told) == (repr(value) != repr(METRICS[name]))


@given(st.sampled_from([*sorted(TAGS), DOUBT, f"{PREFIX}policy_digest", f"{PREFIX}reference_model_id"]), st.text())
def test_signature_is_refused_when_any_tag_changed(name: str, value: str) -> None:
    told = signing.objection("r1", METRICS, signed() | {name: value}, [PUBLIC])
    assert bool(told) == (value != TAGS.get(name, ""))


@pytest.mark.parametrize(
    ("metrics", "tags", "run_id", "trusted", "said"),
    [
        (METRICS, TAGS, "r1", [PUBLIC], "it is not signed"),
        (METRICS, None, "r2", [PUBLIC], "made for another run"),
        (METRICS, None, "r1", [OTHER], "it is signed by 'ed25519:"),
        (METRICS | {"gate_f1": 1.0}, None, "r1", [PUBLIC], "were changed"),
        ({"gate_passed": 1.0}, None, "r1", [PUBLIC], "were changed"),
        (METRICS, TAGS | {signing.SIGNATURE: "nonsense"}, "r1", [PUBLIC], "it is signed by 'nonsense:"),
        (METRICS, TAGS | {signing.SIGNATURE: f"ed25519:{signing.key_id(PUBLIC)}:"}, "r1", [PUBLIC], "were changed"),
        (METRICS, TAGS | {signing.SIGNATURE: f"ed25519:{signing.key_id(PUBLIC)}:####"}, "r1", [PUBLIC], "were changed"),
        (METRICS, TAGS | {signing.SIGNATURE: f"none:{signing.key_id(PUBLIC)}:"}, "r1", [PUBLIC], "it is signed by 'none:"),
    ],
    ids=["unsigned", "replayed", "other key", "metric added", "metrics gone", "nonsense", "empty", "no base64", "other scheme"],
)
def test_objection_says_what_is_wrong_when_evidence_is(
    metrics: dict[str, float], tags: dict[str, str] | None, run_id: str, trusted: list[str], said: str
) -> None:
    assert said in signing.objection(run_id, metrics, tags if tags is not None else signed(), trusted)


def test_other_metrics_and_tags_do_not_matter_when_they_are_not_judged() -> None:
    assert signing.objection("r1", METRICS | {"loss": 3.0}, signed() | {"team": "a"}, [PUBLIC]) == ""


def test_infinity_is_signed_as_the_store_returns_it() -> None:
    assert signing.canonical("r", {"gate_f1": math.inf}, {}) == signing.canonical("r", {"gate_f1": 1.7976931348623157e308}, {})


def test_nothing_is_signed_when_no_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(signing.VARIABLE)
    assert signing.signature_tag("r1", METRICS, TAGS) == {}
    assert signing.own_public_key() == ""


@pytest.mark.parametrize("content", [None, b"", b"nonsense", PUBLIC.encode()], ids=["missing", "empty", "nonsense", "public"])
def test_own_key_is_an_error_when_the_file_holds_none(content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bad.key"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(signing.VARIABLE, str(path))
    with pytest.raises(ValueError, match="mlflow-opt keygen"):
        signing.own_key()


def test_own_key_is_an_error_when_it_is_of_another_kind_or_encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    path = tmp_path / "bad.key"
    monkeypatch.setenv(signing.VARIABLE, str(path))
    for key, encryption in ((X25519PrivateKey, form.NoEncryption()), (Ed25519PrivateKey, form.BestAvailableEncryption(b"secret"))):
        path.write_bytes(key.generate().private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, encryption))
        with pytest.raises(ValueError, match=signing.VARIABLE):
            signing.own_key()


def test_public_key_is_read_when_given_as_text_file_or_pem(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    (tmp_path / "own.pub").write_text(PUBLIC + "\n")
    whole = Ed25519PublicKey.from_public_bytes(base64.b64decode(PUBLIC))
    (tmp_path / "own.pem").write_bytes(whole.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    assert {signing.public_key(text, tmp_path) for text in (PUBLIC, "own.pub", "own.pem", str(tmp_path / "own.pub"))} == {PUBLIC}
    (tmp_path / "short.pub").write_text("YWJj")
    for text in ("nowhere.pub", "short.pub", "YWJj"):
        with pytest.raises(ValueError, match="trusted key"):
            signing.public_key(text, tmp_path)
