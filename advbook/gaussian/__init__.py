"""Adversaries in Gaussian mixtures: closed forms, and beside each a brute-force estimate that knows no formula."""
