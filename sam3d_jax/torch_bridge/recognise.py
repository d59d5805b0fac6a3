"""What a state dict really is, by its names and shapes, whatever its file is called.

Files have been published under the name of another part: a Gaussian decoder as the encoder, for a
while. Loaded by their names they would be refused with a hundred missing entries, or, worse, fit.
"""

from collections.abc import Mapping
import dataclasses

from sam3d_jax.torch_bridge import keys

GENERATOR_PREFIX = "_base_models.generator."
CONDITION_PREFIX = "_base_models.condition_embedder."
BACKBONE = "reverse_fn.backbone."
SMALL_DECODER = 4  # Gaussians of a voxel in the small one of the two published decoders

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Holding:
  """One published part that a file holds.

  part: its published name. what: it in words, with the sizes that shapes tell. sizes: those.
  """

  part: str
  what: str
  sizes: Mapping[str, int]


def holdings(shapes: Shapes) -> list[Holding]:
  """The published parts that a state dict of these names and shapes holds; none if it is something
  else.
  """
  generator = _below(GENERATOR_PREFIX, shapes)
  condition = _below(CONDITION_PREFIX, shapes)
  found = []

  # a generator's file: flow model and, of the same stage, its condition encoder
  flow = None
  if generator:
    flow = _flow_model(generator)
  if flow is not None:
    found.append(flow)
  if condition:
    stage = "ss"
    if flow is not None:
      stage, _, _ = flow.part.partition("_")
    found.append(_condition_encoder(condition, stage))
  if found:
    return found

  # a bare state dict
  for recognise in (_flow_model, _structure_part, _slat_part):
    one = recognise(shapes)
    if one is not None:
      return [one]
  return []


def told(found: list[Holding]) -> str:
  """What a file holds, in words."""
  if not found:
    return "none of the published parts"
  return " and ".join(f"{one.part} ({one.what})" for one in found)


def gaussian_part(count: int) -> str:
  """Published name of the decoder of so many Gaussians a voxel."""
  if count == SMALL_DECODER:
    return "slat_decoder_gs_4"
  return "slat_decoder_gs"


def _below(prefix: str, shapes: Shapes) -> dict[str, tuple[int, ...]]:
  """The entries whose names begin with a prefix, without it."""
  found = {}
  for name, shape in shapes.items():
    if name.startswith(prefix):
      found[name.removeprefix(prefix)] = shape
  return found


def _flow_model(shapes: Shapes) -> Holding | None:
  """A flow model of either stage."""
  inner = _below(BACKBONE, shapes) or shapes
  depth = keys.layers_of("blocks.", inner)
  if any(name.startswith("latent_mapping.") for name in inner):
    sizes = {"depth": depth}
    return Holding("ss_generator", f"the first stage's flow model of {depth} blocks", sizes)
  if any(name.startswith("input_blocks.") for name in inner):
    sizes = {"depth": depth}
    return Holding("slat_generator", f"the second stage's flow model of {depth} blocks", sizes)
  return None


def _condition_encoder(shapes: Shapes, stage: str) -> Holding:
  """A condition encoder, of the stage whose flow model lies beside it."""
  encoders = keys.layers_of("module_list.", shapes)
  return Holding(
    f"{stage}_condition_embedder",
    f"a condition encoder of {encoders} encoders",
    {"encoders": encoders},
  )


def _structure_part(shapes: Shapes) -> Holding | None:
  """Encoder or decoder of the structure VAE, whose layers are dense convolutions."""
  first = shapes.get("input_layer.weight", ())
  last = shapes.get("out_layer.2.weight", ())
  if len(first) != 5 or len(last) != 5:
    return None
  # occupancy is one channel: an encoder's first, a decoder's last
  if first[1] == 1:
    latent = last[0] // 2
    return Holding("ss_encoder", f"a structure encoder to {latent} channels", {"latent": latent})
  latent = first[1]
  return Holding("ss_decoder", f"a structure decoder of {latent} channels", {"latent": latent})


def _slat_part(shapes: Shapes) -> Holding | None:
  """A part of the SLAT autoencoder: all have the same trunk."""
  first = shapes.get("input_layer.weight", ())
  last = shapes.get("out_layer.weight", ())
  depth = keys.layers_of("blocks.", shapes)
  hidden = shapes.get("blocks.0.mlp.mlp.0.weight", ())
  if len(first) != 2 or len(last) != 2 or len(hidden) != 2:
    return None
  width, channels = first
  sizes = {"width": width, "depth": depth, "channels": channels, "hidden": hidden[0]}
  trunk = f"{depth} blocks of width {width}"

  # blocks that halve the voxels
  if any(name.startswith("upsample.") for name in shapes):
    return Holding("slat_decoder_mesh", f"a mesh decoder: {trunk}", sizes)

  # a table of as many offsets as there are Gaussians
  table = shapes.get("offset_perturbation")
  if table is not None:
    count = table[0]
    what = f"a Gaussian decoder, {count} a voxel: {trunk}"
    return Holding(gaussian_part(count), what, {**sizes, "gaussians": count})

  # mean and log variance of a latent
  what = f"a SLAT encoder of {channels} features: {trunk}"
  return Holding("slat_encoder", what, {**sizes, "latent": last[0] // 2})
