r"""Exports a trained model as a folder that the published PyTorch pipeline loads.

    python -m launch.export_torch --checkpoint RUN --vae VAE --out OUT \
        [--second TEXTURE_RUN SLAT_VAE_RUN MESH_RUN] [--which ema:0.9999] [--dtype fp16]
    python -m launch.export_torch --checkpoint RUN --take_from RELEASE --out OUT

The structure decoder comes from a checkpoint (--vae), the second stage from others (--second), or
from another release folder (--take_from). What the folder holds, and what the licence of published
weights means for it, is in docs/release.md.
"""

import argparse
from typing import Any

from launch.console import cli
from launch.console.flags import dry_run_flag, step_flag, which_flag
from launch.console.folders import check_folder


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--checkpoint", required=True, help="work folder of the model")
  parser.add_argument("--out", required=True, help="release folder to write; must not exist")
  step_flag(parser)
  which_flag(parser)
  parser.add_argument(
    "--vae", help="work folder of the structure VAE that encoded the training data"
  )
  parser.add_argument("--vae_which", default="ema", help="as --which, of the structure VAE")
  parser.add_argument(
    "--second",
    nargs="+",
    default=[],
    metavar="RUN",
    help="work folders of the second stage: texture model, SLAT autoencoder, decoders",
  )
  parser.add_argument("--second_which", default="ema", help="as --which, of the second stage")
  parser.add_argument(
    "--take_from", help="release folder that parts are taken over from, where none is given"
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
  dry_run_flag(parser, "check that all of it fits")


def run(args: argparse.Namespace) -> None:
  """Opens and checks, then writes."""
  check_folder(args.out, "--out")
  # The wall: what knows JAX is imported only once there is work to do.
  from sam3d_jax.torch_bridge import export

  model = export.Source(
    workdir=args.checkpoint,
    which=args.which,
    step=args.step,
    merge_lora=args.merge_lora,
  )
  vae = None
  if args.vae:
    vae = export.Source(workdir=args.vae, which=args.vae_which)
  second = []
  for workdir in args.second:
    source = export.Source(
      workdir=workdir,
      which=args.second_which,
      merge_lora=args.merge_lora,
    )
    second.append(source)
  suffix = ".safetensors" if args.safetensors else ".ckpt"
  spec = export.Export(
    model=model,
    out=args.out,
    vae=vae,
    second=tuple(second),
    take_from=args.take_from,
    storage=export.Storage(args.dtype, suffix),
  )
  if args.dry_run:
    export.check(spec)
    print(f"would write {args.out} ({args.dtype}, {suffix})")
    return
  record = export.export(spec)
  print(summary(args.out, record))


def summary(out: str, record: dict[str, Any]) -> str:
  """What was written, for the terminal."""
  # the files
  lines = [f"wrote {out} ({record['storage']})"]
  for part, entry in record["parts"].items():
    megabytes = entry["bytes"] / 1e6
    lines.append(f"{part:18} {entry['file']:28} {megabytes:9.1f} MB  {entry['origin']}")

  lines.append("MODEL_CARD.md: filled in; what only you can say is marked in it")

  # whether the published pipeline can use them
  pipeline = record["published_pipeline"]
  if pipeline["loads"]:
    lines.append("the published pipeline can load this folder")
  else:
    lines.append("the published pipeline cannot load this folder as it is:")
    lines += [f"  {why}" for why in pipeline["obstacles"]]

  # what nobody has vouched for
  if not record["decoder"]["verified"] and record["decoder"]["from"] is not None:
    lines.append(
      "not checked: whether the decoder belongs to the latents trained on (one of them does not "
      "say its autoencoder)"
    )
  if record["slat"]["verified"] is False:
    lines.append(
      "not checked: whether the second stage's decoders belong to its latents (one of them does "
      "not say its autoencoder)"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  raise SystemExit(main())
