"""The layers of the tree: who may import whom, imports inside functions included."""

import ast
import functools
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("sam3d_jax", "data_pipelines", "launch", "configs")
DEVICE_LIBRARIES = ("jax", "flax", "optax", "orbax", "torch")

# Who never imports whom: a package or module, and what it knows nothing of.
FORBIDDEN = {
  "sam3d_jax": ("data_pipelines", "launch", "configs"),
  "data_pipelines": ("launch", "configs", *DEVICE_LIBRARIES),
  "configs": ("launch", "data_pipelines", *DEVICE_LIBRARIES),
  "sam3d_jax.geometry": DEVICE_LIBRARIES,
  "sam3d_jax.files": DEVICE_LIBRARIES,
  "sam3d_jax.models": (
    "sam3d_jax.training",
    "sam3d_jax.sharding",
    "sam3d_jax.files",
    "sam3d_jax.objectives",
    "sam3d_jax.sampling",
    "sam3d_jax.inference",
    "sam3d_jax.evaluation",
    "sam3d_jax.torch_bridge",
    "optax",
    "orbax",
    "torch",
  ),
  "sam3d_jax.objectives": ("sam3d_jax.training", "sam3d_jax.sharding", "sam3d_jax.files", "optax"),
  "sam3d_jax.sampling": ("sam3d_jax.training", "sam3d_jax.sharding", "sam3d_jax.files", "optax"),
  "sam3d_jax.sharding": ("sam3d_jax.models", "sam3d_jax.training", "sam3d_jax.torch_bridge"),
  "sam3d_jax.training": ("sam3d_jax.torch_bridge", "sam3d_jax.inference", "sam3d_jax.evaluation"),
}
# Published names live in the bridge; these readers open published releases or weights through it.
READERS_OF_RELEASES = ("sam3d_jax.inference", "sam3d_jax.evaluation.perceptual")


@functools.cache
def imports() -> dict[str, frozenset[str]]:
  """Module -> modules of the tree and of libraries that it imports, wherever in the file."""
  files = {}
  for package in PACKAGES:
    for path in sorted((ROOT / package).rglob("*.py")):
      parts = path.relative_to(ROOT).with_suffix("").parts
      files[".".join(parts).removesuffix(".__init__")] = path
  found = {}
  for module, path in files.items():
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        names |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"{path}: relative imports hide who is imported"
        for alias in node.names:
          submodule = f"{node.module}.{alias.name}"
          names.add(submodule if submodule in files else node.module)
    found[module] = frozenset(names - {module})
  return found


def inside(module: str, package: str) -> bool:
  return module == package or module.startswith(f"{package}.")


def inside_any(module: str, packages: tuple[str, ...]) -> bool:
  return any(inside(module, package) for package in packages)


def circles(graph: dict[str, frozenset[str]]) -> list[list[str]]:
  """Groups of modules that reach each other, by removing whoever imports nobody that is left."""
  left = {module: set(names) & set(graph) for module, names in graph.items()}
  while True:
    leaves = {module for module, names in left.items() if not names}
    imported = set().union(*left.values())
    gone = leaves | (set(left) - imported)  # imports nobody, or is imported by nobody
    if not gone:
      return [sorted(left)] if left else []
    left = {module: names - gone for module, names in left.items() if module not in gone}


def test_a_circle_is_found_and_a_chain_is_none():
  a_b, b_c, c_a = ("a", frozenset("b")), ("b", frozenset("c")), ("c", frozenset("a"))
  assert circles(dict([a_b, b_c, ("c", frozenset())])) == []
  assert circles(dict([a_b, b_c, c_a, ("d", frozenset("a")), ("e", frozenset("d"))])) == [
    ["a", "b", "c"]
  ]


def test_no_module_imports_itself_through_others():
  assert circles(imports()) == []


def test_every_layer_imports_only_what_lies_below_it():
  broken = set()
  for module, names in imports().items():
    for package, forbidden in FORBIDDEN.items():
      if not inside(module, package):
        continue
      for name in names:
        if inside_any(name, forbidden):
          broken.add((module, name))
  assert sorted(broken) == []


def test_only_the_bridge_and_readers_of_releases_know_published_names():
  broken = []
  bridge = "sam3d_jax.torch_bridge"
  for module, names in imports().items():
    if inside_any(module, (bridge, "launch", *READERS_OF_RELEASES)):
      continue
    broken += [(module, name) for name in names if inside(name, bridge)]
  assert broken == []
