"""The small operations of a step, in two implementations: `torch_ops` anywhere, `triton_ops` on a GPU."""
