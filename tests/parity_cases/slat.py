"""Parity of the SLAT encoder (f6) and of the Gaussian decoder with its activations (f7)."""

import functools

import numpy as np

from sam3d_jax.geometry import rotations
from sam3d_jax.models import gaussians
from sam3d_jax.models.slat_encoder import SlatEncoder, SlatEncoderConfig
from sam3d_jax.models.slat_gaussian import SlatGaussianConfig, SlatGaussianDecoder
from sam3d_jax.models.slat_trunk import TrunkConfig
from sam3d_jax.torch_bridge import names_slat
from tests.parity import Fixture, case
from tests.parity_cases.flow_and_vae import loaded, run
from tests.parity_cases.sparse import listed, packed, tensor


def trunk_config(fixture: Fixture) -> TrunkConfig:
  """The fixture's trunk."""
  k = fixture.kwargs
  if k["attn_mode"] != "swin":
    raise ValueError(f"attn_mode = {k['attn_mode']!r}: every second block is shifted, nothing else")
  return TrunkConfig(
    width=k["model_channels"],
    depth=k["num_blocks"],
    heads=k["num_heads"],
    mlp_ratio=k["mlp_ratio"],
    window=k["window_size"],
    dtype="float32",
  )


@case("f6_slat_encoder")
def encoder(fixture: Fixture):
  k = fixture.kwargs
  cfg = SlatEncoderConfig(
    trunk=trunk_config(fixture),
    features=k["in_channels"],
    latent_channels=k["latent_channels"],
    resolution=k["resolution"],
  )
  module = loaded(
    functools.partial(SlatEncoder, cfg),
    names_slat.encoder_rules(cfg.trunk.width),
    fixture.params,
  )
  found = packed(fixture, window=cfg.trunk.window)
  posterior = run(module, tensor(fixture, found))
  noise_RVC = tensor(fixture, found, "noise").feats_RVC
  return {
    "out/mean": listed(found, posterior.mean_RVC),
    "out/logvar": listed(found, posterior.logvar_RVC),
    "out/z_mode": listed(found, posterior.mean_RVC),
    "out/z_sampled": listed(found, posterior.sample(noise_RVC)),
  }


def activations_of(representation: dict) -> gaussians.Activations:
  """The fixture's activations. Raises ValueError for those that are not implemented."""
  rates = dict(representation["lr"])
  rotation_rate = rates.pop("_rotation")
  softplus = representation["scaling_activation"] == "softplus"
  if set(rates.values()) != {1.0} or not softplus or not representation["perturb_offset"]:
    raise ValueError(f"{representation}: only the published activations are implemented")
  return gaussians.Activations(
    reach=representation["voxel_size"],
    rotation_rate=rotation_rate,
    scale_bias=representation["scaling_bias"],
    opacity_bias=representation["opacity_bias"],
    smallest_scale=representation["3d_filter_kernel_size"],
    screen_kernel=representation["2d_filter_kernel_size"],
  )


@case("f7_slat_gaussian_decoder")
def gaussian_decoder(fixture: Fixture):
  k = fixture.kwargs
  representation = k["representation_config"]
  cfg = SlatGaussianConfig(
    trunk=trunk_config(fixture),
    activations=activations_of(representation),
    gaussians=representation["num_gaussians"],
    latent_channels=k["latent_channels"],
    resolution=k["resolution"],
  )
  # the stored table is a parameter of the fixture, which `loaded` leaves to the rules
  stored = fixture.params["offset_perturbation"]
  np.testing.assert_array_equal(cfg.first_offsets, stored)
  module = loaded(
    functools.partial(SlatGaussianDecoder, cfg),
    names_slat.gaussian_decoder_rules(cfg.trunk.width, cfg.first_offsets),
    fixture.params,
  )
  found = packed(fixture, window=cfg.trunk.window)
  decoded = run(module, tensor(fixture, found))

  # object by object
  out = {
    "out/raw_feats": listed(found, decoded),
    "out/scale_bias": np.float32(cfg.activations.raw_scale_bias),
    "out/opacity_bias": np.float32(cfg.activations.raw_opacity_bias),
  }
  raw = module.gaussians(decoded)
  split = [found.split(attribute) for attribute in raw]
  for number, arrays in enumerate(zip(*split, strict=True)):
    flat = [np.asarray(array).reshape(-1, array.shape[-1]) for array in arrays]
    own = gaussians.RawGaussians(*flat)
    for name, array in item_arrays(own, cfg.activations).items():
      out[f"out/item{number}/{name}"] = array
  return out


def item_arrays(
  raw: gaussians.RawGaussians, activations: gaussians.Activations
) -> dict[str, np.ndarray]:
  """What the fixture has of one object: raw, activated, and as columns of a file."""
  active = gaussians.activate(raw, activations)
  return {
    "_xyz": raw.position,
    "_features_dc": np.asarray(raw.colour)[:, None],
    "_scaling": raw.scaling,
    "_rotation": raw.rotation,
    "_opacity": raw.opacity,
    "get_xyz": active.centre,
    "get_scaling": active.scale,
    "get_rotation": active.rotation,
    "get_opacity": active.opacity,
    "get_covariance": covariances(active),
    "ply": published_columns(raw, active),
  }


def published_columns(raw: gaussians.RawGaussians, active: gaussians.Gaussians) -> np.ndarray:
  """(N, 17) columns of a splat file as the published code writes them: ours hold rotations at
  length 1 and no colour below black, which no viewer tells apart.
  """
  opacity = np.asarray(active.opacity)
  parts = (
    active.centre,
    np.zeros_like(active.centre),
    active.harmonic,
    np.log(opacity) - np.log1p(-opacity),
    np.log(active.scale),
    gaussians.unnormalised(raw.rotation),
  )
  return np.concatenate(parts, axis=1)


def covariances(active: gaussians.Gaussians) -> np.ndarray:
  """Upper triangles of the covariances, (N, 6)."""
  turns_N33 = rotations.quaternion_to_matrix(np.asarray(active.rotation))
  axes_N33 = turns_N33 * np.asarray(active.scale)[:, None]
  full_N33 = axes_N33 @ axes_N33.swapaxes(1, 2)
  rows, columns = np.triu_indices(3)
  return full_N33[:, rows, columns]
