"""Condition encoder: streams, token order, projections, modality dropout, point maps, names."""

import dataclasses
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.batch import Conditioning
from sam3d_jax.models import conditioning, parameters, pointmap
from sam3d_jax.models.conditioning import STREAMS, ConditionConfig, ConditionEncoder
from sam3d_jax.torch_bridge import keys, names_conditioning
from tests import parity
from tests.parity_cases import conditioning_and_pose
from tests.support.tiny_condition import (
  COND,
  POINTS,
  RNG,
  TINY,
  conditioning_of,
  encode,
  encoder,
  gradients,
  point_encoder,
  points_with_gaps,
  spans,
)


def test_default_config_has_the_published_names_and_shapes(shared_dir):
  published = json.loads((shared_dir / "golden" / "state_dict_full_keys.json").read_text())[
    "ss_condition_embedder"
  ]
  cfg = ConditionConfig()
  abstract = nnx.eval_shape(lambda: ConditionEncoder(cfg, rngs=nnx.Rngs(0)))
  names = keys.torch_names(
    names_conditioning.condition_encoder_rules(cfg), parameters.flat_shapes(abstract)
  )
  assert names == {e["module_name"]: tuple(e["shape"]) for e in published["entries"]}
  assert cfg.tokens == 7528 and cfg.hidden == 2816


def test_bf16_stays_within_two_percent_of_the_published_fp32_tokens(golden_dir):
  fixture = next(iter(parity.fixtures(golden_dir, "c4_*")))
  exact = conditioning_and_pose.fuser_config(fixture.kwargs)
  cfg = dataclasses.replace(
    exact,
    dtype="bfloat16",
    dino=dataclasses.replace(exact.dino, dtype="bfloat16"),
    pointmap=dataclasses.replace(exact.pointmap, dtype="bfloat16"),
  )
  module = encoder(cfg)
  state = keys.to_ours(
    names_conditioning.condition_encoder_rules(cfg), fixture.params, parameters.flat_shapes(module)
  )
  parameters.load_params(module, state)
  cond = Conditioning(
    **{s: conditioning_and_pose.channels_last(fixture.inputs[s]) for s in cfg.streams}
  )
  tokens = encode(module, cond)
  expected = fixture.arrays["out/eval"]
  assert tokens.dtype == jnp.bfloat16
  assert np.linalg.norm(np.asarray(tokens, np.float32) - expected) < 0.02 * np.linalg.norm(expected)


def test_names_round_trip_without_point_maps():
  cfg = dataclasses.replace(TINY, pointmap=None, streams=("image", "mask"))
  params = {k: np.array(v) for k, v in parameters.flat_params(encoder(cfg)).items()}
  params["group_embed"][-1] = 0.0  # as it starts and, read by nothing, stays
  rules = names_conditioning.condition_encoder_rules(cfg)
  back = keys.to_ours(rules, keys.to_torch(rules, params), {k: v.shape for k, v in params.items()})
  assert all(np.array_equal(params[k], back[k]) for k in params)
  assert not any("pointmap" in k for k in params)


def test_tokens_are_ordered_encoder_by_encoder_whatever_the_order_of_the_config():
  tokens = np.asarray(encode(encoder(), COND))
  assert tokens.shape == (2, TINY.tokens, 16)
  shuffled = dataclasses.replace(TINY, streams=STREAMS[::-1])
  np.testing.assert_array_equal(np.asarray(encode(encoder(shuffled), COND)), tokens)
  for stream, span in spans(TINY).items():  # a changed stream changes its own place and no other
    other = np.asarray(encode(encoder(), COND._replace(**{stream: 1 - getattr(COND, stream)})))
    changed = np.flatnonzero(np.abs(other - tokens).max((0, 2)) > 1e-6)
    assert span.start <= changed.min() and changed.max() < span.stop, stream


def test_streams_that_are_not_configured_are_not_read():
  cfg = dataclasses.replace(TINY, streams=("image", "mask"))
  poisoned = COND._replace(**{s: None for s in STREAMS if s not in cfg.streams})
  np.testing.assert_array_equal(
    np.asarray(encode(encoder(cfg), poisoned)), np.asarray(encode(encoder(cfg), COND))
  )


def test_missing_and_unknown_streams_are_refused_by_name():
  with pytest.raises(ValueError, match="lacks .'rgb_image_mask'."):
    encoder()(COND._replace(rgb_image_mask=None))
  with pytest.raises(ValueError, match="depth"):
    dataclasses.replace(TINY, streams=("image", "depth"))
  with pytest.raises(ValueError, match="pointmap is None"):
    dataclasses.replace(TINY, pointmap=None)


def test_uint8_inputs_mean_the_same_as_floats():
  image = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
  mask = RNG.integers(0, 2, (2, 8, 8, 1), dtype=np.uint8)
  cfg = dataclasses.replace(TINY, streams=("image", "mask"))
  module = encoder(cfg)
  expected = encode(
    module, Conditioning(image=image.astype(np.float32) / 255, mask=mask.astype(np.float32))
  )
  for masks in (mask, 255 * mask, mask.astype(bool)):
    np.testing.assert_allclose(
      encode(module, Conditioning(image=image, mask=masks)), expected, atol=1e-5
    )


def test_crop_and_photo_may_differ_in_size():
  other = conditioning_of(size=12)
  mixed = COND._replace(rgb_image=other.rgb_image, rgb_pointmap=other.rgb_pointmap)
  tokens, parts = np.asarray(encode(encoder(), mixed)), spans(TINY)
  for source, streams in ((COND, ("image", "pointmap")), (other, ("rgb_image", "rgb_pointmap"))):
    expected = np.asarray(encode(encoder(), source))
    for stream in streams:
      np.testing.assert_allclose(
        tokens[:, parts[stream]], expected[:, parts[stream]], atol=1e-5, err_msg=stream
      )


def test_streams_are_batched_example_by_example():
  streams = [np.full((3, 2), i) + 10 * np.arange(3)[:, None] for i in range(2)]
  batched = conditioning.together(streams)
  assert np.asarray(batched)[:, 0].tolist() == [0, 1, 10, 11, 20, 21]
  np.testing.assert_array_equal(conditioning.apart(batched, 2)[:, 1], streams[1])


@nnx.jit
def encode_points(module, points, valid=None, drop=None):
  return module(points, valid, drop)


def test_cls_only_form_equals_the_plain_block_in_outputs_and_gradients():
  plain, short = (point_encoder(dataclasses.replace(POINTS, cls_only=c)) for c in (False, True))
  points, weight = points_with_gaps(), RNG.standard_normal((2, 4, 32)).astype(np.float32)
  # or the handling of biases would not show
  assert np.asarray(short.block.attn.qkv.bias[...]).all()
  np.testing.assert_allclose(encode_points(short, points), encode_points(plain, points), atol=2e-6)
  grads = [gradients(module, lambda m: (m(points) * weight).sum()) for module in (plain, short)]
  for path, expected in grads[0].items():
    np.testing.assert_allclose(
      grads[1][path], expected, atol=2e-5 * max(1, np.abs(expected).max()), err_msg=path
    )


def test_unknown_points_are_replaced_by_the_learned_token():
  module = point_encoder()
  points = points_with_gaps()
  embed = nnx.jit(lambda module, points: module.embed_points(points, jnp.isfinite(points).all(-1)))
  embedded = np.asarray(embed(module, points))
  unknown = ~np.isfinite(points).all(-1)
  token = np.asarray(module.invalid_token[...])
  np.testing.assert_array_equal(embedded[unknown], np.broadcast_to(token, embedded[unknown].shape))
  # what exactly makes a point unknown does not matter
  other = np.where(unknown[..., None], -np.inf, points)
  np.testing.assert_array_equal(embed(module, other), embedded)


def test_no_gradient_flows_to_the_coordinates():
  module = point_encoder()
  grad = jax.jit(jax.grad(lambda p: module(p).sum()))(
    jnp.asarray(np.nan_to_num(points_with_gaps(), posinf=0))
  )
  assert not np.asarray(grad).any()


def test_an_explicit_valid_mask_overrides_finiteness():
  module = point_encoder()
  points = np.ones((1, 8, 8, 3), np.float32)
  valid = np.ones((1, 8, 8), bool)
  valid[0, 5, 5] = False
  hidden = points.copy()
  hidden[0, 5, 5] = np.nan
  np.testing.assert_array_equal(encode_points(module, points, valid), encode_points(module, hidden))


def test_the_dropped_token_replaces_every_window_but_keeps_its_position():
  cfg = dataclasses.replace(POINTS, drop_token=True)
  module = point_encoder(cfg)
  out = np.asarray(encode_points(module, points_with_gaps(), None, jnp.array([True, False])))
  expected = (
    np.asarray(module.dropped_token[...]) + np.asarray(module.pos_embed[...]).reshape(32, -1).T
  )
  np.testing.assert_allclose(out[0], expected, atol=1e-6)
  assert np.abs(out[1] - expected).max() > 0.1
  with pytest.raises(ValueError, match="drop_token=True"):
    point_encoder()(points_with_gaps(), drop_B=jnp.array([True, False]))


def test_windows_and_their_points_are_ordered_row_by_row():
  index = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1)
  got = np.asarray(pointmap.windows(jnp.asarray(index), 4))[..., 0]
  assert got.shape == (4, 16)
  np.testing.assert_array_equal(got[1].reshape(4, 4), index[0, :4, 4:, 0])
