"""Versions of the engine's tables, one module a change."""
