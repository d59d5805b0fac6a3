"""A trained Geometry model and the decoder of its latents, ready to sample: what launch.sample
runs.
"""

from collections.abc import Mapping
import dataclasses
import functools
import pathlib
from typing import Any

from flax import nnx
import jax
from ml_collections import ConfigDict
import numpy as np

from data_pipelines.read.rows import POINTMAP_STREAMS, SampleConfig
from sam3d_jax.batch import LATENTS, Conditioning
from sam3d_jax.errors import InputError
from sam3d_jax.geometry import pose
from sam3d_jax.models import parameters, registry
from sam3d_jax.models.structure_vae import tokens_to_grid
from sam3d_jax.objectives import draws
from sam3d_jax.sampling import generate
from sam3d_jax.torch_bridge import release
from sam3d_jax.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Prediction:
  """A batch of samples on the host, or without the axis B one of them."""

  occupancy: np.ndarray  # (B, X, Y, Z) bool
  latents: dict[str, np.ndarray]  # latent name -> (B, tokens, channels) float32
  rotation: np.ndarray  # (B, 3, 3) object to camera, as in Pose

  def one(self, index: int) -> "Prediction":
    return Prediction(
      self.occupancy[index], {k: x[index] for k, x in self.latents.items()}, self.rotation[index]
    )


@dataclasses.dataclass(frozen=True)
class Predictor:
  """Models on the device with everything that decides the samples but the inputs and the seed."""

  model: nnx.Module  # GeometryModel
  decoder: nnx.Module  # StructureDecoder
  sampler: generate.SamplerConfig
  row: SampleConfig  # form of the inputs and latents
  trained: tuple[str, ...]  # latents that the model has learned
  convention: str  # of the layout latents
  resolution: int  # voxels a side
  identity: Mapping[str, Any]  # names of the weights, for the record

  @functools.cached_property
  def _jitted(self):
    """(params, traced function of params, cond, key_B2, drop_pointmap_B)."""
    graphs, params = zip(*(nnx.split(m) for m in (self.model, self.decoder)), strict=True)
    shapes = {name: self.row.latent_shape(name) for name in LATENTS}

    @jax.jit
    def run(params, cond, key_B2, drop_pointmap_B):
      model, decoder = (nnx.merge(g, p) for g, p in zip(graphs, params, strict=True))
      latents = generate.sample_latents(
        DroppingPointmap(model, drop_pointmap_B), cond, key_B2, self.sampler, shapes
      )
      return latents, decoder(tokens_to_grid(latents["shape"])) > 0

    return params, run

  @functools.cached_property
  def programs(self) -> dict[tuple, Any]:
    """Compiled programs by the shapes and types of their inputs. It only grows: its length is the
    number of compilations.
    """
    return {}

  def program(self, *inputs):
    """The compiled program for inputs of these shapes."""
    params, run = self._jitted
    signature = tuple((tuple(x.shape), str(x.dtype)) for x in jax.tree.leaves(inputs))
    if signature not in self.programs:
      self.programs[signature] = run.lower(params, *inputs).compile()
    return functools.partial(self.programs[signature], params)

  def start(
    self,
    cond: Conditioning,
    content_B2: np.ndarray,
    seed: int,
    drop_pointmap_B: np.ndarray | None = None,
  ):
    """Sends one batch to the device and returns at once; `finish` waits for it.

    Args:
      cond: the inputs; every batch size is compiled once.
      content_B2: content keys; the noise of an example depends on `seed` and its key alone.
      drop_pointmap_B: (B,) bool, examples without a point map: its tokens are zero for them, as in
      training where they are dropped.
    """
    key_B2 = draws.raw_keys(draws.example_keys(jax.random.key(seed), content_B2))
    drop_B = np.zeros(len(content_B2), bool) if drop_pointmap_B is None else drop_pointmap_B
    inputs = (cond, key_B2, drop_B)
    return self.program(*inputs)(*inputs)

  def finish(self, started) -> Prediction:
    """The samples of a batch that `start` sent."""
    latents, occupancy = jax.device_get(started)
    rotation = pose.decode_rotation(latents["rotation"][:, 0])
    return Prediction(occupancy, latents, rotation)

  def __call__(
    self,
    cond: Conditioning,
    content_B2: np.ndarray,
    seed: int,
    drop_pointmap_B: np.ndarray | None = None,
  ) -> Prediction:
    """`start` and `finish`."""
    return self.finish(self.start(cond, content_B2, seed, drop_pointmap_B))

  @property
  def placed(self) -> bool:
    """Whether the model has learned where objects are, not only how they are turned."""
    return {"translation", "scale"} <= set(self.trained)


@dataclasses.dataclass(frozen=True)
class DroppingPointmap:
  """A Geometry model that drops the point-map tokens of some examples."""

  model: Any
  drop_B: jax.Array

  @property
  def step_conditioned(self) -> bool:
    return self.model.step_conditioned

  def encode(self, cond, drop_pointmap_B=None):
    return self.model.encode(
      cond, self.drop_B if drop_pointmap_B is None else self.drop_B | drop_pointmap_B
    )

  def velocity(self, *args):
    return self.model.velocity(*args)


def row_config(model: ConfigDict) -> SampleConfig:
  """Inputs and latents in the form that a `model` section reads."""
  cfg = registry.typed_config(model)
  pointmap = cfg.condition.pointmap
  return SampleConfig(
    image_size=cfg.condition.dino.input_size,
    pointmap_size=pointmap.input_size if pointmap else 256,
    resize_twice=pointmap is None or pointmap.resize_twice,
    streams=tuple(cfg.condition.streams),
    shape_resolution=cfg.flow.shape_resolution,
    latent_channels=cfg.flow.latent_channels,
  )


def sampler_config(
  settings: Mapping[str, Any], *, steps: int | None, guidance: float | None, shortcut: bool
) -> generate.SamplerConfig:
  """The sampler recorded with the weights, with what the command line says in place of it."""
  settings = dict(settings)
  if shortcut:
    settings |= {"shortcut": True, "steps": 4, "pointmap_guidance": None}
  if steps is not None:
    settings["steps"] = steps
  if guidance is not None:
    settings["guidance"] = guidance
  try:
    return generate.SamplerConfig(**settings)
  except (TypeError, ValueError) as error:
    raise InputError(f"sampler {settings}: {error}") from error


def from_checkpoint(
  folder: str, decoder: str | None, *, which: str = "ema", **sampler
) -> Predictor:
  """A Predictor from the work folder of a Geometry model and that of its structure VAE. Raises
  InputError.
  """
  meta = checkpoint.read_meta(folder)
  config = ConfigDict(meta["config"])
  if config.model.name != "geometry":
    raise InputError(
      f"--checkpoint {folder} holds a model of kind {config.model.name!r}, a geometry model is "
      "needed"
    )
  decoder = decoder or decoder_folder(meta["lineage"])
  if not decoder:
    raise InputError(
      f"--checkpoint {folder} does not say where the structure VAE of its latents is; give it with "
      "--decoder DIR"
    )
  vae_meta = checkpoint.read_meta(decoder)
  vae_model = ConfigDict(vae_meta["config"]).model
  if vae_model.name != "structure_vae":
    raise InputError(
      f"--decoder {decoder} holds a model of kind {vae_model.name!r}, a structure_vae is needed"
    )
  vae, _ = checkpoint.restore_model(decoder, which=which)
  vae_name = parameters.params_digest(parameters.flat_params(vae))  # the name that latents carry
  release.check_latents(
    release.latents_of(meta["lineage"]),
    {"autoencoder": vae_name, "sha256": None, "from": str(decoder)},
  )
  check_latent_shape(config.model, vae_model, decoder)
  model, _ = checkpoint.restore_model(folder, which=which)
  # an imported model has learned all of them
  trained = tuple(meta["lineage"].get("learned") or LATENTS)
  return Predictor(
    model=model,
    decoder=vae.decoder,
    sampler=sampler_config(config.sampler.to_dict(), **sampler),
    row=row_config(config.model),
    trained=trained,
    convention="ScaleShiftInvariant",
    resolution=vae_model.resolution,
    identity={
      "checkpoint": checkpoint.digest(meta),
      "step": meta["step"],
      "decoder": vae_name,
      "which": which,
    },
  )


def from_release(folder: str, **sampler) -> Predictor:
  """A Predictor from a release folder. Raises InputError."""
  found = release.read_release(folder)
  if found.structure_vae is None:
    raise InputError(f"--release {folder} has no ss_decoder.yaml: its shapes cannot be decoded")
  model, vae_model = ConfigDict(found.geometry), ConfigDict(found.structure_vae)
  check_latent_shape(model, vae_model, folder)
  parts = {name: entry["sha256"][:16] for name, entry in found.sidecar.get("parts", {}).items()}
  return Predictor(
    model=release.restore_geometry(found, model),
    decoder=release.restore_decoder(found),
    sampler=sampler_config(found.sampler, **sampler),
    row=row_config(model),
    trained=LATENTS,
    convention=found.pose_convention,
    resolution=vae_model.resolution,
    identity={"release": pathlib.Path(folder).name, "parts": parts},
  )


def decoder_folder(lineage: Mapping[str, Any]) -> str | None:
  """Folder of the structure VAE that encoded the training data, if the lineage names one that is
  still there.
  """
  latents = release.latents_of(lineage) or {}
  folder = latents.get("path")
  return folder if folder and checkpoint.steps(folder) else None


def check_latent_shape(geometry: ConfigDict, vae: ConfigDict, where: str) -> None:
  """Raises InputError if the decoder does not take the latents that the model makes."""
  makes = geometry.flow.shape_resolution, geometry.flow.latent_channels
  takes = registry.typed_config(vae).latent_resolution, vae.latent_channels
  if makes != takes:
    raise InputError(
      f"{where}: the decoder takes latents of {takes[0]}^3 x {takes[1]}, "
      f"the model makes {makes[0]}^3 x {makes[1]}"
    )


def needs_pointmap(row: SampleConfig) -> bool:
  return bool(set(row.streams) & set(POINTMAP_STREAMS))
