"""Exports a trained Geometry model as a folder that the published PyTorch pipeline loads.

    python -m launch.export_torch --checkpoint RUN --vae VAE_RUN --out FOLDER [--which ema:0.9999] [--dtype fp16]
    python -m launch.export_torch --checkpoint RUN --take_from PUBLISHED_FOLDER --out FOLDER

The structure decoder comes from a checkpoint (--vae) or, like the second stage, from another
release folder (--take_from). What the folder holds, and what the licence of published weights means
for it, is in docs/release.md.
"""

import argparse

from launch.console import cli
from sam3d_jax.errors import InputError


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--checkpoint", required=True, help="work folder of the Geometry model")
  parser.add_argument("--out", required=True, help="release folder to write; must not exist")
  parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
  parser.add_argument(
    "--which",
    default="ema",
    help="parameters: raw, ema (slowest decay) or ema:<decay> (default: ema)",
  )
  parser.add_argument(
    "--vae", help="work folder of the structure VAE that encoded the training data"
  )
  parser.add_argument("--vae_which", default="ema", help="as --which, of the structure VAE")
  parser.add_argument(
    "--take_from", help="release folder whose decoder and second stage are taken over"
  )
  parser.add_argument(
    "--dtype",
    choices=("fp32", "fp16", "bf16"),
    default="fp32",
    help="how weights are stored (default: fp32)",
  )
  parser.add_argument(
    "--safetensors",
    action="store_true",
    help="write .safetensors, which needs no PyTorch, in place of .ckpt",
  )
  parser.add_argument(
    "--merge_lora", action="store_true", help="fold low-rank adapters into the kernels they adapt"
  )


def run(args: argparse.Namespace) -> None:
  """Opens and checks, then writes."""
  from sam3d_jax.torch_bridge import release

  geometry = open_model(
    args.checkpoint, "geometry", which=args.which, step=args.step, merge_lora=args.merge_lora
  )
  vae = (
    open_model(args.vae, "structure_vae", which=args.vae_which, step=None, merge_lora=False)
    if args.vae
    else None
  )
  record = release.write_release(
    args.out,
    geometry,
    vae,
    take_from=args.take_from,
    storage=args.dtype,
    suffix=".safetensors" if args.safetensors else ".ckpt",
  )
  print(summary(args.out, record))


def open_model(workdir: str, name: str, *, which: str, step: int | None, merge_lora: bool):
  """A checkpoint as a model to release; arrays are read as they are written."""
  from ml_collections import ConfigDict

  from sam3d_jax.models import lora as lora_math
  from sam3d_jax.models import parameters
  from sam3d_jax.torch_bridge import lora, release, stream
  from sam3d_jax.training import checkpoint

  step = checkpoint.resolve_step(workdir, step)
  meta = checkpoint.read_meta(workdir, step)
  config = ConfigDict(meta["config"])
  if config.model.name != name:
    raise InputError(f"{workdir} holds a {config.model.name} model, not a {name} model")
  sources = checkpoint.param_sources(checkpoint.stored_shapes(workdir, step), which)
  params = stream.read_params(workdir, step, in_file_order(config, sources))
  factors = lora_math.factor_paths(sources)
  if factors and not merge_lora:
    raise InputError(
      f"{workdir} holds {len(factors)} low-rank factors, which a release cannot hold: give "
      "--merge_lora"
    )
  if factors:
    params = lora.merge(params, params.shapes, lora_math.scale_of(config))
  elif merge_lora:
    raise InputError(f"--merge_lora: {workdir} holds no low-rank factors")
  parent = {
    "path": str(workdir),
    "step": step,
    "which": which,
    "digest": checkpoint.digest(meta),
    "lineage": meta["lineage"],
  }
  lineage = {"stage": "export", "parents": [parent], "merged_lora": bool(factors)}
  return release.Model(
    config=config,
    params=params,
    shapes=params.shapes,
    lineage=lineage,
    digest=parent["digest"],
    autoencoder=parameters.params_digest(params) if name == "structure_vae" else None,
  )


def in_file_order(config, sources: dict[str, str]) -> dict[str, str]:
  """The paths in the order in which the published files hold them, each kernel followed by its
  low-rank factors.
  """
  from sam3d_jax.models import registry
  from sam3d_jax.torch_bridge import parts

  rules = [
    rule
    for part in parts.parts_of(registry.typed_config(config.model))
    for rule in part.rules
    if rule.ours is not None
  ]
  rank = {rule.ours: i for i, rule in enumerate(rules)}

  def key(path: str):
    module, _, name = path.rpartition("/")
    return rank.get(f"{module}/kernel" if name.startswith("lora_") else path, len(rank)), name

  return {path: sources[path] for path in sorted(sources, key=key)}


def summary(out: str, record: dict) -> str:
  """What was written, for the terminal."""
  lines = [
    f"{part:18} {entry['file']:28} {entry['bytes'] / 1e6:9.1f} MB  {entry['origin']}"
    for part, entry in record["parts"].items()
  ]
  pipeline = record["published_pipeline"]
  if pipeline["loads"]:
    lines.append("the published pipeline can load this folder")
  else:
    lines += ["the published pipeline cannot load this folder as it is:"] + [
      f"  {why}" for why in pipeline["obstacles"]
    ]
  if not record["decoder"]["verified"]:
    lines.append(
      "not checked: whether the decoder belongs to the latents trained on (one of them does not "
      "say its autoencoder)"
    )
  return "\n".join([f"wrote {out} ({record['storage']})", *lines])


if __name__ == "__main__":
  raise SystemExit(main())
