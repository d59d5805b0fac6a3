"""What a dataset folder holds, as lines of text."""

from collections import Counter
from collections.abc import Iterator
import json
import pathlib

from data_pipelines.format import records
from sam3d_jax.errors import InputError
from sam3d_jax.files import texts


def contents(folder: str) -> Iterator[str]:
  """A dataset's splits, fields, quarantined inputs and how it was built."""
  # the dataset, its splits and its fields
  builder = records.open_dataset(folder)
  kind = records.dataset_kind(builder)
  yield f"{folder}: {builder.name} {builder.version}, {kind} examples"
  for name, info in builder.info.splits.items():
    mebibytes = info.num_bytes / 2**20
    held = f"{info.num_examples} records in {info.num_shards} shards"
    yield f"split {name}: {held}, {mebibytes:.1f} MiB"
  for name, feature in builder.info.features.items():
    # a text has neither
    shape = getattr(feature, "shape", "")
    dtype = getattr(feature, "np_dtype", "")
    line = f"  {name}  {shape} {dtype}"
    yield line.rstrip()

  # what was left out of it
  reasons = quarantined(pathlib.Path(folder) / records.QUARANTINE_FILE)
  counts = [f"{reasons[reason]} {reason}" for reason in sorted(reasons)]
  refused = ", ".join(counts) or "none"
  yield f"quarantined: {refused}"

  # how it was built
  build_file = pathlib.Path(folder) / records.BUILD_FILE
  if build_file.is_file():
    try:
      build = texts.read_json(build_file)
    except texts.TextError as error:
      raise InputError(f"{build_file} is damaged ({error}); build the dataset again") from error
    said = json.dumps(build, sort_keys=True)
    yield f"build: {said}"


def quarantined(file: pathlib.Path) -> Counter[str]:
  """Reason -> how many inputs were refused for it. Raises InputError for a line without one."""
  reasons: Counter[str] = Counter()
  if not file.is_file():
    return reasons
  try:
    lines = texts.read(file).splitlines()
  except texts.TextError as error:
    raise InputError(f"{file} is damaged ({error}); build the dataset again") from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      refused = texts.parse_json(line)
      reasons[refused["reason"]] += 1
    except (texts.TextError, KeyError, TypeError) as error:
      raise InputError(
        f"{file} line {number} is no JSON object with a reason ({error}); build the dataset again"
      ) from error
  return reasons
