"""Part a: one GPU without Ray. Matrix products, combinations of settings, throughput, validation
and memory."""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.gpu.report import Report, from_child, in_child
from tailorbird.config.training import TrainingConfig

RESUME_TOLERANCE = 1e-3
"""Relative difference of the loss. On a GPU, atomic additions have no fixed order."""
LEAST_RATIO = ">= 1.0"
"""Bound of the rate of each case relative to transformers.Trainer."""
BOUNDS = {
    "1.2b_full_2k.mfu": ">= 0.40",
    "0.4b_encoder_512.mfu": ">= 0.35",
    "8b_lora_4k.tokens_per_second": ">= 8000",
    "1.2b_full_2k.validation_tokens_per_second": ">= 2000",
}
"""Further bounds of the throughput."""


def run(report: Report, sections: tuple[str, ...]) -> None:
    """Measure the sections in the order of `SECTIONS`; all of them if there are none. Raises
    Failed.

    A section for which the rest of the time limit does not suffice is not run.
    """
    with tempfile.TemporaryDirectory(prefix="tailorbird-gpu-") as folder:
        for name, section in SECTIONS.items():
            if (not sections or name in sections) and report.has_time_for(
                name, expected_s=EXPECTED_S[name]
            ):
                print(f"== {name}", flush=True)
                section(report, Path(folder))


def worker_environment(reduced: bool) -> dict[str, str]:
    """Return the environment of a worker of Ray Train, in which a training without Ray is measured
    too."""
    from training import trainer  # not at the top, because it imports Ray

    return trainer.worker_environment(
        TrainingConfig(num_workers=1, gpus_per_worker=0 if reduced else 1)
    )


def matmul(report: Report, _folder: Path) -> None:
    """Measure a product of two square matrices in bf16."""
    report.add(
        "matmul_tflops",
        in_child(matmul_tflops, 256 if report.reduced else 8192),
        ">= 700",
        hardware=True,
    )


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
    figures = in_child(
        combinations_in_child, own, report.reduced, environment=worker_environment(report.reduced)
    )
    bounds = {
        "combinations": ">= 10",
        "largest_loss_difference_after_resume": f"<= {RESUME_TOLERANCE}",
    }
    report.add_all(figures, bounds)


def throughput(report: Report, folder: Path, *, section: str) -> None:
    """Measure the cases of a section in turn with transformers.Trainer."""
    environment = worker_environment(report.reduced)
    for figures in from_child(
        throughput_in_child, folder, section, report.reduced, environment=environment
    ):
        ratios = {name: LEAST_RATIO for name in figures if name.endswith(".ratio_to_trainer")}
        report.add_all(figures, BOUNDS | ratios, hardware=True)


def memory(report: Report, folder: Path) -> None:
    """Measure rank 0 of 8 and of 32 at ZeRO stages 1 to 3."""
    environment = worker_environment(report.reduced)
    for world_size in (8,) if report.reduced else (8, 32):
        for figures in from_child(
            memory_in_child, folder, world_size, report.reduced, environment=environment
        ):
            bounds = {name: "<= 1" for name in figures if name.endswith("share_of_estimate")}
            report.add_all(figures, bounds, hardware=True)


# Torch, transformers and DeepSpeed take seconds to import, so only the child processes do it.


def combinations_in_child(folder: Path, reduced: bool) -> dict[str, float]:
    from benchmarks.gpu.combinations import check_combinations

    return check_combinations(folder, reduced)


def throughput_in_child(folder: Path, section: str, reduced: bool) -> Iterator[dict[str, float]]:
    from benchmarks.gpu.throughput import measure_section

    return measure_section(section, folder, reduced)


def memory_in_child(folder: Path, world_size: int, reduced: bool) -> Iterator[dict[str, float]]:
    from benchmarks.gpu.memory import measure_stages

    return measure_stages(folder, world_size, reduced)


SECTIONS: dict[str, Callable[[Report, Path], None]] = {
    "matmul": matmul,
    "combinations": combinations,
    "1.2b": partial(throughput, section="1.2b"),
    "8b": partial(throughput, section="8b"),
    "memory": memory,
    "encoder": partial(throughput, section="encoder"),
}
EXPECTED_S = {
    "matmul": 15,
    "combinations": 110,
    "1.2b": 185,
    "8b": 150,
    "memory": 165,
    "encoder": 130,
}
"""Estimated seconds of each section on an H100 with 16 cores; README.md explains them."""
