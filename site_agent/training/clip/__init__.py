"""Bases with two towers: images and texts as vectors of one space, frozen. Knows no data and no adapter."""
