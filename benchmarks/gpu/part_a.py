"""Part a: one GPU without Ray. Matrix products, combinations of settings, throughput, validation and memory."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.gpu.report import Report, from_child, in_child

MEMORY_TOLERANCE = 0.15
RESUME_TOLERANCE = 1e-3
"""Relative difference of the loss. On a GPU, atomic additions have no fixed order."""
BOUNDS = {
    "1.2b_full_2k.mfu": ">= 0.40",
    "0.4b_encoder_512.mfu": ">= 0.35",
    "8b_lora_4k.tokens_per_second": ">= 8000",
    "1.2b_full_2k.validation_tokens_per_second": ">= 2000",
}
"""Bounds of the throughput, in addition to a rate of at least that of transformers.Trainer in each case."""


def run(report: Report, sections: tuple[str, ...]) -> None:
    """Measure the sections in the order of `SECTIONS`; all of them if there are none. Raises Failed."""
    with tempfile.TemporaryDirectory(prefix="tailorbird-gpu-") as folder:
        for name, section in SECTIONS.items():
            if not sections or name in sections:
                print(f"== {name}", flush=True)
                section(report, Path(folder))


def matmul(report: Report, _folder: Path) -> None:
    """Measure a product of two square matrices in bf16."""
    report.add("matmul_tflops", in_child(matmul_tflops, 256 if report.reduced else 8192), ">= 700", hardware=True)


def matmul_tflops(size: int) -> float:
    """Return the TFLOP/s of the best of five rounds of products."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    num_products, rates = 20 if device == "cuda" else 2, []
    for _ in range(6):
        _synchronize()
        started = time.perf_counter()
        for _ in range(num_products):
            torch.mm(left, right)
        _synchronize()
        rates.append(num_products * 2 * size**3 / (time.perf_counter() - started) / 1e12)
    return max(rates[1:])


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def combinations(report: Report, folder: Path) -> None:
    """Train, export and resume ten combinations of settings."""
    own = folder / "combinations"
    own.mkdir()
    figures = in_child(combinations_in_child, own, report.reduced)
    report.add("combinations", figures.pop("combinations"), ">= 10")
    for name, value in figures.items():
        report.add(name, value, f"<= {RESUME_TOLERANCE}")


def throughput(report: Report, folder: Path) -> None:
    """Measure each case next to transformers.Trainer."""
    for figures in from_child(throughput_in_child, folder, report.reduced):
        for name, value in figures.items():
            bound = ">= 1.0" if name.endswith(".ratio_to_trainer") else BOUNDS.get(name)
            report.add(name, value, bound, hardware=True)


def memory(report: Report, folder: Path) -> None:
    """Measure rank 0 of 8 and of 32 at ZeRO stages 1 to 3."""
    for world_size in (8,) if report.reduced else (8, 32):
        for figures in from_child(memory_in_child, folder, world_size, report.reduced):
            for name, value in figures.items():
                bound = f"<= {MEMORY_TOLERANCE}" if name.endswith("error_of_estimate") else None
                report.add(name, value, bound, hardware=True)


# Torch, transformers and DeepSpeed take seconds to import, so only the child processes do it.


def combinations_in_child(folder: Path, reduced: bool) -> dict[str, float]:
    from benchmarks.gpu.combinations import check_combinations

    return check_combinations(folder, reduced)


def throughput_in_child(folder: Path, reduced: bool) -> Iterator[dict[str, float]]:
    from benchmarks.gpu.throughput import measure_cases

    return measure_cases(folder, reduced)


def memory_in_child(folder: Path, world_size: int, reduced: bool) -> Iterator[dict[str, float]]:
    from benchmarks.gpu.memory import measure_stages

    return measure_stages(folder, world_size, reduced)


SECTIONS: dict[str, Callable[[Report, Path], None]] = {
    "matmul": matmul,
    "combinations": combinations,
    "throughput": throughput,
    "memory": memory,
}
