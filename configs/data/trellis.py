r"""Folders of the TRELLIS dataset toolkit: renders with camera, voxels and latents.

    python -m launch.build_data --config configs/data/trellis.py \
        --config.source=OUTPUT_DIR --config.out=DATA \
        --config.structure_encoder=ss_enc_conv3d_16l8_fp16

For pre-training. Without latents the voxels are enough: launch.encode_latents makes them with your
own autoencoder.
"""

from configs.data import converted


def get_config(variant: str = ""):
  c = converted.dataset("trellis")
  c.image_size = 518  # pixels a side of stored pictures (the toolkit renders 1024)
  c.image_format = "jpeg"  # png or jpeg
  c.background = 255  # grey level behind the object; TRELLIS itself trains on 0
  c.alpha_threshold = 0.5  # coverage from which a pixel belongs to the object
  c.structure_encoder = ""  # folder below ss_latents to take; empty: none
  c.slat_encoder = ""  # folder below latents to take; empty: none
  if variant:
    raise ValueError(f"variant '{variant}' is unknown; there is none")
  return c
