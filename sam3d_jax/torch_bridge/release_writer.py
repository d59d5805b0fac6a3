"""Writing a release folder: files and yamls for the published PyTorch pipeline, and a record.

The folder (see `release`) appears whole or not at all. What a model becomes stands in
`parts.PUBLISHED`; what is not made here can be taken over from another release.
"""

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
import os
import pathlib
import shutil
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

import sam3d_jax
from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import (
  load,
  model_card,
  parts,
  save,
  slat_identity,
  yaml_files,
  yaml_pipeline,
)
from sam3d_jax.torch_bridge.release import (
  SIDECAR,
  Release,
  check_latents,
  latents_of,
  own_file,
  read_pipeline,
  read_release,
)

FORMAT = 1  # of release.json


@dataclasses.dataclass(frozen=True)
class Model:
  """A model to be released: configuration, parameters, and what the checkpoint says about itself.

  digest: short name of the checkpoint's content (checkpoint_steps.digest). autoencoder: of an
  autoencoder, the name that its latents carry (parts.latents_name).
  """

  config: ConfigDict
  params: Mapping[str, np.ndarray]
  shapes: Mapping[str, tuple[int, ...]]
  lineage: Mapping[str, Any]
  digest: str
  autoencoder: str | None = None


@dataclasses.dataclass(frozen=True)
class Storage:
  """How weights are stored: fp32, fp16 or bf16, in files of this suffix."""

  dtype: str = "fp32"
  suffix: str = ".ckpt"

  @property
  def half(self) -> bool:
    """Whether the published modules are to hold their blocks in fp16."""
    return self.dtype == "fp16"


def write_release(
  out: str | pathlib.Path,
  model: Model,
  vae: Model | None = None,
  second: Sequence[Model] = (),
  *,
  take_from: str | pathlib.Path | None = None,
  storage: Storage = Storage(),
) -> dict[str, Any]:
  """Writes a release folder and returns what its release.json says.

  model: of any kind that has a published form; a Geometry model makes a folder that the published
  pipeline loads. vae: the autoencoder of its structure latents, for ss_decoder and ss_encoder.
  second: models of the second stage. take_from: a release folder whose parts are taken over where
  none is given here. Raises InputError if the folder exists, keys do not fit, or a decoder is not
  one that belongs to the latents.
  """
  out = pathlib.Path(out)
  checked = check_release(out, model, vae, second, take_from=take_from, storage=storage)

  # The record is written last: it has the digests of all other files.
  with atomic.folder(out) as temporary:
    record = _fill(temporary, model, vae, second, checked, storage)
    text = json.dumps(record, indent=2, default=list)
    (temporary / SIDECAR).write_text(text + "\n")
    licences = sorted(path.name for path in temporary.glob("LICENSE*"))
    card = model_card.text(out.name, record, model.shapes, licences)
    (temporary / model_card.NAME).write_text(card)
  return record


class Checked(NamedTuple):
  """What is known before anything is written: the folder that parts are taken from, and the records
  of the structure decoder and of the SLAT decoders.
  """

  source: Release | None
  decoder: dict[str, Any]
  slat: dict[str, Any]


def check_release(
  out: str | pathlib.Path,
  model: Model,
  vae: Model | None = None,
  second: Sequence[Model] = (),
  *,
  take_from: str | pathlib.Path | None = None,
  storage: Storage = Storage(),
) -> Checked:
  """Everything that `write_release` refuses, with its arguments and errors; writes nothing."""
  out = pathlib.Path(out)
  if out.exists():
    empty_folder = out.is_dir() and not any(out.iterdir())
    if not empty_folder:
      raise InputError(f"{out} exists and is not an empty folder")

  # what is made here, and what is taken over beyond that
  made = _models(model, vae, second)
  source = read_release(take_from) if take_from is not None else None
  _check_fit(model, vae, made)
  if source is not None:
    _check_taken(source, taken_from(source, made))

  # decoders of either stage belong to the latents that its flow model makes
  decoder = decoder_identity(vae, source)
  verified = check_latents(latents_of(model.lineage), decoder)
  slat = slat_record(made, source)
  if storage.suffix != ".safetensors":
    load.require_torch(f"writing {storage.suffix} files (give --safetensors to do without)")
  return Checked(source, {**decoder, "verified": verified}, slat)


def _models(model: Model, vae: Model | None, second: Sequence[Model]) -> list[Model]:
  """All models that a release is made of here."""
  first = [model] if vae is None else [model, vae]
  return [*first, *second]


def _check_fit(model: Model, vae: Model | None, made: Sequence[Model]) -> None:
  """Everything that can be wrong with names and sizes, all models together, before any writing."""
  problems = []
  for one in made:
    problems += _misfits(one)
  if vae is not None:
    problems += _latent_misfits(model, vae)
  if not problems:
    problems += _collisions(made) + _slat_misfits(made)
  if problems:
    raise InputError("\n".join(problems))


def _collisions(made: Sequence[Model]) -> list[str]:
  """Files that two models would become."""
  problems, owner = [], {}
  for one in made:
    kind = one.config.model.name
    for name in parts.files_of(one.config.model):
      if name in owner:
        problems.append(f"a {owner[name]} and a {kind} model both become {name}: give one of them")
      owner[name] = kind
  return problems


def _slat_misfits(made: Sequence[Model]) -> list[str]:
  """Models of the second stage whose latents differ in size."""
  sizes = {}
  for one in made:
    size = parts.latents_of(one.config.model, parts.SLAT)
    if size is not None:
      sizes[one.config.model.name] = size
  if len(set(sizes.values())) <= 1:
    return []
  told = [f"{kind} {size[0]}^3 x {size[1]}" for kind, size in sizes.items()]
  return [f"the models' SLAT latents differ in size: {', '.join(told)}"]


def _misfits(model: Model) -> list[str]:
  """What keeps one model from its published form: its kind or sizes, or stray parameters."""
  section = model.config.model
  problems = []

  # What the published classes do not have, such as patches.
  try:
    parts.parts_of(section)
  except InputError as error:
    problems.append(str(error))

  # Parameters other than those that the configuration says.
  needed = registry.parameter_shapes(section)
  try:
    parameters.check_shapes(model.shapes, needed)
  except parameters.ParameterMismatch as error:
    problems.append(str(error))
  return problems


def _latent_misfits(model: Model, vae: Model) -> list[str]:
  """Why the autoencoder could not decode what the flow model makes."""
  read = parts.latents_of(model.config.model)
  if read is None:
    return [f"a {model.config.model.name} model has no structure latents to be decoded"]
  made = parts.latents_of(vae.config.model)
  if made == read:
    return []
  return [
    f"the autoencoder's latents are {made[0]}^3 x {made[1]}, the flow model's "
    f"{read[0]}^3 x {read[1]}"
  ]


def _fill(
  folder: pathlib.Path,
  model: Model,
  vae: Model | None,
  second: Sequence[Model],
  checked: Checked,
  storage: Storage,
) -> dict[str, Any]:
  """Writes everything but release.json into the folder and returns what that will say."""
  # What is made here.
  made = _models(model, vae, second)
  record = {}
  for one in made:
    record |= _write_model(folder, one, storage)

  # What another release has beyond that, and the terms it comes under.
  source = checked.source
  if source is not None:
    for name in taken_from(source, made):
      record[name] = _take_over(folder, source, name)
    for path in source.folder.glob("LICENSE*"):
      licence = own_file(source.folder, path.name, f"{source.folder}")
      if licence.is_file():
        shutil.copyfile(licence, folder / path.name)

  _write_pipeline(folder, made, source, record, storage)
  obstacles = _obstacles(made, record)
  return {
    "format": FORMAT,
    "made_by": f"sam3d_jax {sam3d_jax.__version__}",
    "storage": storage.dtype,
    "config": model.config.to_dict(),
    "vae_config": vae.config.to_dict() if vae is not None else None,
    "lineage": dict(model.lineage),
    "latents": latents_of(model.lineage),
    "checkpoint": model.digest,
    "parts": record,
    "unused_rows": unused_rows(model),
    "published_pipeline": {"loads": not obstacles, "obstacles": obstacles},
    "decoder": checked.decoder,
    "slat": checked.slat,
    "second_stage": [_second_record(one) for one in second],
  }


def _write_pipeline(
  folder: pathlib.Path,
  made: Sequence[Model],
  source: Release | None,
  record: Mapping[str, Any],
  storage: Storage,
) -> None:
  """How the published pipeline puts it together; nothing where no model has settings in it."""
  stated = {}
  for one in made:
    say = parts.published(one.config.model).settings
    if say is not None:
      stated |= say(registry.typed_config(one.config.model), _settings(one, storage))
  if not stated:
    return

  # it refuses keys that it does not know
  files = {}
  for file in parts.FILES:
    if file.named and file.name in record:
      files[file.name] = record[file.name]["file"]
  base = source.pipeline if source is not None else None
  tree = yaml_pipeline.frame(files, _settings(made[0], storage), base)
  yaml_files.write(folder / "pipeline.yaml", tree | stated)


def _obstacles(made: Sequence[Model], record: Mapping[str, Any]) -> list[str]:
  """Why the published pipeline could not load the folder: a model's sizes, or files that it does
  not start without.
  """
  found = []
  for one in made:
    tell = parts.published(one.config.model).obstacles
    if tell is not None:
      found += tell(registry.typed_config(one.config.model))
  for file in parts.FILES:
    if file.required and file.name not in record:
      found.append(
        f"{file.name} is missing: give a checkpoint of it, or take it over from a release that "
        "has it"
      )
  return found


def _second_record(model: Model) -> dict[str, Any]:
  """What the record says of a model of the second stage."""
  return {
    "config": model.config.to_dict(),
    "lineage": dict(model.lineage),
    "checkpoint": model.digest,
    "parts": list(parts.files_of(model.config.model)),
    "parameters": sum(math.prod(shape) for shape in model.shapes.values()),
    "unused_rows": unused_rows(model),
  }


def _settings(model: Model, storage: Storage) -> yaml_files.Settings:
  """What the yamls say beside the network; a model that is not sampled has no sampler."""
  sampler = model.config.get("sampler")
  fields = sampler.to_dict() if sampler else {}
  return yaml_files.Settings(fields, storage.half)


def _write_model(folder: pathlib.Path, model: Model, storage: Storage) -> dict[str, Any]:
  """Writes every file that one model becomes; file without suffix -> its entry in the record."""
  section = model.config.model
  typed = registry.typed_config(section)
  settings = _settings(model, storage)
  record = {}

  # weights
  for name, (root, rules) in parts.files_of(section).items():
    path = folder / f"{name}{storage.suffix}"
    shapes = {}
    for rule in rules:
      if rule.ours is not None:
        shapes[rule.ours] = model.shapes[rule.ours]
    save.write_state(
      path,
      rules,
      model.params,
      shapes,
      storage=storage.dtype,
      root=root,
    )
    digest = load.file_digest(path)
    record[name] = _entry(path, digest, origin=model.digest)

  # what describes them
  for name, make in parts.published(section).yamls.items():
    if name not in record:
      continue
    tree = make(typed, settings)
    yaml_files.write(folder / f"{name}.yaml", tree)
  return record


def _entry(path: pathlib.Path, digest: str, origin: str) -> dict[str, Any]:
  """What the record says of one checkpoint file."""
  return {
    "file": path.name,
    "bytes": path.stat().st_size,
    "sha256": digest,
    "origin": origin,
  }


def taken_from(source: Release, made: Sequence[Model]) -> list[str]:
  """Which parts come from another release: those that nothing here makes."""
  own = set()
  for one in made:
    own |= set(parts.files_of(one.config.model))
  return [name for name in source.files if name not in own]


def _check_taken(source: Release, names: Sequence[str]) -> None:
  """Raises InputError unless what is taken over is what an import would take: state dicts of plain
  tensors, and yamls that name nothing but the published pipeline's classes.
  """
  pipeline = read_pipeline(source.folder)
  if pipeline is not None:
    yaml_files.check_targets(pipeline, source.folder / "pipeline.yaml")
  for name in names:
    load.open_state(source.verified_file(name))
    file = own_file(source.folder, f"{name}.yaml", f"{source.folder}")
    if file.is_file():
      yaml_files.check_targets(yaml_files.read(file), file)


def _take_over(folder: pathlib.Path, source: Release, name: str) -> dict[str, Any]:
  """Takes a file and its yaml from another release, checked against its record if it has one."""
  # A file that changed since the release was made is not what its record vouches for.
  path = source.verified_file(name)
  digest = load.file_digest(path)
  yaml_path = source.folder / f"{name}.yaml"
  for file in (path, yaml_path):
    if not file.is_file():
      raise InputError(f"{file} does not exist, and {path.name} cannot be used without it")
    _link(file.resolve(), folder / file.name)
  return _entry(path, digest, origin=f"taken over from {source.folder}")


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
  """Hard-links a file, or copies it."""
  try:
    os.link(source, target)
  except OSError:  # another file system, or one without hard links
    shutil.copyfile(source, target)


def slat_record(made: Sequence[Model], source: Release | None) -> dict[str, Any]:
  """Whose SLAT latents the release's second stage is of: {autoencoder, mean, std, files, verified}.

  files: decoder -> digest of one taken over. verified: all that is in the release is known to be of
  one encoder's latents; None without a second stage. Raises InputError if it is known not to be.
  """
  # what is made here
  identities, latents = [], {}
  for one in made:
    kind = one.config.model
    if parts.latents_of(kind, parts.SLAT) is None:
      continue
    what = f"the {kind.name} model {one.digest}"
    identities.append(slat_identity.of_lineage(one.lineage, what, one.autoencoder))
    latents |= latents_of(one.lineage, slat_identity.LINEAGE_KEY) or {}

  # what is taken over is of one release
  taken = {}
  if source is not None:
    names = [name for name in taken_from(source, made) if name.startswith("slat_")]
    if names:
      identity = slat_identity.of_release(source)
      identities.append(identity)
      taken = {name: digest for name, digest in identity.files.items() if name in names}

  if not identities:
    return {"verified": None}
  names = [one.autoencoder for one in identities if one.autoencoder is not None]
  return {
    "autoencoder": names[0] if names else None,
    "mean": latents.get("mean"),
    "std": latents.get("std"),
    "files": taken,
    "verified": slat_identity.check(identities),
  }


def unused_rows(model: Model) -> dict[str, dict[str, str]]:
  """Rows of tables that the published file has no place for because nothing reads them.

  Path -> row -> fp32 values in base64. Only models that look at the crop alone (or the photo alone)
  have any. Kept, so that an import gives back the checkpoint bit for bit.
  """
  kept: dict[str, dict[str, str]] = {}
  for rule in parts.rules_of(model.config.model):
    # only a table that the published code numbers otherwise can lose a row
    if rule.rows is None:
      continue
    for row in range(model.shapes[rule.ours][0]):
      if row in rule.rows:
        continue
      values = np.asarray(model.params[rule.ours][row], "<f4")
      encoded = base64.b64encode(values.tobytes())
      kept.setdefault(rule.ours, {})[str(row)] = encoded.decode()
  return kept


def decoder_identity(vae: Model | None, source: Release | None) -> dict[str, Any]:
  """Which decoder a release would have: {autoencoder, sha256, from}, None for what is not known."""
  identity = {"autoencoder": None, "sha256": None, "from": None}
  if vae is not None:
    identity["autoencoder"] = vae.autoencoder
    identity["from"] = "checkpoint"
  elif source is not None and "ss_decoder" in source.files:
    recorded = source.sidecar.get("decoder", {})
    identity["autoencoder"] = recorded.get("autoencoder")
    identity["sha256"] = load.file_digest(source.files["ss_decoder"])
    identity["from"] = str(source.folder)
  return identity
