"""Every configuration key, with one comment each. Experiments start from here.

A configuration is data: plain values, no classes, locked once loaded. Sections become frozen
dataclasses or keyword arguments of the part they name, so a key that nothing takes cannot exist.
Any key is set from the command line with `--config.section.key=value`.

Variants of every experiment: `:tiny` runs on two CPU cores in minutes on real shards, `:fake`
trains on random batches for seconds.
"""

from collections.abc import Callable

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def training(stage: str) -> ConfigDict:
  """Keys that every training run has."""
  c = ConfigDict()
  # what the run is, for the record: train_vae, pretrain, midtrain, sft, dpo, distill
  c.stage = stage
  # of initialisation, data order, augmentation and noise; the same on any number of devices and
  # hosts
  c.seed = 0
  c.steps = 100_000  # optimiser steps
  c.batch_size = 256  # global, over all hosts
  c.accumulate = 1  # parts in which a batch is taken, one after the other, to save memory
  # work folder of a checkpoint (trained or imported) to take parameters from; empty: random
  c.init_from = ""
  # regular expression over parameters that init_from may lack, or have beyond the model or in
  # another shape
  c.init_allow = ""
  c.init_which = "ema"  # which parameters of it: raw, ema (slowest decay) or ema:<decay>
  # folder of compiled programs; empty: $JAX_COMPILATION_CACHE_DIR, else <workdir>/compile_cache
  c.compile_cache = ""

  c.optim = ConfigDict()
  c.optim.lr = 1e-4  # peak learning rate
  c.optim.schedule = "constant"  # after the warm-up: constant or cosine
  c.optim.warmup_steps = 1000  # linear warm-up
  c.optim.final_lr_fraction = 0.0  # where cosine ends, as a fraction of lr
  c.optim.b1 = 0.9  # Adam, first moment decay
  c.optim.b2 = 0.999  # Adam, second moment decay
  c.optim.eps = 1e-8  # Adam, epsilon
  c.optim.weight_decay = 0.0  # decoupled
  c.optim.clip_norm = 1.0  # global gradient norm; 0: no clipping
  c.optim.trainable = ".*"  # regular expression over parameter paths (full match)
  c.optim.frozen = ""  # of the trainable ones, those to freeze all the same
  c.optim.ema = (0.9999,)  # decays of the parameter averages kept beside the parameters

  c.lora = ConfigDict()
  # regular expression over modules with a kernel that get low-rank adapters, e.g. .*_attn/qkv;
  # empty: none
  c.lora.targets = ""
  c.lora.rank = 16  # of the adapters
  c.lora.alpha = 16.0  # the product of the factors counts alpha / rank

  c.guard = ConfigDict()
  # skip steps whose gradient norm exceeds this multiple of its running mean; 0: only non-finite
  # ones
  c.guard.spike_factor = 0.0
  c.guard.spike_warmup = 100  # steps before spikes are looked for
  c.guard.max_in_a_row = 20  # skipped steps in a row that stop the run

  c.watchdog = ConfigDict()
  # the stacks of all hosts are written when a step takes this many times the median of the latest
  c.watchdog.factor = 20.0
  c.watchdog.seconds = 120.0  # and at least this long
  c.watchdog.other_seconds = 3600.0  # or compiling, evaluating or saving this long
  # after that long the process ends itself (exit code 1); 0: never
  c.watchdog.give_up_seconds = 0.0

  c.mesh = ConfigDict()
  c.mesh.data = -1  # copies of the model (-1: all devices that are left)
  c.mesh.fsdp = 1  # parameters, optimiser state and averages split this many ways
  c.mesh.tensor = 1  # heads and feed-forward width split this many ways
  c.mesh.context = 1  # shape tokens of a sample split this many ways
  c.mesh.dcn_data = 1  # how many of the data copies lie across the network between slices

  c.checkpoint = ConfigDict()
  c.checkpoint.every = 1000  # steps
  c.checkpoint.keep = 3  # newest checkpoints kept

  c.eval = ConfigDict()
  c.eval.every = 1000  # steps; 0: never
  c.eval.split = "test"  # split of the same datasets
  c.eval.batches = 4  # batches of it whose losses are taken, the same ones every time
  # work folder of the structure VAE of the latents: shapes are sampled, scored and drawn; empty:
  # losses only
  c.eval.decoder = ""
  c.eval.objects = 16  # held-out objects that are sampled
  c.eval.pictures = 8  # of them drawn and written as meshes
  # distance, in units of half the object cube, within which two surface points agree
  c.eval.f1_threshold = 0.05
  # evaluations in a row without a better score after which training stops, with the best state
  # kept and read by whoever names no step; 0: never. Devices wait for these evaluations
  c.eval.stop_after = 0
  # the score: loss, or with eval.decoder viou, f1, iou_3d, chamfer, rotation_deg, floaters, missing
  c.eval.score = "loss"
  # numbers of sampling steps at which quality is measured once, at the end; empty: none
  c.eval.steps_curve = ()

  c.log = ConfigDict()
  c.log.every = 50  # steps over which metrics are averaged
  # Weights & Biases project that gets the metrics too (pip install wandb); empty: none
  c.log.wandb = ""

  c.data = data()
  return c


def data() -> ConfigDict:
  """What is read, and in which form."""
  d = ConfigDict()
  d.kind = "shards"  # shards, or fake: random batches of the right shapes
  # name -> {path: dataset folder, weight: relative share of samples; 0: left out}
  d.mixture = ConfigDict()
  # lowest rating that is trained on, by iteration of the data engine (the last one holds on);
  # empty: any
  d.thresholds = ()
  d.iteration = 0  # iteration of the data engine that the run belongs to
  d.split = "train"  # split of every dataset in the mixture
  d.image_size = 518  # pixels of every image and mask the model sees
  d.pointmap_size = 256  # pixels of every point map
  d.resolution = 64  # voxels a side of the occupancy grid
  d.threads = 8  # reading threads a host
  d.workers = 0  # reading processes a host; 0: threads only
  d.autoencoder = ""  # digest that structure latents must carry; empty: that of the first records
  d.augment = augment()  # read-time augmentations; all off
  d.prefetch = 4  # batches held ready
  # host memory for decoded samples, for small datasets without augmentation; 0: none
  d.cache_mb = 0
  d.quarantine_budget = 100  # unreadable records replaced before the run fails
  # go on with a run though its datasets hold other records than those that it began with
  d.accept_changes = False
  return d


def packing(per_row: float) -> ConfigDict:
  """How records fill the rows of a packed batch."""
  p = ConfigDict()
  # records of a row on average: a step has so many times batch_size; 0: one a row
  p.per_row = per_row
  p.window = 16  # steps whose records are packed together
  return p


def dataset(path: str, weight: float = 1.0) -> ConfigDict:
  """One entry of a mixture."""
  return ConfigDict({"path": path, "weight": weight})


def geometry_model() -> ConfigDict:
  """The published Geometry model (arXiv 2511.16624).

  960 M flow parameters, 634 M condition parameters.
  """
  m = ConfigDict()
  m.name = "geometry"
  m.flow = ConfigDict()
  m.flow.width = 1024  # of the residual stream
  m.flow.depth = 24  # blocks
  m.flow.heads = 16  # of 64
  m.flow.mlp_ratio = 4.0  # feed-forward width over width
  m.flow.cond_width = 1024  # of the condition tokens
  m.flow.shape_resolution = 16  # side of the latent grid
  m.flow.latent_channels = 8  # of a cell of it
  m.flow.patch = 1  # cells along a side of a shape token
  m.flow.qk_rms_norm = True  # RMS-norm queries and keys of self-attention
  m.flow.shortcut = True  # has an embedder for the step size, which distillation needs
  m.flow.time_scale = 1000.0  # times enter the sinusoid multiplied by it
  # fold the layout stream's key/value projections into its four queries (same result, less work)
  m.flow.absorb_layout_kv = True
  # what is kept for the backward pass, from everything to inputs only: none, operands, dots,
  # attention, full
  m.flow.remat = "none"
  # no loop over blocks: longer compilation, a step without the copies that a loop needs on GPUs
  m.flow.unroll = False
  m.flow.attention = "auto"  # attention backend: auto, xla, cudnn, splash
  m.flow.dtype = "bfloat16"  # of matrix products
  m.condition = ConfigDict()
  m.condition.width = 1024  # of the condition tokens
  m.condition.hidden_multiplier = 4.0  # of the projections' feed-forward
  m.condition.dtype = "bfloat16"  # of the projections' matrix products
  # what is looked at
  m.condition.streams = ("image", "mask", "rgb_image", "rgb_image_mask", "pointmap", "rgb_pointmap")
  m.condition.dino = ConfigDict()
  m.condition.dino.width = 1024  # DINOv2 ViT-L
  m.condition.dino.depth = 24  # blocks
  m.condition.dino.heads = 16  # of 64
  m.condition.dino.mlp_ratio = 4.0  # feed-forward width over width
  m.condition.dino.patch = 14  # pixels
  m.condition.dino.image_size = 518  # input size the position embedding was trained for
  m.condition.dino.input_size = 518  # input size used
  m.condition.dino.registers = 4  # register tokens
  # tokens before the final norm, registers kept (Texture & Refinement)
  m.condition.dino.prenorm = False
  m.condition.dino.remat = "none"  # as model.flow.remat
  m.condition.dino.attention = "auto"  # as model.flow.attention
  m.condition.dino.dtype = "bfloat16"  # of matrix products
  m.condition.pointmap = ConfigDict()
  m.condition.pointmap.width = 512  # of a window's tokens
  m.condition.pointmap.input_size = 256  # pixels
  # point maps are resized to the images' size and then to input_size, as published; False: at once
  m.condition.pointmap.resize_twice = True
  m.condition.pointmap.patch = 8  # pixels a side of a window
  m.condition.pointmap.heads = 16  # of its one block
  m.condition.pointmap.mlp_ratio = 2.0  # of its one block
  # of the coordinates: linear, sinh, exp, sinh_exp, exp_disparity
  m.condition.pointmap.remap = "linear"
  m.condition.pointmap.drop_token = False  # has a learned token for dropped point maps
  m.condition.pointmap.dtype = "bfloat16"  # of matrix products
  # compute only the row of the block that is read (same result, less work)
  m.condition.pointmap.cls_only = True
  return m


def texture_model() -> ConfigDict:
  """The published Texture & Refinement model (arXiv 2511.16624).

  600 M flow parameters, 626 M condition parameters.
  """
  m = ConfigDict()
  m.name = "texture"
  # mean and spread that latents are normalised by, those of the autoencoder that made them:
  # release, trellis, or a section {mean, std}
  m.latent_statistics = "release"
  m.row = ConfigDict()
  m.row.voxels = 65_536  # slots of a row for voxels, multiples of 128
  m.row.coarse = 20_480  # slots at half the resolution
  m.row.objects = 6  # most objects of a row
  m.flow = ConfigDict()
  m.flow.width = 1024  # of the residual stream
  m.flow.depth = 24  # blocks
  m.flow.heads = 16  # of 64
  m.flow.mlp_ratio = 4.0  # feed-forward width over width
  m.flow.cond_width = 1024  # of the condition tokens
  m.flow.resolution = 64  # side of the grid of voxels
  m.flow.latent_channels = 8  # of a voxel
  m.flow.io_width = 128  # of the residual blocks at the voxels' resolution
  m.flow.io_blocks = 2  # residual blocks on the way down, and on the way up
  m.flow.qk_rms_norm = True  # RMS-norm queries and keys of self-attention
  m.flow.shortcut = False  # has an embedder for the step size, which distillation needs
  m.flow.time_scale = 1000.0  # times enter the sinusoid multiplied by it
  # what is kept for the backward pass, from everything to inputs only: none, operands, dots,
  # attention, full
  m.flow.remat = "none"
  # no loop over blocks: longer compilation, a step without the copies that a loop needs on GPUs
  m.flow.unroll = False
  m.flow.attention = "auto"  # attention backend: auto, xla, cudnn, splash
  m.flow.dtype = "bfloat16"  # of matrix products
  m.condition = geometry_model().condition  # but for what follows
  # tokens before the final norm, with registers: 4 x 1374
  m.condition.dino.prenorm = True
  # no point maps
  m.condition.streams = ("image", "mask", "rgb_image", "rgb_image_mask")
  with m.ignore_type():
    m.condition.pointmap = None  # and no encoder of them
  return m


def structure_vae_model() -> ConfigDict:
  """The published sparse-structure VAE: 64^3 occupancy <-> 16^3 x 8 latents."""
  m = ConfigDict()
  m.name = "structure_vae"
  m.resolution = 64  # voxels a side
  m.latent_channels = 8  # of a latent cell
  m.channels = (32, 128, 512)  # per level; each level after the first halves the grid
  m.res_blocks = 2  # residual blocks a level
  m.middle_blocks = 2  # residual blocks at the coarsest level
  m.patch = 1  # voxels a side of a cell of the finest level
  m.dtype = "float32"  # of the convolutions
  return m


def slat_trunk() -> ConfigDict:
  """The published trunk of encoder and decoders of SLAT latents."""
  t = ConfigDict()
  t.width = 768  # of the residual stream
  t.depth = 12  # blocks
  t.heads = 12  # of 64
  t.mlp_ratio = 4.0  # feed-forward width over width
  t.window = 8  # voxels along a side of an attention window
  # what is kept for the backward pass, from everything to inputs only: none, operands, dots,
  # attention, full
  t.remat = "none"
  # no loop over blocks: longer compilation, a step without the copies that a loop needs on GPUs
  t.unroll = False
  t.attention = "auto"  # attention backend: auto, xla, cudnn, splash
  t.dtype = "bfloat16"  # of matrix products
  return t


def slat_encoder() -> ConfigDict:
  """The published encoder of SLAT latents: image features of voxels -> latents of 8 channels."""
  e = ConfigDict()
  e.features = 1024  # channels of a voxel's image features
  e.latent_channels = 8  # of a voxel's latent
  e.resolution = 64  # voxels along a side of the grid
  e.trunk = slat_trunk()  # its transformer
  return e


def slat_gaussian(count: int) -> ConfigDict:
  """The published decoder of SLAT latents to `count` Gaussians a voxel."""
  g = ConfigDict()
  g.gaussians = count  # of a voxel: 32, and 4 in the small one
  g.latent_channels = 8  # of a voxel's latent
  g.resolution = 64  # voxels along a side of the grid
  g.trunk = slat_trunk()  # its transformer
  g.activations = ConfigDict()
  g.activations.reach = 1.5  # side of the cube of a voxel's Gaussians, in voxels
  g.activations.rotation_rate = 0.1  # by which raw rotations are multiplied
  g.activations.scale_bias = 4e-3  # scale of a raw zero
  g.activations.opacity_bias = 0.1  # opacity of a raw zero
  g.activations.smallest_scale = 9e-4  # joined to every scale
  g.activations.screen_kernel = 0.1  # square pixels that rendering adds to every splat
  return g


def slat_vae_model() -> ConfigDict:
  """The published SLAT autoencoder: encoder and decoder to 32 Gaussians a voxel."""
  m = ConfigDict()
  m.name = "slat_vae"
  m.encoder = slat_encoder()  # features to latents
  m.gaussian = slat_gaussian(32)  # latents to Gaussians
  return m


def slat_gaussian_model() -> ConfigDict:
  """The published small decoder, of 4 Gaussians a voxel, on latents that are there."""
  m = ConfigDict()
  m.name = "slat_gaussian"
  m.gaussian = slat_gaussian(4)  # latents to Gaussians
  return m


def slat_mesh_model() -> ConfigDict:
  """The published mesh decoder: SLAT latents -> cubes of a grid of 256^3."""
  m = ConfigDict()
  m.name = "slat_mesh"
  m.mesh = ConfigDict()
  m.mesh.up_channels = (192, 96)  # width after each of the two subdivisions
  m.mesh.latent_channels = 8  # of a voxel's latent
  m.mesh.resolution = 64  # voxels along a side of the grid
  m.mesh.trunk = slat_trunk()  # its transformer
  return m


def flow_matching(**weights: float) -> ConfigDict:
  """Conditional flow matching with these weights of the latents."""
  o = ConfigDict()
  o.name = "flow_matching"
  o.weights = ConfigDict(weights)  # latent -> weight in the loss
  o.time_mean = -1.0  # t = sigmoid(normal(time_mean, time_std))
  o.time_std = 1.0  # as time_mean
  o.drop_condition = 0.1  # share of samples trained without condition, for guidance
  o.drop_pointmap = 0.0  # share of samples trained without point maps
  return o


def geometry_stage(stage: str) -> ConfigDict:
  """A stage of the Geometry model after pre-training: all streams, image encoders frozen."""
  c = training(stage)
  c.model = geometry_model()  # as published
  c.model.flow.remat = "attention"  # six samples a chip fit 40 GB, attention not computed twice
  c.optim.frozen = r"condition/(image|mask)_encoder/.*"  # DINOv2 stays what it was
  c.sampler = sampler()  # for evaluation and previews, and for whoever samples from the checkpoint
  return c


def augment() -> ConfigDict:
  """Augmentations of photo and mask at read time, all off. Evaluation reads without them.

  What is drawn depends on (seed, step, example) alone.
  """
  a = ConfigDict()
  a.erode = 0.0  # probability of eroding the mask by a square
  a.dilate = 0.0  # probability of dilating it by a square
  a.kernel = (2, 5)  # side of the square, pixels
  a.blur = 0.0  # probability of shrinking the photo and enlarging it again
  a.blur_scale = (0.05, 0.95)  # by this factor
  a.colour = 0.0  # probability of changing brightness, contrast and saturation
  a.brightness = 0.2  # by a factor in 1 +- this
  a.contrast = 0.2  # by a factor in 1 +- this
  a.saturation = 0.2  # by a factor in 1 +- this
  a.light = 0.0  # probability of a linear ramp of light across the photo
  a.light_range = 0.3  # between 1 - this and 1 + this
  a.box_factor = (1.2, 1.2)  # side of the crop over the longer side of the mask's box, uniform
  a.shift = 0.0  # largest shift of the crop, over its side
  return a


def augmentations() -> ConfigDict:
  """Those from mid-training on: mask boundary, blur, light. The paper gives no amounts."""
  a = augment()
  a.erode = 0.15  # probability
  a.dilate = 0.15  # probability
  a.blur = 0.15  # probability
  a.colour = 0.3  # probability
  a.light = 0.3  # probability
  return a


def sampler() -> ConfigDict:
  """How latents are drawn (stage-1 defaults of the published pipeline)."""
  s = ConfigDict()
  s.steps = 25  # of the solver
  s.method = "euler"  # euler, midpoint, rk4
  s.rescale_t = 3.0  # warp of the time grid; 1: uniform
  s.guidance = 7.0  # weight w of (1 + w) v_cond - w v_uncond
  s.interval = (0.0, 0.5)  # times at which guidance is on
  s.shortcut = False  # few-step sampling of a distilled model: step size fed, no guidance
  # weight of the point map apart from the rest; unset: one guidance for all
  s.pointmap_guidance = placeholder(float)
  return s


def finish(c: ConfigDict, variant: str, **variants: Callable[[ConfigDict], None]) -> ConfigDict:
  """Applies a variant by name and locks the configuration.

  Raises ValueError, naming the variants that exist, for an unknown one.
  """
  if variant and variant not in variants:
    raise ValueError(f"variant {variant!r} is not one of {', '.join(variants)}")
  if variant:
    with c.ignore_type():
      variants[variant](c)
  c.lock()
  return c
