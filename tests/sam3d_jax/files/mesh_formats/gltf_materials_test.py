"""Colours of glTF 2.0: where pictures lie, which colours are linear, what alpha cuts away."""

import numpy as np
from PIL import Image
import pytest

from sam3d_jax.errors import Refused
from sam3d_jax.files import meshes
from sam3d_jax.files.mesh_formats import gltf_codecs, gltf_materials
from sam3d_jax.files.mesh_formats.surfaces import GREY
from tests.support.tiny_gltf import SQUARE, SQUARE_FACES, SQUARE_UV, Gltf

# 2 x 2 texels, each of its own colour: rows from the top
QUARTERS = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 0]]], np.uint8)
RED, GREEN, BLUE, YELLOW = (tuple(c) for c in QUARTERS.reshape(4, 3))


def read(gltf: Gltf, folder, **options):
  return meshes.read(gltf.write(folder / "a.glb"), **options)


def texel(mesh, u: float, v: float) -> tuple[int, ...]:
  """The nearest texel at coordinates as `Mesh` has them, repeated beyond the picture."""
  texture = mesh.materials[0].texture
  height, width = texture.shape[:2]
  return tuple(texture[int(np.floor((1 - v) * height)) % height, int(np.floor(u * width)) % width])


def painted(gltf: Gltf, folder, x: float, y: float) -> tuple[int, ...]:
  """The texel at a point (x, y) of the one square that a file draws."""
  mesh = read(gltf, folder).mesh
  matrix = np.concatenate([mesh.vertices[:, :2], np.ones((len(mesh.vertices), 1))], 1)
  # coordinates are an affine function of the place
  to_uv, *_ = np.linalg.lstsq(matrix, mesh.uv.astype(np.float64), rcond=None)
  return texel(mesh, *(np.array([x, y, 1.0]) @ to_uv))


def test_a_picture_stands_upright_on_the_square(tmp_path):
  gltf = Gltf()
  gltf.draw(gltf.square(material=gltf.textured(QUARTERS)))
  seen = [
    painted(gltf, tmp_path, x, y) for x, y in ((0.2, 0.8), (0.8, 0.8), (0.2, 0.2), (0.8, 0.2))
  ]
  assert seen == [RED, GREEN, BLUE, YELLOW]


@pytest.mark.parametrize("type", ["u1", "u2", "f4"])
def test_coordinates_of_any_type_and_set_put_it_in_one_place(tmp_path, type):
  gltf = Gltf()
  scale = 1 if type == "f4" else np.iinfo(type).max
  material = gltf.textured(QUARTERS, info={"texCoord": 3})
  attributes = {
    "POSITION": SQUARE,
    "TEXCOORD_0": np.zeros((4, 2), np.float32),
    "TEXCOORD_3": (SQUARE_UV * scale).astype(type),
  }
  gltf.draw(gltf.primitive(attributes, SQUARE_FACES, material=material))
  assert painted(gltf, tmp_path, 0.2, 0.8) == RED and painted(gltf, tmp_path, 0.8, 0.2) == YELLOW


def test_a_texture_transform_scales_turns_and_moves_in_this_order(tmp_path):
  # the specification's example: T R S, with R turning u towards -v
  gltf = Gltf()
  moved = {"offset": [0, 1], "rotation": np.pi / 2, "scale": [0.5, 0.5], "texCoord": 0}
  info = {"texCoord": 7, "extensions": {"KHR_texture_transform": moved}}
  gltf.draw(gltf.square(material=gltf.textured(QUARTERS, info=info)))
  mesh = read(gltf, tmp_path).mesh
  u, v = SQUARE_UV.T * 0.5
  expected = np.stack([v, 1 - u], 1)
  stored = np.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], 1)
  np.testing.assert_allclose(stored, expected, atol=1e-6)


def test_what_a_sampler_does_beyond_the_edge_is_in_the_picture(tmp_path):
  for mode, beyond in ((10497, RED), (33648, GREEN), (33071, GREEN)):
    gltf = Gltf()
    material = gltf.textured(QUARTERS)
    gltf.json["textures"][0]["sampler"] = gltf.add("samplers", {"wrapS": mode})
    wide = SQUARE_UV * np.float32([2, 1])
    attributes = {"POSITION": SQUARE, "TEXCOORD_0": wide}
    gltf.draw(gltf.primitive(attributes, SQUARE_FACES, material=material))
    # u = 0.2 and 0.8 in the picture, 1.2 beyond it
    seen = [painted(gltf, tmp_path, u / 2, 0.8) for u in (0.2, 0.8, 1.2)]
    assert seen == [RED, GREEN, beyond], mode


def test_coordinates_far_outside_a_clamped_picture_take_a_bounded_picture(tmp_path, monkeypatch):
  monkeypatch.setattr(gltf_materials, "MAX_CONTINUED", 16)
  gltf = Gltf()
  quarters = QUARTERS.repeat(4, axis=0).repeat(4, axis=1)
  material = gltf.textured(quarters)
  clamped = {"wrapS": 33071, "wrapT": 33071}
  gltf.json["textures"][0]["sampler"] = gltf.add("samplers", clamped)
  attributes = {"POSITION": SQUARE, "TEXCOORD_0": SQUARE_UV * np.float32(3)}
  gltf.draw(gltf.primitive(attributes, SQUARE_FACES, material=material))
  (kept,) = read(gltf, tmp_path).mesh.materials
  assert max(kept.texture.shape[:2]) <= 16
  seen = [painted(gltf, tmp_path, u / 3, 0.9) for u in (0.2, 0.8, 2.5)]
  assert seen == [RED, GREEN, GREEN]


def test_vertex_colours_of_every_type_are_the_same_linear_colour(tmp_path):
  for alpha in (False, True):
    for type in ("u1", "u2", "f4"):
      for material in (None, 0):
        gltf = Gltf()
        gltf.add("materials", {"pbrMetallicRoughness": {"metallicFactor": 0}})
        scale = 1 if type == "f4" else np.iinfo(type).max
        colour = np.array([[1, 0.2, 0, 1][: 3 + alpha]] * 4)
        attributes = {"POSITION": SQUARE, "COLOR_0": np.round(colour * scale, 7).astype(type)}
        more = {} if material is None else {"material": material}
        gltf.draw(gltf.primitive(attributes, SQUARE_FACES, **more))
        mesh = read(gltf, tmp_path).mesh
        np.testing.assert_allclose(mesh.colours, [[1, 0.2, 0]] * 4, atol=2e-3)
        assert mesh.materials[0].colour == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
  "material, colour",
  [
    ({"pbrMetallicRoughness": {"baseColorFactor": [0.1, 0.2, 0.3, 1]}}, (0.1, 0.2, 0.3)),
    ({"extensions": {"KHR_materials_unlit": {}}}, (1, 1, 1)),
    (
      {
        "pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]},
        "extensions": {
          "KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [0, 0.5, 0, 1]},
        },
      },
      (0, 0.5, 0),
    ),
  ],
)
def test_the_base_colour_is_the_one_of_the_material(tmp_path, material, colour):
  gltf = Gltf()
  gltf.draw(gltf.square(material=gltf.add("materials", material)))
  np.testing.assert_allclose(read(gltf, tmp_path).mesh.materials[0].colour, colour)


def test_a_surface_without_material_and_colours_is_grey(tmp_path):
  gltf = Gltf()
  gltf.draw(gltf.square())
  assert read(gltf, tmp_path).mesh.materials == (GREY,)


def test_a_glossy_material_has_its_own_picture(tmp_path):
  gltf = Gltf()
  texture = gltf.add("textures", {"source": gltf.picture(QUARTERS)})
  glossy = {"KHR_materials_pbrSpecularGlossiness": {"diffuseTexture": {"index": texture}}}
  gltf.draw(gltf.square(material=gltf.add("materials", {"extensions": glossy})))
  assert painted(gltf, tmp_path, 0.2, 0.8) == RED


def test_a_picture_that_many_materials_show_is_one_material_each_and_joined_in_order(tmp_path):
  gltf = Gltf()
  material = gltf.textured(QUARTERS)
  for _ in range(3):
    gltf.draw(gltf.square(material=material), gltf.square())
  mesh = read(gltf, tmp_path).mesh
  assert len(mesh.materials) == 2
  np.testing.assert_array_equal(mesh.material, [0, 0, 1, 1] * 3)


# --- Alpha ----------------------------------------------------------------------------------------

LEFT_GONE = np.zeros((4, 4, 4), np.uint8) + np.uint8(255)
LEFT_GONE[:, :2, 3] = 0


def _palette() -> Image.Image:
  image = Image.fromarray(LEFT_GONE[..., 3]).convert("L")
  image = Image.fromarray((np.asarray(image) > 0).astype(np.uint8)).convert("P")
  image.putpalette([10, 20, 30, 40, 50, 60])
  image.info["transparency"] = bytes([0, 255])
  return image


def _grey_with_alpha() -> Image.Image:
  return Image.fromarray(LEFT_GONE).convert("LA")


def area(mesh) -> float:
  corner = mesh.vertices[mesh.faces]
  cross = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
  return float(np.linalg.norm(cross, axis=1).sum() / 2)


@pytest.mark.parametrize("picture", [LEFT_GONE, _palette(), _grey_with_alpha()])
@pytest.mark.parametrize("mode, left", [("MASK", 0.5), ("BLEND", 0.5), ("OPAQUE", 1.0)])
def test_what_alpha_cuts_away_is_no_face(tmp_path, picture, mode, left):
  gltf = Gltf()
  gltf.draw(gltf.square(material=gltf.textured(picture, alphaMode=mode)))
  for appearance in (True, False):
    mesh = read(gltf, tmp_path, appearance=appearance).mesh
    assert area(mesh) == pytest.approx(left)
    assert mesh.vertices[:, 0].min() == pytest.approx(1 - left)


def test_a_mask_cuts_below_its_cutoff_and_a_blend_only_what_is_gone(tmp_path):
  third = LEFT_GONE.copy()
  third[:, :2, 3] = 80
  for alpha_mode, more, left in (
    ("MASK", {}, 0.5),
    ("MASK", {"alphaCutoff": 0.3}, 1.0),
    ("MASK", {"alphaCutoff": 0.32}, 0.5),
    ("BLEND", {}, 1.0),
  ):
    gltf = Gltf()
    gltf.draw(gltf.square(material=gltf.textured(third, alphaMode=alpha_mode, **more)))
    assert area(read(gltf, tmp_path).mesh) == pytest.approx(left)


def test_alpha_of_material_and_vertices_counts_too(tmp_path):
  gltf = Gltf()
  faint = {"pbrMetallicRoughness": {"baseColorFactor": [1, 1, 1, 0.3]}, "alphaMode": "MASK"}
  material = gltf.add("materials", faint)
  gltf.draw(gltf.square(material=material), gltf.square())
  found = read(gltf, tmp_path)
  assert area(found.mesh) == 1 and found.dropped == ("2 faces that alpha makes invisible",)

  gltf = Gltf()
  colours = np.uint8([[255, 255, 255, 0], [255] * 4, [255] * 4, [255, 255, 255, 0]])
  material = gltf.add("materials", {"alphaMode": "MASK"})
  attributes = {"POSITION": SQUARE, "COLOR_0": colours}
  gltf.draw(gltf.primitive(attributes, SQUARE_FACES, material=material))
  # alpha grows from 0 on the left to 1 on the right
  mesh = read(gltf, tmp_path).mesh
  assert area(mesh) == pytest.approx(0.5, abs=1 / 128)
  assert mesh.vertices[:, 0].min() == pytest.approx(0.5, abs=1 / 128)


def test_an_edge_that_runs_anywhere_is_followed_closely(tmp_path):
  side = 64
  y, x = np.mgrid[:side, :side] + 0.5
  disc = (x - side / 2) ** 2 + (y - side / 2) ** 2 < (0.4 * side) ** 2
  picture = np.full((side, side, 4), 255, np.uint8)
  picture[..., 3] = 255 * disc
  gltf = Gltf()
  gltf.draw(gltf.square(material=gltf.textured(picture, alphaMode="MASK")))
  mesh = read(gltf, tmp_path).mesh
  # never less than what is seen, and hardly more
  assert disc.mean() <= area(mesh) < disc.mean() + 0.02
  np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0)[:2], [0.8, 0.8], atol=0.04)


def test_a_repeated_picture_is_cut_in_every_repeat(tmp_path):
  gltf = Gltf()
  material = gltf.textured(LEFT_GONE, alphaMode="MASK")
  attributes = {"POSITION": SQUARE, "TEXCOORD_0": 4 * SQUARE_UV - 1}
  gltf.draw(gltf.primitive(attributes, SQUARE_FACES, material=material))
  assert area(read(gltf, tmp_path).mesh) == pytest.approx(0.5)


# --- Pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension, format", [("EXT_texture_webp", "WEBP"), (None, "JPEG")])
def test_pictures_of_other_formats_are_read(tmp_path, extension, format):
  gltf = Gltf()
  plain = np.full((8, 8, 3), 200, np.uint8)
  image = gltf.picture(plain, format, quality=100)
  texture = (
    {"source": image} if extension is None else {"extensions": {extension: {"source": image}}}
  )
  rough = {"baseColorTexture": {"index": gltf.add("textures", texture)}}
  gltf.draw(gltf.square(material=gltf.add("materials", {"pbrMetallicRoughness": rough})))
  np.testing.assert_allclose(read(gltf, tmp_path).mesh.materials[0].texture, plain, atol=1)


def test_sixteen_bit_pictures_become_eight(tmp_path):
  gltf = Gltf()
  deep = Image.fromarray(np.full((4, 4), 200 * 257, np.uint16))
  gltf.draw(gltf.square(material=gltf.textured(deep)))
  assert (read(gltf, tmp_path).mesh.materials[0].texture == 200).all()


def _basis(gltf: Gltf, **texture) -> None:
  packed = gltf.add("images", {"bufferView": gltf.view(b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(64))})
  extensions = {"KHR_texture_basisu": {"source": packed}}
  number = gltf.add("textures", {"extensions": extensions} | texture)
  rough = {"baseColorTexture": {"index": number}}
  gltf.draw(gltf.square(material=gltf.add("materials", {"pbrMetallicRoughness": rough})))


def test_without_a_decoder_a_basis_picture_gives_way_to_what_stands_beside_it(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(gltf_codecs, "_module", lambda extension: None)
  gltf = Gltf()
  _basis(gltf, source=gltf.picture(QUARTERS))
  assert painted(gltf, tmp_path, 0.2, 0.8) == RED
  alone = Gltf()
  _basis(alone)
  with pytest.raises(Refused, match="unsupported: .*KHR_texture_basisu.*pip install alktx2"):
    read(alone, tmp_path)
  assert len(read(alone, tmp_path, appearance=False).mesh.faces) == 2


def test_a_picture_that_is_not_there_is_named(tmp_path):
  gltf = Gltf()
  texture = gltf.add("textures", {"source": gltf.add("images", {"uri": "my%20skin.png"})})
  normal = gltf.add("textures", {"source": gltf.add("images", {"uri": "bumps.png"})})
  rough = {"baseColorTexture": {"index": texture}}
  looks = {"pbrMetallicRoughness": rough, "normalTexture": {"index": normal}}
  gltf.draw(gltf.square(material=gltf.add("materials", looks)))
  with pytest.raises(Refused, match="missing_texture: a.glb needs 'my skin.png'"):
    read(gltf, tmp_path)
  assert len(read(gltf, tmp_path, appearance=False).mesh.faces) == 2
  # bumps are no base colour: they need not be there
  Image.fromarray(QUARTERS).save(tmp_path / "My Skin.PNG")
  assert painted(gltf, tmp_path, 0.2, 0.8) == RED


def test_a_texture_without_coordinates_is_dropped_with_a_word(tmp_path):
  gltf = Gltf()
  material = gltf.textured(QUARTERS)
  gltf.draw(gltf.primitive({"POSITION": SQUARE}, SQUARE_FACES, material=material))
  found = read(gltf, tmp_path)
  assert found.mesh.materials[0].texture is None
  assert found.dropped == ("1 textures without texture coordinates",)


def test_a_picture_of_countless_pixels_is_refused_before_it_is_decoded(tmp_path):
  gltf = Gltf()
  gltf.draw(gltf.square(material=gltf.textured(Image.new("1", (20_000, 6_000)))))
  with pytest.raises(Refused, match="unreadable: .*20000 x 6000 pixels"):
    read(gltf, tmp_path)
