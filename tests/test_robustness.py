from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlflow_opt.measurement.robustness import DAMAGED, damaged, noisy

RNG = np.random.default_rng(0)
ROWS: dict[str, np.ndarray] = {
    "grey": RNG.integers(0, 256, (20, 12, 12), dtype=np.uint8),
    "colour": RNG.integers(0, 256, (20, 12, 12, 3), dtype=np.uint8),
    "chw": RNG.normal(size=(20, 3, 12, 12)).astype(np.float32),
    "numbers": RNG.normal(size=(20, 40)).astype(np.float32),
    "tokens": RNG.integers(0, 50, (20, 40)),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_keep_shape_and_type_when_disturbed(name: str) -> None:
    before = ROWS[name].copy()
    for change in (noisy, damaged):
        made = change({name: ROWS[name]})[name]
        assert (made.shape, made.dtype) == (before.shape, before.dtype)
        assert np.array_equal(made, change({name: ROWS[name]})[name]), "the noise is fixed"
    assert np.array_equal(ROWS[name], before), "the rows given are left alone"


@pytest.mark.parametrize("name", ROWS)
def test_damage_hits_its_share_of_every_row_when_made(name: str) -> None:
    changed = (damaged({name: ROWS[name]})[name] != ROWS[name]).reshape(20, -1).mean()
    assert 0.5 * DAMAGED < changed < 1.5 * DAMAGED


def test_tokens_stay_when_noise_is_added() -> None:
    assert np.array_equal(noisy({"tokens": ROWS["tokens"]})["tokens"], ROWS["tokens"])


def test_noise_refuses_when_the_rows_are_a_table() -> None:
    with pytest.raises(TypeError, match="the data are a table"):
        noisy(pd.DataFrame({"a": [1.0]}))
