"""What a decoder is made of, as a table of values: one decoder reads it, whatever the family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer.

    Attributes:
        model_type: As Hugging Face's configs name it.
        max_positions: Positions that the model was made for.
        norm: `layer` (LayerNorm, centred, with a bias) or `rms`.
        activation: `silu_gated`, or a GELU by the name that the config has for it.
        rope: Whether positions rotate queries and keys; otherwise they are embedded and added to tokens.
        qkv_bias: Whether the query, key and value projections have biases; likewise `out_bias`, `mlp_bias`.
        qk_norm: Whether each head of queries and keys passes an RMSNorm before it is rotated.
        windows: For each layer, how many positions a query sees, its own included; 0 is all.
        scales: For each layer, what attention scores are multiplied by.
        tied: Whether the output head is the token embedding.
        eos_token_ids: Tokens that end a text.
        initializer_range: Standard deviation of random weights.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm: str
    norm_eps: float
    activation: str
    rope: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int, ...]
    scales: tuple[float, ...]
    tied: bool
    eos_token_ids: tuple[int, ...]
    initializer_range: float

    @property
    def gated(self) -> bool:
        """Whether the first half of the MLP gates its second half."""
        return self.activation == "silu_gated"

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Widths of queries, keys and values in their fused projection."""
        return self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim, self.num_kv_heads * self.head_dim
