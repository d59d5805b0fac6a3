"""The card of a release: `MODEL_CARD.md`, filled in from what its `release.json` records.

The template, `model_card.md` beside this file, says what it holds and what only people can add.
"""

from collections.abc import Iterator, Mapping
import math
import pathlib
import string
from typing import Any

NAME = "MODEL_CARD.md"
TEMPLATE = pathlib.Path(__file__).with_name("model_card.md")
# keys of the configuration that say how a stage was trained
TRAINING = (
  "steps",
  "batch_size",
  "seed",
  "optim.lr",
  "optim.schedule",
  "optim.warmup_steps",
  "optim.weight_decay",
  "optim.ema",
  "optim.trainable",
  "objective.name",
)


def text(
  name: str, record: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], licences: list[str]
) -> str:
  """The card of a release folder.

  name: of the folder. record: what release.json says. shapes: of the model's parameters. licences:
  names of licence files in the folder.
  """
  # The configuration of the last stage, and every ancestor's lineage.
  config = record["config"]
  chain = list(ancestors(record["lineage"]))
  descent = list(chain)
  for one in record["second_stage"]:
    descent += ancestors(one["lineage"])
  count = sum(math.prod(shape) for shape in shapes.values())
  template = string.Template(TEMPLATE.read_text())
  return template.substitute(
    name=name,
    kind=config["model"]["name"],
    stage=stage_of(chain),
    made_by=record["made_by"],
    parameters=f"{count / 1e6:.1f} M",
    streams=streams(config["model"]),
    latents=latents(config["model"]),
    sampler=sampler(config.get("sampler") or {}),
    storage=record["storage"],
    pipeline=pipeline(record["published_pipeline"]),
    files=files(record["parts"]),
    second=second(record),
    lineage="\n".join(lineage_lines(record["lineage"])),
    decoder=decoder(record["decoder"]),
    training=training(config, chain),
    licence=licence(record["parts"], descent, licences),
  )


def ancestors(lineage: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
  """A lineage and those of its parents, the youngest first."""
  yield lineage
  for parent in lineage.get("parents", ()):
    yield from ancestors(parent.get("lineage", {}))


def stage_of(chain: list[Mapping[str, Any]]) -> str:
  """The last stage that made its values."""
  for lineage in chain:
    stage = lineage.get("stage", "export")
    if stage == "import":
      return "imported and not trained further"
    if stage != "export":
      return f"as it is after stage `{stage}`"
  return "of unknown training"


def streams(model: Mapping[str, Any]) -> str:
  """What the model is conditioned on."""
  condition = model.get("condition") or {}
  names = condition.get("streams") or ()
  return ", ".join(f"`{name}`" for name in names) or "shapes"


MAKES = {
  "structure_vae": "structure latents and voxels",
  "slat_vae": "latents on voxels, and Gaussians of them",
  "slat_gaussian": "Gaussians",
  "slat_mesh": "meshes",
}


def latents(model: Mapping[str, Any]) -> str:
  """What the model makes."""
  flow = model.get("flow")
  if not flow:
    return MAKES.get(model["name"], "not stated")
  if "resolution" in flow:
    return f"latents of {flow['latent_channels']} channels on voxels in {flow['resolution']}³"
  side, channels = flow.get("shape_resolution"), flow.get("latent_channels")
  return f"structure latents {side}³ × {channels}, rotation, translation, scale"


def sampler(settings: Mapping[str, Any]) -> str:
  """The recorded settings of sampling."""
  said = [f"{name} {value}" for name, value in settings.items()]
  return ", ".join(said) or "none recorded"


def pipeline(published: Mapping[str, Any]) -> str:
  """Whether the published code loads the folder."""
  if published["loads"]:
    return "loads this folder"
  return "does not load this folder: " + "; ".join(published["obstacles"])


def files(parts: Mapping[str, Any]) -> str:
  """Every file with size, digest and origin."""
  lines = ["| file | MB | SHA-256 | from |", "|---|---|---|---|"]
  for entry in parts.values():
    megabytes = entry["bytes"] / 1e6
    digest = entry["sha256"][:16]
    lines.append(f"| `{entry['file']}` | {megabytes:.1f} | `{digest}…` | {entry['origin']} |")
  return "\n".join(lines)


def second(record: Mapping[str, Any]) -> str:
  """The models of the second stage, with what they descend from, and whether their latents are of
  one encoder.
  """
  models = record["second_stage"]
  taken = [name for name in record["parts"] if name.startswith("slat_")]
  if not models:
    return "Taken over, see above." if taken else "None: voxels without colour."
  lines = ["| model | files | parameters | is |", "|---|---|---|---|"]
  for one in models:
    names = ", ".join(f"`{name}`" for name in one["parts"])
    stage = stage_of(list(ancestors(one["lineage"])))
    kind = one["config"]["model"]["name"]
    lines.append(f"| {kind} | {names} | {one['parameters'] / 1e6:.1f} M | {stage} |")

  # whose latents
  slat = record["slat"]
  name = slat.get("autoencoder") or "not stated"
  checked = "which all of them are known to share"
  if not slat["verified"]:
    checked = "that all of them share it was **not checked**, since one does not say"
  lines += ["", f"Latents of autoencoder `{name}`, {checked}."]

  # what each was made from
  for one in models:
    lines += ["", f"{one['config']['model']['name']}:", *lineage_lines(one["lineage"])]
  return "\n".join(lines)


def lineage_lines(lineage: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
  """Stage, data and sources of every ancestor, one item each, parents a level deeper."""
  pad = "  " * depth
  said = [f"stage `{lineage.get('stage', 'unknown')}`"]
  for key in ("source", "commit", "seed"):
    value = lineage.get(key)
    if value not in (None, ""):
      said.append(f"{key} `{value}`")
  yield f"{pad}- {', '.join(said)}"

  # what it was made from and on
  for file, digest in lineage.get("files", {}).items():
    yield f"{pad}  - file `{file}`, SHA-256 `{digest}`"
  for dataset, identity in lineage.get("datasets", {}).items():
    digest = str(identity.get("digest", "unknown"))
    count = sum(identity.get("records", {}).values())
    yield f"{pad}  - dataset `{dataset}`, {count} examples, digest `{digest[:16]}…`"

  # its parents
  for parent in lineage.get("parents", ()):
    yield f"{pad}  - from step {parent.get('step')} ({parent.get('which')}):"
    yield from lineage_lines(parent.get("lineage", {}), depth + 2)


def decoder(identity: Mapping[str, Any]) -> str:
  """Whose decoder the folder has, and whether that was checked."""
  autoencoder = identity.get("autoencoder") or "not stated"
  if identity["verified"]:
    return f"autoencoder `{autoencoder}`, the one whose latents the model was trained on"
  return (
    f"autoencoder `{autoencoder}`; that it is the one of the latents was **not checked**, since "
    "one of the two does not say"
  )


def training(config: Mapping[str, Any], chain: list[Mapping[str, Any]]) -> str:
  """The last stage's configuration, as far as it decides what was learned."""
  stages = [lineage.get("stage", "unknown") for lineage in chain]
  trained = [stage for stage in stages if stage not in ("import", "export")]
  if not trained:
    return "Not trained here: its files were imported."
  lines = [f"Of stage `{trained[0]}`:", "", "| key | value |", "|---|---|"]
  for key in TRAINING:
    value = lookup(config, key)
    if value is not None:
      lines.append(f"| `{key}` | `{value}` |")
  return "\n".join(lines)


def lookup(config: Mapping[str, Any], key: str) -> Any:
  """The value of a dotted key, None if it is not there."""
  value: Any = config
  for part in key.split("."):
    if not isinstance(value, Mapping) or part not in value:
      return None
    value = value[part]
  return value


def licence(parts: Mapping[str, Any], chain: list[Mapping[str, Any]], licences: list[str]) -> str:
  """What descent means for the terms of the weights."""
  taken = [entry["file"] for entry in parts.values() if "taken over" in entry["origin"]]
  imported = any(lineage.get("stage") == "import" for lineage in chain)
  lines = []
  if imported:
    lines.append(
      "The model descends from imported weights: their licence holds for this folder too."
    )
  if taken:
    lines.append(f"Taken over from another release, under its licence: {', '.join(taken)}.")
  if not lines:
    lines.append(
      "No file was taken over from another release, and no ancestor was imported; image encoders "
      "and training data may have terms of their own."
    )
  listed = ", ".join(f"`{name}`" for name in licences)
  lines.append(f"Licence files in this folder: {listed or 'none'}.")
  return "\n".join(lines)
