# /// script
# requires-python = ">=3.11"
# ///
"""Tell a deployment system that the gate has moved `champion`: the receiver of a native MLflow webhook.

    MLFLOW_WEBHOOK_SECRET=... python examples/webhook_receiver.py --port 9000 --alias champion

It checks MLflow's signature, refuses what is old or was seen before, and writes the deployment call to stdout, one line a
promotion, for `xargs` or a job runner to carry out. The hook has decided before MLflow calls, and a webhook cannot veto, so
nothing is decided here. Subscribe it once (the server needs MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY to keep the secret):

    from mlflow import MlflowClient
    MlflowClient().create_webhook(
        "deploy", "https://deploy.example.org/mlflow", ["model_version_alias.created"], secret=SECRET
    )

MLflow calls https addresses that are public only. To try it on one machine, start the server with
MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https and MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true, and never in production.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import shlex
import sys
import time
from collections import OrderedDict
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

# As MLflow documents them: the signature is over `id.timestamp.body`.
SIGNATURE, DELIVERY, TIMESTAMP = "X-MLflow-Signature", "X-MLflow-Delivery-Id", "X-MLflow-Timestamp"
OLDEST_S = 300
REMEMBERED = 10_000
LONGEST_BODY = 1_000_000


def objection(secret: str, headers: Message, body: bytes, now: float) -> str:
    """Say why a call is not one of MLflow's, empty if it is."""
    told, delivery, sent = (headers.get(name, "") for name in (SIGNATURE, DELIVERY, TIMESTAMP))
    expected = hmac.new(secret.encode(), f"{delivery}.{sent}.".encode() + body, hashlib.sha256).digest()
    if not hmac.compare_digest(told.encode(), b"v1," + base64.b64encode(expected)):
        return "the signature is wrong"
    # Signed, so it is a number.
    return "it is too old" if abs(now - int(sent)) > OLDEST_S else ""


def deployment_call(event: dict[str, Any], alias: str) -> str:
    """Write the command that deploys what the alias points to now, empty if the event is about something else."""
    data = event.get("data", {})
    if (event.get("entity"), event.get("action"), data.get("alias")) != ("model_version_alias", "created", alias):
        return ""
    # The version, not the alias: a later promotion has a call of its own, and calls may arrive in any order.
    model = f"models:/{data['name']}/{data['version']}"
    return shlex.join(["mlflow-opt", "start_server", "--model", model, "--require_verdict", "true"])


class Receiver(BaseHTTPRequestHandler):
    """Answers MLflow at once, and hands on each promotion once."""

    secret = ""
    alias = "champion"
    seen: ClassVar[OrderedDict[str, None]] = OrderedDict()

    def do_POST(self) -> None:
        """Take one call of MLflow's."""
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(min(length, LONGEST_BODY))
        problem = objection(self.secret, self.headers, body, time.time())
        delivery = self.headers.get(DELIVERY, "")
        if not problem and delivery not in self.seen:
            self.seen[delivery] = None
            if len(self.seen) > REMEMBERED:
                self.seen.popitem(last=False)
            if call := deployment_call(json.loads(body), self.alias):
                sys.stdout.write(call + "\n")
                sys.stdout.flush()
        self.send_response(401 if problem else 204)
        self.end_headers()
        if problem:
            sys.stderr.write(f"refused a call: {problem}\n")


def main() -> None:
    """Listen until interrupted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--alias", default="champion")
    given = parser.parse_args()
    Receiver.secret, Receiver.alias = os.environ.get("MLFLOW_WEBHOOK_SECRET", ""), given.alias
    if not Receiver.secret:
        raise SystemExit("MLFLOW_WEBHOOK_SECRET must be the webhook's secret; without it anybody could deploy.")
    HTTPServer(("127.0.0.1", given.port), Receiver).serve_forever()


if __name__ == "__main__":
    main()
