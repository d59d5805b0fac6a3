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
  rng = np.random.default_rng(0)
  state = {}
  channels = 3
  for i, convs in enumerate(perceptual.NETWORKS[network]):
    out = CHANNELS[network][i]
    side = KERNELS[network][i]
    for conv in convs:
      # weights that keep the size of what passes through
      shape = (out, channels, side, side)
      spread = np.sqrt(2 / np.prod(shape[1:]))
      layer = f"net.slice{i + 1}.{conv.index}"
      state[f"{layer}.weight"] = rng.normal(0, spread, shape).astype(np.float32)
      state[f"{layer}.bias"] = rng.normal(0, 0.1, out).astype(np.float32)
      channels = out
    head = rng.random((1, channels, 1, 1))
    state[f"lin{i}.model.1.weight"] = head.astype(np.float32)
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
  layers = {"alex": alex, "vgg": vgg}[network]
  shift = torch.tensor(perceptual.SHIFT).view(1, 3, 1, 1)
  scale = torch.tensor(perceptual.SCALE).view(1, 3, 1, 1)

  # layer and part, without the slice that the published name begins with
  weights = {}
  for name, x in state.items():
    if name.startswith("net."):
      _, _, layer = name.split(".", 2)
      weights[layer] = torch.tensor(x)

  def taps(picture):
    image = torch.tensor(picture).permute(2, 0, 1)[None]
    x = (image * 2 - 1 - shift) / scale
    for kind, *numbers in layers:
      if kind == "conv":
        index, stride, padding = numbers
        weight = weights[f"{index}.weight"]
        bias = weights[f"{index}.bias"]
        x = torch.relu(torch.conv2d(x, weight, bias, stride, padding))
      elif kind == "pool":
        window, stride = numbers
        x = torch.max_pool2d(x, window, stride)
      else:
        length = x.square().sum(1, keepdim=True).sqrt()
        yield x / (length + 1e-10)

  total = 0.0
  for i, (x, y) in enumerate(zip(taps(a), taps(b), strict=True)):
    head = torch.tensor(state[f"lin{i}.model.1.weight"])
    weighted = torch.conv2d((x - y).square(), head)
    total += float(weighted.mean())
  return total


@pytest.fixture(scope="module")
def pictures():
  rng = np.random.default_rng(1)
  return rng.random((2, 65, 71, 3), np.float32)  # odd sizes: pools must cut as PyTorch's do


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_is_that_of_pytorch(network, pictures, tmp_path):
  path = tmp_path / "lpips.safetensors"
  state = random_state(network)
  save_file(state, path)
  model = perceptual.load_lpips(path)
  assert model.network == network

  a, b = pictures
  expected = twin(network, state, a, b)
  assert model(a, b) == pytest.approx(expected, rel=1e-4)
  assert model(a, a) == 0
  near = np.clip(a + 0.02, 0, 1)
  assert model(near, a) < model(b, a)


def test_files_that_are_no_lpips_weights_are_refused(tmp_path):
  other = tmp_path / "other.safetensors"
  save_file({"weight": np.zeros(3, np.float32)}, other)
  with pytest.raises(InputError, match="not the state dict of lpips.LPIPS"):
    perceptual.load_lpips(other)

  state = random_state("alex")
  del state["lin3.model.1.weight"]
  cut = tmp_path / "cut.safetensors"
  save_file(state, cut)
  with pytest.raises(InputError, match="first lin3.model.1.weight"):
    perceptual.load_lpips(cut)


def test_pictures_of_two_sizes_are_refused(pictures):
  with pytest.raises(ValueError, match="one size"):
    perceptual.Lpips("alex", {})(pictures[0], pictures[0][:40])
