"""How fast the engine is, with the flags and the numbers of the benchmarks that it is to be compared with.

`python -m engine.bench` lists them.
"""
