"""RP-3DO, render-and-paste: objects rendered into photographs. What the three variants share.

    rp_3do_fo    flying occlusions: two objects float before the photo, one covers the other
                 (flying.py)
    rp_3do_osr   object swap, random: a photographed object is taken out and a random mesh put in
                 its place (swap.py)
    rp_3do_osa   object swap, annotated: the annotated mesh of the object is put in its place with
                 its pose (swap_annotated.py)

A shard is a pure function of its specification: some meshes to make samples of, a few more as
partners, and photos to draw from. Every random number of a sample follows from (seed, mesh key,
view). A draw that breaks a threshold is counted by its reason and made again.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
import dataclasses
import functools
from importlib import metadata
import json
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

from data_pipelines.build.shard_jobs import Plan, Quarantined, Refusals, ShardJob, contained
from data_pipelines.format import schema
from data_pipelines.synth import assets, filters, iso_3do, render, scenes, sources, voxelize
from data_pipelines.synth.assets import Asset
from data_pipelines.synth.camera import Viewpoint, look_at
from data_pipelines.synth.lighting import LightConfig
from data_pipelines.synth.scene import Scene
from sam3d_jax.errors import ConfigError, Refused
from sam3d_jax.geometry import rotations

VERSION = "1"  # raise it when the same seed gives other bytes
# object to camera, of one who stands before the object and looks slightly down at it
FRONT = look_at(-np.pi / 2, np.radians(20.0))
MEMORIES = 64  # cleared photos that stay in memory, a few megabytes each


class Rejected(Exception):
  """A draw breaks a threshold; the message is the reason that is counted."""


@dataclasses.dataclass(frozen=True)
class PasteConfig:
  """What the examples of every variant depend on, apart from meshes and photos."""

  builder: str
  name: str
  seed: int
  views: int  # samples of each mesh
  samples: int  # colour rays a pixel along each axis
  image_format: str
  delit: bool  # whether to store the de-lit image
  attempts: int  # draws for one sample before it is given up
  partners: int  # meshes that a shard draws occluders from, beside its own
  photos_per_shard: int
  source: sources.SourceConfig
  photos: scenes.PhotoConfig
  light: LightConfig
  filters: filters.FilterConfig
  rules: Any  # the variant's own thresholds
  files_outside: bool = False  # of annotated photos, as in AnnotationConfig


@dataclasses.dataclass(frozen=True)
class ShardSpec:
  """What one shard is made of."""

  config: PasteConfig
  inputs: tuple[sources.Input, ...]  # meshes to make samples of
  partners: tuple[sources.Input, ...]
  photos: tuple[sources.Input, ...]


class Subject(NamedTuple):
  """A mesh ready to be rendered."""

  asset: Asset
  scene: render.Scene
  radius: float  # of the sphere about the origin that holds it, unit cubes


class Pasted(NamedTuple):
  """One sample; `lineage` and `licenses` say what went in beside the target."""

  image_HW3: np.ndarray
  delit_HW3: np.ndarray | None
  mask_HW: np.ndarray
  whole_HW: np.ndarray  # the target as if nothing stood before it
  pointmap_HW3: np.ndarray
  viewpoint: Viewpoint  # of the target
  lineage: dict[str, Any]
  licenses: tuple[str, ...]


Draw = Callable[[Subject, "Stock", PasteConfig, np.random.Generator, int], Pasted]


def plan(
  config: PasteConfig,
  draw: Draw,
  *,
  test_fraction: float,
  objects_per_shard: int,
  needs_depth: bool,
) -> Plan:
  """Lists meshes and photos, splits both and cuts the meshes into shards.

  Meshes and photos of the splits are disjoint; with one mesh or one photo there is no test split.
  Raises ConfigError on wrong sources, and where `needs_depth` and no photo has a point map nor an
  estimator is named.
  """
  meshes = sources.list_inputs(config.source)
  photos = scenes.list_scenes(config.photos)
  if needs_depth:
    photos = with_depth(config, photos)

  # A test split needs meshes and photos of its own.
  mesh_parts = sources.split_inputs(meshes, test_fraction)
  photo_parts = sources.split_inputs(photos, test_fraction)
  if "test" in mesh_parts and "test" in photo_parts:
    by_split = {split: (mesh_parts[split], photo_parts[split]) for split in mesh_parts}
  else:
    by_split = {"train": (meshes, photos)}

  # Every shard draws its own partners and photos from those of its split.
  per_shard = sources.per_shard(objects_per_shard, len(meshes))
  jobs = []
  for number, (split, (own, shots)) in enumerate(by_split.items()):
    shards = sources.deal(own, per_shard)
    for i, dealt in enumerate(shards):
      rng = np.random.default_rng([config.seed, number, i])
      spec = ShardSpec(
        config=config,
        inputs=dealt,
        partners=_some(rng, own, config.partners),
        photos=_some(rng, shots, config.photos_per_shard),
      )
      job = ShardJob(
        split,
        i,
        len(shards),
        len(dealt),
        spec,
      )
      jobs.append(job)

  # What the bytes depend on: a build with another identity is another dataset.
  mesh_digest = sources.digest(meshes)
  photo_digest = scenes.content_digest(config.photos, photos)
  identity = settings(config) | {
    "test_fraction": test_fraction,
    "objects_per_shard": per_shard,
    "inputs": {"count": len(meshes), "digest": mesh_digest},
    "photos": {"count": len(photos), "digest": photo_digest},
  }
  kind = ", synthetic ones" if synthetic(config) else ""
  return Plan(
    name=config.name,
    jobs=tuple(jobs),
    make=functools.partial(make_shard, draw=draw),
    identity=identity,
    lineage=versions(),
    drawn_from=len(photos),
    warnings=(
      *sources.split_warning(by_split, test_fraction, "meshes and two different photos"),
      *sources.license_warning(config.source, meshes),
      *scenes.license_warning(config.photos, photos),
    ),
    description=f"{config.builder}: objects rendered into photographs{kind}",
  )


def _some(rng: np.random.Generator, items: list, most: int) -> tuple:
  """At most `most` of the items, in random order."""
  order = rng.permutation(len(items))
  return tuple(items[i] for i in order[:most])


def with_depth(config: PasteConfig, photos: list[sources.Input]) -> list[sources.Input]:
  """The photos that have a point map. Raises ConfigError if none has."""
  kept = [item for item in photos if scenes.has_depth(config.photos, item)]
  if not kept:
    names = ", ".join(scenes.POINTMAP_NAMES)
    raise ConfigError(
      f"{config.builder} needs depth, and none of the {len(photos)} photos in photos.source = "
      f"{config.photos.source!r} has a point map beside it ({names}). "
      "Put one there, or name an estimator with "
      "--config.photos.depth_command='COMMAND {image} {out}'"
    )
  return kept


def synthetic(config: PasteConfig) -> bool:
  """Whether the photographs are procedural."""
  return config.photos.source == sources.PROCEDURAL


def settings(config: PasteConfig) -> dict[str, Any]:
  """What the bytes depend on apart from the inputs, as JSON."""
  as_json = json.dumps(dataclasses.asdict(config))
  stated = json.loads(as_json)
  # where things lie changes no byte
  del stated["photos"]["depth_cache"]
  del stated["files_outside"]
  # The contents count, by their digest, not the path.
  for section in ("source", "photos"):
    if stated[section]["source"] != sources.PROCEDURAL:
      stated[section]["source"] = "folder"
  return {
    "builder": config.builder,
    "schema": schema.VERSION,
    "versions": versions(),
    "config": stated,
  }


@functools.cache
def versions() -> dict[str, str]:
  """What a record's lineage says of the programs that made it."""
  ours = {
    "renderer": f"embreex-numpy {render.VERSION}",
    "render_paste": VERSION,
  }
  # Whose versions can change a byte.
  packages = ("embreex", "numpy", "opencv-python-headless", "pillow", "scipy", "trimesh")
  return ours | {name: metadata.version(name) for name in packages}


class Stock:
  """What a shard draws from: partner meshes and photos, loaded when first needed.

  Unusable photos are reported once.
  """

  def __init__(self, spec: ShardSpec, refuse: Refusals):
    self.config = spec.config
    self.refuse = refuse
    self.partners = spec.partners
    self.photos = spec.photos

    # Loaded meshes and photos stay; so do, up to a number, photos that were made ready for pasting.
    keep_subjects = functools.lru_cache(maxsize=max(1, len(spec.partners)))
    keep_scenes = functools.lru_cache(maxsize=len(spec.photos))
    self.subject = keep_subjects(self._subject)
    self.scene = keep_scenes(self._scene)
    self.kept: OrderedDict[Any, Any] = OrderedDict()

    # What could not be used, and what was said of it.
    self.bad: set[sources.Input] = set()
    self.reported: set[tuple[str, str]] = set()

  def _subject(self, item: sources.Input) -> Subject:
    asset = sources.read(self.refuse, self.config.source, self.config.filters, item)
    with contained():
      return subject_of(asset)

  def _scene(self, item: sources.Input) -> Scene:
    # What a user's own command makes has its own needs of time and memory.
    photos = self.config.photos
    is_foreign = photos.source != sources.PROCEDURAL and not photos.depth_command
    found, reports = self.refuse.read(scenes.load_reporting, photos, item, foreign=is_foreign)
    for report in reports:
      self._report(*report)
    return found

  def _report(self, path: str, reason: str, detail: str) -> None:
    """Quarantines a file, once for each reason."""
    said = (path, reason)
    if said not in self.reported:
      self.reported.add(said)
      self.refuse(Quarantined(path=path, reason=reason, detail=detail))

  def draw_partner(self, rng: np.random.Generator, fallback: Subject) -> Subject:
    """A random other mesh, `fallback` where there is none.

    Unusable ones are passed over: a shard that has them as input reports them.
    """

    def failed(item: sources.Input, error: Refused) -> None:
      pass

    def another(found: Subject) -> bool:
      return found.asset.key != fallback.asset.key

    # A mesh does not cover itself, unless there is nothing else.
    partner = self._draw(
      rng,
      self.partners,
      self.subject,
      failed,
      another,
    )
    return partner or fallback

  def draw_scene(self, rng: np.random.Generator) -> Scene:
    """A random photo. Raises Rejected where none is usable."""

    def failed(item: sources.Input, error: Refused) -> None:
      self._report(item.name, error.reason, error.detail)

    scene = self._draw(
      rng,
      self.photos,
      self.scene,
      failed,
    )
    if scene is None:
      raise Rejected("no_usable_photo")
    return scene

  def memory(self, key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` made of `key`, while it is among the last that were asked for."""
    # The least recently used go first.
    if key not in self.kept:
      self.kept[key] = make()
    self.kept.move_to_end(key)
    while len(self.kept) > MEMORIES:
      self.kept.popitem(last=False)
    return self.kept[key]

  def _draw(self, rng, items, load, failed, wanted=None):
    """The first item in random order that loads and is wanted; None where there is none."""
    # The order is drawn in one go: how many items are unusable must not shift the numbers that
    # follow.
    for i in rng.permutation(len(items)):
      item = items[i]
      if item in self.bad:
        continue
      try:
        found = load(item)
      except Refused as error:
        self.bad.add(item)
        failed(item, error)
        continue
      if wanted is None or wanted(found):
        return found
    return None


def subject_of(asset: Asset) -> Subject:
  """Prepares a mesh for rendering."""
  scene = render.Scene(asset.mesh, asset.source)
  return Subject(asset, scene, asset.radius)


def make_shard(spec: ShardSpec, refuse: Refusals, *, draw: Draw) -> Iterator[schema.Example]:
  """Yields the examples of a shard in order.

  Refused meshes are reported, and so are those that no draw could place (no_sample).
  """
  stock = Stock(spec, refuse)
  for item in refuse.each(spec.inputs):
    try:
      subject = stock.subject(item)
      # a mesh gives all of its views, or none
      with contained():
        examples = make_examples(
          subject,
          item.name,
          stock,
          spec.config,
          refuse,
          draw,
        )
        made = list(examples)
    except Refused as error:
      refused = Quarantined(
        path=item.name,
        reason=error.reason,
        detail=error.detail,
      )
      refuse(refused)
      continue
    yield from made


def make_examples(
  subject: Subject, name: str, stock: Stock, config: PasteConfig, refuse: Refusals, draw: Draw
) -> Iterator[schema.Example]:
  """Up to `views` examples of one mesh."""
  mesh = subject.asset.mesh
  voxels = None  # made with the first example
  failures = []
  for view in range(config.views):
    # A view's numbers depend on nothing else; draws that fail go on with the same generator.
    rng = iso_3do.generator(config.seed, subject.asset.key, view)
    for _ in range(config.attempts):
      try:
        pasted = draw(subject, stock, config, rng, view)
      except Rejected as rejected:
        reason = str(rejected)
        failures.append(reason)
        refuse.draw(reason)
        continue
      if voxels is None:
        voxels = voxelize.voxelize(mesh.vertices, mesh.faces)
      yield make_example(
        subject.asset,
        pasted,
        config,
        view,
        voxels,
      )
      break

  # A mesh without any example is set aside with the counts of what went wrong.
  if voxels is None:
    reasons = sorted(set(failures))
    counts = ", ".join(f"{reason} {failures.count(reason)}" for reason in reasons)
    detail = f"none of {len(failures)} draws kept to the thresholds: {counts}"
    refuse(Quarantined(path=name, reason="no_sample", detail=detail, fault=False))


def make_example(
  asset: Asset, pasted: Pasted, config: PasteConfig, view: int, voxels: np.ndarray
) -> schema.Example:
  """The record of a sample."""
  lineage = {
    "builder": config.builder,
    "mesh": asset.source,
    "seed": config.seed,
    "view": view,
    **assets.lineage(asset),
    **pasted.lineage,
    **versions(),
  }
  if synthetic(config):
    lineage["synthetic_photo"] = True
  licenses = dict.fromkeys((asset.license, *pasted.licenses))  # each once, in order

  example = schema.empty_example()
  example.update(
    key=schema.example_key(config.name, config.seed, asset.source, asset.key, view),
    source=config.name,
    view=np.int32(view),
    image=render.encode(pasted.image_HW3, config.image_format),
    mask=render.encode(pasted.mask_HW),
    mask_full=render.encode(pasted.whole_HW),
    camera=schema.camera_field(pasted.viewpoint.camera),
    voxels=voxels,
    pointmap=pasted.pointmap_HW3.astype(np.float16),
    mesh_key=asset.key,
    license="; ".join(licenses),
    lineage=json.dumps(lineage, sort_keys=True),
    **schema.pose_fields(pasted.viewpoint.pose),
  )
  if pasted.delit_HW3 is not None:
    example["image_delit"] = render.encode(pasted.delit_HW3, config.image_format)
  return example


def random_rotation(rng: np.random.Generator, largest_turn_deg: float = 180.0) -> np.ndarray:
  """A rotation (3, 3), object to camera, drawn uniformly from those near the view of the front.

  At most `largest_turn_deg` away; 180 are all rotations. The angle of a uniform rotation has the
  distribution function (a - sin a) / pi on [0, pi]; a smaller range is the same law cut off.
  """
  # A normal vector in four dimensions has no preferred direction: a uniform rotation.
  quaternion = rng.standard_normal(4)
  quaternion /= np.linalg.norm(quaternion)
  if largest_turn_deg == 180.0:
    return rotations.quaternion_to_matrix(quaternion)

  def law(angle: float) -> float:
    return (angle - np.sin(angle)) / np.pi

  # The drawn angle keeps its rank, within the smaller range.
  real = quaternion[0]
  imaginary = quaternion[1:]
  drawn = 2 * np.arccos(abs(real))
  largest = np.radians(largest_turn_deg)
  rank = law(drawn) * law(largest)
  angle = scipy.optimize.brentq(lambda a: law(a) - rank, 0.0, largest)

  # The axis stays as it was drawn.
  axis = np.sign(real) * imaginary / np.linalg.norm(imaginary)
  half = angle / 2
  half_turn = np.concatenate([[np.cos(half)], np.sin(half) * axis])
  turn = rotations.quaternion_to_matrix(half_turn)
  return turn @ FRONT
