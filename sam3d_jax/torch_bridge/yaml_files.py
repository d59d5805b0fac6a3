"""The yamls of a release folder as trees: the classes they name, reading, checking, writing.

The published pipeline builds its modules from them with Hydra: `_target_` names a class, the rest
are constructor arguments. Written are network arguments and sampling settings; arguments that only
matter to training elsewhere keep their defaults.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import pathlib
import re
import sys
from typing import Any

import yaml

from sam3d_jax.errors import InputError
from sam3d_jax.files import texts

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
  "plain_guidance": GENERATOR + "classifier_free_guidance.ClassifierFreeGuidance",
  "flow": TDFY + "mot_sparse_structure_flow.SparseStructureFlowTdfyWrapper",
  "latent": TDFY + "mm_latent.Latent",
  "learnt_position": TDFY + "mm_latent.LearntPositionEmbedder",
  "shape_position": TDFY + "mm_latent.ShapePositionEmbedder",
  "fuser": EMBEDDER + "embedder_fuser.EmbedderFuser",
  "dino": EMBEDDER + "dino.Dino",
  "pointmap": EMBEDDER + "pointmap.PointPatchEmbed",
  "decoder": TDFY + "sparse_structure_vae.SparseStructureDecoderTdfyWrapper",
  "encoder": TDFY + "sparse_structure_vae.SparseStructureEncoderTdfyWrapper",
  "texture_flow": TDFY + "structured_latent_flow.SLatFlowModelTdfyWrapper",
  "slat_encoder": TDFY + "structured_latent_vae.encoder.SLatEncoderTdfyWrapper",
  "slat_gaussian": TDFY + "structured_latent_vae.decoder_gs.SLatGaussianDecoderTdfyWrapper",
  "slat_mesh": TDFY + "structured_latent_vae.decoder_mesh.SLatMeshDecoderTdfyWrapper",
  "pipeline": "sam3d_objects.pipeline.inference_pipeline_pointmap.InferencePipelinePointMap",
}

TARGET = "_target_"
# What Hydra may be told to call: the published package's own model, data and pipeline, classes of
# layers and of transforms, and the depth model.
CALLED = (
  re.compile(r"sam3d_objects\.(model|data|pipeline)(\.\w+)+"),
  re.compile(r"torch\.nn\.([a-z_]+\.)*[A-Z]\w*"),
  re.compile(r"torchvision\.transforms\.([a-z_0-9]+\.)*[A-Z]\w*"),
  re.compile(r"moge\.model\.v\d+\.MoGeModel(\.from_pretrained)?"),
)
# A module of the package gives access to what it imports: its `os` is Python's.
FOREIGN = sys.stdlib_module_names | {"builtins", "torch", "numpy", "np", "hydra", "omegaconf"}
RESOLVER = re.compile(r"\$\{[^}]*:")  # of OmegaConf: reads the environment, or calls a function
MAX_BYTES = 1 << 22  # of a yaml
MAX_NODES = 100_000  # of its tree, aliases counted as often as they are used


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
  """The tree of a file. Raises InputError if it cannot be read, is no mapping, or is larger than
  any that describes a model.
  """
  try:
    data = path.read_bytes()
    if len(data) > MAX_BYTES:
      raise InputError(f"{path} has {len(data)} bytes; at most {MAX_BYTES} are read")
    tree = yaml.safe_load(texts.decode(data))
  except InputError:
    raise
  # besides its own errors, yaml raises what dates, numbers and deep nesting lead to
  except (yaml.YAMLError, OSError, ValueError, RecursionError, TypeError) as error:
    raise InputError(f"{path} cannot be read: {error}") from error
  if not isinstance(tree, dict):
    raise InputError(f"{path} is not a mapping")

  # Aliases of aliases make a large tree of a small file, or one that holds itself.
  count = 0
  for _ in _nodes(tree):
    count += 1
    if count > MAX_NODES:
      raise InputError(f"{path} has more than {MAX_NODES} values")
  return tree


def _nodes(tree: Any) -> Iterator[tuple[str, Any]]:
  """(dotted place, value) of a tree's values, itself included, the outer before the inner."""
  waiting = [("", tree)]
  while waiting:
    place, node = waiting.pop()
    yield place, node
    inner = []
    if isinstance(node, Mapping):
      inner = list(node.items())
    elif isinstance(node, list | tuple):
      inner = list(enumerate(node))
    for key, value in inner:
      waiting.append((f"{place}.{key}" if place else str(key), value))


def is_called(target: Any) -> bool:
  """Whether `_target_` names what the published pipeline is made of."""
  if not isinstance(target, str):
    return False
  package, *parts = target.split(".")
  if package == "sam3d_objects" and not FOREIGN.isdisjoint(parts):
    return False
  return any(pattern.fullmatch(target) for pattern in CALLED)


def check_targets(tree: Any, file: str | pathlib.Path) -> None:
  """Raises InputError for a tree that would have Hydra call what is no part of the published
  pipeline, or OmegaConf resolve more than references within the file.
  """
  for place, node in _nodes(tree):
    is_target = place.rpartition(".")[2] == TARGET
    if is_target and not is_called(node):
      raise InputError(
        f"{file}: {place} = {node!r} is no class of the published pipeline, and whoever loads the "
        "release would run it: correct the file, or take parts over from another release"
      )
    if isinstance(node, str) and RESOLVER.search(node):
      raise InputError(
        f"{file}: {place} = {node!r} is evaluated by whoever loads the release: write the value"
      )


def only_called(tree: Any) -> Any:
  """The tree without what `check_targets` refuses, at any depth."""
  if isinstance(tree, Mapping):
    kept = {}
    for key, value in tree.items():
      is_named = isinstance(value, Mapping) and TARGET in value
      if is_named and not is_called(value[TARGET]):
        continue
      if key == TARGET and not is_called(value):
        continue
      if not (isinstance(value, str) and RESOLVER.search(value)):
        kept[key] = only_called(value)
    return kept
  if isinstance(tree, list | tuple):
    items = {str(number): value for number, value in enumerate(tree)}
    return list(only_called(items).values())
  return tree
