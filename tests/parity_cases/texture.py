"""Parity of the Texture & Refinement flow model (f5) and of its sampler (f10). The fixtures' joined
lists of voxels are packed into rows, and unpacked again to be compared.
"""

import functools

from flax import nnx
import jax
import numpy as np

from sam3d_jax.geometry import packing
from sam3d_jax.models import latent_statistics, parameters
from sam3d_jax.models.latent_statistics import LatentStatistics
from sam3d_jax.models.texture_flow import LATENT, TextureFlow, TextureFlowConfig
from sam3d_jax.sampling import generate
from sam3d_jax.torch_bridge import keys, names_texture
from tests.parity import Fixture, case
from tests.parity_cases.flow_and_vae import loaded


def flow_config(k: dict, *, shortcut: bool, time_scale: float = 1.0) -> TextureFlowConfig:
  """From the published constructor's arguments; by default times come in the sinusoid's units."""
  (io_width,) = k["io_block_channels"]
  return TextureFlowConfig(
    width=k["model_channels"],
    depth=k["num_blocks"],
    heads=k["num_heads"],
    mlp_ratio=k["mlp_ratio"],
    cond_width=k["cond_channels"],
    resolution=k["resolution"],
    latent_channels=k["in_channels"],
    io_width=io_width,
    io_blocks=k["num_io_res_blocks"],
    qk_rms_norm=k["qk_rms_norm"],
    shortcut=shortcut,
    time_scale=time_scale,
    dtype="float32",
  )


def flow_of(fixture: Fixture, cfg: TextureFlowConfig):
  """The flow model with the fixture's parameters, and the rules of their names."""
  rules = names_texture.texture_flow_rules(
    cfg.width,
    (cfg.io_width,),
    cfg.io_blocks,
    qk_rms_norm=cfg.qk_rms_norm,
    shortcut=cfg.shortcut,
  )
  return loaded(functools.partial(TextureFlow, cfg), rules, fixture.params), rules


def by_object(coords_N4: np.ndarray, array_NC: np.ndarray) -> list[np.ndarray]:
  """Rows of a joined list, object by object."""
  objects = coords_N4[:, 0].max() + 1
  return [array_NC[coords_N4[:, 0] == n] for n in range(objects)]


def packed(coords_N4: np.ndarray, resolution: int) -> packing.Packed:
  """The fixture's objects in one row that is longer than they need, so that padding takes part."""
  tables = packing.Tables(resolution=resolution, neighbours=True, pooled=True)
  objects = []
  for coords_V3 in by_object(coords_N4, coords_N4[:, 1:]):
    objects.append(packing.object_tables(coords_V3, tables))
  needed = packing.smallest_shape(objects)
  shape = packing.RowShape(
    voxels=needed.voxels + packing.BLOCK,
    coarse=needed.coarse + packing.BLOCK,
    objects=needed.objects,
  )
  return packing.pack(objects, shape)


def listed(row: packing.Packed, feats_RVC) -> np.ndarray:
  """Features in the fixture's order."""
  return np.concatenate(row.split(feats_RVC))


def listed_coarse(row: packing.Packed, x) -> dict[str, np.ndarray]:
  """Features and coordinates of half the resolution, as the published list."""
  feats, coords = [], []
  for number, place in enumerate(row.places):
    slots = slice(place.coarse_start, place.coarse_start + place.coarse_count)
    feats.append(np.asarray(x.feats_RVC)[place.row, slots])
    coords_V3 = np.asarray(x.level.coords_RV3)[place.row, slots]
    coords.append(np.insert(coords_V3, 0, number, axis=1))
  return {"feats": np.concatenate(feats), "coords": np.concatenate(coords)}


@case("f5_slat_flow_model")
def flow(fixture: Fixture):
  given = fixture.inputs
  cfg = flow_config(fixture.kwargs, shortcut="d" in given)
  module, rules = flow_of(fixture, cfg)
  graph, params = nnx.split(module)

  # one row of two objects
  row = packed(given["coords"], cfg.resolution)
  x_RVC = row.fill(by_object(given["coords"], given["feats"]))
  r_RVC = row.fill(by_object(given["coords"], given["r"]))
  t_RK, tokens_RKSD = given["t"][None], given["cond"][None]
  d_RK = given["d"][None] if cfg.shortcut else None

  @jax.jit
  def forward(params, x_RVC, tokens_RKSD):
    flow = nnx.merge(graph, params)
    return flow(x_RVC, t_RK, tokens_RKSD, row.voxels, d_RK)

  @jax.jit
  def down(params, x_RVC):
    flow = nnx.merge(graph, params)
    mod_RKD = flow.modulation(t_RK, d_RK, t_RK.shape)
    return flow.down(x_RVC, mod_RKD, row.voxels)

  # what it answers, and what its blocks on the way down do
  velocity_RVC = forward(params, x_RVC, tokens_RKSD)
  out = {"out/feats": listed(row, velocity_RVC)}
  *fine, coarse = down(params, x_RVC)
  for number, x in enumerate(fine):
    out[f"out/input_block_{number}/feats"] = listed(row, x.feats_RVC)
  for name, array in listed_coarse(row, coarse).items():
    out[f"out/input_block_{len(fine)}/{name}"] = array

  # the published wrapper: one object, and its answer without a condition
  first = given["coords"][:, 0] == 0
  out["out/wrapper_item0"] = listed(row, velocity_RVC)[first][None]
  without_RVC = forward(params, x_RVC, 0 * tokens_RKSD)
  out["out/wrapper_item0_cfg"] = listed(row, without_RVC)[first][None]

  # gradients
  @jax.jit
  @jax.grad
  def gradient(params):
    return (forward(params, x_RVC, tokens_RKSD) * r_RVC).sum()

  grads = parameters.flat_params(nnx.merge(graph, gradient(params)))
  for name, array in keys.to_torch(rules, grads).items():
    out[f"grad/{name}"] = array
  wanted = {name: array for name, array in out.items() if name in fixture.expected}
  return wanted


@case("f10_stage2_sampling")
def sampling(fixture: Fixture):
  k, given = fixture.kwargs, fixture.inputs
  cfg = flow_config(k["backbone"], shortcut=False, time_scale=1000.0)
  module, _ = flow_of(fixture, cfg)
  graph, params = nnx.split(module)
  low, high = k["interval"]
  sampler = generate.SamplerConfig(
    steps=k["inference_steps"],
    rescale_t=k["rescale_t"],
    guidance=k["strength"],
    interval=(low / 1000, high / 1000),
  )

  # one object in a row
  coords_N3 = given["coords"][:, -3:]
  row = packed(np.insert(coords_N3, 0, 0, axis=1), cfg.resolution)
  noise = {LATENT: row.fill([given["x0"][0]])}
  tokens_RKSD = given["cond"][None]

  @jax.jit
  def sample(params, noise):
    flow = nnx.merge(graph, params)

    def velocity(x, t, tokens_RKSD, d):
      return {LATENT: flow(x[LATENT], t, tokens_RKSD, row.voxels, d)}

    return generate.integrate_noise(
      velocity,
      noise,
      tokens_RKSD,
      sampler,
      d=None,
      trajectory=True,
    )

  final, visited = sample(params, noise)
  steps = [listed(row, x_RVC)[None] for x_RVC in np.asarray(visited[LATENT])]
  statistics = LatentStatistics(given["slat_mean"].tolist(), given["slat_std"].tolist())
  latents_RVC = latent_statistics.denormalise(final[LATENT], statistics)
  return {
    # both forms of the unconditional branch multiply the tokens by zero
    "out/zeros/traj": np.stack(steps),
    "out/add_flag/traj": np.stack(steps),
    "out/zeros/denormalised": listed(row, latents_RVC),
  }
