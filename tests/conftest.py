"""Test configuration: CPU, exact matrix products, and the folder with fixtures and real inputs."""

import atexit
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and run little: code generation at its quickest, here and in the processes that
# tests start. The older emitters of fused operations, nothing inlined, take half the time for a
# training step.
# XLA ends the process at a flag that it does not know, and jax 0.11 no longer knows the emitters'.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  + " --xla_llvm_force_inline_before_split=false --xla_cpu_use_fusion_emitters=false"
  * importlib.metadata.version("jaxlib").startswith("0.10."),
)

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

pytest_plugins = ["tests.support.timing"]

# Files that take longest, as `--times` shows them: they are begun first, so that the workers, to
# each of which a file goes as a whole, end together.
LONGEST = (
  "launch/stages_test.py",
  "parity_test.py",
  "launch/train_command_test.py",
  "launch/hosts_test.py",
  "sam3d_jax/models/geometry_flow_test.py",
  "launch/aot_test.py",
  "launch/sample_photos_test.py",
  "launch/torch_twin_test.py",
  "sam3d_jax/torch_bridge/release_export_test.py",
)

SHARED = pathlib.Path(
  os.environ.get("SAM3D_SHARED", pathlib.Path(__file__).parents[1] / ".." / "shared")
).resolve()


def pytest_collection_modifyitems(items) -> None:
  tests = pathlib.Path(__file__).parent
  place = {tests / file: i for i, file in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
  """Folder with `golden/` and `data/`; tests that need it are skipped where it is absent (set
  SAM3D_SHARED to point elsewhere).
  """
  if not SHARED.is_dir():
    pytest.skip(f"{SHARED} does not exist: set SAM3D_SHARED to the folder with golden/ and data/")
  return SHARED


@pytest.fixture(scope="session")
def field_dir(shared_dir) -> pathlib.Path:
  """Folder with inputs made after public reports."""
  if not (shared_dir / "field").is_dir():
    pytest.skip(f"{shared_dir / 'field'} does not exist: it holds the inputs of public reports")
  return shared_dir / "field"


@pytest.fixture(scope="session")
def hostile_dir(shared_dir) -> pathlib.Path:
  """Folder with inputs that did harm."""
  if not (shared_dir / "hostile").is_dir():
    pytest.skip(f"{shared_dir / 'hostile'} does not exist: it holds inputs that did harm")
  return shared_dir / "hostile"


@pytest.fixture(scope="session")
def golden_dir(shared_dir) -> pathlib.Path:
  """Folder with the numeric fixtures."""
  return shared_dir / "golden" / "dev"
