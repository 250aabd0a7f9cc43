"""The machine that a number belongs to, in words."""

import os
import platform
import re
from pathlib import Path

import torch

UNITS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")  # what decides the speed


def describe(load_before: float | None = None) -> dict[str, object]:
    """Processor, cores, units, versions, settings that torch reads, and how busy it was and is."""
    information = _read("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", information, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", information, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    onednn = re.search(r"MKL-DNN v([\d.]+)|oneDNN v([\d.]+)", torch.__config__.show())
    return {
        "processor": name[1] if name else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "units": [unit for unit in UNITS if unit in known],
        "torch": torch.__version__,
        "onednn": next(filter(None, onednn.groups())) if onednn else None,
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith("OMP_")},
        "load_before": load_before,
        "load": load(),
    }


def load() -> float | None:
    """Processes that wanted to run in the last minute, on average."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def resident_bytes() -> int:
    """Memory of this process that is held in RAM."""
    statm = _read("/proc/self/statm")
    if statm:
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def sentence(machine: dict[str, object]) -> str:
    settings = " ".join(f"{name}={value}" for name, value in machine["settings"].items()) or "no OMP settings"
    units = ", ".join(machine["units"]) or machine["kernels"]
    versions = f"torch {machine['torch']}, oneDNN {machine['onednn']}"
    busy = f"load {machine['load_before']} before, {machine['load']} after"
    return f"{machine['processor']}, {machine['cores']} cores ({units}); {versions}; {settings}; {busy}."


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
