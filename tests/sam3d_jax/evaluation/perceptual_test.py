"""LPIPS against a PyTorch network of the same random weights."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from sam3d_jax.errors import InputError
from sam3d_jax.evaluation import perceptual

torch = pytest.importorskip("torch")
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
KERNELS = {"alex": (11, 5, 3, 3, 3), "vgg": (3, 3, 3, 3, 3)}


def random_state(network: str) -> dict[str, np.ndarray]:
  """The published names and shapes; heads are positive, as trained ones are."""
  rng, state, channels = np.random.default_rng(0), {}, 3
  for i, convs in enumerate(perceptual.NETWORKS[network]):
    for conv in convs:
      shape = (CHANNELS[network][i], channels, KERNELS[network][i], KERNELS[network][i])
      state[f"net.slice{i + 1}.{conv.index}.weight"] = rng.normal(
        0, np.sqrt(2 / np.prod(shape[1:])), shape
      ).astype(np.float32)
      state[f"net.slice{i + 1}.{conv.index}.bias"] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
      channels = shape[0]
    state[f"lin{i}.model.1.weight"] = rng.random((1, channels, 1, 1)).astype(np.float32)
  return state


def twin(network: str, state: dict, a: np.ndarray, b: np.ndarray) -> float:
  """LPIPS written layer by layer with PyTorch: layers of the published networks in their order."""
  alex = [
    ("conv", 0, 4, 2),
    ("tap",),
    ("pool", 3, 2),
    ("conv", 3, 1, 2),
    ("tap",),
    ("pool", 3, 2),
    ("conv", 6, 1, 1),
    ("tap",),
    ("conv", 8, 1, 1),
    ("tap",),
    ("conv", 10, 1, 1),
    ("tap",),
  ]
  vgg = [
    ("conv", 0, 1, 1),
    ("conv", 2, 1, 1),
    ("tap",),
    ("pool", 2, 2),
    ("conv", 5, 1, 1),
    ("conv", 7, 1, 1),
    ("tap",),
    ("pool", 2, 2),
    ("conv", 10, 1, 1),
    ("conv", 12, 1, 1),
    ("conv", 14, 1, 1),
    ("tap",),
    ("pool", 2, 2),
    ("conv", 17, 1, 1),
    ("conv", 19, 1, 1),
    ("conv", 21, 1, 1),
    ("tap",),
    ("pool", 2, 2),
    ("conv", 24, 1, 1),
    ("conv", 26, 1, 1),
    ("conv", 28, 1, 1),
    ("tap",),
  ]
  weights = {
    name.split(".", 2)[2]: torch.tensor(x) for name, x in state.items() if name.startswith("net.")
  }

  def taps(picture):
    x = torch.tensor(picture).permute(2, 0, 1)[None] * 2 - 1
    x = (x - torch.tensor(perceptual.SHIFT).view(1, 3, 1, 1)) / torch.tensor(perceptual.SCALE).view(
      1, 3, 1, 1
    )
    for kind, *numbers in {"alex": alex, "vgg": vgg}[network]:
      if kind == "conv":
        index, stride, padding = numbers
        x = torch.relu(
          torch.conv2d(x, weights[f"{index}.weight"], weights[f"{index}.bias"], stride, padding)
        )
      elif kind == "pool":
        x = torch.max_pool2d(x, numbers[0], numbers[1])
      else:
        yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

  pairs = zip(taps(a), taps(b), strict=True)
  heads = (torch.tensor(state[f"lin{i}.model.1.weight"]) for i in range(5))
  return float(
    sum(
      torch.conv2d((x - y).square(), head).mean() for (x, y), head in zip(pairs, heads, strict=True)
    )
  )


@pytest.fixture(scope="module")
def pictures():
  rng = np.random.default_rng(1)
  return rng.random((2, 65, 71, 3), np.float32)  # odd sizes: pools must cut as PyTorch's do


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_is_that_of_pytorch(network, pictures, tmp_path):
  state = random_state(network)
  save_file(state, tmp_path / "lpips.safetensors")
  model = perceptual.load_lpips(tmp_path / "lpips.safetensors")
  assert model.network == network
  assert model(*pictures) == pytest.approx(twin(network, state, *pictures), rel=1e-4)
  assert model(pictures[0], pictures[0]) == 0
  near = np.clip(pictures[0] + 0.02, 0, 1)
  assert model(near, pictures[0]) < model(pictures[1], pictures[0])


def test_files_that_are_no_lpips_weights_are_refused(tmp_path):
  state = random_state("alex")
  save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
  with pytest.raises(InputError, match="not the state dict of lpips.LPIPS"):
    perceptual.load_lpips(tmp_path / "other.safetensors")
  save_file(
    {name: x for name, x in state.items() if not name.startswith("lin3")},
    tmp_path / "cut.safetensors",
  )
  with pytest.raises(InputError, match="first lin3.model.1.weight"):
    perceptual.load_lpips(tmp_path / "cut.safetensors")


def test_pictures_of_two_sizes_are_refused(pictures):
  with pytest.raises(ValueError, match="one size"):
    perceptual.Lpips("alex", {})(pictures[0], pictures[0][:40])
