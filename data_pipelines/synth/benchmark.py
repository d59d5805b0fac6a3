"""The frozen procedural benchmark: held-out objects in rooms, alone and behind occluders.

Every object is photographed from one camera under one light at each level of `LEVELS`; only the
occluder differs, so the levels compare like with like. Objects are those of `procedural` under a
seed of the benchmark's own. What a photo shows is a pure function of (seed, object, level,
candidate); which candidate occluder leaves the right part of the object visible was searched once
and is kept in `benchmarks/<name>.json` with a digest of every photo's truth:

- covered by the digest, exactly: the mesh (vertices to 1e-5), its 64^3 voxels, the object's pose
  and the camera (to 1e-5), the occluder's mesh and place. These are scored, and they must be equal
  on every machine.
- checked within VISIBLE_TOLERANCE: the visible share of the object. Pixels come from a float32 ray
  caster, which may decide a pixel on an edge otherwise on another processor.

`python -m launch.make_examples benchmark` searches and freezes a new one.
"""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
from importlib import metadata
import json
import pathlib

import numpy as np

from data_pipelines.build import shard_jobs
from data_pipelines.format import records, schema
from data_pipelines.read import rows
from data_pipelines.synth import assets, procedural, render, room, voxelize
from data_pipelines.synth.camera import ViewConfig, Viewpoint, random_view
from data_pipelines.synth.lighting import LightConfig, Lights, random_lights
from sam3d_jax.errors import InputError
from sam3d_jax.geometry import cameras
from sam3d_jax.render.mesh import Mesh, join

FOLDER = pathlib.Path(__file__).with_name("benchmarks")
# visible share of the object's pixels
LEVELS = {"none": (1.0, 1.0), "light": (0.65, 0.9), "heavy": (0.3, 0.55)}
VISIBLE_TOLERANCE = 0.01
PLACES = 1e-5  # to which the digest rounds lengths, angles and pixels
OCCLUDERS = 1_000_000  # first of the numbers of occluders, and how many there are
CANDIDATES = 3000  # occluders tried per photo when a benchmark is frozen
PROBE_SIZE = 96  # pixels a side at which they are tried
VIEW = ViewConfig(
  fov_deg=(30.0, 55.0), elevation_deg=(8.0, 40.0), roll_deg=(-3.0, 3.0), fill=(0.45, 0.65)
)
LIGHT = LightConfig(elevation_deg=(35.0, 75.0))
SPLIT = "test"


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A frozen benchmark."""

  name: str
  seed: int
  image_size: int
  digest: str  # of all photos' digests
  # one a photo, in order: object, level, candidate (-1: no occluder), visible, digest
  photos: tuple[dict, ...]

  @property
  def objects(self) -> list[int]:
    return sorted({photo["object"] for photo in self.photos})


@dataclasses.dataclass(frozen=True)
class Subject:
  """One object, how it is seen, its light and its room."""

  asset: assets.Asset
  viewpoint: Viewpoint
  lights: Lights
  backdrop: tuple[Mesh, ...]
  floor: float  # height in the object frame


def names() -> list[str]:
  return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Benchmark:
  """A benchmark that ships with the project; `<name>:<n>` takes its first n objects.

  Raises InputError on an unknown name.
  """
  name, colon, count = name.partition(":")
  path = FOLDER / f"{name}.json"
  if not path.is_file():
    known = ", ".join(names())
    raise InputError(f"--benchmark {name!r} does not exist; there is {known}")
  data = json.loads(path.read_text())
  photos = data["photos"]

  # A file that was edited is no benchmark any more.
  found = total_digest(photos)
  stated = data["digest"]
  if found != stated:
    raise InputError(
      f"{path} was changed: its photos give digest {found[:12]}, it says {stated[:12]}"
    )

  if colon:
    # The first objects alone, for a quick look.
    known = len({photo["object"] for photo in photos})
    if not count.isdecimal() or not 1 <= int(count) <= known:
      raise InputError(f"--benchmark {name}:{count}: give a number of objects from 1 to {known}")
    photos = [photo for photo in photos if photo["object"] < int(count)]
  return Benchmark(
    name=name,
    seed=data["seed"],
    image_size=data["image_size"],
    digest=total_digest(photos),
    photos=tuple(photos),
  )


def total_digest(photos) -> str:
  """Digest of all photos' digests, with whose they are."""
  # The order of the photos is part of what is frozen.
  text = ""
  for photo in photos:
    text += f"{photo['object']} {photo['level']} {photo['digest']}\n"
  return hashlib.sha256(text.encode()).hexdigest()


def object_asset(seed: int, index: int) -> assets.Asset:
  """Object `index` of a benchmark."""
  family = procedural.family_of(index)
  source = f"procedural/{seed}/{family}-{index}"
  scene = procedural.make_scene(seed, index)
  return assets.from_scene(scene, source=source, up="z", license="CC0-1.0")


def make_subject(seed: int, index: int, image_size: int) -> Subject:
  """Object `index` with everything that its photos share."""
  asset = object_asset(seed, index)
  rng = np.random.default_rng([seed, index, 1])

  # Camera and light.
  low, high = np.log(VIEW.scale)
  log_scale = rng.uniform(low, high)
  scale = float(np.exp(log_scale))
  seen, azimuth = random_view(
    rng,
    VIEW,
    image_size=image_size,
    radius=asset.radius,
    scale=scale,
  )
  lights = random_lights(rng, LIGHT, azimuth)

  # The room: the object stands on its floor, the wall is behind it.
  heights = asset.mesh.vertices[:, 2]
  floor = float(heights.min())
  distance = seen.pose.translation[2]
  far = float(distance * rng.uniform(1.6, 2.6))
  backdrop = room.backdrop(rng, seen, floor, far)
  return Subject(
    asset,
    seen,
    lights,
    tuple(backdrop),
    floor,
  )


def occluder(
  subject: Subject, seed: int, index: int, level: str, candidate: int
) -> tuple[assets.Asset, Mesh, room.Spot]:
  """A candidate, its mesh as it stands in the room, and its spot.

  It stands between the object and the camera, clear of the object.
  """
  number = list(LEVELS).index(level)
  rng = np.random.default_rng([seed, index, 2, number, candidate])
  drawn = int(rng.integers(OCCLUDERS))
  thing = object_asset(seed, OCCLUDERS + drawn)

  # Towards the camera, seen on the floor from the object.
  pose = subject.viewpoint.pose
  eye = -pose.translation @ pose.rotation / subject.viewpoint.scale
  on_floor = eye[:2]
  reach = float(np.hypot(*on_floor))
  towards = on_floor / reach
  ahead, left = towards
  sideways = np.array([-left, ahead])

  # Somewhere on that way, and off it to either side.
  size = float(rng.uniform(0.4, 1.5))
  yaw = float(rng.uniform(0, 2 * np.pi))
  clear = _spread(subject.asset) + size * _spread(thing)
  farthest = max(clear, 0.75 * reach)
  along = rng.uniform(clear, farthest)
  aside = rng.uniform(-0.5, 0.5)
  x, y = along * towards + aside * sideways
  spot = room.Spot(float(x), float(y), size, yaw)
  standing = room.stand(thing.mesh, spot, subject.floor)
  return thing, standing, spot


def _spread(asset: assets.Asset) -> float:
  """Radius of the circle about the z axis that holds an object."""
  across = asset.mesh.vertices[:, :2]
  from_axis = np.linalg.norm(across, axis=1)
  return float(from_axis.max())


def visible_part(alone: render.View, together: render.View) -> np.ndarray:
  """Pixels in which the object is the nearest surface."""
  # its own surface may come out a rounding error nearer in the joined mesh
  nearest = alone.depth_HW * (1 - 1e-4)
  with np.errstate(invalid="ignore"):
    return alone.mask_HW & (together.depth_HW >= nearest)


def occluder_of(subject: Subject, benchmark: Benchmark, photo: dict) -> tuple[list[Mesh], dict]:
  """The photo's occluder, if it has one, and what is recorded of it."""
  candidate = photo["candidate"]
  if candidate < 0:
    return [], {"candidate": -1}
  thing, standing, spot = occluder(
    subject,
    benchmark.seed,
    photo["object"],
    photo["level"],
    candidate,
  )
  stated = {
    "candidate": candidate,
    "mesh": thing.key,
    "spot": integers(dataclasses.astuple(spot)),
  }
  return [standing], stated


def truth_record(subject: Subject, benchmark: Benchmark, photo: dict) -> schema.Example:
  """The record of one photo without its pixels: everything that the digest covers."""
  asset = subject.asset
  number = photo["object"]
  level = photo["level"]
  _, occluder_stated = occluder_of(subject, benchmark, photo)
  # How the photo came about, so that it can be made again.
  lineage = {
    "builder": "benchmark",
    "benchmark": benchmark.name,
    "object": number,
    "level": level,
    "mesh": asset.source,
    "occluder": occluder_stated,
  }
  return schema.empty_example() | {
    "key": schema.example_key(benchmark.name, benchmark.seed, number, level),
    "source": benchmark.name,
    "view": np.int32(list(LEVELS).index(level)),
    "voxels": voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces),
    "camera": schema.camera_field(subject.viewpoint.camera),
    "mesh_key": asset.key,
    "license": "CC0-1.0",
    "lineage": json.dumps(lineage, sort_keys=True),
    **schema.pose_fields(subject.viewpoint.pose),
  }


def photograph(
  subject: Subject, benchmark: Benchmark, photo: dict, alone: render.View
) -> schema.Example:
  """The record of one photo; `alone` is the object without anything around it."""
  standing, _ = occluder_of(subject, benchmark, photo)
  # One mesh, so that things hide each other and cast shadows.
  everything = join([subject.asset.mesh, *subject.backdrop, *standing])
  scene = render.Scene(everything, subject.asset.source)
  shown = render.render(scene, subject.viewpoint, subject.lights)
  image = render.over(shown.lit_HW3, shown.alpha_HW, (0, 0, 0))
  return truth_record(subject, benchmark, photo) | {
    "image": render.encode(image),
    "mask": render.encode(visible_part(alone, shown)),
    "mask_full": render.encode(alone.mask_HW),
    "pointmap": shown.pointmap_HW3.astype(np.float16),
  }


def integers(values) -> list[int]:
  """Numbers in units of PLACES, rounded."""
  flat = np.asarray(values, np.float64).reshape(-1)
  steps = np.rint(flat / PLACES)
  return steps.astype(np.int64).tolist()


def record_digest(example: schema.Example) -> str:
  """Digest of what is scored: integers only, so that it is the same on every machine."""
  camera = example["camera"]
  intrinsics = [camera[name] for name in ("fx", "fy", "cx", "cy", "width", "height")]
  voxels = example["voxels"].tobytes()
  lineage = json.loads(example["lineage"])
  content = {
    "key": example["key"],
    "mesh": example["mesh_key"],
    "voxels": hashlib.sha256(voxels).hexdigest(),
    "occluder": lineage["occluder"],
    "rotation": integers(example["rotation"]),
    "translation": integers(example["translation"]),
    "scale": integers(example["scale"]),
    "camera": integers(intrinsics),
  }
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:32]


def visible_share(example: schema.Example) -> float:
  """Visible pixels of the object over all of its pixels."""
  mask = rows.decode_image(example["mask"], "mask", mode="L")
  mask_full = rows.decode_image(example["mask_full"], "mask_full", mode="L")
  visible = np.count_nonzero(mask > 0)
  full = np.count_nonzero(mask_full > 0)
  return visible / full


def check(example: schema.Example, photo: dict) -> None:
  """Raises InputError if a record is not the frozen photo."""
  found = record_digest(example)
  share = visible_share(example)
  is_same = found == photo["digest"]
  off = abs(share - photo["visible"])
  if is_same and off <= VISIBLE_TOLERANCE:
    return

  # What may have changed it are the packages that make pixels and meshes.
  packages = ("numpy", "trimesh", "embreex")
  versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
  raise InputError(
    f"benchmark photo {photo['object']}-{photo['level']} is not the frozen one: digest "
    f"{found[:12]} for {photo['digest'][:12]}, {share:.3f} visible for {photo['visible']:.3f}. Its "
    f"scores would not compare with those of others. It was made with {versions}; install the "
    "versions in requirements.txt and build it anew"
  )


def plan(benchmark: Benchmark) -> shard_jobs.Plan:
  """The benchmark as a dataset to build: one shard an object."""
  jobs = []
  shards = len(benchmark.objects)
  # One shard an object: its photos share mesh, camera and light.
  for number, index in enumerate(benchmark.objects):
    photos = tuple(photo for photo in benchmark.photos if photo["object"] == index)
    part = dataclasses.replace(benchmark, photos=photos)
    job = shard_jobs.ShardJob(
      SPLIT,
      number,
      shards,
      len(photos),
      part,
    )
    jobs.append(job)
  identity = {
    "builder": "benchmark",
    "schema": schema.VERSION,
    "name": benchmark.name,
    "digest": benchmark.digest,
  }
  return shard_jobs.Plan(
    name=benchmark.name,
    jobs=tuple(jobs),
    make=make_shard,
    identity=identity,
    lineage={},
    description="frozen procedural benchmark with occlusion levels",
  )


def make_shard(
  part: Benchmark, refuse: Callable[[shard_jobs.Quarantined], None]
) -> Iterator[schema.Example]:
  """The photos of one object, each checked against its frozen digest."""
  index = part.photos[0]["object"]
  subject = make_subject(part.seed, index, part.image_size)
  alone = seen_alone(subject, subject.viewpoint)
  for photo in part.photos:
    example = photograph(subject, part, photo, alone)
    check(example, photo)
    yield example


def open_checked(benchmark: Benchmark, directory: str) -> tuple[records.Split, list[int]]:
  """The built dataset and the position of every photo in it.

  Raises InputError if one is not the frozen photo.
  """
  # Where each photo lies in the dataset.
  source = records.open_split(directory, SPLIT)
  position_of = {}
  for position in range(len(source)):
    lineage = json.loads(source[position]["lineage"])
    position_of[lineage["object"], lineage["level"]] = position

  # Those of the benchmark in its order, each checked.
  order = []
  for photo in benchmark.photos:
    position = position_of.get((photo["object"], photo["level"]))
    if position is None:
      raise InputError(
        f"{directory} lacks photo {photo['object']}-{photo['level']} of benchmark "
        f"{benchmark.name}; delete it and evaluate again"
      )
    check(source[position], photo)
    order.append(position)
  return source, order


def seen_alone(subject: Subject, viewpoint: Viewpoint) -> render.View:
  """The object without anything around it."""
  scene = render.Scene(subject.asset.mesh, subject.asset.source)
  # One ray a pixel: masks and depths need no more.
  return render.render(scene, viewpoint, subject.lights, samples=1)


def search(benchmark: Benchmark, subject: Subject, index: int, level: str) -> int:
  """The first candidate that leaves a share of the object visible well within the level.

  Raises InputError if there is none.
  """
  # Candidates are tried in small pictures.
  low, high = LEVELS[level]
  camera, pose = subject.viewpoint
  small = cameras.resized(camera, PROBE_SIZE, PROBE_SIZE)
  probe = Viewpoint(small, pose)
  alone = seen_alone(subject, probe)
  closest = 0.1 * pose.translation[2]
  for candidate in range(CANDIDATES):
    _, standing, _ = occluder(
      subject,
      benchmark.seed,
      index,
      level,
      candidate,
    )
    depth = probe.points(standing.vertices)[:, 2]
    if depth.min() < closest:
      continue  # too near the camera

    # Well within the level: the full picture may differ a little from the probe.
    both = join([subject.asset.mesh, standing])
    scene = render.Scene(both, subject.asset.source)
    together = render.render(
      scene,
      probe,
      subject.lights,
      samples=1,
    )
    visible = visible_part(alone, together)
    share = visible.sum() / alone.mask_HW.sum()
    if low + 0.02 < share < high - 0.02:
      return candidate
  raise InputError(
    f"object {index}: none of {CANDIDATES} occluders leaves {low} to {high} of it visible"
  )


def freeze(name: str, *, seed: int, objects: int, image_size: int) -> None:
  """Searches the occluders of a new benchmark and writes its file."""
  empty = Benchmark(
    name,
    seed,
    image_size,
    digest="",
    photos=(),
  )
  photos = []
  for index in range(objects):
    subject = make_subject(seed, index, image_size)
    alone = seen_alone(subject, subject.viewpoint)
    for level in LEVELS:
      candidate = -1
      if level != "none":
        candidate = search(empty, subject, index, level)
      photo = {"object": index, "level": level, "candidate": candidate}
      example = photograph(subject, empty, photo, alone)
      photo["visible"] = round(visible_share(example), 4)
      photo["digest"] = record_digest(example)
      photos.append(photo)
      print(photo, flush=True)

  # One photo a line, so that a change shows where it is.
  lines = ",\n".join("  " + json.dumps(photo) for photo in photos)
  about = {
    "name": name,
    "seed": seed,
    "image_size": image_size,
    "digest": total_digest(photos),
  }
  head = json.dumps(about)
  FOLDER.mkdir(exist_ok=True)
  (FOLDER / f"{name}.json").write_text(f'{head[:-1]}, "photos": [\n{lines}\n]}}\n')
