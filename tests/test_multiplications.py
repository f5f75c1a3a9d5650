from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mlflow_opt.architectures.multiplications import macs_of
from mlflow_opt.architectures.network_space import Facts, mobilenet
from mlflow_opt.architectures.searched_networks import SearchedEncoder, SearchedMLP
from mlflow_opt.export.from_torch import export_module
from mlflow_opt.models import Model
from mlflow_opt.networks.networks import Recurrent
from mlflow_opt.pruning.channel_graph import couplings_of

RNG = np.random.default_rng(0)
TARGET = {"outputs": 3, "shift": 0.0, "spread": 1.0}
PICTURES = {"image": RNG.integers(0, 256, (3, 12, 12), dtype=np.uint8)}
TOKENS = {"steps": RNG.integers(0, 20, (3, 7))}
SERIES = {"series": RNG.normal(size=(3, 6, 4)).astype(np.float32)}


def counted(network: nn.Module, rows: dict[str, np.ndarray], folder: Path) -> float:
    (folder / "model.onnx").write_bytes(export_module(network.eval(), rows).SerializeToString())
    return macs_of(Model(folder / "model.onnx", "onnx"), rows)


@pytest.mark.parametrize(
    ("network", "rows"),
    [
        (mobilenet(Facts("picture", (12, 12), TARGET, "hw", 255.0), 0, 0.25), PICTURES),
        (SearchedEncoder(TARGET, {"steps": 7, "vocabulary": 20, "features": 0}, 16, 2, 1), TOKENS),
    ],
    ids=["pictures", "tokens"],
)
def test_multiplications_are_those_of_the_network_when_counted_in_its_graph(
    network: nn.Module, rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    assert counted(network, rows, tmp_path) == couplings_of(network.eval(), rows).macs()


def test_multiplications_are_the_products_of_the_widths_when_it_is_a_perceptron(tmp_path: Path) -> None:
    rows = {"numbers": RNG.normal(size=(3, 5)).astype(np.float32)}
    assert counted(SearchedMLP(5, TARGET, [16, 8]), rows, tmp_path) == 5 * 16 + 16 * 8 + 8 * 3


def test_multiplications_count_every_step_when_it_is_recurrent(tmp_path: Path) -> None:
    found = counted(Recurrent(torch.zeros(4), torch.ones(4), 3, width=8), SERIES, tmp_path)
    assert found == 6 * 3 * 8 * (4 + 8) + 8 * 3
