"""Renderers: each takes a value and gives a string; files and terminals are the command line's business."""
