#!/bin/bash
# sft-geometry: launch.sft. Rendered by launch.cluster. All machines are started again
# together after exit code 75, a failure or a kill, at most 10 times; never after exit
# code 2.
set -euo pipefail
xpk workload create \
  --workload=sft-geometry \
  --cluster=pod \
  --project=shapes \
  --zone=us-east5-b \
  --device-type=v6e-16 \
  --num-slices=1 \
  --docker-image=registry.example/sam3d:1 \
  --max-restarts=10 \
  --restart-on-exit-codes=1,75 \
  --termination-grace-period-seconds=300 \
  --env=PYTHONUNBUFFERED=1 \
  --env=TF_CPP_MIN_LOG_LEVEL=1 \
  '--env=LIBTPU_INIT_ARGS=--xla_enable_async_all_gather=true --xla_tpu_enable_async_collective_fusion=true --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true --xla_tpu_enable_async_collective_fusion_multiple_steps=true --xla_tpu_overlap_compute_collective_tc=true --xla_tpu_enable_data_parallel_all_reduce_opt=true --xla_tpu_data_parallel_opt_different_sized_ops=true --xla_tpu_scoped_vmem_limit_kib=98304' \
  '--command=python -m launch.sft --config=configs/sft_geometry.py --workdir=/data/runs/sft --config.init_from=/data/runs/pretrain'
