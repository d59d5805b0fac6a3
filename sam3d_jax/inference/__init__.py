"""From photos to objects with a trained model: what users of the package import."""

from sam3d_jax.inference.objects import SceneObject
from sam3d_jax.inference.reconstruction import Reconstructor
from sam3d_jax.inference.scene import Scene

__all__ = ["Reconstructor", "Scene", "SceneObject"]
