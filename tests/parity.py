"""Numeric parity with fixtures made by running the published PyTorch code.

    python -m tests.parity DIR [--only PATTERN]

runs every fixture of DIR (a `manifest.json` beside `<case>_<name>.npz` files), prints one row a
file with its worst error and the manifest's tolerance, and exits 1 if any fails or if none ran. A
fixture's case is the function registered for the longest matching name prefix; it computes, from
`in/...` and `param/...` and the manifest's kwargs, every `out/...` and `grad/...` array. An array
that a case does not return is a failure: nothing is skipped silently.

The rule of comparison: max|a - ref| <= tol * max(1, max|ref|) per array; positions where both are
NaN agree.
"""

import argparse
from collections.abc import Callable, Iterable
import dataclasses
import fnmatch
import importlib
import json
import pathlib
import pkgutil
import sys
import traceback

import numpy as np

CASES: dict[str, Callable[["Fixture"], dict[str, np.ndarray]]] = {}


@dataclasses.dataclass(frozen=True)
class Fixture:
  """One fixture file: `kwargs` from the manifest, arrays by kind without their prefix."""

  name: str
  kwargs: dict
  tol: float
  arrays: dict[str, np.ndarray]

  def group(self, prefix: str) -> dict[str, np.ndarray]:
    """Arrays below `prefix/`, the prefix taken off: group("param"), group("in/x1")."""
    start = prefix + "/"
    found = {}
    for name, array in self.arrays.items():
      if name.startswith(start):
        found[name.removeprefix(start)] = array
    return found

  @property
  def inputs(self) -> dict[str, np.ndarray]:
    return self.group("in")

  @property
  def params(self) -> dict[str, np.ndarray]:
    return self.group("param")

  @property
  def expected(self) -> dict[str, np.ndarray]:
    names = [name for name in self.arrays if name.startswith(("out/", "grad/"))]
    return {name: self.arrays[name] for name in names}


@dataclasses.dataclass(frozen=True)
class Row:
  """What came of one fixture."""

  name: str
  error: float  # worst over arrays of max|a - ref| / max(1, max|ref|)
  tol: float
  worst: str  # the array it occurred in
  problem: str = ""  # why the row fails, empty if it passes


def case(*prefixes: str):
  """Registers a function as the case of all fixtures whose name starts with one of the prefixes."""

  def register(fn):
    for prefix in prefixes:
      if prefix in CASES:
        raise ValueError(f"two parity cases for {prefix!r}")
      CASES[prefix] = fn
    return fn

  return register


def load_cases() -> None:
  """Imports every module of tests.parity_cases, which register themselves."""
  import tests.parity_cases as package

  for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f"{package.__name__}.{module.name}")


def fixtures(folder: pathlib.Path, only: str = "*") -> Iterable[Fixture]:
  """The fixtures listed in the folder's manifest, in name order."""
  manifest = json.loads((folder / "manifest.json").read_text())
  for file in sorted(manifest):
    if not fnmatch.fnmatch(file, only):
      continue
    entry = manifest[file]
    with np.load(folder / file) as arrays:
      yield Fixture(file.removesuffix(".npz"), entry["kwargs"], entry["tol"], dict(arrays))


def relative_error(got: np.ndarray, ref: np.ndarray) -> float:
  """max|got - ref| / max(1, max|ref|); infinite where shapes or the positions of NaN and infinity
  differ.
  """
  got = np.asarray(got)
  ref = np.asarray(ref)
  if got.shape != ref.shape:
    return np.inf
  if ref.size == 0:
    return 0.0
  got = got.astype(np.float64)
  ref = ref.astype(np.float64)

  # NaN and infinities have to be the same, in the same places
  finite = np.isfinite(ref)
  if not np.array_equal(finite, np.isfinite(got)):
    return np.inf
  if not np.array_equal(got[~finite], ref[~finite], equal_nan=True):
    return np.inf
  if not finite.any():
    return 0.0

  # of the rest, the worst
  difference = np.abs(got[finite] - ref[finite]).max()
  largest = np.abs(ref[finite]).max()
  return float(difference / max(1.0, largest))


def compare(fixture: Fixture, got: dict[str, np.ndarray]) -> Row:
  """Compares what a case returned with what the fixture expects."""
  missing = sorted(set(fixture.expected) - set(got))
  unknown = sorted(set(got) - set(fixture.expected))

  # the worst array
  errors = {}
  for name, ref in fixture.expected.items():
    if name in got:
      errors[name] = relative_error(got[name], ref)
  worst = max(errors, key=errors.get, default="")
  error = errors.get(worst, 0.0)

  # why the row fails
  problem = ""
  if missing:
    problem = f"{len(missing)} arrays not computed: {', '.join(missing[:4])}"
  elif unknown:
    problem = f"computed arrays that the fixture lacks: {', '.join(unknown[:4])}"
  elif not errors:
    problem = "the fixture has no expected arrays"
  elif not error <= fixture.tol:
    got_shape = np.shape(got[worst])
    ref_shape = np.shape(fixture.expected[worst])
    problem = f"{worst} is off"
    if got_shape != ref_shape:
      problem = f"{worst} has shape {got_shape}, expected {ref_shape}"
  return Row(
    name=fixture.name,
    error=error,
    tol=fixture.tol,
    worst=worst,
    problem=problem,
  )


def find_case(name: str):
  """The case registered for the longest prefix of `name`, or None."""
  prefixes = [prefix for prefix in CASES if name.startswith(prefix)]
  if not prefixes:
    return None
  longest = max(prefixes, key=len)
  return CASES[longest]


def run_fixture(fixture: Fixture) -> Row:
  """Runs one fixture; an exception in its case is a failed row."""

  def failed(problem: str) -> Row:
    return Row(fixture.name, np.nan, fixture.tol, "", problem)

  compute = find_case(fixture.name)
  if compute is None:
    return failed("no parity case is registered for this name")
  try:
    computed = compute(fixture)
    arrays = {name: np.asarray(value) for name, value in computed.items()}
    return compare(fixture, arrays)
  except Exception:
    trace = traceback.format_exc(limit=-3).strip()
    return failed(trace.replace("\n", " | "))


def main(argv: list[str]) -> int:
  """Prints a row a fixture; 1 if any failed or none ran."""
  purpose, *_ = __doc__.split("\n")
  parser = argparse.ArgumentParser(prog="python -m tests.parity", description=purpose)
  parser.add_argument("dir", type=pathlib.Path)
  parser.add_argument(
    "--only", default="*", help="run fixtures whose file name matches this pattern"
  )
  args = parser.parse_args(argv)
  if not (args.dir / "manifest.json").is_file():
    print(
      f"{args.dir} holds no manifest.json: give the folder with the fixture files", file=sys.stderr
    )
    return 1

  # only now: an answer about the folder should not wait for it
  import jax

  jax.config.update("jax_default_matmul_precision", "highest")
  # a fixture is compiled once and run once
  jax.config.update("jax_disable_most_optimizations", True)
  load_cases()

  rows = []
  for fixture in fixtures(args.dir, args.only):
    row = run_fixture(fixture)
    rows.append(row)
    verdict = "FAIL" if row.problem else "ok"
    print(
      f"{verdict:4}  {row.name:34} error {row.error:9.2e}  tol {row.tol:7.0e}  "
      f"{row.problem or row.worst}",
      flush=True,
    )

  failed = sum(bool(row.problem) for row in rows)
  print(f"{len(rows) - failed} passed, {failed} failed")
  return 1 if failed or not rows else 0


if __name__ == "__main__":
  from tests import parity  # the registry must be the one that the cases import

  sys.exit(parity.main(sys.argv[1:]))
