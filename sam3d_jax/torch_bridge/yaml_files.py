"""The yamls of a release folder as trees: the classes they name, reading, checking, writing.

The published pipeline builds its modules from them with Hydra: `_target_` names a class, the rest
are constructor arguments. Written are network arguments and sampling settings; arguments that only
matter to training elsewhere keep their defaults.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import yaml

from sam3d_jax.errors import InputError

BACKBONE = "sam3d_objects.model.backbone."
GENERATOR = BACKBONE + "generator."
TDFY = BACKBONE + "tdfy_dit.models."
EMBEDDER = BACKBONE + "dit.embedder."
DATASET = "sam3d_objects.data.dataset.tdfy."
GUIDANCE = "classifier_free_guidance.ClassifierFreeGuidanceWithExternalUnconditionalProbability"
TARGETS = {
  "shortcut": GENERATOR + "shortcut.model.ShortCut",
  "flow_matching": GENERATOR + "flow_matching.model.FlowMatching",
  "guidance": GENERATOR + GUIDANCE,
  "flow": TDFY + "mot_sparse_structure_flow.SparseStructureFlowTdfyWrapper",
  "latent": TDFY + "mm_latent.Latent",
  "learnt_position": TDFY + "mm_latent.LearntPositionEmbedder",
  "shape_position": TDFY + "mm_latent.ShapePositionEmbedder",
  "fuser": EMBEDDER + "embedder_fuser.EmbedderFuser",
  "dino": EMBEDDER + "dino.Dino",
  "pointmap": EMBEDDER + "pointmap.PointPatchEmbed",
  "decoder": TDFY + "sparse_structure_vae.SparseStructureDecoderTdfyWrapper",
  "encoder": TDFY + "sparse_structure_vae.SparseStructureEncoderTdfyWrapper",
  "pipeline": "sam3d_objects.pipeline.inference_pipeline_pointmap.InferencePipelinePointMap",
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """What yamls say beside the network.

  sampler: the fields of sampling.generate.SamplerConfig; empty for what is not sampled. half:
  modules hold their blocks in fp16, as an fp16 file stores them.
  """

  sampler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  half: bool = False


def at(node: Any, path: str, file: str) -> Any:
  """The value at a dotted path of a tree. Raises InputError naming file and key."""
  for part in path.split("."):
    try:
      if isinstance(node, list):
        node = node[int(part)]
      else:
        node = node[part]
    except (KeyError, IndexError, TypeError, ValueError) as error:
      raise InputError(f"{file} has no {path}") from error
  return node


def require(node: Mapping[str, Any], expected: Mapping[str, Any], file: str) -> None:
  """Raises InputError if an argument is given and is not the one value that is implemented here."""
  wrong = []
  for key, value in expected.items():
    if key in node and node[key] != value:
      wrong.append(f"{key} = {node[key]!r} (only {value!r} is implemented)")
  if wrong:
    raise InputError(f"{file}: {'; '.join(wrong)}")


class _WithoutAliases(yaml.SafeDumper):
  """Spells out what occurs twice, for people to read."""

  def ignore_aliases(self, data):
    return True


def write(path: pathlib.Path, tree: Mapping[str, Any]) -> None:
  """Writes a tree, keys sorted, equal parts spelt out each time."""
  text = yaml.dump(tree, Dumper=_WithoutAliases, sort_keys=True)
  path.write_text(text)


def read(path: pathlib.Path) -> dict[str, Any]:
  """The tree of a file. Raises InputError if it cannot be read or is not a mapping."""
  try:
    tree = yaml.safe_load(path.read_text())
  except (yaml.YAMLError, OSError) as error:
    raise InputError(f"{path} cannot be read: {error}") from error
  if not isinstance(tree, dict):
    raise InputError(f"{path} is not a mapping")
  return tree
