"""DeepSpeed: its configuration from the training section, an engine, and the engine's end without a leak."""

import gc
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tailorbird.config.training import TrainingConfig


def deepspeed_config(section: TrainingConfig, *, num_workers: int, autocast: bool) -> dict[str, Any]:
    """The configuration DeepSpeed gets; parameters stay fp32, and with `autocast` are computed with in bf16.

    The section's `deepspeed` is laid over it, key by key.

    Over gloo gradients are summed where they lie and as they are; DeepSpeed's defaults are meant for NCCL. Its
    reduce-scatter copies them first, and its autocast rounds those of linear layers to bf16, which takes longer than it
    saves (MiniLM, stage 1, two workers, 64 rows of 12 tokens: 560 ms a step to 510, and 490 to 467).
    """
    over_gloo = section.gpus_per_worker == 0
    parts = num_workers * section.gradient_accumulation_steps
    offloaded = {"optimizer": ("offload_optimizer",), "parameters": ("offload_optimizer", "offload_param")}
    config = {
        "train_batch_size": section.batch_size,
        "train_micro_batch_size_per_gpu": section.batch_size // parts,
        "gradient_accumulation_steps": section.gradient_accumulation_steps,
        "gradient_clipping": section.gradient_clipping,
        "zero_optimization": {
            "stage": section.zero_stage,
            **({"reduce_scatter": False} if over_gloo else {}),
            **{name: {"device": "cpu"} for name in offloaded.get(section.offload, ())},
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own for offloaded states would be compiled at run time
        "torch_autocast": {
            "enabled": autocast,
            "dtype": "bfloat16",
            **({"lower_precision_safe_modules": []} if over_gloo else {}),
        },
        "steps_per_print": 1_000_000_000,
    }
    return _merged(config, section.deepspeed)


def _merged(config: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for name, value in options.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def learning_rate_factor(num_steps: int, *, warmup_fraction: float) -> Callable[[int], float]:
    """Share of the peak learning rate at a step: linear rise, then linear fall to 0."""
    warmup = int(num_steps * warmup_fraction)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(0.0, (num_steps - step) / max(1, num_steps - warmup))

    return factor


def parameter_groups(model: nn.Module, section: TrainingConfig) -> list[dict[str, Any]]:
    """Trainable parameters: the base model's matrices (decayed), its vectors, and a new head at its own rate."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    base = [parameter for name, parameter in trainable if not name.startswith("head.")]
    head = [parameter for name, parameter in trainable if name.startswith("head.")]
    rate = section.learning_rate
    inner = rate * (section.lora_multiplier if section.method == "lora" else 1.0)
    return [
        {"params": [p for p in base if p.ndim > 1], "lr": inner, "weight_decay": section.weight_decay},
        {"params": [p for p in base if p.ndim <= 1], "lr": inner, "weight_decay": 0.0},
        {"params": head, "lr": rate * section.head_multiplier, "weight_decay": 0.0},
    ]


def import_deepspeed() -> Any:
    """The package `deepspeed`, for the first time in a process without what it alone would bring in.

    Where mlflow is installed, DeepSpeed imports it for its autotuner, which nobody starts here: seconds of each worker.
    """
    hides = "mlflow" not in sys.modules
    if hides:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # an import of it fails, and the autotuner does without
    try:
        import deepspeed
    finally:
        if hides:
            del sys.modules["mlflow"]
    return deepspeed


def initialize_engine(model: nn.Module, section: TrainingConfig, *, num_steps: int, autocast: bool) -> Any:
    """A DeepSpeedEngine in training mode, on the process group that Ray Train has set up."""
    from torch.optim.lr_scheduler import LambdaLR

    deepspeed = import_deepspeed()
    if not torch.cuda.is_available():
        # DeepSpeed would compile a shared-memory all-reduce that training never calls.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    groups = [group for group in parameter_groups(model, section) if group["params"]]
    factor = learning_rate_factor(num_steps, warmup_fraction=section.warmup_fraction)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(groups, fused=True),
        lr_scheduler=lambda optimizer: LambdaLR(optimizer, factor),
        config=deepspeed_config(section, num_workers=dist.get_world_size(), autocast=autocast),
        dist_init_required=False,
    )
    if section.zero_stage == 0 and engine.dp_world_size == 1:
        # Nothing to reduce, yet DeepSpeed would copy every gradient into one buffer and back: a fifth of a short step.
        engine.enable_backward_allreduce = False
    engine.train()
    return engine


def destroy_engine(engine: Any) -> None:
    """Ends an engine so that a next one in the same process starts from flat memory.

    DeepSpeed's `destroy` leaves cycles between its optimizer, its hooks and the parameters; they are cut here.
    """
    module: nn.Module = engine.module
    wrapper = engine.optimizer
    client = getattr(wrapper, "optimizer", None)
    engine.destroy()
    for parameter in module.parameters():
        for name in [name for name in vars(parameter) if name.startswith(("_hp", "_lp", "ds_", "_z"))]:
            delattr(parameter, name)
        parameter.grad = None
    for optimizer in (client, wrapper):
        if optimizer is None:
            continue
        getattr(optimizer, "state", {}).clear()
        getattr(optimizer, "param_groups", []).clear()
        vars(optimizer).clear()
    vars(engine).pop("optimizer", None)
    # What cycles remain hold a copy of the weights, 86 MiB of MiniLM, until Python happens to look for them.
    gc.collect()
