"""Make the pair of keys by which a server knows who measured."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from mlflow_opt.commands._document import document
from mlflow_opt.signature import run
from mlflow_opt.verdicts import signing

# It writes a private key beside the user; there is nothing to track.
CLI_ONLY = True

_logger = logging.getLogger(__name__)


def keygen(*, path: str = "mlflow-opt.key", json: bool = False) -> None:
    """Write a new private key for signing evidence, readable by you alone, and the public key beside it.

    Use it where untrusted people can log metrics: give the private key to the job that measures and nobody else, and the
    public key to the server's policy. It does not help where everybody may run that job on data of their choice.

    Example:
        mlflow-opt keygen --path ci.key

    Args:
        path: file of the private key, which must be new; the public key goes to the same name with `.pub`.
        json: write one JSON document to stdout, for machines; logs stay on stderr and the exit code is the same.

    Raises:
        ValueError: a file of that name exists.

    References:
        Bernstein et al. 2012, "High-speed high-security signatures" (Ed25519).
    """
    with document("keygen", wanted=json) as answer:
        private, public = signing.make_key()
        _write(Path(path), private, 0o600)
        _write(Path(f"{path}.pub"), f"{public}\n".encode(), 0o644)
        answer.update({"private_key": path, "public_key_file": f"{path}.pub", "public_key": public, "key_id": signing.key_id(public)})
    if not json:
        sys.stdout.write(public + "\n")
    _logger.info(
        "Measure with %s=%s; the server's policy says trusted_keys: ['%s'] (key %s).", signing.VARIABLE, path, public, answer["key_id"]
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    try:
        # O_EXCL: a key that is in use is never overwritten.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise ValueError(f"path must be a new file, '{path}' exists; give another one.") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


if __name__ == "__main__":
    run(keygen)
