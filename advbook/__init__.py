"""advbook: adversarial examples and the data manifold, one claim a chapter."""
