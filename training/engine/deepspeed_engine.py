"""The DeepSpeed engine: its configuration, learning rate schedule, parameter groups and optional
kernels."""

from typing import Any, TypedDict

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

from tailorbird.config.training import PROCESS_GROUP_TIMEOUT_S, TrainingConfig
from tailorbird.models.attention.transformers_private import transformer_layers, transformers_model
from tailorbird.models.errors import ModelError
from tailorbird.models.pretrained import inference_dtype
from tailorbird.registry.versions import Dtype
from training.engine.deepspeed_private import (
    disable_gradient_allreduce,
    init_distributed,
)
from training.ranks import raise_on_all_ranks

LORA_MULTIPLIER = 5.0  # so that one range of `learning_rate` suits both methods
HEAD_MULTIPLIER = 10.0  # of a head that starts at random weights
WARMUP_FRACTION = 0.1
WEIGHT_DECAY = 0.01  # of matrices; vectors and the head have none


class ParameterGroup(TypedDict):
    """A parameter group of torch's AdamW."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def compute_dtype(config: TrainingConfig) -> torch.dtype:
    """Return the precision in which this worker trains and scores a model, and which evaluation and
    serving follow.

    It is bfloat16 if the parameters are in bf16 or the worker's hardware supports bfloat16, else
    float32.
    """
    if config.parameter_dtype == "bf16":
        return torch.bfloat16
    return inference_dtype()


def compute_dtype_name(config: TrainingConfig) -> Dtype:
    """Return the name of `compute_dtype`, as stored in a version."""
    if compute_dtype(config) == torch.bfloat16:
        return "bfloat16"
    return "float32"


def deepspeed_config(config: TrainingConfig, *, num_workers: int, autocast: bool) -> dict[str, Any]:
    """Return DeepSpeed's configuration; `config.deepspeed` overrides it key by key.

    fp32 parameters are cast to bf16 for computation if `autocast` is true. bf16 parameters have
    fp32 master weights and bf16 gradients.

    `train_batch_size` is omitted, because DeepSpeed accepts only the product of the micro-batch
    size, the accumulation steps and the number of workers. The training loop divides `batch_size`
    rows unevenly and weights each row, so this product may be larger. DeepSpeed uses it only for
    its own figures of throughput, which are off.

    DeepSpeed's defaults are meant for NCCL. Over gloo, two of them cost more time than they save,
    so gradients are reduced in place and in fp32 (times of a step of MiniLM, stage 1, two workers,
    64 rows of 12 tokens):
    - reduce-scatter copies the gradients first: 510 ms without it, 560 ms with it;
    - autocast rounds the gradients of linear layers to bf16: 467 ms without it, 490 ms with it.
    """
    over_gloo = config.gpus_per_worker == 0
    bf16 = config.parameter_dtype == "bf16"
    zero: dict[str, Any] = {"stage": config.zero_stage}
    autocast_options: dict[str, Any] = {"enabled": autocast and not bf16, "dtype": "bfloat16"}
    if over_gloo:
        zero["reduce_scatter"] = False
        autocast_options["lower_precision_safe_modules"] = []
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}

    options = {
        "train_micro_batch_size_per_gpu": config.micro_batch_size(num_workers),
        "gradient_accumulation_steps": config.accumulation_steps(num_workers),
        "gradient_clipping": 1.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's CPU optimizer would be compiled at run time
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16},
        "torch_autocast": autocast_options,
        "steps_per_print": 1_000_000_000,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice per micro-batch
    }
    return _merged(options, config.deepspeed)


def _merged(options: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(options)
    for name, value in overrides.items():
        default = merged.get(name)
        if isinstance(default, dict) and isinstance(value, dict):
            merged[name] = _merged(default, value)
        else:
            merged[name] = value
    return merged


def linear_schedule(optimizer: Optimizer, *, num_steps: int, warmup_fraction: float) -> LambdaLR:
    """Return a schedule that rises linearly to each group's rate, then falls linearly to 0 after
    the last step.

    The schedule of transformers has rate 0 in its first step, which would train nothing, so it
    starts at its second step.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # LambdaLR requires it if it starts at a later step
    num_warmup_steps = int(num_steps * warmup_fraction)
    schedule: LambdaLR = get_linear_schedule_with_warmup(
        optimizer, num_warmup_steps + 1, num_steps + 1, last_epoch=0
    )
    return schedule


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[ParameterGroup]:
    """Return the trainable parameters in three groups: matrices (with weight decay), vectors, and
    the head."""
    base_rate = config.learning_rate
    if config.method == "lora":
        base_rate *= LORA_MULTIPLIER
    head_rate = config.learning_rate * HEAD_MULTIPLIER
    matrices: ParameterGroup = {
        "params": [],
        "lr": base_rate,
        "weight_decay": WEIGHT_DECAY,
    }
    vectors: ParameterGroup = {"params": [], "lr": base_rate, "weight_decay": 0.0}
    head: ParameterGroup = {"params": [], "lr": head_rate, "weight_decay": 0.0}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("head."):
            head["params"].append(parameter)
        elif parameter.ndim > 1:
            matrices["params"].append(parameter)
        else:
            vectors["params"].append(parameter)
    return [matrices, vectors, head]


def use_kernels(model: nn.Module, config: TrainingConfig) -> None:
    """Let a model that contains a transformers model use the kernels of the config. Its parameters
    stay the same.

    Raises ModelError.
    """
    if config.torch_compile:
        layers = transformer_layers(model)
        if not layers:
            kind = transformers_model(model).config.model_type
            raise ModelError(
                f"torch_compile finds no transformer layers in a model of type {kind}; "
                "set training.torch_compile: false"
            )
        for layer in layers:
            layer.compile(dynamic=True)  # the number of rows and tokens changes at each step


def initialize_engine(
    model: nn.Module, config: TrainingConfig, *, num_steps: int, autocast: bool
) -> Any:
    """Return a DeepSpeedEngine in training mode, on the process group that Ray Train set up.

    Raises ModelError on every rank.
    """
    import deepspeed  # takes seconds

    raise_on_all_ranks(lambda: use_kernels(model, config), ModelError)
    init_distributed(timeout_s=PROCESS_GROUP_TIMEOUT_S)
    groups: list[Any] = [group for group in parameter_groups(model, config) if group["params"]]
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(groups, fused=True),
        lr_scheduler=lambda optimizer: linear_schedule(
            optimizer, num_steps=num_steps, warmup_fraction=WARMUP_FRACTION
        ),
        config=deepspeed_config(config, num_workers=dist.get_world_size(), autocast=autocast),
        dist_init_required=False,
    )
    if config.zero_stage == 0 and dist.get_world_size() == 1:
        disable_gradient_allreduce(engine)
    engine.train()
    return engine
