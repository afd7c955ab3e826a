"""Attention in a program: finding it, and computing it over the devices of a mesh axis."""
