"""Reading the second stage of a release folder: flow model, SLAT encoder and decoders.

Which file holds which part is decided by names and shapes in it; what a file is called only says
where to look first.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from ml_collections import ConfigDict

from sam3d_jax.errors import InputError
from sam3d_jax.models import latent_statistics, parameters, registry
from sam3d_jax.models.latent_statistics import LatentStatistics
from sam3d_jax.models.texture import RowConfig
from sam3d_jax.torch_bridge import (
  load,
  parts,
  recognise,
  release,
  slat_identity,
  yaml_files,
  yaml_pipeline,
  yaml_slat,
  yaml_texture,
)
from sam3d_jax.torch_bridge.release import Release
from sam3d_jax.torch_bridge.yaml_slat import HEAD_DIM

TEXTURE, SLAT_VAE = "texture", "slat_vae"
# models of the second stage that a folder can hold, as a user names them; a decoder alone has the
# name of its file
MODELS = (TEXTURE, SLAT_VAE, *slat_identity.DECODERS)


@dataclasses.dataclass(frozen=True)
class SecondStage:
  """One model of a folder: its `model` section, the file of each published part, notes for whoever
  imports it.
  """

  model: dict[str, Any]
  files: Mapping[str, pathlib.Path]
  notes: tuple[str, ...]
  sampler: dict[str, Any] | None = None


def read(
  folder: Release,
  name: str,
  *,
  encoder: str | pathlib.Path | None = None,
  unsafe_pickle: bool = False,
) -> SecondStage:
  """What a folder says of one of its MODELS. encoder: a file for the SLAT encoder.

  Raises InputError if it does not have it.
  """
  finder = _Finder(folder, unsafe_pickle)
  if name == TEXTURE:
    finder.find("slat_generator")
    model = texture_model(folder)
    sampler = texture_sampler(folder)
    return SecondStage(model, finder.files, tuple(finder.notes), sampler)

  if name == "slat_decoder_mesh":
    finder.find(name)
    model = {"name": "slat_mesh", "mesh": _section(folder, name, yaml_slat.mesh_section)}
    return SecondStage(model, finder.files, tuple(finder.notes))

  # a Gaussian decoder, alone or with its encoder
  part = name
  if name == SLAT_VAE:
    part = "slat_decoder_gs"
  holding = finder.find(part)
  gaussian = _section(folder, part, yaml_slat.gaussian_section)
  # that many Gaussians a voxel are in the file, whatever its yaml says
  gaussian["gaussians"] = holding.sizes["gaussians"]
  if name != SLAT_VAE:
    model = {"name": "slat_gaussian", "gaussian": gaussian}
    return SecondStage(model, finder.files, tuple(finder.notes))

  # the autoencoder, whose encoder was not always published
  encoding = finder.find("slat_encoder", given=encoder)
  model = {
    "name": SLAT_VAE,
    "encoder": encoder_section(folder, encoding, gaussian),
    "gaussian": gaussian,
  }
  return SecondStage(model, finder.files, tuple(finder.notes))


def open_params(
  folder: Release, found: SecondStage, model: ConfigDict, *, unsafe_pickle: bool = False
) -> parameters.LazyParams:
  """Parameters of a model of the folder, read as they are asked for.

  model: a `model` section of the same sizes.
  """
  model = ConfigDict(model.to_dict())
  rows: Mapping[str, Any] = {}
  if found.model["name"] == TEXTURE:
    # the release's streams decide the order of rows in the file
    model.condition.streams = tuple(found.model["condition"]["streams"])
    rows = folder.sidecar.get("texture_unused_rows", {})
  params = release.open_files(model, found.files, unsafe_pickle=unsafe_pickle)
  return release.with_rows(params, rows)


def texture_model(folder: Release) -> dict[str, Any]:
  """The `model` section of the flow model that a folder's yamls describe."""
  tree, file = _yaml(folder, "slat_generator")
  model = yaml_texture.texture_section(tree, file)
  model["latent_statistics"] = yaml_texture.statistics_section(folder.pipeline)
  # how many voxels a program takes is no question of the weights
  model["row"] = dataclasses.asdict(RowConfig())
  return model


def texture_sampler(folder: Release) -> dict[str, Any]:
  """How the folder's second stage is sampled."""
  tree, file = _yaml(folder, "slat_generator")
  return yaml_pipeline.sampler_section(tree, folder.pipeline, file, stage="slat")


def encoder_section(
  folder: Release, holding: recognise.Holding, gaussian: Mapping[str, Any]
) -> dict[str, Any]:
  """The `encoder` section: of its yaml or, as the encoder was published without one, of the shapes
  in its file and what the decoder says of windows and voxels.
  """
  if (folder.folder / "slat_encoder.yaml").is_file():
    return _section(folder, "slat_encoder", yaml_slat.encoder_section)
  sizes = holding.sizes
  trunk = {
    **gaussian["trunk"],
    "width": sizes["width"],
    "depth": sizes["depth"],
    "heads": sizes["width"] // HEAD_DIM,
    "mlp_ratio": sizes["hidden"] / sizes["width"],
  }
  if sizes["width"] == gaussian["trunk"]["width"]:
    trunk["heads"] = gaussian["trunk"]["heads"]
  return {
    "features": sizes["channels"],
    "latent_channels": sizes["latent"],
    "resolution": gaussian["resolution"],
    "trunk": trunk,
  }


def statistics_notes(
  folder: Release, model: Mapping[str, Any], configured: ConfigDict
) -> list[str]:
  """What to tell of latent statistics: those of the weights against those configured.

  model: the section that the folder's yamls say. configured: the section that is stored.
  """
  weights = registry.statistics(_plain(model["latent_statistics"]))
  stored = registry.statistics(configured.latent_statistics)
  notes = []
  if not yaml_texture.same_statistics(weights, stored):
    notes.append(
      f"the weights of {folder.folder} were trained on latents with {_named(weights)}, "
      f"--config has model.latent_statistics {_named(stored)}: decoded, colours and shapes would "
      "be wrong; give those of the weights"
    )

  # the record of whoever exported the folder
  recorded = folder.sidecar.get(slat_identity.LINEAGE_KEY) or {}
  if recorded.get("mean") and recorded.get("std"):
    trained = LatentStatistics(tuple(recorded["mean"]), tuple(recorded["std"]))
    if not yaml_texture.same_statistics(weights, trained):
      notes.append(
        f"{folder.folder}: pipeline.yaml has latent statistics {_named(weights)}, release.json "
        f"those of other training data, {_named(trained)}: ask who exported it which are right"
      )
  return notes


def _plain(stated: Any) -> Any:
  """A name as it is, a section as one."""
  return stated if isinstance(stated, str) else ConfigDict(stated)


def _named(statistics: LatentStatistics) -> str:
  """A set in words: its published name, or how it begins."""
  for name, published in latent_statistics.PUBLISHED.items():
    if yaml_texture.same_statistics(statistics, published):
      return f"{name!r}"
  return f"mean {statistics.mean[0]:.4g}, ... and std {statistics.std[0]:.4g}, ..."


def _yaml(folder: Release, name: str) -> tuple[dict[str, Any], str]:
  """A yaml of the folder and its name, for messages."""
  file = release.own_file(folder.folder, f"{name}.yaml", f"{folder.folder}")
  if not file.is_file():
    raise InputError(f"{folder.folder} has no {name}.yaml")
  return yaml_files.read(file), str(file)


def _section(folder: Release, name: str, make) -> dict[str, Any]:
  """The section that a yaml of the folder describes, `make` being the part's own reader."""
  tree, file = _yaml(folder, name)
  return make(tree, file)


class _Finder:
  """Looks for parts in a folder's files.

  files: part -> where it was found. notes: what whoever gave the folder should know.
  """

  def __init__(self, folder: Release, unsafe_pickle: bool):
    self.folder = folder
    self.unsafe_pickle = unsafe_pickle
    self.files: dict[str, pathlib.Path] = {}
    self.notes: list[str] = []

  def find(self, part: str, given: str | pathlib.Path | None = None) -> recognise.Holding:
    """The file that holds a part: the one given, the one of its name, or another of the folder.

    Raises InputError, naming what the files really hold, if none does.
    """
    # the file that is meant to be it
    if given is not None:
      named = pathlib.Path(given)
    elif part in self.folder.files:
      named = self.folder.verified_file(part)
    else:
      named = None
    meant = None
    if named is not None:
      held = self._holdings(named)
      for one in held:
        if one.part == part:
          self.files[part] = named
          return one
      meant = f"{named} holds {recognise.told(held)}, not {part}"
      if given is not None:
        raise InputError(f"{meant}: give the right file")

    # another one under a wrong name
    for name in self.folder.files:
      if name == part or not name.startswith("slat_"):
        continue
      file = self.folder.verified_file(name)
      for one in self._holdings(file):
        if one.part == part:
          self.files[part] = file
          self.notes.append(f"{meant or f'there is no {part}'}; {part} is taken from {file}")
          return one

    remedy = f"give the file that is {part}"
    if part == "slat_encoder":
      remedy = "give one with --encoder FILE"
    raise InputError(f"{meant or f'{self.folder.folder} has no {part}'}: {remedy}")

  def _holdings(self, file: pathlib.Path) -> list[recognise.Holding]:
    state = load.open_state(file, unsafe_pickle=self.unsafe_pickle)
    return recognise.holdings(state.shapes)


def encoded_name(folder: Release, *, unsafe_pickle: bool = False) -> str | None:
  """What latents of the folder's own encoder carry as their name; None without an encoder."""
  if "slat_encoder" not in folder.files or "slat_decoder_gs" not in folder.files:
    return None
  found = read(folder, SLAT_VAE, unsafe_pickle=unsafe_pickle)
  model = ConfigDict(found.model)
  params = open_params(folder, found, model, unsafe_pickle=unsafe_pickle)
  return parts.latents_name(model, params)
