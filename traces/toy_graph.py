"""A small model's step, eager or as a CUDA graph: `python traces/toy_graph.py eager|graph`.

Both have the ranges `model_step`, and inside it `layer` (`norm`, `mlp`) and `head`; a replay brings none of the inner
ones back. `tracetool summary --ranges-from` gives its kernels back to them.
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.profiler import record_function

import tracetool

LAYERS, WIDTH, STEPS = 3, 64, 3


class Model(nn.Module):
    """Layers of norm and MLP, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS))
        self.ups = nn.ModuleList(nn.Linear(WIDTH, 4 * WIDTH) for _ in range(LAYERS))
        self.downs = nn.ModuleList(nn.Linear(4 * WIDTH, WIDTH) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [batch, WIDTH] to the index of the largest logit, [batch]."""
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            with record_function("layer"):
                with record_function("norm"):
                    y = norm(x)
                with record_function("mlp"):
                    x = x + down(nn.functional.gelu(up(y)))
        with record_function("head"):
            return self.head(x).argmax(-1)


def main(form: str) -> None:
    """Run steps in one of two forms."""
    torch.manual_seed(0)
    model, x = Model().cuda(), torch.randn(8, WIDTH, device="cuda")
    with torch.inference_mode():
        step = captured(model, x) if form == "graph" else lambda: model(x)
        for _ in range(2 + STEPS):
            with record_function("model_step"):
                step()
            torch.cuda.synchronize()
            tracetool.step()


def captured(model: Model, x: torch.Tensor):  # noqa: ANN201 - what it replays is torch's
    """What replays a step."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        model(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(x)
    return graph.replay


if __name__ == "__main__":
    main(sys.argv[1])
