"""Parity cases c* (encoders of the condition), g1-g3 (poses and rotations), h* (preprocessing)."""

import ast
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sam3d_jax.batch import Conditioning
from sam3d_jax.geometry import cameras, pose, rotations
from sam3d_jax.geometry import pose_targets as targets
from sam3d_jax.geometry import remap as remap_lib
from sam3d_jax.models import conditioning, dinov2, parameters, pointmap
from sam3d_jax.torch_bridge import keys, names_conditioning
from tests.parity import case

SWIGLU_RULES = [
  keys.Rule(f"{w}.weight", f"{w}/kernel", layout="linear") for w in ("w1", "w2", "w3")
]


def build(make, rules, params):
  """A module whose parameters are those of the fixture."""
  module = make(nnx.Rngs(0))
  parameters.load_params(module, keys.to_ours(rules, params, parameters.flat_shapes(module)))
  return module


def torch_gradients(loss, module, rules):
  """Gradients of loss(module), under their published names."""
  graph, params = nnx.split(module)

  def loss_of(params):
    return loss(nnx.merge(graph, params))

  grads = jax.jit(jax.grad(loss_of))(params)
  flat = parameters.flat_params(nnx.merge(graph, grads))
  arrays = {k: np.asarray(v) for k, v in flat.items()}
  return keys.to_torch(rules, arrays)


def channels_last(x):
  return jnp.moveaxis(jnp.asarray(x), 1, -1)


@case("c0_")
def llama_feed_forward(fixture):
  k = fixture.kwargs
  hidden = fixture.params["w1.weight"].shape[0]
  width = conditioning.ConditionConfig(width=k["hidden_dim"], hidden_multiplier=1.0).hidden
  assert width == hidden, f"hidden width {width}, the fixture has {hidden}"
  make = lambda rngs: conditioning.SwiGLU(
    k["dim"], hidden, k["output_dim"], rngs=rngs, dtype=jnp.float32
  )
  return {"out/y": nnx.jit(build(make, SWIGLU_RULES, fixture.params))(fixture.inputs["x"])}


def dino_config(kwargs, **overrides):
  """The config of a fixture's tiny DINOv2."""
  return dinov2.DinoConfig(
    width=kwargs["embed_dim"],
    depth=kwargs["depth"],
    heads=kwargs["num_heads"],
    image_size=kwargs["img_size"],
    input_size=kwargs["input_size"],
    dtype="float32",
    **overrides,
  )


def build_dino(fixture, **overrides):
  cfg = dino_config(fixture.kwargs, **overrides)
  return build(
    lambda rngs: dinov2.Dino(cfg, rngs=rngs),
    names_conditioning.dinov2_rules(cfg, "backbone."),
    fixture.params,
  )


@case("c1_")
def dino(fixture):
  model = build_dino(fixture)
  cfg, registers = model.cfg, model.cfg.registers
  image, mask = (channels_last(fixture.inputs[k]) for k in ("image", "mask"))
  grid = cfg.input_size // cfg.patch

  @nnx.jit
  def run(model):
    out = {}
    for name, x in (("image", image), ("mask", mask)):
      out[f"out/preprocessed_{name}"] = jnp.moveaxis(dinov2.preprocess(x, cfg.input_size), -1, 1)
      out[f"out/tokens_{name}"] = model(x)
    prenorm = model.prenorm(dinov2.preprocess(image, cfg.input_size))
    normed = model.norm(prenorm)
    out["out/features/x_prenorm"] = prenorm
    out["out/features/x_norm_clstoken"] = normed[:, 0]
    out["out/features/x_norm_regtokens"] = normed[:, 1 : 1 + registers]
    out["out/features/x_norm_patchtokens"] = normed[:, 1 + registers :]
    out["out/pos_embed_used"] = dinov2.position_embedding(model.pos_embed[...], grid, grid)[None]
    # resized, without ImageNet normalisation
    plain = denormalise(dinov2.preprocess(image, cfg.input_size))
    out["out/tokens_image_nonormalize"] = model.drop_registers(model.norm(model.prenorm(plain)))
    return out

  prenorm_model = build_dino(fixture, prenorm=True)
  return run(model) | {"out/tokens_image_prenorm": nnx.jit(prenorm_model)(image)}


def denormalise(image_BHWC):
  """Undoes the ImageNet normalisation."""
  return image_BHWC * jnp.asarray(dinov2.IMAGENET_STD) + jnp.asarray(dinov2.IMAGENET_MEAN)


@case("c1b_")
def dino_native_grid(fixture):
  image = channels_last(fixture.inputs["image"])
  return {
    "out/tokens": nnx.jit(build_dino(fixture))(image),
    "out/tokens_prenorm": nnx.jit(build_dino(fixture, prenorm=True))(image),
  }


def build_pointmap(fixture, remap, cls_only=True):
  k = fixture.kwargs
  cfg = pointmap.PointmapConfig(
    width=k["embed_dim"],
    input_size=k["input_size"],
    patch=k["patch_size"],
    remap=remap,
    dtype="float32",
    drop_token=k["dropout_prob"] > 0,
    cls_only=cls_only,
  )
  rules = names_conditioning.pointmap_rules(cfg)
  return build(lambda rngs: pointmap.PointmapEncoder(cfg, rngs=rngs), rules, fixture.params), rules


@case("c2_")
def point_patch_embed(fixture):
  native, other = (channels_last(fixture.inputs[k]) for k in ("xyz_native", "xyz_other_size"))
  valid = jnp.asarray(fixture.inputs["valid_mask"])
  call = nnx.jit(lambda model, *args, **kwargs: model(*args, **kwargs))
  out = {}
  for remap in remap_lib.REMAPS:
    model, _ = build_pointmap(fixture, remap)
    out[f"out/{remap}/native"] = call(model, native)
    out[f"out/{remap}/other_size"] = call(model, other)
    out[f"out/{remap}/native_valid_mask"] = call(model, native, valid)
  model, rules = build_pointmap(fixture, "linear")
  out["out/force_dropout_eval"] = call(model, native, drop_B=jnp.ones(native.shape[0], bool))
  dropped = jnp.asarray(fixture.inputs["train_rand"] < fixture.kwargs["dropout_prob"])
  out["out/train_dropout"] = call(model, native, drop_B=dropped)
  grads = torch_gradients(lambda m: (m(native) * fixture.inputs["r"]).sum(), model, rules)
  names = [
    k.removeprefix("grad/linear_native/")
    for k in fixture.expected
    if k.startswith("grad/linear_native/")
  ]
  return out | {f"grad/linear_native/{name}": grads[name] for name in names}


@case("c3_")
def point_remapper(fixture):
  points = fixture.inputs["points"]
  out = {}
  for xp in (np, jnp):  # both array libraries, the second one counts
    for kind in remap_lib.REMAPS:
      forward = remap_lib.remap(xp.asarray(points), kind)
      out[f"out/{kind}/forward"] = forward
      out[f"out/{kind}/inverse_of_forward"] = remap_lib.unmap(forward, kind)
      out[f"out/{kind}/inverse_raw"] = remap_lib.unmap(xp.asarray(0.5 * points), kind)
  return out


def fuser_config(kwargs):
  """The config that a fixture's embedder list describes in words, e.g.
  "PointPatchEmbed({'input_size': 16, ...}, linear)".
  """
  streams = tuple(stream for _, uses in kwargs["embedder_list"] for stream, _ in uses)
  described = next(
    (text for text, _ in kwargs["embedder_list"] if text.startswith("PointPatchEmbed")), None
  )
  points = None
  if described is not None:
    sizes, remap = re.fullmatch(r"PointPatchEmbed\((\{.*\}), (\w+)\)", described).groups()
    sizes = ast.literal_eval(sizes)
    points = pointmap.PointmapConfig(
      width=sizes["embed_dim"],
      input_size=sizes["input_size"],
      patch=sizes["patch_size"],
      remap=remap,
      dtype="float32",
    )
  dino_cfg = dino_config(kwargs["dino"])
  return conditioning.ConditionConfig(
    dino=dino_cfg,
    pointmap=points,
    width=max(dino_cfg.width, points.width if points else 0),
    streams=streams,
    hidden_multiplier=kwargs["projection_net_hidden_dim_multiplier"],
    dtype="float32",
  )


@case("c4_")
def embedder_fuser(fixture):
  cfg = fuser_config(fixture.kwargs)
  rules = names_conditioning.condition_encoder_rules(cfg)
  model = build(lambda rngs: conditioning.ConditionEncoder(cfg, rngs=rngs), rules, fixture.params)
  cond = Conditioning(**{s: channels_last(fixture.inputs[s]) for s in cfg.streams})
  call = nnx.jit(lambda model, cond, drop: model(cond, drop))
  batch = cond.image.shape[0]
  dropped = jnp.asarray(fixture.inputs["train_rand"] > 1 - fixture.kwargs["dropout_prob"])
  out = {
    "out/eval": nnx.jit(lambda model, cond: model(cond))(model, cond),
    "out/eval_force_drop_pointmap": call(model, cond, jnp.ones(batch, bool)),
    "out/train_dropout": call(model, cond, dropped),
  }
  grads = torch_gradients(lambda m: (m(cond) * fixture.inputs["r"]).sum(), model, rules)
  names = [k.removeprefix("grad/eval/") for k in fixture.expected if k.startswith("grad/eval/")]
  return out | {f"grad/eval/{name}": grads[name] for name in names}


TARGET_FIELDS = {
  "x_instance_scale": "scale",
  "x_instance_rotation": "rotation",
  "x_instance_translation": "translation",
  "x_translation_scale": "translation_scale",
  "x_scene_scale": "scene_scale",
  "x_scene_center": "scene_shift",
}
POSE_FIELDS = {
  "instance_scale_l2c": "scale",
  "instance_quaternion_l2c": "rotation",
  "instance_position_l2c": "translation",
  "scene_scale": "scene_scale",
  "scene_shift": "scene_shift",
}
INVARIANT_FIELDS = {
  "q": "rotation",
  "t_unit": "direction",
  "t_rel_norm": "distance",
  "s_rel": "scale",
  "s_tilde": "apparent_scale",
}


@case("g1_")
def pose_targets(fixture):
  out = {}
  runs = sorted({tuple(k.split("/")[1:3]) for k in fixture.expected})
  for name, group in runs:
    given = fixture.group(f"in/{group}")
    poses = targets.ScenePose(
      **{ours: jnp.asarray(given[theirs]) for theirs, ours in POSE_FIELDS.items()}
    )
    if name == "InvariantPoseTarget":
      fields = targets.invariants(poses)._asdict() | {
        "s_scene": poses.scene_scale,
        "t_scene_center": poses.scene_shift,
      }
      wanted = INVARIANT_FIELDS | {"s_scene": "s_scene", "t_scene_center": "t_scene_center"}
      out |= {f"out/{name}/{group}/{theirs}": fields[ours] for theirs, ours in wanted.items()}
      continue
    options = {
      "convention": name.removesuffix("_normalize"),
      "whiten": name.endswith("_normalize"),
      "published_tiling": True,
    }
    target = jax.jit(lambda poses, options=options: targets.encode(poses, **options))(poses)
    back = jax.jit(lambda target, options=options: targets.decode(target, **options))(target)
    target, back = published_broadcast(options["convention"], target, back)
    out |= {
      f"out/{name}/{group}/target/{theirs}": getattr(target, ours)
      for theirs, ours in TARGET_FIELDS.items()
    }
    out |= {
      f"out/{name}/{group}/back/{theirs}": getattr(back, ours)
      for theirs, ours in POSE_FIELDS.items()
    }
  return out


def published_broadcast(convention, target, back):
  """Two conventions multiply (B, K, 3) by a scene scale (B, 3) without an axis for K, which repeats
  scenes along K.
  """
  swap = lambda x, scene: x / scene[:, None] * scene
  if convention == "Naive":
    target = target._replace(scale=swap(target.scale, target.scene_scale))
    back = back._replace(scale=swap(back.scale, back.scene_scale))
  if convention == "DisparitySpace":
    back = back._replace(
      scale=swap(back.scale, back.scene_scale), translation=swap(back.translation, back.scene_scale)
    )
  return target, back


@case("g2_")
def pose_decoder(fixture):
  given = {k: jnp.asarray(v) for k, v in fixture.inputs.items()}
  latents = {"rotation": given["6drotation_normalized"]} | {
    k: given[k] for k in ("translation", "scale", "translation_scale")
  }
  scenes = {"scene": (given["scene_scale"], given["scene_shift"])}
  scenes["unit_scene"] = scenes["none"] = (jnp.ones((1, 3)), jnp.zeros((1, 3)))
  out = {}
  for name, scene in sorted({tuple(k.split("/")[1:3]) for k in fixture.expected}):
    convention, used = name, latents
    if name.startswith("ZeroPrediction"):
      convention, used = name.removeprefix("ZeroPrediction"), pose.average_layout(latents)
    elif name.endswith("_6drotation_key"):  # the same rotation, handed over without normalisation
      convention = name.removesuffix("_6drotation_key")
      used = latents | {
        "rotation": rotations.normalise_6d(rotations.denormalise_6d(latents["rotation"]))
      }
    elif name.endswith("_quaternion_key"):
      convention = name.removesuffix("_quaternion_key")
      six = rotations.matrix_to_6d(rotations.quaternion_to_matrix(given["quaternion"]))
      used = latents | {"rotation": rotations.normalise_6d(six)}
    decode = jax.jit(
      lambda latents, *scene, c=convention: pose.decode_latents(latents, *scene, convention=c)
    )
    decoded = decode(used, *scenes[scene])
    quaternion = pose.release_quaternion(decoded.rotation)
    fields = {"translation": decoded.translation, "rotation": quaternion, "scale": decoded.scale}
    out |= {f"out/{name}/{scene}/{k}": v.reshape(1, -1) for k, v in fields.items()}
  return out


@case("g3_")
def rotation_conventions(fixture):
  given = {k: jnp.asarray(v) for k, v in fixture.inputs.items()}
  for name, ours in (
    ("ROTATION_6D_MEAN", rotations.SIX_D_MEAN),
    ("ROTATION_6D_STD", rotations.SIX_D_STD),
  ):
    assert np.allclose(given[name], ours, atol=1e-7), f"{name} differs from the fixture's"
  q, q2, points = given["quaternion"], given["q2"], given["points"]

  @jax.jit
  def run():
    matrix = rotations.quaternion_to_matrix(q)
    six = rotations.matrix_to_6d(matrix)
    decode = lambda six: rotations.matrix_to_quaternion(
      rotations.matrix_from_6d(rotations.denormalise_6d(six))
    )
    composed = pose.compose(given["S"], matrix, given["T"])
    scale, rotation, translation = pose.decompose(composed)
    flip = cameras.convert_frame(jnp.eye(3), "opencv", "pytorch3d")
    return {
      "matrix": matrix,
      "sixd_columns": six,
      "sixd_normalized": rotations.normalise_6d(six),
      "matrix_from_unnormalised": rotations.quaternion_to_matrix(given["quaternion_unnormalised"]),
      "quaternion_from_matrix": rotations.matrix_to_quaternion(matrix),
      "standardized": rotations.standardise(q),
      "multiply": rotations.quaternion_multiply(q, q2),
      "invert": rotations.quaternion_invert(q),
      "apply": rotations.quaternion_apply(q, points),
      "decode_sixd_normalized": decode(rotations.normalise_6d(six)),
      "decode_six_raw_as_normalized": decode(given["six_raw"]),
      "compose_matrix": composed,
      "compose_points": pose.transform_points(
        points[:, None], pose.Pose(pose.transpose(matrix), given["T"], given["S"])
      )[:, 0],
      "compose_inverse_matrix": jnp.linalg.inv(composed),
      "decomposed_scale": scale,
      "decomposed_rotation": rotation,
      "decomposed_translation": translation,
      "camera_to_pytorch3d_rotation": flip[None],
      "camera_to_pytorch3d_points": cameras.convert_frame(points, "opencv", "pytorch3d"),
    }

  return {f"out/{k}": v for k, v in run().items()}
