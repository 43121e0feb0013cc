"""Capturing programs with torch's profiler: the only part of tracetool that imports torch."""
