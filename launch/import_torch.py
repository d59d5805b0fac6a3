"""Imports published weights as a checkpoint from which any stage can start.

    python -m launch.import_torch --from RELEASE_FOLDER --workdir DIR                       the Geometry model of a release
    python -m launch.import_torch --from RELEASE_FOLDER --workdir DIR --part structure_vae [--encoder FILE]
    python -m launch.import_torch --from FILE --workdir DIR --config configs/x.py           one .ckpt, .pt, .pth or .safetensors
    python -m launch.import_torch --from dinov2_vitl14_reg4_pretrain.pth --workdir DIR --config configs/pretrain_geometry.py

An original DINOv2 checkpoint goes into the image and the mask encoder of the configured model; the
other parameters are initialised at random. Arrays are converted and written one at a time. Every
missing, unexpected or misshapen entry is reported before anything is written.
"""

import argparse
import math
import pathlib

from launch.console import cli
from sam3d_jax.errors import InputError

PARTS = ("geometry", "structure_vae")


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="optional", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--from", dest="source", required=True, help="release folder or state dict file"
  )
  parser.add_argument(
    "--workdir", required=True, help="folder for the checkpoint; must not hold one"
  )
  parser.add_argument(
    "--part", choices=PARTS, default=PARTS[0], help="model of a release folder (default: geometry)"
  )
  parser.add_argument(
    "--encoder", help="state dict of the structure encoder, which the published release lacks"
  )
  parser.add_argument(
    "--unsafe_pickle",
    action="store_true",
    help="also read files that run code on loading: trusted ones only",
  )


def run(args: argparse.Namespace) -> None:
  """Opens and checks, then writes."""
  from sam3d_jax.torch_bridge import load, stream
  from sam3d_jax.training import checkpoint

  source = pathlib.Path(args.source)
  if checkpoint.steps(args.workdir):
    raise InputError(f"--workdir {args.workdir} already holds a checkpoint; give an empty folder")
  if source.is_dir():
    config, params, files = from_release(args, source)
  else:
    config, params, files = from_file(args, source)
  digests = {str(path): load.file_digest(path) for path in files}
  lineage = {
    "stage": "import",
    "parents": [],
    "datasets": {},
    "source": str(source),
    "files": digests,
  }
  latents = import_latents(source, params, files, digests)
  meta = {
    "config": config.to_dict(),
    "lineage": lineage | ({"latents": latents} if latents else {}),
  }
  stream.write_params(args.workdir, params, meta)
  values = sum(math.prod(shape) for shape in params.shapes.values())
  print(f"imported {len(params)} arrays, {values / 1e6:.1f} M parameters, into {args.workdir}")


def from_release(args: argparse.Namespace, folder: pathlib.Path):
  """Configuration, lazy parameters and files read, of one model of a release folder."""
  from ml_collections import ConfigDict

  from sam3d_jax.torch_bridge import release as release_lib

  release = release_lib.read_release(folder)
  if args.part == "structure_vae":
    if release.structure_vae is None:
      raise InputError(f"{folder} has no ss_decoder.yaml")
    config = import_config(args.config, ConfigDict(release.structure_vae), release)
    params = release_lib.open_structure_vae(
      release, config.model, encoder=args.encoder, unsafe_pickle=args.unsafe_pickle
    )
    return (
      config,
      params,
      [release.files["ss_decoder"], pathlib.Path(args.encoder or release.files["ss_encoder"])],
    )
  config = import_config(args.config, ConfigDict(release.geometry), release)
  params = release_lib.open_geometry(release, config.model, unsafe_pickle=args.unsafe_pickle)
  return config, params, [release.files["ss_generator"]]


def from_file(args: argparse.Namespace, path: pathlib.Path):
  """Configuration, lazy parameters and files read, of a single state dict file."""
  from sam3d_jax.torch_bridge import load
  from sam3d_jax.torch_bridge import release as release_lib

  if args.config is None:
    raise InputError(f"{path} is a single file: say with --config FILE which model it is")
  config = args.config
  if config.model.name == "structure_vae":
    if args.encoder is None:
      raise InputError(f"{path} is taken as the decoder: give the encoder with --encoder FILE")
    params = release_lib.open_autoencoder(
      path, args.encoder, config.model, unsafe_pickle=args.unsafe_pickle
    )
    return config, params, [path, pathlib.Path(args.encoder)]
  file = load.open_state(path, unsafe_pickle=args.unsafe_pickle)
  if "cls_token" in file.shapes and "patch_embed.proj.weight" in file.shapes:
    return config, with_dinov2(config, file), [path]
  return config, release_lib.open_file(path, config.model, unsafe_pickle=args.unsafe_pickle), [path]


def with_dinov2(config, file):
  """Lazy parameters of the configured model: both encoders from a DINOv2 state dict, everything
  else freshly initialised.
  """
  from flax import nnx
  import jax
  import numpy as np

  from sam3d_jax.models import parameters, registry
  from sam3d_jax.torch_bridge import load, names_conditioning

  shapes = parameters.flat_shapes(registry.abstract_model(config.model))
  prefixes = [f"condition/{name}/" for name in names_conditioning.DINO_MODULES]
  encoder_shapes = {
    p.removeprefix(prefixes[0]): s for p, s in shapes.items() if p.startswith(prefixes[0])
  }
  rules = names_conditioning.dinov2_rules(registry.typed_config(config.model).condition.dino)
  encoder = load.convert(rules, file, encoder_shapes)

  @jax.jit  # so that the encoders' random parameters, which are not returned, are never made
  def fresh():
    flat = parameters.flat_params(registry.build_model(config.model, rngs=nnx.Rngs(config.seed)))
    return {p: x for p, x in flat.items() if not p.startswith(tuple(prefixes))}

  rest = fresh()

  def make(path: str):
    prefix = next((p for p in prefixes if path.startswith(p)), None)
    return np.asarray(rest[path]) if prefix is None else encoder[path.removeprefix(prefix)]

  return parameters.LazyParams(shapes, make)


def import_config(given, model, release):
  """The configuration to store: the given one, if its model has the release's sizes, or one made
  from the release's yamls.
  """
  from configs import base
  from sam3d_jax.models import parameters, registry

  if given is not None:
    needed = parameters.flat_shapes(registry.abstract_model(model))
    parameters.check_shapes(parameters.flat_shapes(registry.abstract_model(given.model)), needed)
    return given
  config = base.training("import")
  config.model = model
  if model.name == "geometry":
    config.data.image_size = model.condition.dino.input_size
    if model.condition.pointmap is not None:
      config.data.pointmap_size = model.condition.pointmap.input_size
    config.sampler = base.sampler()
    with config.ignore_type():
      config.sampler.update(release.sampler)
  if release.structure_vae is not None:
    config.data.resolution = release.structure_vae["resolution"]
  return config


def import_latents(source: pathlib.Path, params, files, digests) -> dict | None:
  """Which decoder the imported flow model belongs to: the one that lies beside it."""
  from sam3d_jax.torch_bridge import load
  from sam3d_jax.torch_bridge import release as release_lib

  if not source.is_dir() or not any(p.startswith("flow/") for p in params):
    return None
  release = release_lib.read_release(source)
  known = dict(release.sidecar.get("latents") or {})
  if "ss_decoder" in release.files:
    known["decoder_sha256"] = load.file_digest(release.files["ss_decoder"])
    known.setdefault("autoencoder", release.sidecar.get("decoder", {}).get("autoencoder"))
  return known or None


if __name__ == "__main__":
  raise SystemExit(main())
