"""How fast the kernels are, beside what they compete with: `python -m kernels.bench`, with a GPU."""
