"""Models: what they are made of, where their tensors come from, and the decoder that runs them all."""
