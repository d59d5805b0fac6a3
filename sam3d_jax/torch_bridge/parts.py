"""Which published files a model of ours becomes: parts, prefixes, rules."""

import dataclasses
import pathlib
from typing import Any

from sam3d_jax.models.geometry import GeometryConfig
from sam3d_jax.models.structure_vae import StructureVAEConfig
from sam3d_jax.torch_bridge import keys, names_conditioning, names_geometry

GENERATOR_PREFIX = "_base_models.generator."
CONDITION_PREFIX = "_base_models.condition_embedder."
# root key of a generator's checkpoint; decoders and encoders are bare state dicts
STATE_DICT = "state_dict"


@dataclasses.dataclass(frozen=True)
class Part:
  """One published module: its name, the file (without suffix) and root key that hold it, and its
  rules with all prefixes.
  """

  name: str
  file: str
  root: str | None
  rules: list[keys.Rule]


def parts_of(cfg: Any) -> list[Part]:
  """The parts that a model of this (typed) configuration becomes."""
  if isinstance(cfg, GeometryConfig):
    flow = keys.prefixed(names_geometry.geometry_flow_rules(cfg.flow), GENERATOR_PREFIX, "flow/")
    condition = keys.prefixed(
      names_conditioning.condition_encoder_rules(cfg.condition), CONDITION_PREFIX, "condition/"
    )
    return [
      Part("ss_generator", "ss_generator", STATE_DICT, flow),
      Part("ss_condition_embedder", "ss_generator", STATE_DICT, condition),
    ]
  if isinstance(cfg, StructureVAEConfig):
    decoder = keys.prefixed(names_geometry.structure_decoder_rules(cfg), ours="decoder/")
    encoder = keys.prefixed(names_geometry.structure_encoder_rules(cfg), ours="encoder/")
    return [
      Part("ss_decoder", "ss_decoder", None, decoder),
      Part("ss_encoder", "ss_encoder", None, encoder),
    ]
  raise TypeError(f"{type(cfg).__name__} has no published form")


def files_of(cfg: Any) -> dict[str, tuple[str | None, list[keys.Rule]]]:
  """File name without suffix -> (root key, rules of everything in it)."""
  files: dict[str, tuple[str | None, list[keys.Rule]]] = {}
  for part in parts_of(cfg):
    root, rules = files.get(part.file, (part.root, []))
    files[part.file] = (root, rules + part.rules)
  return files


def release_keys(
  cfg: Any, our_shapes: dict[str, tuple[int, ...]]
) -> dict[str, dict[str, tuple[int, ...]]]:
  """Part -> published name -> shape. Takes no memory."""
  return {part.name: keys.torch_names(part.rules, our_shapes) for part in parts_of(cfg)}


def find_file(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
  """The checkpoint file of a part in a release folder, .ckpt before .safetensors before .pt; None
  if there is none.
  """
  found = [
    folder / f"{stem}{suffix}"
    for suffix in (".ckpt", ".safetensors", ".pt")
    if (folder / f"{stem}{suffix}").is_file()
  ]
  return found[0] if found else None
