"""Laws of reading, converting and writing published state dicts."""

import json
import os
import pickle
import sys
import weakref
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from configs import base
from sam3d_jax.errors import InputError
from sam3d_jax.models import parameters, registry
from sam3d_jax.torch_bridge import keys, load, parts, save
from tests.support.tiny_release import normal_arrays, tiny_model

NEEDS_TORCH = r"pip install -r requirements-torch\.txt.*safetensors"


class Watched(np.ndarray):
  """An array that can be referred to weakly."""


@pytest.fixture(scope="module")
def published():
  """Rules, our shapes and random parameters of the tiny model."""
  model = tiny_model()
  shapes = parameters.flat_shapes(registry.abstract_model(model))
  return parts.rules_of(model), shapes, normal_arrays(shapes, seed=0)


def write_and_read(path, published, **settings):
  """The parameters after a published file of these settings."""
  rules, shapes, params = published
  save.write_state(path, rules, params, shapes, root="state_dict", **settings)
  file = load.open_state(path)
  return load.convert(rules, file, shapes)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
def test_parameters_survive_a_published_file_bit_for_bit(tmp_path, published, suffix):
  _, _, params = published
  back = write_and_read(tmp_path / f"x{suffix}", published)
  assert set(back) == set(params)
  for path, array in params.items():
    assert back[path].dtype == np.float32
    got = back[path].view(np.uint32)
    bits = array.view(np.uint32)
    np.testing.assert_array_equal(got, bits, err_msg=path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("storage,half", [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_half_storage_rounds_the_entries_it_should_and_no_others(
  tmp_path, published, suffix, storage, half
):
  rules, shapes, params = published
  path = tmp_path / f"x{suffix}"
  back = write_and_read(path, published, storage=storage)

  # the file
  stored = load.open_state(path).dtypes
  assert dict(stored) == save.published_dtypes(rules, shapes, storage)
  assert set(stored.values()) == {np.dtype(half), np.dtype(np.float32)}

  # the parameters
  rule_of = {rule.ours: rule for rule in rules}
  for name, array in params.items():
    rule = rule_of[name]
    entry_shape = array.shape[1:] if rule.stacked else array.shape
    dtype = save.storage_dtype(rule, rule.shape_in_torch(entry_shape), storage)
    expected = array.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(back[name], expected, err_msg=name)


@pytest.mark.parametrize("model", [base.geometry_model(), base.structure_vae_model()])
def test_default_models_have_the_published_names_shapes_and_dtypes(shared_dir, model):
  file = shared_dir / "golden" / "state_dict_full_keys.json"
  golden = json.loads(file.read_text())
  shapes = parameters.flat_shapes(registry.abstract_model(model))
  for part in parts.parts_of(model):
    published = golden[part.name]
    assert part.root == published["checkpoint_root_key"]

    # what the published code says of each entry; one that no fp16 module holds stays as it is
    expected_shapes, fp32, fp16 = {}, {}, {}
    for entry in published["entries"]:
      name = entry["name"]
      expected_shapes[name] = tuple(entry["shape"])
      fp32[name] = np.dtype(entry["dtype"])
      fp16[name] = np.dtype(entry.get("dtype_if_use_fp16", entry["dtype"]))

    assert keys.torch_names(part.rules, shapes) == expected_shapes
    assert save.published_dtypes(part.rules, shapes, "fp32") == fp32
    assert save.published_dtypes(part.rules, shapes, "fp16") == fp16


def test_a_value_beyond_fp16_is_refused_by_name(tmp_path, published):
  rules, shapes, params = published
  path = "flow/blocks/layer/shape/mlp/up/bias"
  large = np.full(shapes[path], 7e4, np.float32)
  params = params | {path: large}
  for suffix in (".ckpt", ".safetensors"):
    file = tmp_path / f"x{suffix}"
    with pytest.raises(InputError, match=r"blocks\.0\.mlp\.shape\.mlp\.0\.bias.*7e\+04"):
      save.write_state(file, rules, params, shapes, storage="fp16")
  assert not list(tmp_path.iterdir())  # no half-written file either


class RunsOnLoading:
  """What a hostile file looks like: unpickling it calls a function of its author's choice."""

  def __init__(self, marker):
    self.marker = marker

  def __reduce__(self):
    return os.mkdir, (self.marker,)


def test_a_file_that_would_run_code_is_refused_with_the_reason(tmp_path):
  torch = pytest.importorskip("torch")
  file = tmp_path / "x.ckpt"
  marker = tmp_path / "ran"
  payload = RunsOnLoading(str(marker))
  torch.save({"w": torch.zeros(2), "payload": payload}, file)
  with pytest.raises(InputError, match=r"holds more than tensors.*mkdir.*--unsafe_pickle"):
    load.open_state(file)
  assert not marker.exists()
  # insisted upon, it is loaded, and then found not to be weights
  with pytest.raises(InputError, match="payload are no tensors"):
    load.open_state(file, unsafe_pickle=True)
  assert marker.exists()


def test_a_harmless_file_with_more_than_tensors_loads_if_insisted_upon(tmp_path):
  torch = pytest.importorskip("torch")
  file = tmp_path / "x.ckpt"
  settings = InputError("any class will do")
  torch.save({"state_dict": {"w": torch.ones(2)}, "settings": settings}, file)
  with pytest.raises(InputError, match="InputError"):
    load.open_state(file)
  opened = load.open_state(file, unsafe_pickle=True)
  np.testing.assert_array_equal(opened.read("w"), np.ones(2))


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_every_mismatch_is_reported_at_once(tmp_path, published, suffix):
  rules, shapes, _ = published

  # a file that lacks one entry, has another too many, and one of another shape
  file_rules = [rule for rule in rules if rule.ours != "flow/time/out/bias"]
  file_rules.append(keys.Rule("stray.weight", "stray"))
  file_shapes = dict(shapes)
  del file_shapes["flow/time/out/bias"]
  file_shapes["stray"] = (3,)
  file_shapes["flow/time/hidden/bias"] = (5,)
  arrays = {path: np.zeros(shape, np.float32) for path, shape in file_shapes.items()}
  file = tmp_path / f"x{suffix}"
  save.write_state(file, file_rules, arrays, file_shapes)

  with pytest.raises(keys.KeyMismatch) as error:
    load.convert(rules, load.open_state(file), shapes)
  text = str(error.value)
  backbone = "_base_models.generator.reverse_fn.backbone.t_embedder.mlp"
  sizes = "file has size 5 where the configuration has 16 (1 entries)"
  assert text.startswith(f"{file}: {sizes}: 3 entries")
  assert f"missing     {backbone}.2.bias (16,)" in text
  assert "unexpected  stray.weight (3,)" in text
  assert f"misshapen   {backbone}.0.bias: file has (5,), model needs (16,)" in text


def test_a_fixed_table_that_differs_is_refused(tmp_path, published):
  rules, shapes, params = published
  shifted = []
  for rule in rules:
    if rule.ours is None:
      table = rule.buffer() + 0.1
      rule = keys.Rule(rule.torch, None, buffer=lambda table=table: table)
    shifted.append(rule)
  file = tmp_path / "x.safetensors"
  save.write_state(file, shifted, params, shapes)
  with pytest.raises(InputError, match=r"fixed table .*shape\.pos_emb differs by 0\.1"):
    load.convert(rules, load.open_state(file), shapes)


def test_integers_are_not_parameters(tmp_path):
  torch = pytest.importorskip("torch")
  torch.save({"w": torch.zeros(2, dtype=torch.int64)}, tmp_path / "x.pt")
  file = load.open_state(tmp_path / "x.pt")
  rules = [keys.Rule("w", "w")]
  with pytest.raises(InputError, match="w is int64"):
    load.convert(rules, file, {"w": (2,)})


def test_nested_roots_and_old_files_are_read(tmp_path):
  torch = pytest.importorskip("torch")
  values = torch.arange(6.0).reshape(2, 3).T  # not contiguous
  state = {"w": values}
  nested = {"epoch": 3, "state_dict": {"state_dict": state, "version": 1}}
  torch.save(nested, tmp_path / "nested.ckpt")
  torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
  for name in ("nested.ckpt", "old.pth"):
    file = load.open_state(tmp_path / name)
    assert file.shapes == {"w": (3, 2)}
    np.testing.assert_array_equal(file.read("w"), values.numpy())


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_file_that_is_cut_off_is_named(tmp_path, published, suffix):
  path = tmp_path / f"x{suffix}"
  write_and_read(path, published)
  whole = path.read_bytes()
  path.write_bytes(whole[:-1000])
  with pytest.raises(InputError, match=str(path)):
    load.open_state(path)


@pytest.mark.parametrize(
  "content", [b"", b"\x08", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{]", b'\x09\0\0\0\0\0\0\0{"w":{}} ']
)
def test_nonsense_is_no_safetensors_file(tmp_path, content):
  file = tmp_path / "x.safetensors"
  file.write_bytes(content)
  with pytest.raises(InputError, match=r"x\.safetensors"):
    load.open_state(file)


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
  with pytest.raises(InputError, match=NEEDS_TORCH):
    load.open_state(tmp_path / "x.ckpt")
  with pytest.raises(InputError, match=NEEDS_TORCH):
    save.write_state(tmp_path / "y.ckpt", rules, params, shapes)
  assert not (tmp_path / "y.ckpt").exists()
  back = write_and_read(tmp_path / "x.safetensors", published)
  np.testing.assert_array_equal(back["condition/group_embed"], params["condition/group_embed"])


def test_safetensors_files_open_with_the_safetensors_library(tmp_path, published):
  rules, shapes, params = published
  expected = keys.to_torch(rules, params)

  # theirs reads ours
  save.write_state(tmp_path / "ours.safetensors", rules, params, shapes)
  state = safetensors.load_file(tmp_path / "ours.safetensors")
  assert set(state) == set(expected)
  table = state["_base_models.condition_embedder.idx_emb"]
  np.testing.assert_array_equal(table, params["condition/group_embed"])

  # ours reads theirs
  safetensors.save_file(expected, tmp_path / "theirs.safetensors")
  file = load.open_state(tmp_path / "theirs.safetensors")
  back = load.convert(rules, file, shapes)
  kernel = "flow/blocks/layer/adaln/kernel"
  np.testing.assert_array_equal(back[kernel], params[kernel])


@pytest.mark.parametrize("storage", save.STORAGE)
def test_a_pytorch_file_is_what_torch_would_have_written(tmp_path, storage):
  torch = pytest.importorskip("torch")
  rules = [
    keys.Rule("a.weight", "a/kernel", layout="linear", half=True),
    keys.Rule("a.table", None, buffer=lambda: np.ones((2, 3), np.float32)),
    keys.Rule("a.bias", "a/bias"),
  ]
  params = normal_arrays({"a/kernel": (3, 5), "a/bias": (5,)}, seed=0)
  ours, theirs = tmp_path / "ours.ckpt", tmp_path / "theirs.ckpt"
  shapes = parameters.shapes_of(params)
  save.write_state(ours, rules, params, shapes, storage=storage, root="state_dict")
  loaded = torch.load(ours, weights_only=True, mmap=True)
  torch.save(loaded, theirs)

  # what describes the tensors, and their numbers, are the same bytes
  written = []
  for file in (ours, theirs):
    with zipfile.ZipFile(file) as archive:
      found = {}
      for name in archive.namelist():
        _, _, record = name.partition("/")
        if record == "data.pkl" or record.startswith("data/"):
          found[record] = archive.read(name)
      written.append(found)
  assert written[0] == written[1]
  assert len(written[0]) == 4


def test_a_pytorch_file_is_written_one_array_at_a_time(tmp_path):
  pytest.importorskip("torch")
  rules = [keys.Rule(f"{n}.weight", f"{n}/kernel", layout="linear") for n in range(12)]
  shapes = {f"{n}/kernel": (40, 30 + n) for n in range(12)}
  values = normal_arrays(shapes, seed=0)
  made, most = [], 0

  def make(path):
    """A fresh array, counting those made before that are still held."""
    nonlocal most
    array = values[path].copy().view(Watched)
    made.append(weakref.ref(array))
    most = max(most, sum(reference() is not None for reference in made))
    return array

  lazy = parameters.LazyParams(shapes, make)
  save.write_state(tmp_path / "x.ckpt", rules, lazy, shapes)
  # the one that is being written, and the one being made
  assert most <= 2 and len(made) == 12
  state = load.open_state(tmp_path / "x.ckpt")
  np.testing.assert_array_equal(state.read("7.weight"), values["7/kernel"].T)
