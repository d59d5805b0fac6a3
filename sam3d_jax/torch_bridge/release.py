"""Reading a release folder: what the published PyTorch pipeline loads, and where it comes from.

    pipeline.yaml        what the pipeline is made of and how it samples
    <part>.yaml .ckpt    ss_generator (flow model and condition encoder), ss_decoder, ss_encoder
                         (optional), slat_* (second stage, which `second_stage` reads)
    release.json         configuration, lineage, statistics of the latents, digest of every file;
                         the pipeline ignores it

`release_writer` writes such folders.
"""

import base64
from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from flax import nnx
from ml_collections import ConfigDict
import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.files import names, texts
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import (
  keys,
  load,
  parts,
  recognise,
  yaml_files,
  yaml_geometry,
  yaml_pipeline,
  yaml_structure,
)

SIDECAR = "release.json"
SNAPSHOTS, BLOBS = "snapshots", "blobs"  # folders of the Hub's cache


@dataclasses.dataclass(frozen=True)
class Release:
  """What a release folder says it is; nothing large has been read yet.

  geometry, structure_vae: `model` sections of our configuration (None without a first stage, and
  without a decoder). sampler: settings for sampling.generate.SamplerConfig. files: part ->
  checkpoint file. sidecar: contents of release.json, empty without one. pipeline: the tree of
  pipeline.yaml, None without one.
  """

  folder: pathlib.Path
  geometry: dict[str, Any] | None
  structure_vae: dict[str, Any] | None
  sampler: dict[str, Any]
  pose_convention: str
  files: dict[str, pathlib.Path]
  sidecar: dict[str, Any]
  pipeline: dict[str, Any] | None = None

  def file(self, name: str) -> pathlib.Path:
    """A checkpoint file. Raises InputError if the folder has none of that name."""
    if name not in self.files:
      raise InputError(f"{self.folder} has no {name}.ckpt or {name}.safetensors")
    return self.files[name]

  def verified_file(self, name: str) -> pathlib.Path:
    """A checkpoint file that is the one which release.json describes, if that says anything of it.

    Raises InputError if it is another.
    """
    file = self.file(name)
    recorded = self.sidecar.get("parts", {}).get(name)
    if recorded is None:
      return file
    digest = load.file_digest(file)
    if digest != recorded["sha256"]:
      raise InputError(
        f"{file} is not the file that {self.folder / SIDECAR} describes (sha256 {digest}, not "
        f"{recorded['sha256']}): copy the release again; if the file was changed on purpose, take "
        f"{name} out of parts in {SIDECAR}"
      )
    return file


def read_release(folder: str | pathlib.Path) -> Release:
  """Reads the yamls of a release folder.

  Raises InputError naming file and key for what is missing or not implemented.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    what = "a file" if folder.exists() else "not there"
    raise InputError(f"{folder} is {what}: give a release folder")
  # What it is made of, if it says so, and where it comes from, if it was made here.
  pipeline = read_pipeline(folder)
  sidecar = {}
  sidecar_file = folder / SIDECAR
  if sidecar_file.is_file():
    remedy = "export the release again"
    try:
      sidecar = texts.read_json(sidecar_file)
    except texts.TextError as error:
      raise InputError(f"{sidecar_file} cannot be read ({error}): {remedy}") from error
    if not isinstance(sidecar, dict):
      raise InputError(f"{sidecar_file} holds no JSON object: {remedy}")

  said = pipeline or {}
  files = _checkpoint_files(folder, said)

  # The flow model and its conditions are described by the generator.
  generator_file = folder / "ss_generator.yaml"
  geometry, sampler = None, {}
  if generator_file.is_file():
    generator = yaml_files.read(generator_file)
    geometry = yaml_geometry.geometry_section(generator, str(generator_file))
    pointmap = geometry["condition"]["pointmap"]
    if pointmap is not None:
      pointmap["resize_twice"] = yaml_pipeline.resizes_twice(pipeline, geometry)
    sampler = yaml_pipeline.sampler_section(generator, pipeline, str(generator_file))
  # a second stage alone is a release, too
  elif not any(name.startswith("slat_") for name in files):
    raise InputError(f"{folder} is no release folder: it has no ss_generator.yaml")

  # The autoencoder is described by the decoder.
  structure_vae = None
  decoder_file = folder / "ss_decoder.yaml"
  if decoder_file.is_file() and geometry is not None:
    structure_vae = yaml_structure.structure_vae_section(
      yaml_files.read(decoder_file),
      str(decoder_file),
      latent_resolution=geometry["flow"]["shape_resolution"],
    )

  return Release(
    folder=folder,
    geometry=geometry,
    structure_vae=structure_vae,
    sampler=sampler,
    pose_convention=said.get("pose_decoder_name", "ScaleShiftInvariant"),
    files=files,
    sidecar=sidecar,
    pipeline=pipeline,
  )


def read_pipeline(folder: pathlib.Path) -> dict[str, Any] | None:
  """The tree of pipeline.yaml, None without one."""
  file = folder / "pipeline.yaml"
  return yaml_files.read(file) if file.is_file() else None


def _checkpoint_files(folder: pathlib.Path, pipeline: Mapping[str, Any]) -> dict[str, pathlib.Path]:
  """The files that are there: where pipeline.yaml says, else by their usual name.

  Raises InputError for one that lies outside of the folder.
  """
  files = {}
  for published in parts.FILES:
    name = published.name
    key = f"{name}_ckpt_path"
    stated = pipeline.get(key)
    if stated:
      file = own_file(folder, stated, f"{folder / 'pipeline.yaml'}: {key}")
      if file.is_file():
        files[name] = file
        continue
    usual = parts.find_file(folder, name)
    if usual is not None:
      files[name] = own_file(folder, usual.name, f"{folder}")
  return files


def own_file(folder: pathlib.Path, name: str, what: str) -> pathlib.Path:
  """The place of a release's file, below its folder. Raises InputError, beginning with `what`, for
  a name or a link that leads elsewhere.

  The Hub's cache is as good: it links every file of a snapshot into `blobs` beside all of them.
  """
  also = []
  for above in folder.absolute().parents:
    if above.name == SNAPSHOTS:
      also.append(above.parent / BLOBS)
  try:
    return names.below(folder, name, also=also)
  except names.Outside as error:
    raise InputError(
      f"{what}: {error}; the files of a release lie in its folder: copy it there"
    ) from error


def open_geometry(
  release: Release, model: ConfigDict, *, unsafe_pickle: bool = False
) -> parameters.LazyParams:
  """Parameters of the release's Geometry model, read as they are asked for.

  model: a `model` section of the release's sizes. Raises InputError if it has no first stage.
  """
  # The release's streams decide the order of rows in the file.
  model = ConfigDict(model.to_dict())
  streams = geometry_of(release)["condition"]["streams"]
  model.condition.streams = tuple(streams)

  file = release.verified_file("ss_generator")
  params = open_file(file, model, unsafe_pickle=unsafe_pickle)
  return with_rows(params, release.sidecar.get("unused_rows", {}))


def geometry_of(release: Release) -> dict[str, Any]:
  """The `model` section of the first stage. Raises InputError if the folder has none."""
  if release.geometry is None:
    raise InputError(f"{release.folder} has no ss_generator.yaml: it holds a second stage alone")
  return release.geometry


def open_structure_vae(
  release: Release,
  model: ConfigDict,
  *,
  encoder: str | pathlib.Path | None = None,
  unsafe_pickle: bool = False,
) -> parameters.LazyParams:
  """Parameters of decoder and encoder.

  encoder: a file for the encoder where the release has none, as the published one.
  """
  # The encoder is the one given, or else the release's own.
  if encoder is None and "ss_encoder" not in release.files:
    raise InputError(f"{release.folder} has no ss_encoder: give one with --encoder FILE")
  if encoder is None:
    encoder = release.verified_file("ss_encoder")
  files = {"ss_decoder": release.verified_file("ss_decoder"), "ss_encoder": encoder}
  return open_files(model, files, unsafe_pickle=unsafe_pickle)


def open_files(
  model: ConfigDict,
  files: Mapping[str, str | pathlib.Path],
  *,
  unsafe_pickle: bool = False,
) -> parameters.LazyParams:
  """Parameters of a model from its published files (file without suffix -> where it is).

  Raises InputError for a file that holds another part, and KeyMismatch for entries that do not fit,
  of all files at once.
  """
  shapes = registry.parameter_shapes(model)

  # All files are checked before any is refused.
  opened, problems = {}, []
  for name, (_, rules) in parts.files_of(model).items():
    own = {}
    for rule in rules:
      if rule.ours is not None:
        own[rule.ours] = shapes[rule.ours]
    try:
      state = load.open_state(files[name], unsafe_pickle=unsafe_pickle)
      _check_holds(state, parts.parts_in(model, name))
      sizes = parts.sizes_in(model, name)
      converted = load.convert(rules, state, own, sizes)
    except keys.KeyMismatch as error:
      problems.append(str(error))
      continue
    for path in own:
      opened[path] = converted
  if problems:
    raise keys.KeyMismatch("\n".join(problems))
  return parameters.LazyParams(shapes, lambda path: opened[path][path])


def _check_holds(state: load.StateFile, wanted: list[str]) -> None:
  """Raises KeyMismatch for a file that is another published part than those wanted."""
  held = recognise.holdings(state.shapes)
  found = {one.part for one in held}
  if found and found.isdisjoint(wanted):
    raise keys.KeyMismatch(
      f"{state.path} holds {recognise.told(held)}, not {' and '.join(wanted)}: give the right file"
    )


def open_file(
  path: str | pathlib.Path, model: ConfigDict, *, unsafe_pickle: bool = False
) -> parameters.LazyParams:
  """Parameters of a model whose published parts lie in one file."""
  files = parts.files_of(model)
  if len(files) > 1:
    raise InputError(f"{path} is one file, the model lies in {len(files)}: {', '.join(files)}")
  (name,) = files
  return open_files(model, {name: path}, unsafe_pickle=unsafe_pickle)


def with_rows(
  params: parameters.LazyParams, rows: Mapping[str, Mapping[str, str]]
) -> parameters.LazyParams:
  """The parameters with the rows that release.json kept."""

  def make(path: str) -> np.ndarray:
    array = params[path]
    for row, encoded in rows.get(path, {}).items():
      values = base64.b64decode(encoded)
      array[int(row)] = np.frombuffer(values, "<f4")
    return array

  return parameters.LazyParams(params.shapes, make)


def restore_geometry(release: Release, model: ConfigDict) -> nnx.Module:
  """The Geometry model of a release, in memory.

  model: ConfigDict(release.geometry), compute settings changed at will.
  """
  module = registry.abstract_model(model)
  params = open_geometry(release, model)
  parameters.load_params(module, params)
  return module


def restore_decoder(release: Release) -> nnx.Module:
  """The structure decoder of a release, in memory. Raises InputError if it has none."""
  if release.structure_vae is None:
    raise InputError(f"{release.folder} has no ss_decoder.yaml")
  model = ConfigDict(release.structure_vae)
  module = registry.abstract_model(model).decoder
  rules = parts.rules_by_part(model)["ss_decoder"]

  # The rules name parameters as they stand in the whole autoencoder.
  prefix = "decoder/"
  own_shapes = parameters.flat_shapes(module)
  shapes = {prefix + path: shape for path, shape in own_shapes.items()}
  state = load.open_state(release.verified_file("ss_decoder"))
  params = load.convert(rules, state, shapes)
  own_params = {path: params[prefix + path] for path in own_shapes}
  parameters.load_params(module, own_params)
  return module


def latents_of(lineage: Mapping[str, Any], key: str = "latents") -> dict[str, Any] | None:
  """What the training data's latents were made with: those of structure, or of SLAT by their key.

  The digest of the autoencoder, mean and std where recorded; None if nothing is recorded, as for
  random weights. Raises InputError if datasets of one run name different autoencoders.
  """
  # what the datasets of the run say
  found = []
  for entry in lineage.get("datasets", {}).values():
    if entry and entry.get(key):
      found.append(entry[key])
  for other in found[1:]:
    if other["autoencoder"] != found[0]["autoencoder"]:
      raise InputError(
        "the training data mixes latents of two autoencoders, "
        f"{found[0]['autoencoder']} and {other['autoencoder']}"
      )
  if found:
    return found[0]

  # what it was trained from, down to an import, which notes the decoder that lay beside
  for parent in lineage.get("parents", ()):
    inherited = latents_of(parent.get("lineage", {}), key)
    if inherited is not None:
      return inherited
  return lineage.get(key)


def check_latents(latents: Mapping[str, Any] | None, decoder: Mapping[str, Any]) -> bool:
  """Whether the decoder is known to belong to the latents.

  Raises InputError if it is known not to: a wrong decoder runs without complaint and returns empty
  or broken shapes.
  """
  if latents is None or decoder["from"] is None:
    return False

  # The very file that lay beside an imported model belongs to it, whatever its name.
  recorded_file = latents.get("decoder_sha256")
  same_file = recorded_file is not None and recorded_file == decoder["sha256"]
  if same_file:
    return True

  # Otherwise the autoencoder's name decides, if both sides give one.
  trained_on = latents.get("autoencoder")
  decodes = decoder["autoencoder"]
  if trained_on is None or decodes is None:
    return False
  if trained_on != decodes:
    raise InputError(
      f"the model was trained on latents of autoencoder {trained_on}, the decoder "
      f"({decoder['from']}) is of {decodes}: its shapes would be wrong. "
      "Give the autoencoder that encoded the data."
    )
  return True
