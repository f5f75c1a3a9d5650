"""What a latency depends on besides the model: CPU, its instruction sets, cores, and the versions of the runtimes.

It imports nothing but the standard library and asks package metadata instead of importing packages, because MLflow's
run-context plugin calls it in every process that starts a run.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path

# Instruction sets that decide which kernels a runtime picks, by the names that Linux gives them.
FEATURES = (
    "amx_bf16",
    "amx_int8",
    "amx_tile",
    "asimddp",
    "avx",
    "avx2",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "avx512f",
    "avx_vnni",
    "bf16",
    "fma",
    "i8mm",
    "sve",
)
RUNTIMES = ("lightgbm", "mlflow-skinny", "numpy", "onnxruntime", "pandas", "scikit-learn", "torch", "xgboost")
LONGEST = 5000


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """Name the instruction sets of this CPU that matter for inference; empty where the system does not tell.

    Use it to choose a quantisation format (int8 needs `avx512_vnni`, `avx_vnni` or `amx_int8` to pay fully on x86). It
    says what the CPU offers, not what a runtime was built to use.

    Example:
        >>> cpu_features() <= set(FEATURES)
        True
    """
    return frozenset(FEATURES) & frozenset(_cpu()[1])


def fingerprint(threads: int = 1, **also: str | float) -> str:
    """Describe hardware and runtime as sorted `key=value` pairs, `; ` between them, at most 5,000 characters.

    Two measurements compare only if it is the same; a policy's `hardware` glob is matched against it.

    Example:
        >>> "threads=2" in fingerprint(threads=2).split("; ")
        True

    Args:
        threads: threads that one call of a model uses.
        also: what else the measurement depends on, such as `throughput_batch=32`.

    """
    pairs = {name: _clean(str(value)) for name, value in (*_machine(), *also.items(), ("threads", threads))}
    return "; ".join(f"{name}={pairs[name]}" for name in sorted(pairs))[:LONGEST]


@lru_cache(maxsize=1)
def _machine() -> tuple[tuple[str, str], ...]:
    facts = {
        "arch": platform.machine(),
        "cores": str(_cores()),
        "cpu": _cpu()[0],
        "features": ",".join(sorted(cpu_features())),
        "memory_gb": str(_memory_gb()),
        "os": platform.system(),
        "python": platform.python_version(),
    }
    return (*facts.items(), *((name, version) for name in RUNTIMES if (version := _version(name))))


def _clean(value: str) -> str:
    return " ".join(value.replace(";", ",").replace("=", ":").split())


def _cores() -> int:
    # A container may be given fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gb() -> int:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)


@lru_cache(maxsize=1)
def _cpu() -> tuple[str, tuple[str, ...]]:
    """Return the CPU's model name and all its flags."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        return _from_cpuinfo(info.read_text(encoding="utf-8", errors="replace"))
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string"), tuple(
            f"{_sysctl('machdep.cpu.leaf7_features')} {_sysctl('machdep.cpu.features')}".lower().split()
        )
    return platform.processor() or platform.machine(), ()


def _from_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    first = text.split("\n\n", 1)[0]
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    name = facts.get("model name") or " ".join(facts.get(key, "") for key in ("CPU implementer", "CPU part")).strip() or platform.machine()
    # Family and model tell apart CPUs that a hypervisor gives one name.
    detail = " ".join(f"{key.split()[-1]} {facts[key]}" for key in ("cpu family", "model", "stepping") if key in facts)
    return f"{name} ({detail})" if detail else name, tuple(facts.get("flags", facts.get("Features", "")).split())


def _sysctl(name: str) -> str:
    # The name is one of our own literals; a Mac without the key answers nothing and an error code.
    return subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
