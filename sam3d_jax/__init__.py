"""sam3d_jax: training image-to-3D latent flow models (the SAM 3D family) in JAX.

Array names inside the package end in their dimensions, one letter each:

    B  batch                      D  model width
    L  latent tokens of a stream  F  feed-forward width
    M  tokens attended to         H  attention heads
    S  conditioning tokens        K  head dimension
    V  (padded) active voxels     C  latent channels
    P  points                     G  Gaussians per voxel
    X Y Z  voxel grid axes        N  layers of a scanned stack

`x_BLD` is therefore (batch, tokens, width). Field documentation states shapes where data crosses a
border.
"""

__version__ = "0.1.0"
