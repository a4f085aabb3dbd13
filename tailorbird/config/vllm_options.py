"""Options of vLLM's engine that a recipe can set in `serving.engine_options`."""

VLLM_OPTIONS = (
    "async_scheduling",
    "attention_backend",
    "block_size",
    "compilation_config",
    "cpu_offload_gb",
    "cudagraph_capture_sizes",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "kv_cache_memory_bytes",
    "long_prefill_token_threshold",
    "max_cpu_loras",
    "max_cudagraph_capture_size",
    "max_loras",
    "max_model_len",
    "max_num_batched_tokens",
    "optimization_level",
    "quantization",
    "speculative_config",
)
"""Names in vLLM's `AsyncEngineArgs`. They determine speed and memory. Options that select the
model, its parallelism or code to run are omitted: the version and other fields determine them."""
