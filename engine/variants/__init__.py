"""The axes along which the engine varies: on each, several ways to do one thing, with one result.

An implementation is registered under its name, with the first line of its docstring as its description. Which
combinations are valid is said in `engine.variants.choice`.
"""
