"""The card of a dataset: `DATA_CARD.md`, filled in from what its folder says of itself.

The template, `data_card.md` beside this file, says what it holds and what only people can add.
"""

from collections import Counter
from collections.abc import Iterator
import pathlib
import string
from typing import Any

from data_pipelines.format import records, schema
from sam3d_jax.files import atomic, texts

NAME = "DATA_CARD.md"
REMARK = "filled in; what only you can say is marked in it"
TEMPLATE = pathlib.Path(__file__).with_name("data_card.md")
EXAMINED = 2000  # records of a split that are read for licences and objects, evenly spaced
SHOWN = 20  # licences


def write(folder: str | pathlib.Path) -> pathlib.Path | None:
  """Writes the card of a whole dataset; None if it has one, which may be edited by now."""
  path = pathlib.Path(folder) / NAME
  if path.exists():
    return None
  atomic.write_text(path, text(folder))
  return path


def text(folder: str | pathlib.Path) -> str:
  """The card, filled in. Raises DatasetError if the folder is no whole dataset."""
  folder = pathlib.Path(folder)
  builder = records.open_dataset(folder)
  build: dict[str, Any] = texts.read_own(folder / records.BUILD_FILE) or {}

  # A description often begins with the name; it ends without a full stop.
  description = builder.info.description.strip().rstrip(".")
  licences, objects, examined = examine(folder, builder)
  template = string.Template(TEMPLATE.read_text())
  return template.substitute(
    name=builder.name,
    description=description or builder.name,
    version=builder.version,
    kind=records.dataset_kind(builder),
    splits=splits_table(builder),
    objects=f"{objects} objects (meshes) among the {examined} examples that were looked at.",
    made_by=made_by(build),
    digest=records.dataset_identity(folder)["digest"],
    parent=parent(build),
    latents=latents(build),
    configuration=configuration(build),
    licences=licence_table(licences, examined),
    refused=refused(build.get("counts")),
  )


def splits_table(builder) -> str:
  """Examples, shards and size of every split."""
  lines = ["| split | examples | shards | MiB |", "|---|---|---|---|"]
  for name, info in builder.info.splits.items():
    mebibytes = info.num_bytes / 2**20
    lines.append(f"| {name} | {info.num_examples} | {info.num_shards} | {mebibytes:.1f} |")
  return "\n".join(lines)


def examine(folder: pathlib.Path, builder) -> tuple[Counter[str], int, int]:
  """(licence -> examples, different objects, examples looked at) of a part of every split."""
  # nothing else is decoded
  kind = records.dataset_kind(builder)
  skip = set(schema.features(kind)) - {"license", "mesh_key"}

  licences: Counter[str] = Counter()
  meshes = set()
  for name, info in builder.info.splits.items():
    if not info.num_examples:
      continue
    split = records.open_split(folder, name, skip=skip)
    stride = max(1, len(split) // EXAMINED)
    for index in range(0, len(split), stride):
      try:
        example = split[index]
      except records.CorruptRecord:
        licences["not readable"] += 1
        continue
      licence = example["license"] or "not stated"
      licences[licence] += 1
      meshes.add(example["mesh_key"])
  return licences, len(meshes), licences.total()


def licence_table(licences: Counter[str], examined: int) -> str:
  """Examples by licence, the most frequent first."""
  lines = ["| licence | examples |", "|---|---|"]
  left = examined
  for licence, count in licences.most_common(SHOWN):
    lines.append(f"| {cell(licence)} | {count} |")
    left -= count
  others = len(licences) - SHOWN
  if others > 0:
    lines.append(f"| {others} others | {left} |")
  table = "\n".join(lines)
  return f"Of {examined} examples, evenly spaced:\n\n{table}"


def cell(text: str) -> str:
  """A text as it may stand in a table."""
  one_line = " ".join(text.split())
  return one_line.replace("|", "\\|")


def made_by(build: dict[str, Any]) -> str:
  """Builder and versions."""
  identity = build.get("identity", build)
  maker = identity.get("builder", "not stated")
  if "autoencoder" in build:
    maker = "launch.encode_latents"
  said = [maker]
  for name, value in build.get("lineage", {}).items():
    said.append(f"{name} {cell(str(value))}")
  return ", ".join(said)


def parent(build: dict[str, Any]) -> str:
  """The dataset that it was made from, for one with latents."""
  source = build.get("source")
  if not source:
    return "none"
  return f"{source['name']} {source['version']}, digest `{source['digest']}`"


def latents(build: dict[str, Any]) -> str:
  """The autoencoder that made them."""
  if "autoencoder" not in build:
    return "none"
  shape = build.get("latent", {})
  size, channels = shape.get("resolution", "?"), shape.get("channels", "?")
  return f"{size}³ × {channels}, autoencoder `{build['autoencoder']}`"


def configuration(build: dict[str, Any]) -> str:
  """What it was built with, key by key."""
  settings = build.get("identity", {}).get("config")
  if not settings:
    return "The configuration is that of the parent."
  lines = ["| configuration | |", "|---|---|"]
  for key, value in flat(settings):
    lines.append(f"| `{key}` | {cell(str(value))} |")
  return "\n".join(lines)


def flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  """(dotted key, value) of every leaf."""
  for key, value in settings.items():
    if isinstance(value, dict):
      yield from flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def refused(counts: dict[str, Any] | None) -> str:
  """Refused inputs and rejected draws by reason."""
  if counts is None:
    return "Inputs that were refused are listed with the parent."
  lines = [f"| of {counts['inputs']} inputs | refused |", "|---|---|"]
  for reason, count in counts["refused"].items():
    lines.append(f"| {reason} | {count} |")
  if not counts["refused"]:
    lines.append("| none | 0 |")
  for reason, count in counts["rejected_draws"].items():
    lines.append(f"| random draws: {reason} | {count} |")
  return "\n".join(lines)
