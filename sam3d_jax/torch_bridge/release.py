"""A release folder: the files and yamls that the published PyTorch pipeline loads, and a record of
where they come from.

    pipeline.yaml        what the pipeline is made of and how it samples
    <part>.yaml .ckpt    ss_generator (flow model and condition encoder), ss_decoder, ss_encoder (optional), slat_* (second stage)
    release.json         configuration, lineage, statistics of the latents, digest of every file; the pipeline ignores it
"""

import base64
from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

from flax import nnx
from ml_collections import ConfigDict
import numpy as np
import yaml

import sam3d_jax
from sam3d_jax.errors import InputError
from sam3d_jax.files import atomic
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import keys, load, parts, release_yaml, save

FORMAT = 1  # of release.json
SIDECAR = "release.json"
STAGE_2 = ("slat_generator", "slat_decoder_gs", "slat_decoder_gs_4", "slat_decoder_mesh")
# for the published pipeline
REQUIRED = ("ss_generator", "ss_decoder", "slat_generator", "slat_decoder_gs", "slat_decoder_mesh")
YAMLS = {"ss_decoder": release_yaml.decoder_yaml, "ss_encoder": release_yaml.encoder_yaml}


@dataclasses.dataclass(frozen=True)
class Model:
  """A model to be released: configuration, parameters, and what the checkpoint says about itself.

  digest: short name of the checkpoint's content (training.checkpoint.digest). autoencoder: of a
  structure VAE, the digest that its latents carry (parameters.params_digest).
  """

  config: ConfigDict
  params: Mapping[str, np.ndarray]
  shapes: Mapping[str, tuple[int, ...]]
  lineage: Mapping[str, Any]
  digest: str
  autoencoder: str | None = None


@dataclasses.dataclass(frozen=True)
class Release:
  """What a release folder says it is; nothing large has been read yet.

  geometry, structure_vae: `model` sections of our configuration (structure_vae None without a
  decoder). sampler: settings for sampling.generate.SamplerConfig. files: part -> checkpoint file.
  sidecar: contents of release.json, empty without one.
  """

  folder: pathlib.Path
  geometry: dict[str, Any]
  structure_vae: dict[str, Any] | None
  sampler: dict[str, Any]
  pose_convention: str
  files: dict[str, pathlib.Path]
  sidecar: dict[str, Any]


def write_release(
  out: str | pathlib.Path,
  geometry: Model,
  vae: Model | None = None,
  *,
  take_from: str | pathlib.Path | None = None,
  storage: str = "fp32",
  suffix: str = ".ckpt",
) -> dict[str, Any]:
  """Writes a release folder and returns what its release.json says. The folder appears whole or not
  at all.

  vae: the autoencoder of the structure latents, for ss_decoder and ss_encoder. take_from: a release
  folder whose parts are taken over where none is given here: the second stage, and the decoder
  without `vae`. Raises InputError if the folder exists, keys do not fit, or the decoder is not the
  one that belongs to the latents.
  """
  out = pathlib.Path(out)
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise InputError(f"{out} exists and is not an empty folder")
  source = read_release(take_from) if take_from is not None else None
  _check_fit(geometry, vae)
  decoder = decoder_identity(vae, source)
  verified = check_latents(latents_of(geometry.lineage), decoder)
  if suffix != ".safetensors":
    load.require_torch(f"writing {suffix} files (give --safetensors to do without)")
  with atomic.folder(out) as temporary:
    record = _fill(temporary, geometry, vae, source, storage, suffix)
    record["decoder"] = {**decoder, "verified": verified}
    (temporary / SIDECAR).write_text(json.dumps(record, indent=2, default=list) + "\n")
  return record


def _check_fit(geometry: Model, vae: Model | None) -> None:
  """Everything that can be wrong with names and sizes, all models together, before anything is
  written.
  """
  problems = []
  for model in (geometry, vae) if vae is not None else (geometry,):
    try:
      parameters.check_shapes(
        model.shapes, parameters.flat_shapes(registry.abstract_model(model.config.model))
      )
    except parameters.ParameterMismatch as error:
      problems.append(str(error))
  flow = geometry.config.model.flow
  if vae is not None:
    made = (
      vae.config.model.latent_channels,
      vae.config.model.resolution // 2 ** (len(vae.config.model.channels) - 1),
    )
    if made != (flow.latent_channels, flow.shape_resolution):
      problems.append(
        f"the autoencoder's latents are {made[1]}^3 x {made[0]}, the flow model's "
        f"{flow.shape_resolution}^3 x "
        f"{flow.latent_channels}"
      )
  if problems:
    raise InputError("\n".join(problems))


def _fill(
  folder: pathlib.Path,
  geometry: Model,
  vae: Model | None,
  source: Release | None,
  storage: str,
  suffix: str,
) -> dict[str, Any]:
  """Writes everything but release.json into the folder and returns the record so far."""
  half, sampler = storage == "fp16", geometry.config.sampler.to_dict()
  cfg = registry.typed_config(geometry.config.model)
  record: dict[str, Any] = {}
  _write_model(folder, geometry, storage, suffix, record)
  _write_yaml(
    folder / "ss_generator.yaml", release_yaml.generator_yaml(cfg, sampler=sampler, half=half)
  )
  if vae is not None:
    _write_model(folder, vae, storage, suffix, record)
    for part, make in YAMLS.items():
      _write_yaml(folder / f"{part}.yaml", make(registry.typed_config(vae.config.model), half=half))
  if source is not None:
    _take_over(
      folder,
      source,
      [p for p in (*YAMLS, *STAGE_2) if p in source.files and p not in record],
      record,
    )
    for path in source.folder.glob("LICENSE*"):
      shutil.copyfile(path, folder / path.name)
  base = _read_yaml(source.folder / "pipeline.yaml") if source is not None else None
  files = {part: entry["file"] for part, entry in record.items()}
  _write_yaml(
    folder / "pipeline.yaml",
    release_yaml.pipeline_yaml(cfg, files, sampler=sampler, half=half, base=base),
  )
  why = release_yaml.obstacles(cfg)
  why += [
    f"{p} is missing: take it over from a release that has it" for p in REQUIRED if p not in files
  ]
  return {
    "format": FORMAT,
    "made_by": f"sam3d_jax {sam3d_jax.__version__}",
    "storage": storage,
    "config": geometry.config.to_dict(),
    "vae_config": vae.config.to_dict() if vae is not None else None,
    "lineage": dict(geometry.lineage),
    "latents": latents_of(geometry.lineage),
    "checkpoint": geometry.digest,
    "parts": record,
    "unused_rows": unused_rows(geometry),
    "published_pipeline": {"loads": not why, "obstacles": why},
  }


def unused_rows(model: Model) -> dict[str, dict[str, str]]:
  """Rows of tables that the published file has no place for because nothing reads them: path -> row
  -> fp32 values in base64.

  Only models that look at the crop alone (or the photo alone) have any. Kept, so that an import
  gives back the checkpoint bit for bit.
  """
  rules = [
    rule
    for part in parts.parts_of(registry.typed_config(model.config.model))
    for rule in part.rules
    if rule.rows is not None
  ]
  lost = {
    rule.ours: [n for n in range(model.shapes[rule.ours][0]) if n not in rule.rows]
    for rule in rules
  }
  encode = lambda row: base64.b64encode(np.asarray(row, "<f4").tobytes()).decode()
  return {
    path: {str(n): encode(model.params[path][n]) for n in rows}
    for path, rows in lost.items()
    if rows
  }


def _with_rows(
  params: parameters.LazyParams, rows: Mapping[str, Mapping[str, str]]
) -> parameters.LazyParams:
  """The parameters with the rows that release.json kept."""

  def make(path: str) -> np.ndarray:
    array = params[path]
    for n, values in rows.get(path, {}).items():
      array[int(n)] = np.frombuffer(base64.b64decode(values), "<f4")
    return array

  return parameters.LazyParams(params.shapes, make)


def _write_model(
  folder: pathlib.Path, model: Model, storage: str, suffix: str, record: dict[str, Any]
) -> None:
  """Every file that one model becomes."""
  for stem, (root, rules) in parts.files_of(registry.typed_config(model.config.model)).items():
    path = folder / f"{stem}{suffix}"
    shapes = {r.ours: model.shapes[r.ours] for r in rules if r.ours is not None}
    save.write_state(path, rules, model.params, shapes, storage=storage, root=root)
    record[stem] = {
      "file": path.name,
      "bytes": path.stat().st_size,
      "sha256": load.file_digest(path),
      "origin": model.digest,
    }


def _take_over(
  folder: pathlib.Path, source: Release, taken: list[str], record: dict[str, Any]
) -> None:
  """Hard-links (copies across file systems) files of another release, checked against its own
  record where it has one.
  """
  for part in taken:
    path, said = source.files[part], source.sidecar.get("parts", {}).get(part, {})
    digest = load.file_digest(path)
    if said and said["sha256"] != digest:
      raise InputError(
        f"{path} is not the file that {source.folder / SIDECAR} describes (sha256 {digest}, not "
        f"{said['sha256']})"
      )
    for file in (path, source.folder / f"{part}.yaml"):
      if not file.is_file():
        raise InputError(f"{file} does not exist, and {path.name} cannot be used without it")
      _link(file.resolve(), folder / file.name)
    origin = f"taken over from {source.folder}"
    record[part] = {
      "file": path.name,
      "bytes": path.stat().st_size,
      "sha256": digest,
      "origin": origin,
    }


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
  try:
    os.link(source, target)
  except OSError:  # another file system, or one without hard links
    shutil.copyfile(source, target)


def latents_of(lineage: Mapping[str, Any]) -> dict[str, Any] | None:
  """What the training data's structure latents were made with: digest of the autoencoder, mean and
  std where recorded.

  Raises InputError if datasets of one run name different autoencoders. None if nothing is recorded
  (nor is for random weights).
  """
  found = [
    entry["latents"]
    for entry in lineage.get("datasets", {}).values()
    if entry and entry.get("latents")
  ]
  for other in found[1:]:
    if other["autoencoder"] != found[0]["autoencoder"]:
      raise InputError(
        "the training data mixes latents of two autoencoders, "
        f"{found[0]['autoencoder']} and {other['autoencoder']}"
      )
  if found:
    return found[0]
  for parent in lineage.get("parents", ()):
    inherited = latents_of(parent.get("lineage", {}))
    if inherited is not None:
      return inherited
  return lineage.get("latents")


def decoder_identity(vae: Model | None, source: Release | None) -> dict[str, Any]:
  """Which decoder a release would have: {autoencoder, sha256, from}, with None for what is not
  known.
  """
  if vae is not None:
    return {"autoencoder": vae.autoencoder, "sha256": None, "from": "checkpoint"}
  if source is not None and "ss_decoder" in source.files:
    said = source.sidecar.get("decoder", {})
    digest = load.file_digest(source.files["ss_decoder"])
    return {"autoencoder": said.get("autoencoder"), "sha256": digest, "from": str(source.folder)}
  return {"autoencoder": None, "sha256": None, "from": None}


def check_latents(latents: Mapping[str, Any] | None, decoder: Mapping[str, Any]) -> bool:
  """Whether the decoder is known to belong to the latents. Raises InputError if it is known not to.

  A wrong decoder runs without complaint and returns empty or broken shapes.
  """
  if latents is None or decoder["from"] is None:
    return False
  same_file = (
    latents.get("decoder_sha256") is not None and latents["decoder_sha256"] == decoder["sha256"]
  )
  if latents.get("autoencoder") is not None and decoder["autoencoder"] is not None:
    if latents["autoencoder"] != decoder["autoencoder"] and not same_file:
      raise InputError(
        f"the model was trained on latents of autoencoder {latents['autoencoder']}, the decoder "
        f"({decoder['from']}) is of {decoder['autoencoder']}: its shapes would be wrong. "
        "Give the autoencoder that encoded the data."
      )
    return True
  return same_file


def read_release(folder: str | pathlib.Path) -> Release:
  """Reads the yamls of a release folder. Raises InputError naming file and key for what is missing
  or not implemented.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise InputError(f"{folder} is not a folder")
  pipeline = _read_yaml(folder / "pipeline.yaml") if (folder / "pipeline.yaml").is_file() else None
  sidecar = json.loads((folder / SIDECAR).read_text()) if (folder / SIDECAR).is_file() else {}
  named = {
    part: folder / (pipeline or {}).get(f"{part}_ckpt_path", "")
    for part in ("ss_generator", *YAMLS, *STAGE_2)
  }
  files = {
    part: path if path.is_file() else parts.find_file(folder, part) for part, path in named.items()
  }
  files = {part: path for part, path in files.items() if path is not None}
  generator_file = folder / "ss_generator.yaml"
  if not generator_file.is_file():
    raise InputError(f"{folder} is no release folder: it has no ss_generator.yaml")
  generator = _read_yaml(generator_file)
  geometry = release_yaml.geometry_section(generator, str(generator_file))
  if geometry["condition"]["pointmap"] is not None:
    twice = release_yaml.resizes_twice(pipeline, geometry)
    geometry["condition"]["pointmap"]["resize_twice"] = twice
  vae = None
  if (folder / "ss_decoder.yaml").is_file():
    vae = release_yaml.structure_vae_section(
      _read_yaml(folder / "ss_decoder.yaml"),
      str(folder / "ss_decoder.yaml"),
      latent_resolution=geometry["flow"]["shape_resolution"],
    )
  return Release(
    folder=folder,
    geometry=geometry,
    structure_vae=vae,
    sidecar=sidecar,
    files=files,
    sampler=release_yaml.sampler_section(generator, pipeline, str(generator_file)),
    pose_convention=(pipeline or {}).get("pose_decoder_name", "ScaleShiftInvariant"),
  )


def open_geometry(
  release: Release, model: ConfigDict, *, unsafe_pickle: bool = False
) -> parameters.LazyParams:
  """Parameters of the release's Geometry model, read as they are asked for. `model`: a `model`
  section of the release's sizes.
  """
  model = ConfigDict(model.to_dict())
  # which decide the order of rows in the file
  model.condition.streams = tuple(release.geometry["condition"]["streams"])
  params = open_file(_file(release, "ss_generator"), model, unsafe_pickle=unsafe_pickle)
  return _with_rows(params, release.sidecar.get("unused_rows", {}))


def open_structure_vae(
  release: Release,
  model: ConfigDict,
  *,
  encoder: str | pathlib.Path | None = None,
  unsafe_pickle: bool = False,
) -> parameters.LazyParams:
  """Parameters of decoder and encoder. encoder: a file for the encoder where the release has none,
  as the published one.
  """
  encoder_file = encoder if encoder is not None else release.files.get("ss_encoder")
  if encoder_file is None:
    raise InputError(f"{release.folder} has no ss_encoder: give one with --encoder FILE")
  return open_autoencoder(
    _file(release, "ss_decoder"), encoder_file, model, unsafe_pickle=unsafe_pickle
  )


def open_autoencoder(
  decoder: str | pathlib.Path,
  encoder: str | pathlib.Path,
  model: ConfigDict,
  *,
  unsafe_pickle: bool = False,
) -> parameters.LazyParams:
  """Parameters of a structure VAE from a decoder and an encoder file."""
  shapes = parameters.flat_shapes(registry.abstract_model(model))
  found = {part.name: part for part in parts.parts_of(registry.typed_config(model))}
  opened, problems = {}, []
  for name, path in (("ss_decoder", decoder), ("ss_encoder", encoder)):
    own = {p: s for p, s in shapes.items() if p.startswith(name.removeprefix("ss_") + "/")}
    try:
      opened[name] = load.convert(
        found[name].rules, load.open_state(path, unsafe_pickle=unsafe_pickle), own
      )
    except keys.KeyMismatch as error:
      problems.append(f"{path}: {error}")
  if problems:
    raise keys.KeyMismatch("\n".join(problems))
  return parameters.LazyParams(shapes, lambda p: opened["ss_" + p.partition("/")[0]][p])


def open_file(
  path: str | pathlib.Path, model: ConfigDict, *, unsafe_pickle: bool = False
) -> parameters.LazyParams:
  """Parameters of a Geometry model from one published generator file."""
  rules = [rule for part in parts.parts_of(registry.typed_config(model)) for rule in part.rules]
  shapes = parameters.flat_shapes(registry.abstract_model(model))
  return load.convert(rules, load.open_state(path, unsafe_pickle=unsafe_pickle), shapes)


def restore_geometry(release: Release, model: ConfigDict) -> nnx.Module:
  """The Geometry model of a release, in memory. `model`: ConfigDict(release.geometry), compute
  settings changed at will.
  """
  module = registry.abstract_model(model)
  parameters.load_params(module, open_geometry(release, model))
  return module


def restore_decoder(release: Release) -> nnx.Module:
  """The structure decoder of a release, in memory. Raises InputError if it has none."""
  if release.structure_vae is None:
    raise InputError(f"{release.folder} has no ss_decoder.yaml")
  model = ConfigDict(release.structure_vae)
  module = registry.abstract_model(model).decoder
  part = parts.parts_of(registry.typed_config(model))[0]
  shapes = {"decoder/" + p: s for p, s in parameters.flat_shapes(module).items()}
  params = load.convert(part.rules, load.open_state(_file(release, "ss_decoder")), shapes)
  parameters.load_params(module, {p.removeprefix("decoder/"): params[p] for p in params})
  return module


def _file(release: Release, part: str) -> pathlib.Path:
  if part not in release.files:
    raise InputError(f"{release.folder} has no {part}.ckpt or {part}.safetensors")
  return release.files[part]


class _Plain(yaml.SafeDumper):
  def ignore_aliases(self, data):
    return True


def _write_yaml(path: pathlib.Path, tree: Mapping[str, Any]) -> None:
  path.write_text(yaml.dump(tree, Dumper=_Plain, sort_keys=True))


def _read_yaml(path: pathlib.Path) -> dict[str, Any]:
  try:
    tree = yaml.safe_load(path.read_text())
  except (yaml.YAMLError, OSError) as error:
    raise InputError(f"{path} cannot be read: {error}") from error
  if not isinstance(tree, dict):
    raise InputError(f"{path} is not a mapping")
  return tree
