r"""RecGen's public training shards (WebDataset): rendered scenes with depth, poses and latents.

    python -m launch.build_data --config configs/data/recgen.py \
        --config.source=TARS --config.out=DATA

Photos, masks, depth, poses and TRELLIS latents are taken over. Unpack downloaded .tar.gz files
first. The defaults are the thresholds of the public loader. The data have licences of their own.
"""

from configs.data import converted


def get_config(variant: str = ""):
  c = converted.dataset("recgen")
  c.autoencoder = "trellis/ss_enc_conv3d_16l8_fp16"
  c.slat_autoencoder = "trellis/slat_enc_swin8_B_64l8_fp16"
  # suffix of the pose file, which names its normalisation; or minmax
  c.pose_variant = "median_quantile_5per"
  c.stereo = False  # take stereo depth and its poses instead of rendered depth
  c.min_visible = 0.2  # fraction of the object that must be seen
  c.min_pixels = 400  # a mask must have more
  c.scale_range = (0.3, 3.0)  # of the normalised pose, exclusive
  c.max_translation = 4.0  # norm, of the normalised pose
  c.max_pose_norm = 10.0  # norm of quaternion, translation and scale together
  if variant:
    raise ValueError(f"variant '{variant}' is unknown; there is none")
  return c
