"""Reconstructs the masked objects of one photo: launch.sample --image."""

import argparse
import pathlib

import numpy as np

from data_pipelines import normalisers, photos, pointmaps, samples, schema, transforms
from launch import sample
from launch.predictor import Prediction, Predictor, needs_pointmap
from launch.sample_dataset import object_colour
from sam3d_jax import mesh, preview
from sam3d_jax.batch import Conditioning
from sam3d_jax.errors import InputError
from sam3d_jax.evaluation.aggregate import write_json
from sam3d_jax.geometry import cameras, pose, rotations

FRAMES = {
    "camera": "x left, y up, z forward",
    "object": "unit cube [-0.5, 0.5]^3, z up; `rotation` (w, x, y, z) and `matrix` take it to the camera: "
              "matrix @ (scale * x) + translation",
    "glb": "the object's GLB is y up, as glTF prescribes: (x, y, z) -> (x, z, -y); `rotation_glb` takes it to the camera",
}


def run(args: argparse.Namespace, out: pathlib.Path) -> None:
  """Writes <object>.glb for every mask, layout.json, scene.glb and preview.png."""
  image, alpha = photos.read_photo(args.image, "--image")
  masks = photos.read_masks(args.mask, alpha, image.shape[:2])
  pointmap = pointmaps.read_pointmap(args.pointmap, what="--pointmap").points_HW3 if args.pointmap else None
  print(f"plan: {len(masks)} object(s) of {args.image} ({image.shape[1]} x {image.shape[0]}), "
        f"{'with' if pointmap is not None else 'without'} point map, into {out}")
  if args.dry_run:
    return
  predictor = sample.load_predictor(args)
  rows = [prepare(predictor, image, mask, pointmap, name) for name, mask in masks.items()]
  found = predict(predictor, rows, list(masks), image, args, without_pointmap=pointmap is None and needs_pointmap(predictor.row))
  poses = [object_pose(predictor, found, i, rows[i]) for i in range(len(masks))]
  shapes = {name: mesh.from_occupancy(found.occupancy[i], colour=object_colour(image, mask))
            for i, (name, mask) in enumerate(masks.items())}
  for name, shape in shapes.items():
    if shape is not None:
      mesh.write_glb(out / f"{name}.glb", {name: shape})
  metric = pointmap is not None and placed(predictor)
  write_json(out / "layout.json", layout(predictor, shapes, poses, metric, args))
  scene = arrange(shapes, poses, metric)
  if scene:
    mesh.write_glb(out / "scene.glb", scene, y_up=True)
  draw(out / "preview.png", image, masks, shapes, poses)
  empty = [name for name, shape in shapes.items() if shape is None]
  print(f"{out}: {len(shapes) - len(empty)} meshes, layout.json, preview.png{', scene.glb' if scene else ''}"
        + (f"; empty: {', '.join(empty)}" if empty else ""))


def prepare(predictor: Predictor, image, mask, pointmap, name: str) -> dict[str, np.ndarray]:
  """The conditioning streams of one object; without a point map its streams are unknown everywhere."""
  row = predictor.row
  streams = tuple(s for s in row.streams if pointmap is not None or s not in samples.POINTMAP_STREAMS)
  try:
    out = transforms.preprocess(image, mask, pointmap, image_size=row.image_size, pointmap_size=row.pointmap_size,
                                streams=streams)
  except (transforms.MaskError, normalisers.NoValidPoints) as error:
    raise InputError(f"object {name}: {error}") from error
  unknown = np.full((row.pointmap_size,) * 2 + (3,), np.nan, np.float32)
  return {s: unknown for s in row.streams if s not in streams} | out


def predict(predictor: Predictor, rows: list[dict], names: list[str], image, args, *, without_pointmap: bool) -> Prediction:
  """Samples all objects of the photo in batches of one size. The noise depends on the seed, the photo and the object's mask."""
  size = min(args.batch_size, 1 << (len(rows) - 1).bit_length())  # powers of two: few compilations over many photos
  parts = []
  for start in range(0, len(rows), size):
    chunk = rows[start:start + size]
    content = [schema.key_words(schema.example_key(image, row["mask"] if "mask" in row else names[start + i]))
               for i, row in enumerate(chunk)]
    chunk, content = chunk + [chunk[0]] * (size - len(chunk)), content + [content[0]] * (size - len(content))
    cond = Conditioning(**{s: np.stack([row[s] for row in chunk]) for s in predictor.row.streams})
    parts.append(predictor(cond, np.stack(content), args.seed, without_pointmap=without_pointmap))
  join = lambda arrays: np.concatenate(arrays)[:len(rows)]
  latents = {name: join([p.latents[name] for p in parts]) for name in parts[0].latents}
  return Prediction(join([p.occupancy for p in parts]), latents, join([p.rotation for p in parts]))


def placed(predictor: Predictor) -> bool:
  """Whether the model has learned where objects are, not only how they are turned."""
  return {"translation", "scale"} <= set(predictor.trained)


def object_pose(predictor: Predictor, found: Prediction, index: int, row: dict) -> pose.Pose:
  """Pose of one object: metric with a point map, else in the normalised frame; the rotation alone if no more was learned."""
  if not placed(predictor):
    return pose.Pose(found.rotation[index], np.zeros(3), np.ones(3))
  latents = {name: x[index] for name, x in found.latents.items() if name != "shape"}
  scale, shift = row.get("pointmap_scale", np.ones(3, np.float32)), row.get("pointmap_shift", np.zeros(3, np.float32))
  return pose.decode_latents(latents, scale, shift, convention=predictor.convention)


def layout(predictor: Predictor, shapes: dict, poses: list[pose.Pose], metric: bool, args) -> dict:
  """Contents of layout.json."""
  if metric:
    frame, note = "camera", "translation and scale are in the point map's unit"
  elif placed(predictor):
    frame = "normalised"
    note = "no point map was given: translation and scale are relative to the unknown centre and scale of each object's point map"
  else:
    frame, note = "rotation only", "the model has learned shape and rotation; translation and scale are unknown"
  objects = {}
  for (name, shape), p in zip(shapes.items(), poses, strict=True):
    entry = {"file": f"{name}.glb" if shape is not None else None, "rotation": quaternion(p.rotation.T),
             "rotation_glb": quaternion(p.rotation.T @ cameras.OBJECT_FROM_GLTF.T), "matrix": p.rotation.T.tolist()}
    known = placed(predictor)
    values = {"translation": p.translation, "scale": p.scale}
    objects[name] = entry | {key: value.tolist() if known else None for key, value in values.items()}
  return {"frame": frame, "units": "of the point map" if metric else None, "note": note, "frames": FRAMES, "image": args.image,
          "seed": args.seed, "steps": predictor.sampler.steps, "weights": dict(predictor.identity), "objects": objects}


def quaternion(matrix_33: np.ndarray) -> list[float]:
  """(w, x, y, z) of a rotation that acts on column vectors."""
  return [float(v) for v in rotations.matrix_to_quaternion(np.asarray(matrix_33, np.float64))]


def arrange(shapes: dict, poses: list[pose.Pose], metric: bool) -> dict[str, mesh.Mesh]:
  """All objects in one glTF scene as the camera sees them; side by side where their places are unknown."""
  scene = {}
  for (name, shape), p in zip(shapes.items(), poses, strict=True):
    if shape is not None:
      spot = p if metric else pose.Pose(p.rotation, np.array([-1.3 * len(scene), 0.0, 3.0]), np.ones(3))
      points = pose.transform_points(shape.vertices, spot)
      scene[name] = mesh.Mesh(cameras.convert_frame(points, "pytorch3d", "gltf"), shape.faces, shape.colour)
  return scene


def draw(path: pathlib.Path, image, masks: dict, shapes: dict, poses: list[pose.Pose]) -> None:
  """preview.png: photo with the mask marked, crop, and the sample from the photo's view and turned, one row an object."""
  pictures, captions = [], []
  for (name, mask), p in zip(masks.items(), poses, strict=True):
    marked = np.where(mask[..., None], image, image // 3 + 150).astype(np.uint8)
    window = transforms.crop_window(mask)
    crop = transforms.cut(image, window)
    views = (p.rotation, preview.turned(p.rotation, 120.0))
    pictures.append([marked, crop, *(preview.render(shapes[name], v) for v in views)])
    captions.append(name if shapes[name] is not None else f"{name}: empty sample")
  preview.grid(pictures, ("photo", "object", "sample, photo's view", "sample, turned 120°"), captions).save(path)
