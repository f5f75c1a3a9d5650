"""Sign evidence, so that a server can tell who measured: Ed25519 over what decides, by keys that the server's policy names.

Unsigned evidence stops mistakes. A signature by a trusted key stops a client that logs made-up metrics as well: it lacks
the private key. It says who measured, not that the measurement is right; keep the key where only the measuring job reads it.

Bernstein et al. 2012, "High-speed high-security signatures" (Ed25519); the canonical form is JSON with sorted keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_opt.records import INFINITE, Binding
from mlflow_opt.verdicts.evidence import DOUBT, PREFIX, VERDICT

if TYPE_CHECKING:
    # cryptography comes with MLflow; who never signs should not wait for it.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VARIABLE = "MLFLOW_OPT_SIGNING_KEY"
# On the evidence run: `ed25519:<id of the key>:<signature, base64>`.
SIGNATURE = PREFIX + "signature"
_SCHEME = "ed25519"
_JUDGED = "gate_"
_KEY_BYTES = 32
_TAGS = (*(PREFIX + field.name for field in fields(Binding)), VERDICT, DOUBT)


def make_key() -> tuple[bytes, str]:
    """Make a pair of keys.

    Example:
        >>> private, public = make_key()
        >>> private.startswith(b"-----BEGIN PRIVATE KEY-----"), len(public)
        (True, 44)

    Returns:
        The private key as PEM (PKCS 8, not encrypted) and the public key as base64 of its 32 bytes.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = Ed25519PrivateKey.generate()
    return made.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()), _public_text(made)


def own_key() -> Ed25519PrivateKey | None:
    """Read the private key from the file that the environment names; None where it names none.

    Raises:
        ValueError: the file is missing or holds no Ed25519 private key; evidence that someone wants signed is not left unsigned.

    """
    path = os.environ.get(VARIABLE, "")
    if not path:
        return None
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(Path(path).read_bytes(), None)
    # TypeError: the key is encrypted and needs a password.
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{VARIABLE} must name a file with an unencrypted private key, got '{path}' ({error}); make one with `mlflow-opt keygen`."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{VARIABLE} must name an Ed25519 key, '{path}' holds another kind; make one with `mlflow-opt keygen`.")
    return key


def own_public_key() -> str:
    """Return the public key that belongs to the private one in use, empty where there is none."""
    key = own_key()
    return _public_text(key) if key else ""


def signature_tag(run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> dict[str, str]:
    """Sign the evidence of a run with the key in use; no tag where there is none.

    Args:
        run_id: the run that the evidence is written to; the signature holds for no other.
        metrics: the run's metrics; those named `gate_...` are signed, all of them.
        tags: the run's tags; those that say what the evidence is bound to are signed.

    """
    key = own_key()
    if key is None:
        return {}
    signed = base64.b64encode(key.sign(canonical(run_id, metrics, tags))).decode()
    return {SIGNATURE: f"{_SCHEME}:{key_id(_public_text(key))}:{signed}"}


def objection(run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str], trusted: Sequence[str]) -> str:
    """Say why a run's evidence is not signed by a trusted key; empty if it is.

    Args:
        run_id: the run that it was read from.
        metrics: as read.
        tags: as read.
        trusted: public keys, base64.

    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    known = {key_id(key): key for key in trusted}
    told = tags.get(SIGNATURE, "")
    rule = f"evidence must be signed by a key that the policy trusts ({', '.join(known)})"
    if not told:
        return f"{rule}, and it is not signed; measure where {VARIABLE} names the private key."
    scheme, _, rest = told.partition(":")
    named, _, text = rest.partition(":")
    if scheme != _SCHEME or named not in known:
        return f"{rule}, and it is signed by '{f'{scheme}:{named}'[:80]}'; measure where {VARIABLE} names a trusted one."
    try:
        Ed25519PublicKey.from_public_bytes(_key_bytes(known[named])).verify(_decoded(text), canonical(run_id, metrics, tags))
    except InvalidSignature:
        return f"{rule}, and the signature does not fit run '{run_id}': metrics or tags were changed, or it was made for another run."
    return ""


def canonical(run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> bytes:
    """Write what is signed: the run, every `gate_...` metric, and what the evidence is bound to.

    Example:
        >>> canonical("r1", {"gate_f1": 0.5, "loss": 1.0}, {"mlflow_opt.model_id": "m-1", "team": "a"})[:66]
        b'{"format":1,"metrics":{"gate_f1":"0.5"},"run_id":"r1","tags":{"mlf'
    """
    judged = {key: _number(value) for key, value in metrics.items() if key.startswith(_JUDGED)}
    said = {key: tags.get(key, "") for key in _TAGS}
    whole = {"format": 1, "run_id": run_id, "metrics": judged, "tags": said}
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


def key_id(public: str) -> str:
    """Return a short name of a public key, for messages and signatures."""
    return hashlib.sha256(_key_bytes(public)).hexdigest()[:16]


def public_key(text: str, folder: Path = Path()) -> str:
    """Check a public key, or read one from a file that holds it as base64 or PEM.

    Args:
        text: base64 of a key, or the path of a file.
        folder: that a relative path starts from.

    Raises:
        ValueError: it is neither a key nor a readable file with one.

    """
    if len(_decoded(text)) == _KEY_BYTES:
        return text.strip()
    try:
        content = (folder / text).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"a trusted key must be base64 of 32 bytes or a readable file, got '{text}' ({error}).") from None
    if content.startswith("-----BEGIN PUBLIC KEY-----"):
        content = _from_pem(content, text)
    if len(_decoded(content)) != _KEY_BYTES:
        raise ValueError(f"a trusted key must be an Ed25519 public key, '{text}' holds none; `mlflow-opt keygen` writes one.")
    return content


def _from_pem(content: str, path: str) -> str:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = form.load_pem_public_key(content.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"a trusted key must be an Ed25519 public key, '{path}' cannot be read ({error}).") from None
    raw = key.public_bytes_raw() if isinstance(key, Ed25519PublicKey) else b""
    return base64.b64encode(raw).decode()


def _public_text(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def _key_bytes(public: str) -> bytes:
    raw = _decoded(public)
    if len(raw) != _KEY_BYTES:
        raise ValueError(f"a public key must be base64 of 32 bytes, got '{public}'; `mlflow-opt keygen` prints one.")
    return raw


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _number(value: float) -> str:
    # Stores write an infinity as the largest number that they have; neither is ever a usable value.
    return repr(float(value)) if math.isnan(value) or abs(value) < INFINITE else "inf"
