"""What a dataset folder holds, as lines of text."""

from collections import Counter
from collections.abc import Iterator
import json
import pathlib

from data_pipelines.format import records


def contents(folder: str) -> Iterator[str]:
  """A dataset's splits, fields, quarantined inputs and how it was built."""
  builder = records.open_dataset(folder)
  yield f"{folder}: {builder.name} {builder.version}, {records.dataset_kind(builder)} examples"
  for name, info in builder.info.splits.items():
    size = f"{info.num_bytes / 2**20:.1f} MiB"
    yield f"split {name}: {info.num_examples} records in {info.num_shards} shards, {size}"
  for name, feature in builder.info.features.items():
    shape = feature.shape if hasattr(feature, "shape") else ""
    yield f"  {name}  {shape} {getattr(feature, 'np_dtype', '')}".rstrip()

  reasons = quarantined(pathlib.Path(folder) / records.QUARANTINE_FILE)
  counts = [f"{count} {reason}" for reason, count in sorted(reasons.items())]
  yield f"quarantined: {', '.join(counts) or 'none'}"
  build = pathlib.Path(folder) / records.BUILD_FILE
  if build.is_file():
    yield f"build: {json.dumps(json.loads(build.read_text()), sort_keys=True)}"


def quarantined(file: pathlib.Path) -> Counter[str]:
  """Reason -> how many inputs were refused for it."""
  if not file.is_file():
    return Counter()
  lines = [line for line in file.read_text().splitlines() if line.strip()]
  return Counter(json.loads(line)["reason"] for line in lines)
