"""LPIPS (Zhang et al., CVPR 2018): distance of two pictures in the features of a trained network.

Channels are weighted one by one. The weights are the user's: the state dict of
`lpips.LPIPS(net="alex")` or `net="vgg"` saved as .safetensors (or .pth, with PyTorch installed).
Which network it is, is told from its shapes. Pure functions of arrays; `distance` may be jitted and
differentiated.
"""

from collections.abc import Mapping
import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.errors import InputError
from sam3d_jax.torch_bridge import load

# The published input scaling, of pictures in -1..1.
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
SMALLEST = 32  # pixels a side that the networks can look at
NORM_EPS = 1e-10


@dataclasses.dataclass(frozen=True)
class Conv:
  """A convolution and ReLU, with a max-pool before it where `pool` is given."""

  index: int  # of the layer in the published network
  stride: int = 1
  padding: int = 1
  pool: tuple[int, int] | None = None  # window, stride; without padding


# Network -> its five slices; features are compared after each. Pools come before the first
# convolution of a slice.
NETWORKS = {
  "alex": (
    (Conv(0, 4, 2),),
    (Conv(3, 1, 2, (3, 2)),),
    (Conv(6, pool=(3, 2)),),
    (Conv(8),),
    (Conv(10),),
  ),
  "vgg": (
    (Conv(0), Conv(2)),
    (Conv(5, pool=(2, 2)), Conv(7)),
    (Conv(10, pool=(2, 2)), Conv(12), Conv(14)),
    (Conv(17, pool=(2, 2)), Conv(19), Conv(21)),
    (Conv(24, pool=(2, 2)), Conv(26), Conv(28)),
  ),
}
FIRST_SHAPES = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}


@dataclasses.dataclass(frozen=True)
class Lpips:
  """A network with its weights."""

  network: str
  # "<slice>.<layer>.weight" (O, I, H, W), ".bias" (O,) and "head<slice>" (C,)
  params: Mapping[str, jax.Array]

  def __call__(self, image_HW3: np.ndarray, truth_HW3: np.ndarray) -> float:
    """Distance of two pictures in 0..1; 0 for equal ones.

    Raises ValueError for different or too small sizes.
    """
    shape = np.shape(image_HW3)
    true_shape = np.shape(truth_HW3)
    too_small = min(true_shape[:2]) < SMALLEST
    if shape != true_shape or too_small:
      raise ValueError(
        f"LPIPS needs two pictures of one size, at least {SMALLEST} x {SMALLEST}, got {shape} and "
        f"{true_shape}"
      )
    # As batches of one.
    image_1HW3 = jnp.asarray(image_HW3)[None]
    truth_1HW3 = jnp.asarray(truth_HW3)[None]
    found_1 = _distance(
      self.params,
      image_1HW3,
      truth_1HW3,
      network=self.network,
    )
    return float(found_1[0])


def load_lpips(path: str | os.PathLike) -> Lpips:
  """Reads the weights. Raises InputError if the file is no LPIPS state dict of a known network."""
  # The first convolution tells which network it is.
  file = load.open_state(path)
  first = file.shapes.get("net.slice1.0.weight")
  if first not in FIRST_SHAPES:
    raise InputError(
      f"{path}: not the state dict of lpips.LPIPS(net='alex') or 'vgg': net.slice1.0.weight is "
      f"{first or 'missing'}"
    )
  network = FIRST_SHAPES[first]

  # Our names and the published ones of everything that it needs.
  names = {f"head{i}": f"lin{i - 1}.model.1.weight" for i in range(1, 6)}
  for i, convs in enumerate(NETWORKS[network], 1):
    for conv in convs:
      layer = f"{i}.{conv.index}"
      names[f"{layer}.weight"] = f"net.slice{layer}.weight"
      names[f"{layer}.bias"] = f"net.slice{layer}.bias"
  missing = sorted(set(names.values()) - set(file.shapes))
  if missing:
    raise InputError(f"{path}: lacks {len(missing)} entries of LPIPS {network}, first {missing[0]}")

  # Heads are stored as 1 x 1 convolutions to one channel.
  params = {}
  for ours, theirs in names.items():
    stored = file.read(theirs)
    weights = jnp.asarray(stored, jnp.float32)
    if ours.startswith("head"):
      weights = weights.reshape(-1)
    params[ours] = weights
  return Lpips(network, params)


def distance(params: Mapping[str, jax.Array], image_BHW3, truth_BHW3, *, network: str) -> jax.Array:
  """LPIPS of pictures in 0..1, (B,) float32."""
  images = features(params, image_BHW3, network)
  truths = features(params, truth_BHW3, network)
  slices = zip(images, truths, strict=True)
  total = 0.0
  for i, (a_BHWC, b_BHWC) in enumerate(slices, 1):
    # Directions are compared, not lengths: LPIPS, eq. 1.
    difference = jnp.square(unit(a_BHWC) - unit(b_BHWC))
    # a head is a weight for each channel
    weighted_BHW = jnp.einsum(
      "bhwc,c->bhw",
      difference,
      params[f"head{i}"],
      precision="highest",
    )
    total = total + weighted_BHW.mean((1, 2))
  return total


_distance = jax.jit(distance, static_argnames="network")


def features(params: Mapping[str, jax.Array], image_BHW3, network: str) -> list[jax.Array]:
  """Activations after each slice, (B, H, W, C)."""
  # Pictures in -1..1, then the published scaling.
  image = jnp.asarray(image_BHW3, jnp.float32)
  x = (image * 2 - 1 - SHIFT) / SCALE
  out = []
  for i, convs in enumerate(NETWORKS[network], 1):
    for conv in convs:
      # Pools stand in front of the slices, as torchvision's networks have them.
      if conv.pool:
        window, stride = conv.pool
        x = jax.lax.reduce_window(
          x,
          -jnp.inf,
          jax.lax.max,
          window_dimensions=(1, window, window, 1),
          window_strides=(1, stride, stride, 1),
          padding="VALID",
        )
      layer = f"{i}.{conv.index}"
      x = jax.lax.conv_general_dilated(
        x,
        params[f"{layer}.weight"],
        window_strides=(conv.stride,) * 2,
        padding=[(conv.padding,) * 2] * 2,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision="highest",
      )
      x = x + params[f"{layer}.bias"]
      x = jax.nn.relu(x)
    out.append(x)
  return out


def unit(x_BHWC: jax.Array) -> jax.Array:
  """Every pixel's channels over their norm."""
  squared = jnp.square(x_BHWC).sum(-1, keepdims=True)
  # the floor keeps the gradient finite where all channels are zero
  floored = jnp.maximum(squared, 1e-30)
  norm = jnp.sqrt(floored)
  return x_BHWC / (norm + NORM_EPS)
