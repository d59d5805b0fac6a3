"""Environment that a job of each platform starts with: flags of XLA, libtpu and NCCL, as data, one
reason each.

They follow the vendors' guides for transformers with split parameters and are about several
devices; on one GPU the only one that could matter, double buffering of loops, made no difference
(docs/benchmarks.md), and none has been measured on several. `env` of a specification adds to them
or takes their place. What a run was started with stands in its ledger (`begin` rows of
goodput.jsonl).
"""

from collections.abc import Mapping

COMMON = (
  ("PYTHONUNBUFFERED", "1"),  # log lines appear when they are printed
  ("TF_CPP_MIN_LOG_LEVEL", "1"),  # warnings and errors of the runtime only
)

TPU_FLAGS = (
  # parameters split by `fsdp` are gathered beside the computation
  ("xla_enable_async_all_gather", "true"),
  # collectives run inside the computation they are fused with
  ("xla_tpu_enable_async_collective_fusion", "true"),
  # the gathers too, which are most of the traffic
  ("xla_tpu_enable_async_collective_fusion_fuse_all_gather", "true"),
  # spread over several computations if one is too short
  ("xla_tpu_enable_async_collective_fusion_multiple_steps", "true"),
  # the tensor core computes while collectives are under way
  ("xla_tpu_overlap_compute_collective_tc", "true"),
  # gradients are summed across slices as the backward pass yields them
  ("xla_tpu_enable_data_parallel_all_reduce_opt", "true"),
  # the same for gradients of different sizes
  ("xla_tpu_data_parallel_opt_different_sized_ops", "true"),
)

GPU_FLAGS = (
  # schedule collectives early, so that they overlap with computation
  ("xla_gpu_enable_latency_hiding_scheduler", "true"),
  # layers are a scan: gather the next one's parameters during this one
  ("xla_gpu_enable_while_loop_double_buffering", "true"),
  ("xla_gpu_enable_pipelined_all_gather", "true"),  # move gathers of a scan one iteration ahead
  # and scatters of its gradients one iteration back
  ("xla_gpu_enable_pipelined_reduce_scatter", "true"),
  # few large messages instead of many small ones
  ("xla_gpu_all_gather_combine_threshold_bytes", "134217728"),
  ("xla_gpu_reduce_scatter_combine_threshold_bytes", "134217728"),  # the same
  ("xla_gpu_all_reduce_combine_threshold_bytes", "134217728"),  # the same
)

GPU_ENVIRONMENT = (
  ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92"),  # of the device; JAX takes 0.75 if not told
  ("NCCL_DEBUG", "WARN"),  # say why a connection failed, and nothing else
)

# platform -> (kind of accelerator, compiler flags, further environment)
PLATFORMS = {
  "v5e": ("tpu", TPU_FLAGS, ()),
  "v5p": ("tpu", TPU_FLAGS, ()),
  # larger fusions: this chip has 128 MiB of VMEM
  "v6e": ("tpu", (*TPU_FLAGS, ("xla_tpu_scoped_vmem_limit_kib", "98304")), ()),
  "a100": ("gpu", GPU_FLAGS, GPU_ENVIRONMENT),
  "h100": ("gpu", GPU_FLAGS, GPU_ENVIRONMENT),
  "h200": ("gpu", GPU_FLAGS, GPU_ENVIRONMENT),
  "cpu": ("cpu", (), (("JAX_PLATFORMS", "cpu"),)),  # for rehearsals of a launch
}
FLAG_VARIABLES = {"tpu": "LIBTPU_INIT_ARGS", "gpu": "XLA_FLAGS"}
# prefixes of variables that change how a program runs
RECORDED = ("XLA_", "LIBTPU_", "NCCL_", "JAX_", "TPU_", "MEGASCALE_")


def kind(platform: str) -> str:
  """tpu, gpu or cpu."""
  return PLATFORMS[platform][0]


def environment(platform: str, extra: Mapping[str, str] = {}) -> dict[str, str]:
  """Variable -> value. `extra` replaces variables; its compiler flags come after the bundle's, so
  that they win.
  """
  accelerator, compiler_flags, variables = PLATFORMS[platform]
  values = dict((*COMMON, *variables))
  # the bundle's flags are the value of one variable, which depends on the compiler
  if compiler_flags:
    bundle = [f"--{name}={value}" for name, value in compiler_flags]
    values[FLAG_VARIABLES[accelerator]] = " ".join(bundle)
  for name, value in extra.items():
    holds_flags = name in FLAG_VARIABLES.values()
    if holds_flags and name in values:
      values[name] = f"{values[name]} {value}"
    else:
      values[name] = value
  return values


def recorded(env: Mapping[str, str]) -> dict[str, str]:
  """The variables of a process that are written into the record of its run."""
  names = [name for name in sorted(env) if name.startswith(RECORDED)]
  return {name: env[name] for name in names}
