"""Laws of the Mixture-of-Transformers flow model."""

import dataclasses
import functools
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam3d_jax.batch import LATENTS, LAYOUT_LATENTS
from sam3d_jax.models import parameters
from sam3d_jax.models.attention_layers import CrossAttention
from sam3d_jax.models.geometry_flow import (
  GeometryFlow,
  GeometryFlowConfig,
  pack_cells,
  unpack_cells,
)
from sam3d_jax.models.stack import REMAT_POLICIES
from sam3d_jax.models.volumes import grid_to_tokens
from sam3d_jax.torch_bridge import names_geometry
from tests import parity
from tests.parity_cases import flow_and_vae
from tests.support import tiny_flow as flow
from tests.support.programs import equations


def test_layout_velocity_depends_on_shape_latent():
  x, t, tokens = flow.inputs()
  a, b = (
    flow.forward()(flow.model()[1], x | {"shape": shape}, t, tokens)
    for shape in (x["shape"], x["shape"] + 1.0)
  )
  assert all(float(jnp.abs(a[k] - b[k]).max()) > 1e-3 for k in LAYOUT_LATENTS)


def test_absorbed_layout_keys_and_values_equal_the_plain_form():
  plain = dataclasses.replace(flow.TINY, absorb_layout_kv=False)
  (x, t, tokens), params = flow.inputs(), flow.model()[1]
  flow.assert_close(flow.grad()(params, x, tokens, t, t), flow.grad(plain)(params, x, tokens, t, t))


def test_absorbed_form_never_projects_the_condition_tokens():
  def projects_tokens(cfg):
    graph, params = flow.model(cfg)
    block = nnx.merge(graph, params).blocks.layer.layout
    one = jax.tree.map(lambda a: a[0], nnx.state(block.cross_attn))
    cross = nnx.merge(nnx.graphdef(block.cross_attn), one)
    text = str(
      jax.make_jaxpr(cross)(jnp.ones((1, 4, cfg.width)), jnp.ones((1, flow.TOKENS, cfg.cond_width)))
    )
    return f"f32[1,{flow.TOKENS},{cfg.heads},{cfg.width // cfg.heads}]" in text

  assert projects_tokens(dataclasses.replace(flow.TINY, absorb_layout_kv=False))
  assert not projects_tokens(flow.TINY)


def test_normalised_keys_cannot_be_absorbed():
  with pytest.raises(ValueError, match="qk_rms_norm rules it out"):
    CrossAttention(
      8,
      8,
      2,
      absorb_kv=True,
      qk_rms_norm=True,
      dtype=jnp.float32,
      attention="xla",
      rngs=nnx.Rngs(0),
    )


@pytest.mark.parametrize("remat", [p for p in REMAT_POLICIES if p != "none"])
def test_remat_changes_neither_outputs_nor_gradients(remat):
  cfg = dataclasses.replace(flow.TINY, remat=remat)
  (x, t, tokens), params = flow.inputs(), flow.model()[1]
  flow.assert_close(
    flow.grad(cfg)(params, x, tokens, t, t), flow.grad()(params, x, tokens, t, t), 1e-5
  )


def test_remat_policies_keep_less_for_the_backward_pass_in_their_order():
  kept = {}
  x, t, tokens = flow.inputs()
  for remat in REMAT_POLICIES:
    jaxpr = jax.make_jaxpr(flow.gradient(dataclasses.replace(flow.TINY, remat=remat), LATENTS))(
      flow.model()[1], x, tokens, t, t
    )
    forward_scan = next(e for e in equations(jaxpr.jaxpr) if e.primitive.name == "scan")
    kept[remat] = sum(v.aval.size for v in forward_scan.outvars)
  assert kept["full"] < kept["attention"] < kept["dots"] < kept["operands"] < kept["none"]


@pytest.mark.parametrize("remat", ["none", "operands"])
def test_blocks_one_after_the_other_are_the_blocks_in_a_loop(remat):
  looped, unrolled = (dataclasses.replace(flow.TINY, remat=remat, unroll=u) for u in (False, True))
  (x, t, tokens), params = flow.inputs(), flow.model()[1]
  flow.assert_close(
    flow.grad(unrolled)(params, x, tokens, t, t), flow.grad(looped)(params, x, tokens, t, t), 1e-6
  )
  scans = lambda cfg: sum(
    e.primitive.name == "scan" and e.params["unroll"] < e.params["length"]
    for e in equations(jax.make_jaxpr(flow.gradient(cfg, LATENTS))(params, x, tokens, t, t).jaxpr)
  )
  assert scans(looped) > 0 == scans(unrolled)


def test_program_size_does_not_grow_with_depth():
  def lines(depth):
    cfg = dataclasses.replace(flow.TINY, depth=depth)
    x, t, tokens = flow.inputs()
    return flow.forward(cfg).lower(flow.model(cfg)[1], x, t, tokens).as_text().count("\n")

  assert lines(2) == lines(6)


def test_untrained_step_embedder_changes_nothing():
  graph, params = flow.untrained()
  x, t, tokens = flow.inputs()
  forward = flow.jit(lambda params, d: nnx.merge(graph, params)(x, t, tokens, d))
  flow.assert_close(forward(params, None), forward(params, t), 0.0)


def test_untrained_blocks_pass_self_attention_and_mlp_by():
  """Zero modulation means zero gates: only the cross-attention, which has none, touches the
  residual stream.
  """
  graph, params = flow.untrained()
  x, t, tokens = flow.inputs()
  norms = flow.norms(
    flow.jit(jax.grad(lambda params: nnx.merge(graph, params)(x, t, tokens)["shape"].sum()))(params)
  )
  assert (
    norms["blocks/layer/shape/mlp/up/kernel"]
    == norms["blocks/layer/shape/self_attn/qkv/kernel"]
    == 0.0
  )
  assert (
    norms["blocks/layer/shape/cross_attn/out/kernel"] > 0 and norms["blocks/layer/adaln/kernel"] > 0
  )


def test_time_is_multiplied_by_its_scale_and_broadcasts_over_the_batch():
  (x, _, tokens), params = flow.inputs(), flow.model()[1]
  cfg = dataclasses.replace(flow.TINY, time_scale=1.0)
  a = flow.forward()(params, x, jnp.full(flow.BATCH, 0.25), tokens, jnp.full(flow.BATCH, 0.5))
  flow.assert_close(
    flow.forward(cfg)(params, x, jnp.full(flow.BATCH, 250.0), tokens, jnp.full(flow.BATCH, 500.0)),
    a,
  )
  flow.assert_close(flow.forward()(params, x, jnp.full(1, 0.25), tokens, jnp.full(1, 0.5)), a)


def test_velocities_are_fp32_whatever_the_compute_dtype():
  cfg = dataclasses.replace(flow.TINY, dtype="bfloat16")
  x, t, tokens = flow.inputs()
  y = jax.eval_shape(flow.forward(cfg), flow.model(cfg)[1], x, t, tokens.astype(jnp.bfloat16))
  assert {k: (v.dtype, v.shape) for k, v in y.items()} == {
    k: (jnp.float32, v.shape) for k, v in x.items()
  }


def test_bf16_stays_within_two_percent_of_fp32_on_the_fixture(golden_dir):
  [fixture] = parity.fixtures(golden_dir, "b2_ss_flow_wrapper.npz")
  exact = flow_and_vae.flow_config(fixture.kwargs)
  model = flow_and_vae.loaded(
    functools.partial(GeometryFlow, exact), names_geometry.backbone_rules(exact), fixture.params
  )
  _, params = nnx.split(model)
  x = flow_and_vae.ours(fixture.group("in/x"), flow_and_vae.LATENTS)
  rounded = dataclasses.replace(exact, dtype="bfloat16")
  a, b = (
    flow.forward(cfg)(params, x, fixture.inputs["t"], fixture.inputs["cond"], fixture.inputs["d"])
    for cfg in (exact, rounded)
  )
  errors = {k: float(jnp.linalg.norm(a[k] - b[k]) / jnp.linalg.norm(a[k])) for k in a}
  assert all(0 < error < 0.02 for error in errors.values()), errors


def test_with_both_gates_shut_only_the_cross_attention_acts():
  cfg = dataclasses.replace(flow.TINY, depth=1)
  block = nnx.merge(*flow.model()).blocks.layer.shape
  one = nnx.merge(nnx.graphdef(block), jax.tree.map(lambda a: a[0], nnx.state(block)))
  x, attended = jnp.ones((1, 2, cfg.width)), jnp.ones((1, 2, cfg.heads, cfg.width // cfg.heads))
  tokens = flow.inputs()[2][:1]
  # shift, scale, gate; twice
  silent = one.finish(x, attended, tokens, (9.0, 9.0, 0.0, 9.0, 9.0, 0.0))
  np.testing.assert_allclose(silent, x + one.cross_attn(one.cross_norm(x), tokens), rtol=1e-6)


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda x: {k: v for k, v in x.items() if k != "scale"}, "the model needs"),
    (lambda x: x | {"shape": x["shape"][:, 1:]}, "latent 'shape' has shape"),
  ],
  ids=["missing", "misshapen"],
)
def test_latents_that_do_not_fit_are_refused(change, message):
  x, t, tokens = flow.inputs()
  with pytest.raises(ValueError, match=message):
    flow.forward()(flow.model()[1], change(x), t, tokens)


def test_step_size_without_an_embedder_is_refused():
  cfg = dataclasses.replace(flow.TINY, shortcut=False)
  x, t, tokens = flow.inputs()
  with pytest.raises(ValueError, match="shortcut=True"):
    flow.forward(cfg)(flow.model(cfg)[1], x, t, tokens, t)


@pytest.mark.parametrize("change", [{"heads": 5}, {"remat": "some"}, {"attention": "flash"}])
def test_configuration_is_checked(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    dataclasses.replace(flow.TINY, **change)


def test_default_configuration_has_the_published_parameter_count(shared_dir):
  published = json.loads((shared_dir / "golden" / "state_dict_full_keys.json").read_text())[
    "ss_generator"
  ]
  shapes = parameters.flat_shapes(
    nnx.eval_shape(lambda: GeometryFlow(GeometryFlowConfig(), rngs=nnx.Rngs(0)))
  )
  assert sum(int(np.prod(s)) for s in shapes.values()) == published["n_parameters"]


def test_a_token_of_several_cells_carries_their_channels_and_gives_them_back():
  cells = jnp.arange(2 * 4**3 * 3.0).reshape(2, 64, 3)
  grid_BxyzC = cells.reshape(2, 4, 4, 4, 3)
  tokens = pack_cells(cells, 2)
  # the last token holds the last two cells along each axis
  assert tokens.shape == (2, 8, 24)
  np.testing.assert_array_equal(
    tokens[:, -1], grid_to_tokens(grid_BxyzC[:, 2:, 2:, 2:]).reshape(2, 24)
  )
  np.testing.assert_array_equal(unpack_cells(tokens, 2), cells)


def test_with_patches_every_cell_has_a_velocity_and_there_are_fewer_tokens():
  cfg = dataclasses.replace(flow.TINY, shape_resolution=4, patch=2)
  x, t, tokens = flow.inputs(cfg)
  graph, params = flow.model(cfg)
  velocity = jax.eval_shape(flow.apply(cfg), params, x, t, tokens)
  assert {k: v.shape for k, v in velocity.items()} == {k: v.shape for k, v in x.items()}
  streams = jax.eval_shape(lambda params: nnx.merge(graph, params).embed(x), params)
  assert streams["shape"].shape == (flow.BATCH, 8, cfg.width)
  with pytest.raises(ValueError, match="patch = 4 does not divide shape_resolution = 2"):
    dataclasses.replace(flow.TINY, patch=4)
