"""Laws of reading, converting and writing published state dicts."""

import json
import os
import pickle
import sys
import weakref

import ml_dtypes
import numpy as np
import pytest

from configs import base
from sam3d_jax.errors import InputError
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import keys, load, lora, parts, save, stream
from sam3d_jax.training import checkpoint
from tests.support.tiny_release import tiny_model


@pytest.fixture(scope="module")
def published():
  """Rules, our shapes and random parameters of the tiny model."""
  model = tiny_model()
  shapes = parameters.flat_shapes(registry.abstract_model(model))
  rules = [rule for part in parts.parts_of(model) for rule in part.rules]
  rng = np.random.default_rng(0)
  return rules, shapes, {p: rng.standard_normal(s, dtype=np.float32) for p, s in shapes.items()}


def write_and_read(path, published, **settings):
  rules, shapes, params = published
  save.write_state(path, rules, params, shapes, root="state_dict", **settings)
  return load.convert(rules, load.open_state(path), shapes)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
def test_parameters_survive_a_published_file_bit_for_bit(tmp_path, published, suffix):
  back = write_and_read(tmp_path / f"x{suffix}", published)
  assert set(back) == set(published[2])
  for path, array in published[2].items():
    assert back[path].dtype == np.float32
    np.testing.assert_array_equal(back[path].view(np.uint32), array.view(np.uint32), err_msg=path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("storage,half", [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_half_storage_rounds_the_entries_it_should_and_no_others(
  tmp_path, published, suffix, storage, half
):
  rules, shapes, params = published
  path = tmp_path / f"x{suffix}"
  back = write_and_read(path, published, storage=storage)
  stored = load.open_state(path).dtypes
  assert dict(stored) == save.published_dtypes(rules, shapes, storage)
  assert set(stored.values()) == {np.dtype(half), np.dtype(np.float32)}
  by_path = {r.ours: r for r in rules if r.ours is not None}
  for name, array in params.items():
    shape = by_path[name].shape_in_torch(array.shape[1:] if by_path[name].stacked else array.shape)
    halved = save.storage_dtype(by_path[name], shape, storage) == half
    np.testing.assert_array_equal(
      back[name], array.astype(half).astype(np.float32) if halved else array, err_msg=name
    )


def test_default_models_have_the_published_names_shapes_and_dtypes(shared_dir):
  golden = json.loads((shared_dir / "golden" / "state_dict_full_keys.json").read_text())
  for model in (base.geometry_model(), base.structure_vae_model()):
    shapes = parameters.flat_shapes(registry.abstract_model(model))
    for part in parts.parts_of(model):
      entries = {e["name"]: e for e in golden[part.name]["entries"]}
      assert keys.torch_names(part.rules, shapes) == {
        name: tuple(e["shape"]) for name, e in entries.items()
      }
      assert part.root == golden[part.name]["checkpoint_root_key"]
      for storage, key in (("fp32", "dtype"), ("fp16", "dtype_if_use_fp16")):
        dtypes = save.published_dtypes(part.rules, shapes, storage)
        assert {n: str(d) for n, d in dtypes.items()} == {
          n: e.get(key, e["dtype"]) for n, e in entries.items()
        }


def test_a_value_beyond_fp16_is_refused_by_name(tmp_path, published):
  rules, shapes, params = published
  path = "flow/blocks/layer/shape/mlp/up/bias"
  params = params | {path: np.full(shapes[path], 7e4, np.float32)}
  for suffix in (".ckpt", ".safetensors"):
    with pytest.raises(InputError, match=r"blocks\.0\.mlp\.shape\.mlp\.0\.bias.*7e\+04"):
      save.write_state(tmp_path / f"x{suffix}", rules, params, shapes, storage="fp16")
  assert not list(tmp_path.iterdir())  # no half-written file either


class RunsOnLoading:
  """What a hostile file looks like: unpickling it calls a function of its author's choice."""

  def __init__(self, marker):
    self.marker = marker

  def __reduce__(self):
    return os.mkdir, (self.marker,)


def test_a_file_that_would_run_code_is_refused_with_the_reason(tmp_path):
  torch = pytest.importorskip("torch")
  marker = str(tmp_path / "ran")
  torch.save({"w": torch.zeros(2), "payload": RunsOnLoading(marker)}, tmp_path / "x.ckpt")
  with pytest.raises(InputError, match=r"holds more than tensors.*mkdir.*--unsafe_pickle"):
    load.open_state(tmp_path / "x.ckpt")
  assert not os.path.exists(marker)
  # insisted upon, it is loaded, and then found not to be weights
  with pytest.raises(InputError, match="payload are no tensors"):
    load.open_state(tmp_path / "x.ckpt", unsafe_pickle=True)
  assert os.path.exists(marker)


def test_a_harmless_file_with_more_than_tensors_loads_if_insisted_upon(tmp_path):
  torch = pytest.importorskip("torch")
  torch.save(
    {"state_dict": {"w": torch.ones(2)}, "settings": InputError("any class will do")},
    tmp_path / "x.ckpt",
  )
  with pytest.raises(InputError, match="InputError"):
    load.open_state(tmp_path / "x.ckpt")
  np.testing.assert_array_equal(
    load.open_state(tmp_path / "x.ckpt", unsafe_pickle=True).read("w"), np.ones(2)
  )


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_every_mismatch_is_reported_at_once(tmp_path, published, suffix):
  rules, shapes, params = published
  without = {p: s for p, s in shapes.items() if p != "flow/time/out/bias"}
  file_rules = [r for r in rules if r.ours != "flow/time/out/bias"] + [
    keys.Rule("stray.weight", "stray")
  ]
  file_shapes = without | {"stray": (3,), "flow/time/hidden/bias": (5,)}
  arrays = {p: np.zeros(s, np.float32) for p, s in file_shapes.items()}
  save.write_state(tmp_path / f"x{suffix}", file_rules, arrays, file_shapes)
  with pytest.raises(keys.KeyMismatch) as error:
    load.convert(rules, load.open_state(tmp_path / f"x{suffix}"), shapes)
  text = str(error.value)
  backbone = "_base_models.generator.reverse_fn.backbone.t_embedder.mlp"
  assert text.startswith("3 entries")
  assert f"missing     {backbone}.2.bias (16,)" in text
  assert "unexpected  stray.weight (3,)" in text
  assert f"misshapen   {backbone}.0.bias: file has (5,), model needs (16,)" in text


def test_a_fixed_table_that_differs_is_refused(tmp_path, published):
  rules, shapes, params = published
  swapped = [
    r if r.ours is not None else keys.Rule(r.torch, None, buffer=lambda r=r: r.buffer() + 0.1)
    for r in rules
  ]
  save.write_state(tmp_path / "x.safetensors", swapped, params, shapes)
  with pytest.raises(InputError, match=r"fixed table .*shape\.pos_emb differs by 0\.1"):
    load.convert(rules, load.open_state(tmp_path / "x.safetensors"), shapes)


def test_integers_are_not_parameters(tmp_path):
  torch = pytest.importorskip("torch")
  torch.save({"w": torch.zeros(2, dtype=torch.int64)}, tmp_path / "x.pt")
  with pytest.raises(InputError, match="w is int64"):
    load.convert([keys.Rule("w", "w")], load.open_state(tmp_path / "x.pt"), {"w": (2,)})


def test_nested_roots_and_old_files_are_read(tmp_path):
  torch = pytest.importorskip("torch")
  state = {"w": torch.arange(6.0).reshape(2, 3).T}  # not contiguous
  torch.save(
    {"epoch": 3, "state_dict": {"state_dict": state, "version": 1}}, tmp_path / "nested.ckpt"
  )
  torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
  for name in ("nested.ckpt", "old.pth"):
    file = load.open_state(tmp_path / name)
    assert file.shapes == {"w": (3, 2)}
    np.testing.assert_array_equal(file.read("w"), state["w"].numpy())


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_file_that_is_cut_off_is_named(tmp_path, published, suffix):
  path = tmp_path / f"x{suffix}"
  write_and_read(path, published)
  path.write_bytes(path.read_bytes()[:-1000])
  with pytest.raises(InputError, match=str(path)):
    load.open_state(path)


@pytest.mark.parametrize(
  "content", [b"", b"\x08", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{]", b'\x09\0\0\0\0\0\0\0{"w":{}} ']
)
def test_nonsense_is_no_safetensors_file(tmp_path, content):
  (tmp_path / "x.safetensors").write_bytes(content)
  with pytest.raises(InputError, match=r"x\.safetensors"):
    load.open_state(tmp_path / "x.safetensors")


def test_files_of_other_kinds_are_refused(tmp_path):
  torch = pytest.importorskip("torch")
  torch.save([torch.zeros(2)], tmp_path / "list.pt")
  (tmp_path / "x.bin").write_bytes(b"")
  (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"w": 1}))
  cases = {
    "list.pt": "list, not a state dict",
    "x.bin": "ending in",
    "x.ckpt": "x.ckpt",
    "no.ckpt": "does not exist",
  }
  for name, words in cases.items():
    with pytest.raises(InputError, match=words):
      load.open_state(tmp_path / name)


def test_without_torch_safetensors_work_and_the_rest_says_how(tmp_path, published, monkeypatch):
  rules, shapes, params = published
  save.write_state(tmp_path / "x.ckpt", rules, params, shapes)
  monkeypatch.setitem(sys.modules, "torch", None)  # importing it now fails
  with pytest.raises(InputError, match=r"pip install -r requirements-torch\.txt.*safetensors"):
    load.open_state(tmp_path / "x.ckpt")
  with pytest.raises(InputError, match=r"pip install -r requirements-torch\.txt.*safetensors"):
    save.write_state(tmp_path / "y.ckpt", rules, params, shapes)
  assert not (tmp_path / "y.ckpt").exists()
  back = write_and_read(tmp_path / "x.safetensors", published)
  np.testing.assert_array_equal(back["condition/group_embed"], params["condition/group_embed"])


def test_safetensors_files_open_with_the_safetensors_library(tmp_path, published):
  from safetensors.numpy import load_file, save_file

  rules, shapes, params = published
  save.write_state(tmp_path / "ours.safetensors", rules, params, shapes)
  theirs = load_file(tmp_path / "ours.safetensors")
  expected = keys.to_torch(rules, params)
  assert set(theirs) == set(expected)
  np.testing.assert_array_equal(
    theirs["_base_models.condition_embedder.idx_emb"], params["condition/group_embed"]
  )
  save_file(expected, tmp_path / "theirs.safetensors")
  back = load.convert(rules, load.open_state(tmp_path / "theirs.safetensors"), shapes)
  np.testing.assert_array_equal(
    back["flow/blocks/layer/adaln/kernel"], params["flow/blocks/layer/adaln/kernel"]
  )


def test_streaming_holds_one_array_at_a_time_and_reads_back_exactly(tmp_path):
  made, most = [], 0
  rng = np.random.default_rng(0)
  values = {
    f"stack/layer/w{i}/kernel": rng.standard_normal((3, 40 + i), dtype=np.float32)
    for i in range(12)
  }

  class Traced(np.ndarray):
    """An array that can be watched."""

  def make(path):
    nonlocal most
    array = values[path].copy().view(Traced)
    made.append(weakref.ref(array))
    most = max(most, sum(ref() is not None for ref in made))
    return array

  params = parameters.LazyParams({p: a.shape for p, a in values.items()}, make)
  stream.write_params(tmp_path, params, {"config": {}, "lineage": {}})
  assert most == 1 and len(made) == 2 * len(values)
  back = checkpoint.load_params(tmp_path, which="raw")
  assert set(back) == set(values)
  for path, array in values.items():
    np.testing.assert_array_equal(back[path], array)
  lazy = stream.read_params(tmp_path, 0, {p: f"params/{p}" for p in values})
  np.testing.assert_array_equal(lazy["stack/layer/w7/kernel"], values["stack/layer/w7/kernel"])


def test_a_checkpoint_with_a_non_finite_array_is_never_written(tmp_path):
  with pytest.raises(InputError, match="a/kernel"):
    stream.write_params(
      tmp_path / "x",
      {"a/kernel": np.array([1.0, np.nan], np.float32)},
      {"config": {}, "lineage": {}},
    )
  assert not (tmp_path / "x").exists()


def test_merging_adapters_adds_their_product():
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
  params = {
    "plain/kernel": normal(4, 2, 3),
    "plain/lora_a": normal(4, 5),
    "plain/lora_b": normal(5, 2, 3),
    "plain/bias": normal(2, 3),
    "stack/kernel": normal(3, 2, 4, 6),
    "stack/lora_a": normal(3, 2, 4, 3),
    "stack/lora_b": normal(3, 3, 6),
  }
  merged = lora.merge(params, {p: a.shape for p, a in params.items()}, scale=0.5)
  assert set(merged) == {"plain/kernel", "plain/bias", "stack/kernel"}
  plain = params["plain/kernel"] + 0.5 * np.einsum(
    "ir,rjk->ijk", params["plain/lora_a"], params["plain/lora_b"]
  )
  stack = params["stack/kernel"] + 0.5 * np.einsum(
    "nijr,nrk->nijk", params["stack/lora_a"], params["stack/lora_b"]
  )
  np.testing.assert_allclose(merged["plain/kernel"], plain, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(merged["stack/kernel"], stack, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(merged["plain/bias"], params["plain/bias"])


@pytest.mark.parametrize(
  "shapes",
  [
    {"x/lora_a": (4, 2), "x/kernel": (4, 3)},
    {"x/lora_a": (4, 2), "x/lora_b": (2, 3)},
    {"x/lora_a": (4, 2), "x/lora_b": (2, 5), "x/kernel": (4, 3)},
  ],
)
def test_adapters_that_do_not_fit_are_named(shapes):
  with pytest.raises(InputError, match="x"):
    lora.merge({}, shapes, scale=1.0)
