"""Scores: arrays in, a frame out."""
