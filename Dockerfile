# syntax=docker/dockerfile:1
#
# The image of launch.cluster's jobs on Kubernetes (JobSet) and XPK; docs/operations.md, "Launch".
#
#   docker build --build-arg HARDWARE=cuda --tag REGISTRY/sam3d:1-cuda .
#   docker build --build-arg HARDWARE=tpu  --tag REGISTRY/sam3d:1-tpu .
#
# NOT BUILT YET: there was no network where it was written. tests/docker_test.py reads it; build it
# once by hand before you rely on it.
#
# JAX's own wheels bring CUDA and cuDNN, or libtpu: the machine has the driver, nothing else.
FROM python:3.11-slim-bookworm

# cuda or tpu: which of requirements-<HARDWARE>.txt is installed
ARG HARDWARE=cuda

# Pods print as they go; the NVIDIA runtime shows all devices that the pod was given.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The checkout is the working directory: `python -m launch.pretrain --config configs/...` as anywhere.
WORKDIR /opt/sam3d

# Requirements by themselves: a change of the code does not install them anew. The versions are those
# that the tests passed with.
COPY requirements.txt requirements-cuda.txt requirements-tpu.txt requirements-lock.txt ./
RUN python -m pip install -r "requirements-${HARDWARE}.txt" -c requirements-lock.txt \
 && python -m pip check

COPY LICENSE README.md pyproject.toml ./
COPY sam3d_jax ./sam3d_jax
COPY data_pipelines ./data_pipelines
COPY launch ./launch
COPY configs ./configs
COPY examples ./examples

# Two steps on this machine's CPU: an image that cannot train is not made.
RUN JAX_PLATFORMS=cpu python -m launch.pretrain --config configs/pretrain_geometry.py:fake \
    --workdir /tmp/run --config.steps=2 --config.eval.every=0 \
 && rm -rf /tmp/run

# A job names its command; without one the image says what it has.
CMD ["python", "-m", "launch.pretrain", "--help"]
