"""Every key of a dataset build, with one comment each. Builders' files start from here.

A configuration is data: it is locked once loaded, and any key is set from the command line with
`--config.section.key=value`.
"""

from ml_collections import ConfigDict


def dataset(name: str) -> ConfigDict:
  """Keys that every builder has."""
  c = ConfigDict()
  c.builder = name  # which builder makes the shards
  c.name = name  # of the dataset; shard files and records carry it
  # folder of meshes (GLB, glTF, OBJ, PLY, STL, OFF; searched recursively), or "procedural"
  c.source = ""
  c.out = ""  # folder of the dataset
  c.seed = 0  # of procedural objects, viewpoints, light and background
  c.workers = 0  # processes; 0: one a core. The data do not depend on it
  c.quarantine_budget = 0.1  # fraction of the inputs that may be refused before the build fails
  c.test_fraction = 0.02  # of the objects held out in the split "test"
  # objects of a shard, at most; 0: their number decides, 64 shards of no more than 32 each
  c.objects_per_shard = 0
  c.license = "unknown"  # of meshes that have no licence beside them

  c.procedural = ConfigDict()  # read if source is "procedural"
  c.procedural.count = 520  # objects
  c.procedural.families = ()  # names of families; empty: all

  limits(c)
  c.mesh = ConfigDict()
  c.mesh.max_coordinate = 1e6  # meshes with larger coordinates are refused
  c.filters = ConfigDict()  # geometry filters, on the mesh in the unit cube
  c.filters.min_hull_volume = 1e-4  # of the convex hull: below it the mesh is a sheet or a line
  c.filters.max_normal_share = 0.985  # share of the surface that faces one axis; 1 is a flat sheet
  # extent of 99 % of the surface over the whole: below it stray parts dwarf the object
  c.filters.min_core_extent = 0.35
  return c


def limits(c: ConfigDict) -> ConfigDict:
  """Adds what reading one input may take. An input that takes more is refused, others go on."""
  c.limits = ConfigDict()  # of a mesh, photo, item or object of others; they change no byte
  # gigabytes of memory beyond what the reading process has; 0: any
  c.limits.memory_gb = 4.0
  c.limits.seconds = 300.0  # 0: any; with neither inputs are read in the build's own processes
  return c


def rendering(c: ConfigDict) -> ConfigDict:
  """Adds the keys of builders that render objects."""
  c.views = 24  # per object
  c.image_size = 518  # pixels a side
  c.samples = 2  # colour rays a pixel along each axis
  c.image_format = "jpeg"  # png or jpeg; masks are always PNG
  c.background = (225, 255)  # grey levels between which the plain background is drawn
  c.pointmap = True  # store the camera-frame point of every pixel
  # store the image in base colours too (ambient light only): what textures are learned from
  c.delit = True

  c.camera = ConfigDict()  # ranges, drawn uniformly unless stated
  c.camera.fov_deg = (30.0, 60.0)  # field of view
  # above the object's horizon, uniform on that band of the sphere
  c.camera.elevation_deg = (-20.0, 60.0)
  c.camera.azimuth_deg = (0.0, 360.0)  # around the object
  c.camera.roll_deg = (-5.0, 5.0)  # about the viewing direction
  c.camera.fill = (0.65, 0.9)  # bounding sphere over the image
  c.camera.scale = (0.2, 2.0)  # metres along the unit cube's edge, log-uniform, one draw an object

  return light(c)


def views(c: ConfigDict) -> ConfigDict:
  """Adds the keys of the builder that shows objects from all sides."""
  c.views = 150  # per object
  c.image_size = 512  # pixels a side
  c.samples = 2  # colour rays a pixel along each axis
  c.image_format = "jpeg"  # png or jpeg; masks and alpha are always PNG
  c.lit = False  # `image` under random light, one set an object; False: ambient light alone
  c.sphere = ConfigDict()  # where the cameras are
  c.sphere.radius = 2.0  # from the middle of the unit cube, in its edges
  c.sphere.fov_deg = 40.0  # field of view
  return light(c)


def light(c: ConfigDict) -> ConfigDict:
  """Adds the light that objects are rendered under."""
  c.light = ConfigDict()  # ranges, drawn uniformly
  c.light.count = (1, 3)  # directional lights
  c.light.ambient = (0.2, 0.5)  # radiance of the ambient light
  c.light.key = (0.5, 1.0)  # radiance of the first directional light
  c.light.fill = (0.1, 0.35)  # of each further one
  c.light.elevation_deg = (10.0, 75.0)  # above the ground
  c.light.tint = 0.08  # largest deviation of a channel from white
  return c


def pasting(c: ConfigDict) -> ConfigDict:
  """Adds the keys of builders that render objects into photographs."""
  c.views = 4  # samples of each object
  c.image_size = 518  # pixels of the photo's longer side; larger photos are reduced
  c.samples = 2  # colour rays a pixel along each axis
  c.image_format = "jpeg"  # png or jpeg; masks are always PNG
  c.delit = False  # store the image with the target in base colours too (ambient light only)
  c.attempts = 20  # random draws for one sample before it is given up
  c.partners = 8  # other meshes that a shard draws occluders from
  c.photos_per_shard = 32  # at most, drawn at random; they stay in memory, 4 MB each

  c.photos = ConfigDict()  # the photographs; data_pipelines/synth/scenes.py states the layout
  # folder of photos with masks and point maps, or "procedural" for synthetic rooms
  c.photos.source = ""
  c.photos.count = 24  # rooms, if procedural
  c.photos.frame = "pytorch3d"  # camera frame of point maps: pytorch3d, opencv or gltf
  c.photos.depth_unit = 0.001  # metres per step of integer depth maps
  # estimator for photos without point map, e.g. "estimate {image} {out}"; writes a .npz to {out}
  c.photos.depth_command = ""
  c.photos.depth_cache = ""  # folder for what it makes; empty: pointmaps/ beside the dataset
  c.photos.license = "unknown"  # of photos that have no licence beside them
  return light(c)


# What the `:tiny` builds have in common: a model that was trained for minutes knows objects of a
# few kinds, from the front.
TINY_FAMILIES = (
  "table",
  "chair",
  "mug",
  "lamp",
  "bottle",
  "arrow",
  "letter",
  "crate",
  "shelf",
  "stairs",
  "bed",
  "house",
)
TINY_TURN_DEG = 45.0


def tiny_pasting(c: ConfigDict) -> ConfigDict:
  """Procedural objects into synthetic rooms of 96 pixels: nothing is downloaded."""
  c.source = "procedural"
  c.views = 3
  c.image_size = 96
  c.image_format = "png"
  c.procedural.count = 160
  c.procedural.families = TINY_FAMILIES
  c.photos.source = "procedural"
  c.photos.count = 40
  c.photos_per_shard = 10
  c.partners = 6
  c.test_fraction = 0.1
  c.objects_per_shard = 20
  return c
