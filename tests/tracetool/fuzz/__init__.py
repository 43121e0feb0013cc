"""Strange files by the thousand: real traces and real settings, spoilt in seeded ways, and what becomes of them.

`python -m tests.tracetool.fuzz --cases 20000` is the longer run; `test_fuzz.py` runs a few fixed seeds.
"""
