"""Attacks: one ascent loop, small spaces, step rules and objectives, and one short file an attack."""
