"""The builder rp_3do_osa: annotated objects replaced by their own meshes, in their own pixels.

Inputs are annotated photos in the layout of data_pipelines/annotations/layout.py, with point maps:
of each item the best candidate or the artist's, if it is a mesh with a pose. Or "procedural":
synthetic rooms, whose objects are known. The light is random in each view; the image pair with and
without it is what textures are learned from.
"""

from collections.abc import Iterator
import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np

from data_pipelines.annotations import dataset, items, layout
from data_pipelines.build.shard_jobs import Plan, Quarantined, Refusals, contained
from data_pipelines.format import schema
from data_pipelines.synth import (
  assets,
  filters,
  iso_3do,
  procedural_scenes,
  render_paste,
  scenes,
  sources,
  swap,
  voxelize,
)
from data_pipelines.synth.camera import Viewpoint, viewpoint
from data_pipelines.synth.render_paste import PasteConfig, Rejected, ShardSpec, Subject
from data_pipelines.synth.scene import Scene
from sam3d_jax.errors import ConfigError, Refused
from sam3d_jax.files import folders

# how far the three scales of a pose may differ: the renderer scales alike along all axes
UNIFORM = 0.02


class Found(NamedTuple):
  """An annotated object."""

  subject: Subject
  scene: Scene
  number: int  # of its mask
  viewpoint: Viewpoint  # the photo's camera at its working size, and the mesh's pose


def plan(config: PasteConfig, *, test_fraction: float, items_per_shard: int) -> Plan:
  """Lists annotated photos, splits them and cuts them into shards.

  Raises ConfigError on a wrong source, or where none has depth.
  """
  procedural = config.source.source == sources.PROCEDURAL
  if procedural:
    inputs = scenes.list_scenes(config.photos)
    contents = sources.digest(inputs)
  else:
    inputs, contents = dataset.list_folder(config.source.source, files_outside=config.files_outside)
    _check_depth(config, inputs)

  def spec(items: tuple[sources.Input, ...]) -> ShardSpec:
    # every mesh goes into its own photo: nothing else is drawn from
    return ShardSpec(config, items, partners=(), photos=())

  per_shard = sources.per_shard(items_per_shard, len(inputs))
  jobs = sources.deal_jobs(inputs, test_fraction=test_fraction, per_shard=per_shard, spec=spec)
  identity = render_paste.settings(config) | {
    "test_fraction": test_fraction,
    "items_per_shard": per_shard,
    "inputs": {"count": len(inputs), "digest": contents},
  }
  kind = ", synthetic ones" if procedural else ""
  return Plan(
    name=config.name,
    jobs=tuple(jobs),
    make=make_shard,
    identity=identity,
    lineage=render_paste.versions(),
    warnings=sources.split_warning((job.split for job in jobs), test_fraction, "photos"),
    description=f"{config.builder}: annotated meshes rendered into their photographs{kind}",
  )


def _check_depth(config: PasteConfig, inputs: list[sources.Input]) -> None:
  """Raises ConfigError if no item has a point map and nothing can make one."""
  if config.photos.depth_command:
    return
  folder = pathlib.Path(config.source.source)
  for item in inputs:
    if _has_depth(folders.located(folder, item.name), config):
      return
  raise ConfigError(
    f"{config.builder} needs depth, and none of the {len(inputs)} items in source = "
    f"{config.source.source!r} names a `pointmap`. Add one to their annotation.json, or name an "
    "estimator with --config.photos.depth_command='COMMAND {image} {out}'"
  )


def _has_depth(path: pathlib.Path, config: PasteConfig) -> bool:
  """Whether an item names a point map."""
  try:
    return _read_item(path, config).pointmap is not None
  except layout.AnnotationError:
    return False  # refused when its shard is built


def _read_item(path: pathlib.Path, config: PasteConfig) -> layout.Item:
  """An item of the source. Raises AnnotationError."""
  return layout.read(path, root=config.source.source, files_outside=config.files_outside)


def make_shard(spec: ShardSpec, refuse: Refusals) -> Iterator[schema.Example]:
  """Yields the examples of a shard in order; items without any are reported with their reason."""
  for entry in refuse.each(spec.inputs):
    try:
      found = annotated_objects(spec.config, entry, refuse)
    except Refused as error:
      # What is merely not wanted is no fault of the data.
      fault = not isinstance(error, items.SetAside)
      refused = Quarantined(
        entry.name,
        error.reason,
        error.detail,
        fault=fault,
      )
      refuse(refused)
      continue

    # An item is reported if none of its objects gave an example.
    failures = []
    for one in found:
      made = []
      try:
        with contained():
          made, reason = examples_of(one, spec.config)
        if reason:
          failures.append(reason)
          refuse.draw(reason)
      except Refused as error:
        refuse(Quarantined(entry.name, error.reason, error.detail))
      yield from made
    if len(failures) == len(found):
      listed = ", ".join(failures)
      detail = f"no object kept to the thresholds: {listed}"
      refuse(Quarantined(entry.name, "no_sample", detail, fault=False))


def examples_of(found: Found, config: PasteConfig) -> tuple[list[schema.Example], str]:
  """The examples of an object, or none and why it was rejected."""
  try:
    return list(make_examples(found, config)), ""
  except Rejected as rejected:
    return [], str(rejected)


def annotated_objects(config: PasteConfig, entry: sources.Input, refuse: Refusals) -> list[Found]:
  """The objects of an input. Raises Refused."""
  if config.source.source == sources.PROCEDURAL:
    with contained():
      return rooms_objects(config, entry)
  # What a user's own command makes has its own needs of time and memory.
  is_foreign = not config.photos.depth_command
  asset, scene, seen = refuse.read(item_object, config, entry, foreign=is_foreign)
  with contained():
    return [Found(render_paste.subject_of(asset), scene, 0, seen)]


def make_examples(found: Found, config: PasteConfig) -> Iterator[schema.Example]:
  """One example a view, each under another light. Raises Rejected before the first."""
  asset = found.subject.asset
  photographed = found.scene.masks[found.number]
  # Cleared once: views differ in their light alone.
  cleared = swap.clear(found.scene, photographed, config.rules)
  voxels = voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces)
  for view in range(config.views):
    rng = iso_3do.generator(
      config.seed,
      asset.key,
      found.number,
      view,
    )
    inserted = swap.insert(
      found.subject,
      found.viewpoint,
      cleared,
      config,
      rng,
    )

    # How well the mesh lies on the pixels of what it replaces.
    both = inserted.visible_HW & photographed
    either = inserted.visible_HW | photographed
    overlap = float(both.sum() / either.sum())
    lineage = {"object": found.number, "mask_iou": round(overlap, 4)}
    pasted = swap.record(
      found.viewpoint,
      found.scene,
      inserted,
      lineage,
    )
    yield render_paste.make_example(
      asset,
      pasted,
      config,
      view,
      voxels,
    )


def rooms_objects(config: PasteConfig, entry: sources.Input) -> list[Found]:
  """The objects of a synthetic room that may be swapped."""
  index = int(entry.name.rpartition("-")[2])
  room = procedural_scenes.make_room(
    config.photos.seed,
    index,
    config.photos.image_size,
  )
  chosen = swap.usable_objects(room.scene, config.rules)
  if not chosen:
    detail = f"{entry.name}: nothing in the room is larger than min_object_share"
    raise items.SetAside("no_object", detail)
  found = []
  for number in chosen:
    thing = room.objects[number]
    subject = render_paste.subject_of(thing.asset)
    one = Found(
      subject,
      room.scene,
      number,
      thing.viewpoint,
    )
    found.append(one)
  return found


def item_object(config: PasteConfig, entry: sources.Input) -> tuple[assets.Asset, Scene, Viewpoint]:
  """The object of an annotated item: its mesh, its photo, and the camera with the mesh's pose.

  Raises Refused; SetAside where the item has no posed mesh, no point map or too small an object.
  """
  path = folders.located(config.source.source, entry.name)
  try:
    item = _read_item(path, config)
  except layout.AnnotationError as error:
    raise Refused("bad_annotation", str(error)) from error

  # The mesh that the annotators chose or made.
  candidate = posed_mesh(item)
  if candidate is None:
    detail = (
      f"{entry.name}: neither the best candidate nor an artist's mesh is a mesh file with a pose"
    )
    raise items.SetAside("no_posed_mesh", detail)
  license = candidate.license or item.license or config.source.license
  asset = assets.load(
    candidate.mesh,
    license=license,
    max_coordinate=config.source.max_coordinate,
  )
  filters.check(asset, config.filters)

  # The photo, in which the object is large enough.
  scene = item_scene(config, entry, item)
  if not swap.usable_objects(scene, config.rules):
    raise items.SetAside(
      "small_object",
      f"{entry.name}: the mask covers less than min_object_share = "
      f"{config.rules.min_object_share:g}",
    )

  # The pose, of one scale along all axes and before the camera.
  pose = items.mesh_pose(candidate, asset)
  spread = np.ptp(pose.scale)
  if spread > UNIFORM * pose.scale.max():
    detail = f"{entry.name}: scales {pose.scale} differ; bake the stretch into the mesh"
    raise items.SetAside("stretched_pose", detail)
  scale = float(pose.scale.mean())
  seen = viewpoint(
    scene.camera,
    pose.rotation,
    pose.translation,
    scale,
  )
  posed = seen.points(asset.mesh.vertices)
  depth = posed[:, 2]
  if depth.min() <= 0:
    raise Refused("bad_pose", f"{entry.name}: part of the mesh lies behind the camera")
  named = dataclasses.replace(asset, source=entry.name)
  return named, scene, seen


def posed_mesh(item: layout.Item) -> layout.Candidate | None:
  """The best candidate or the artist's, whichever first is a mesh file with a pose."""
  for candidate in (item.best, item.artist):
    if candidate is None or candidate.mesh is None:
      continue
    if candidate.has_pose:
      return candidate
  return None


def item_scene(config: PasteConfig, entry: sources.Input, item: layout.Item) -> Scene:
  """The item's photo with one mask and a point map.

  Raises Refused with the reason of what cannot be used; SetAside (no_pointmap).
  """
  problems: list[Refused] = []

  def note(path: str, reason: str, detail: str) -> None:
    problems.append(Refused(reason, detail))

  files = scenes.Files(
    image=item.image,
    masks=(item.mask,),
    pointmap=item.pointmap,
    camera=item.camera,
    frame=item.frame,
  )
  license = item.license or config.photos.license
  photo = dataclasses.replace(config.photos, license=license)
  scene = scenes.read(photo, entry, files, note)
  if problems:
    raise problems[0]
  if scene.pointmap_HW3 is None:
    detail = f"{entry.name} names no point map, and photos.depth_command is not set"
    raise items.SetAside("no_pointmap", detail)
  return dataclasses.replace(scene, name=entry.name)
