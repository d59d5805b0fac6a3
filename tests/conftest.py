"""Test configuration: CPU, exact matrix products, and the folder with fixtures and real inputs."""

import atexit
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and run little: code generation at its quickest, here and in the processes that
# tests start. Kernels of fused operations come from the older emitters, which take 40 % less time
# for a training step.
QUICK_COMPILATION = (
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_use_fusion_emitters=false",
)
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK_COMPILATION))

# workers and processes that tests start inherit it: a program is compiled once a session
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sam3d_jax_tests_")
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# small programs too: most are
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest

# 8 for the tests marked multidevice
jax.config.update("jax_num_cpu_devices", int(os.environ.get("SAM3D_TEST_DEVICES", "1")))
jax.config.update("jax_default_matmul_precision", "highest")

SHARED = pathlib.Path(
  os.environ.get("SAM3D_SHARED", pathlib.Path(__file__).parents[1] / ".." / "shared")
).resolve()


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
  """Folder with `golden/` and `data/`; tests that need it are skipped where it is absent (set
  SAM3D_SHARED to point elsewhere).
  """
  if not SHARED.is_dir():
    pytest.skip(f"{SHARED} does not exist: set SAM3D_SHARED to the folder with golden/ and data/")
  return SHARED


@pytest.fixture(scope="session")
def golden_dir(shared_dir) -> pathlib.Path:
  """Folder with the numeric fixtures."""
  return shared_dir / "golden" / "dev"
