"""Rooms of launch.engine: photos in, candidates of generators."""
