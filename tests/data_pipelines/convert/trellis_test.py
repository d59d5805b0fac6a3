"""Folders of the TRELLIS toolkit: written by its conventions from objects whose pose is known, and
read back.
"""

import json
import pathlib

import numpy as np
from PIL import Image
import pytest
import trimesh

from data_pipelines.build import checks
from data_pipelines.convert import trellis
from data_pipelines.format import schema
from data_pipelines.synth import render, voxelize
from sam3d_jax.errors import ConfigError
from tests.support import foreign
from tests.support.foreign import SIZE, VIEWS, convert, examples

OURS_TO_BLENDER = np.diag([-1.0, 1.0, -1.0])


def _write_shape(root: pathlib.Path, sha: str, voxels: np.ndarray) -> None:
  """Voxels and both latents of an object."""
  centres = (voxels + 0.5) / 64 - 0.5
  trimesh.PointCloud(centres).export(root / "voxels" / f"{sha}.ply")
  latent = foreign.latent_of(voxels)
  np.savez(root / "ss_latents" / "enc" / f"{sha}.npz", mean=latent)
  feats = foreign.slat_of(voxels)
  np.savez(root / "latents" / "slat" / f"{sha}.npz", coords=voxels, feats=feats)


def _write_views(folder: pathlib.Path, asset, rng) -> list:
  """Pictures and cameras of an object; returns its viewpoints."""
  folder.mkdir(parents=True)
  frames = []
  viewpoints = []
  for view in range(VIEWS):
    viewpoint, shown = foreign.make_view(asset, rng, scale=1.0)
    viewpoints.append(viewpoint)

    # Blender's camera to world, and the field of view.
    pose = viewpoint.pose
    to_world = np.eye(4)
    to_world[:3, :3] = (OURS_TO_BLENDER @ pose.rotation).T
    to_world[:3, 3] = -pose.rotation.T @ pose.translation
    half_fov = np.arctan(SIZE / 2 / viewpoint.camera.fx)
    frame = {
      "file_path": f"{view:03d}.png",
      "camera_angle_x": 2 * half_fov,
      "transform_matrix": to_world.tolist(),
    }
    frames.append(frame)

    colour = render.over(shown.lit_HW3, shown.alpha_HW, (0, 0, 0))
    alpha = np.round(shown.alpha_HW * 255).astype(np.uint8)
    rgba = np.dstack([colour, alpha])
    Image.fromarray(rgba).save(folder / frame["file_path"])
  transforms = {"aabb": [], "scale": 1.0, "offset": [0, 0, 0], "frames": frames}
  (folder / "transforms.json").write_text(json.dumps(transforms))
  return viewpoints


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory) -> tuple[pathlib.Path, list]:
  """Two objects as the toolkit leaves them, a third that was never rendered; all viewpoints."""
  root = tmp_path_factory.mktemp("toolkit")
  scores = {f"{i:064x}": score for i, score in enumerate((5.5, 4.0, 6.0))}
  lines = ["sha256,aesthetic_score"]
  lines += [f"{sha},{score}" for sha, score in scores.items()]
  (root / "metadata.csv").write_text("\n".join(lines) + "\n")
  for folder in ("voxels", "ss_latents/enc", "latents/slat"):
    (root / folder).mkdir(parents=True)

  viewpoints = []
  for index, sha in enumerate(list(scores)[:2]):
    asset = foreign.make_object(index)
    rng = np.random.default_rng(50 + index)
    voxels = voxelize.voxelize(asset.mesh.vertices, asset.mesh.faces)
    _write_shape(root, sha, rng.permutation(voxels))
    viewpoints += _write_views(root / "renders_cond" / sha, asset, rng)
  return root, viewpoints


@pytest.mark.parametrize("image_size", [SIZE, 48])
def test_trellis_cameras_become_poses_and_voxels_land_on_the_masks(toolkit, tmp_path, image_size):
  source, viewpoints = toolkit
  code = convert(
    "trellis",
    source,
    tmp_path,
    "structure_encoder=enc",
    "slat_encoder=slat",
    f"image_size={image_size}",
  )
  assert code == 0
  found = examples(tmp_path)
  assert len(found) == 2 * VIEWS
  for example, viewpoint in zip(found, viewpoints, strict=True):
    pose = viewpoint.pose
    np.testing.assert_allclose(example["rotation"], pose.rotation, atol=1e-5)
    np.testing.assert_allclose(example["translation"], pose.translation, atol=1e-5)
    foreign.check_latent(example)
    assert example["structure_latent_autoencoder"] == "enc"
    assert not schema.is_present(example, "pointmap")
    assert checks.check_example(example).findings == []
  assert (tmp_path / "quarantine.jsonl").read_text().count("not_rendered") == 1


def test_trellis_objects_are_chosen_by_score(toolkit, tmp_path):
  assert convert("trellis", toolkit[0], tmp_path, "min_aesthetic=5.0") == 0
  assert len(examples(tmp_path)) == VIEWS


def test_folders_without_what_the_configuration_names_are_configuration_errors(toolkit, tmp_path):
  config = trellis.TrellisConfig("t", str(toolkit[0]), structure_encoder="other")
  with pytest.raises(ConfigError, match="there is no ss_latents/other; there are enc"):
    trellis.plan(config, test_fraction=0, objects_per_shard=1)
  config = trellis.TrellisConfig("t", str(tmp_path))
  with pytest.raises(ConfigError, match="there is no metadata.csv"):
    trellis.plan(config, test_fraction=0, objects_per_shard=1)


def _names(root: pathlib.Path, **settings) -> list[str]:
  """The objects that a plan takes up."""
  config = trellis.TrellisConfig("t", str(root), **settings)
  plan = trellis.plan(config, test_fraction=0, objects_per_shard=9)
  return sorted(item.name for job in plan.jobs for item in job.spec.inputs)


@pytest.mark.parametrize(
  "content",
  [
    b"sha256,aesthetic_score\nab,5.5\ncd,4.0\n",
    b"\xef\xbb\xbfsha256,aesthetic_score\r\nab,5.5\r\ncd,4.0\r\n",
    b"sha256;aesthetic_score\nab;5.5\ncd;4.0\n",
    b"sha256,aesthetic_score,\nab,5.5,\ncd,,\n,,\n",
    "sha256,aesthetic_score\nab,5.5\ncd,4.0\n".encode("utf-16"),
  ],
)
def test_a_table_of_objects_reads_as_excel_saves_it(tmp_path, content):
  (tmp_path / "metadata.csv").write_bytes(content)
  assert _names(tmp_path) == ["ab", "cd"]
  assert _names(tmp_path, min_aesthetic=5.0) == ["ab"]


@pytest.mark.parametrize("score", ["None", "nan", "inf", "high"])
def test_a_score_that_is_no_number_is_named_where_scores_count(tmp_path, score):
  (tmp_path / "metadata.csv").write_text(f"sha256,aesthetic_score\nab,5.5\ncd,{score}\n")
  assert _names(tmp_path) == ["ab", "cd"]
  with pytest.raises(ConfigError, match=f"metadata.csv line 3: aesthetic_score = '{score}'"):
    _names(tmp_path, min_aesthetic=1.0)


@pytest.mark.parametrize("sha", ["", "../cd", "/cd", "c/d", "c d"])
def test_what_is_no_name_of_an_object_is_named(tmp_path, sha):
  (tmp_path / "metadata.csv").write_text(f"sha256,aesthetic_score\nab,5.5\n{sha},4\n")
  with pytest.raises(ConfigError, match="metadata.csv line 3: sha256 = "):
    _names(tmp_path)


def test_field_tables_read_as_without_their_mark(shared_dir, tmp_path):
  field = shared_dir / "field" / "tables-with-bom"
  if not field.is_dir():
    pytest.skip(f"{field} does not exist")

  def of(name: str, **settings) -> list[str]:
    (tmp_path / "metadata.csv").write_bytes((field / name).read_bytes())
    return _names(tmp_path, **settings)

  assert of("metadata_bom.csv") == of("metadata_plain.csv") != []
  least = of("metadata_plain.csv", min_aesthetic=5.0)
  assert of("metadata_bom.csv", min_aesthetic=5.0) == least
  with pytest.raises(ConfigError, match="line 3: aesthetic_score = 'None' is not a number"):
    of("metadata_none.csv", min_aesthetic=1.0)
