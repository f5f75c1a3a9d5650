from __future__ import annotations

import fnmatch
import subprocess
import sys

import pytest

from mlflow_opt.measurement import fingerprint as module
from mlflow_opt.measurement.fingerprint import FEATURES, LONGEST, cpu_features, fingerprint

INTEL = """processor\t: 0
model name\t: Intel(R) Xeon(R) 8481C
cpu family\t: 6
model\t\t: 143
stepping\t: 8
flags\t\t: fpu avx2 amx_int8 avx512_vnni

processor\t: 1
"""
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n\n"


def test_fingerprint_is_sorted_pairs_when_read_back() -> None:
    pairs = fingerprint(threads=2, throughput_batch=32).split("; ")
    names = [pair.partition("=")[0] for pair in pairs]
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert {"cpu", "cores", "features", "memory_gb", "numpy", "onnxruntime", "os", "python"} <= set(names)
    assert {"threads=2", "throughput_batch=32"} <= set(pairs)
    assert fnmatch.fnmatchcase(fingerprint(2), "*threads=2*")


def test_fingerprint_is_the_same_when_taken_twice() -> None:
    assert fingerprint(1) == fingerprint(1)
    assert fingerprint(1) != fingerprint(2)


def test_fingerprint_stays_readable_when_a_value_holds_separators() -> None:
    found = fingerprint(1, note="a; b=c\n d" + "x" * 2 * LONGEST)
    assert len(found) <= LONGEST
    assert "note=a, b:c d" in found


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        (INTEL, "Intel(R) Xeon(R) 8481C (family 6 model 143 stepping 8)", {"avx2", "amx_int8", "avx512_vnni"}),
        (ARM, "0x41 0xd40", {"asimddp", "i8mm", "bf16"}),
    ],
    ids=["intel", "arm"],
)
def test_cpu_is_named_when_cpuinfo_is_given(text: str, name: str, flags: set[str]) -> None:
    found = module._from_cpuinfo(text)
    assert found[0] == name
    assert set(found[1]) & set(FEATURES) == flags


def test_cpu_features_are_among_those_that_matter_when_read() -> None:
    assert cpu_features() <= set(FEATURES)


def test_fingerprint_imports_nothing_heavy_when_taken_in_a_fresh_process() -> None:
    code = (
        "import sys, time\nbegan = time.process_time()\nfrom mlflow_opt.measurement.fingerprint import fingerprint\nfingerprint(1)\n"
        "print(time.process_time() - began)\n"
        "print(sorted({'numpy', 'pandas', 'mlflow', 'torch', 'onnxruntime', 'lightgbm', 'sklearn'} & set(sys.modules)))"
    )
    seconds, loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert loaded == "[]"
    assert float(seconds) < 0.5
