"""A real transformer with fewer heads and narrower MLPs: the MiniLM-L6 encoder with a head on clothing reviews.

Run with `python -m benchmarks.prune_minilm [rows]`; needs what `benchmarks.minilm` needs. The encoder is fine-tuned with its head
for one epoch on some rows (2,000). Then, beside one more epoch of the whole network, heads and neurons are removed, half at a
time by Taylor importance where the loss grows least, down to 46% of the multiplications, with one epoch in all. Sentences are
cut or padded to 32 words' parts; times are of one sentence and one thread in ONNX Runtime, in turns in fresh processes.
Bound: at least 1.8x over the whole network in the same runtime at no more than one point of accuracy lost.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.minilm import Classifier, _network
from benchmarks.real_data import real_data
from benchmarks.results_file import ends, interval, save
from mlflow_opt import measure
from mlflow_opt.data import Part
from mlflow_opt.export.from_torch import export_module
from mlflow_opt.models import Model
from mlflow_opt.networks.losses import Arrays
from mlflow_opt.networks.training import TrainSettings, fit
from mlflow_opt.policy import parse_policy
from mlflow_opt.pruning.channel_graph import couplings_of
from mlflow_opt.pruning.channel_importance import importances, sensitivities
from mlflow_opt.pruning.channel_pruning import without
from mlflow_opt.pruning.channel_widths import choose_widths, units_to_remove
from mlflow_opt.records import Task

POLICY = parse_policy("validation_criteria: [{metric: accuracy, max_drop: 0.01}, {metric: speedup, min: 1.8}]")
LENGTH, SCORED, HELD, SHARE = 32, 4000, 200, 0.46
# Rows for importances and sensitivities.
RANKING = 128
SETTINGS = TrainSettings(1, 32, 1e-4, "one_cycle", weight_decay=0.01, clip_norm=1.0)


def rows_of(tokenise: Any, table: pd.DataFrame) -> Arrays:
    """Turn reviews into token ids of one length."""
    texts = [str(text) for text in table["text"].fillna("")]
    made = tokenise(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np")
    inputs = {name: made[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    return Arrays(inputs, table["target"].to_numpy().astype(np.int64))


def pruned(module: Any, train: Arrays, held: Arrays) -> tuple[Any, float]:
    """Remove heads and neurons in two steps; gives the network and the share of multiplications left."""
    few = {name: one[:3] for name, one in held.inputs.items()}
    some = replace(train, inputs={name: one[:RANKING] for name, one in train.inputs.items()}, targets=train.targets[:RANKING])
    graph = couplings_of(module, few)
    before, full = graph.macs(), {family.name: len(family.units) for family in graph.families}
    lost = sensitivities(module, graph, importances(module, graph, "taylor", some, _plainly), some, _plainly)
    final = choose_widths(graph, lost, SHARE, 16)
    for step in (1, 2):
        graph = couplings_of(module, few)
        now = {name: max(width, round(full[name] * (width / full[name]) ** (step / 2))) for name, width in final.items()}
        gone = units_to_remove(graph, now, importances(module, graph, "taylor", some, _plainly))
        module = without(module, graph, gone, held.inputs)
        part = slice(None, None, 2) if step == 1 else slice(1, None, 2)
        half = replace(train, inputs={name: one[part] for name, one in train.inputs.items()}, targets=train.targets[part])
        module = fit(module, half, held, SETTINGS).module
    return module, couplings_of(module, few).macs() / before


def _plainly(module: Any) -> Any:
    return module


def _saved(module: Classifier, rows: Arrays, path: Path) -> Model:
    few = {name: one[:3] for name, one in rows.inputs.items()}
    path.write_bytes(export_module(module.eval(), few).SerializeToString())
    return Model(path, "onnx")


def main() -> None:
    """Measure and write results/prune_minilm.*."""
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    table = pd.read_parquet(real_data("reviews.parquet"))
    module, tokenise = _network()
    train = rows_of(tokenise, table[table["split"] == "train"].head(count))
    held = rows_of(tokenise, table[table["split"] == "train"].iloc[count : count + HELD])
    scored = rows_of(tokenise, table[table["split"] == "test"].head(SCORED))
    tuned = fit(module, train, held, SETTINGS).module
    smaller, share = pruned(tuned, train, held)
    whole = fit(tuned, train, held, SETTINGS).module
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = (_saved(one, held, Path(name) / f"{at}.onnx") for at, one in enumerate((smaller, whole)))
        part = Part("gate", dict(scored.inputs), scored.targets, "")
        how = measure.Conditions(threads=1, batch_size=8, budget_s=40.0)
        found = measure.evidence(ours, theirs, part, Task("binary", (0, 1)), POLICY, how).candidate.quantities
    asked = {
        "heads and neurons removed, one sentence, over the whole network": ("speedup", 1, ">= 1.8"),
        "the same, batch of 8": ("throughput_ratio", 1, "-"),
        "points of accuracy lost": ("drop_accuracy", 100, "<= 1"),
    }
    values = {what: [scale * one for one in ends(found[key])] for what, (key, scale, _) in asked.items()}
    lines = [
        f"{share:.0%} of the multiplications left; accuracy {found['accuracy'].value:.4f} on {SCORED} rows; {count} rows to train on.",
        "",
        "| what | measured [95%] | bound |",
        "|---|---|---|",
        *(f"| {what} | {interval(values[what])} | {bound} |" for what, (_, _, bound) in asked.items()),
    ]
    save("prune_minilm", {"share": share, "rows": count, **values}, lines)


if __name__ == "__main__":
    main()
