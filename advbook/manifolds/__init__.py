"""Manifolds {dec(z)}, and how far an image lies from one."""
