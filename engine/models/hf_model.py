"""A decoder in transformers' own code, over the paged cache: `attention_backend=hf`.

Transformers calls attention by name, so a function of ours can stand in its place; everything else of the model is
theirs. What a model asks of that function is not known before it asks: a probe runs it once on two short texts, beside
the same model with transformers' own attention, and whoever asks for something that the cache cannot give, or comes to
other numbers, is refused in a sentence.
"""

import warnings
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch program uses
from torch import Tensor

from engine.errors import ModelError
from engine.models.decoder import Attend
from engine.models.families import LENGTH_DEPENDENT_ROPE
from engine.models.spec import ModelSpec
from engine.ranges import ATTENTION, annotate

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from engine.ops.interface import Rotary

# Our function's name among transformers' attention functions.
NAME = "paged_cache"
# What attention may be asked for by keyword and not with None or False: what is read, and what changes nothing here.
_READ = ("scaling", "sliding_window")
_HARMLESS = ("is_causal", "position_ids", "use_cache")
# Lengths of the probe's texts, and how far its numbers may be from transformers' own, relatively.
_PROBE = (7, 4)
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.1
_SLIDING = ("sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class _Call:
    """What one layer asked of attention."""

    heads: tuple[int, int, int]
    value_dim: int
    scale: float
    window: int
    unknown: tuple[str, ...]
    masked: bool
    two_way: bool


class _Step:
    """A forward pass under way: whom its attention is handed to."""

    def __init__(self, attend: Attend) -> None:
        self.attend = attend
        self.layer = 0


_STEP: ContextVar[_Step | None] = ContextVar("step", default=None)
_CALLS: ContextVar[list[_Call] | None] = ContextVar("calls", default=None)


def _attention(
    _module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """What transformers calls, with `[1, heads, tokens, head_dim]`; gives `[1, tokens, heads, head_dim]`."""
    step, calls = _STEP.get(), _CALLS.get()
    if calls is not None:
        calls.append(_describe(query, key, value, attention_mask, more))
        # Shared dropout, a mask or another width would only get in the way of saying what is wrong.
        if calls[-1].value_dim != calls[-1].heads[2]:
            return torch.zeros_like(value.transpose(1, 2)).repeat(1, 1, query.shape[1] // value.shape[1], 1), None
    assert step is not None, "attention of ours is called outside of a step of ours"
    with annotate(ATTENTION):
        out = step.attend(step.layer, *(x[0].transpose(0, 1).contiguous() for x in (query, key, value)))
    step.layer += 1
    return out[None], None


def _describe(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, more: dict[str, Any]) -> _Call:
    head_dim, scale = query.shape[-1], more.get("scaling")
    asked = {name for name, value in more.items() if value is not None and value is not False}
    unknown = asked - {*_READ, *_HARMLESS} - ({"dropout"} if not more.get("dropout") else set())
    return _Call(
        heads=(query.shape[1], key.shape[1], head_dim),
        value_dim=value.shape[-1],
        scale=head_dim**-0.5 if scale is None else float(scale),
        window=more.get("sliding_window") or 0,
        unknown=tuple(sorted(unknown)),
        masked=mask is not None,
        two_way=more.get("is_causal") is False,
    )


def _refuse(config: "PreTrainedConfig", what: str, why: str) -> ModelError:
    return ModelError(f"this {config.model_type} model cannot be run by attention_backend='hf': {what}, and {why}")


def _text(config: "PreTrainedConfig") -> Any:
    return config.get_text_config()


def outline(config: "PreTrainedConfig") -> ModelSpec:
    """What a config alone says of a model; a probe tells the rest.

    Raises:
        ModelError: It says enough to refuse the model.
    """
    text = _text(config)
    if config.is_encoder_decoder:
        raise _refuse(config, "it has an encoder", "there is nothing here to attend to but the text itself")
    if getattr(config, "quantization_config", None) is not None:
        raise _refuse(config, "its weights are quantised", "only fp32, fp16 and bf16 weights are read")
    for kind in _rope_types(getattr(text, "rope_parameters", None) or {}):
        if kind in LENGTH_DEPENDENT_ROPE:
            raise _refuse(config, f"its rope_type is {kind!r}", "such a rotation changes keys that are cached already")
    positions = next(
        (n for name in ("max_position_embeddings", "n_positions") if (n := getattr(text, name, None))), None
    )
    if positions is None:
        raise _refuse(config, "its config does not say how many positions it has", "a cache needs to know")
    eos = text.eos_token_id
    return ModelSpec(
        model_type=config.model_type,
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=0,
        num_layers=text.num_hidden_layers,
        num_heads=1,
        num_kv_heads=1,
        head_dim=1,
        max_positions=positions,
        norm="",
        norm_eps=0.0,
        # What follows is the model's own affair, as its rotation is.
        activation="silu_gated",
        rope=False,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows=(0,) * text.num_hidden_layers,
        scales=(1.0,) * text.num_hidden_layers,
        tied=False,
        eos_token_ids=() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
        initializer_range=getattr(text, "initializer_range", 0.02),
    )


def _rope_types(parameters: dict[str, Any]) -> list[str]:
    """All of them: some configs have parameters for each type of layer."""
    found = [parameters["rope_type"]] if "rope_type" in parameters else []
    return found + [kind for value in parameters.values() if isinstance(value, dict) for kind in _rope_types(value)]


class HFModel:
    """See `engine.machine.Model`.

    Args:
        model: A causal language model, ready to run.
        outline: From `outline`.

    Raises:
        ModelError: It asks for something that the cache cannot give.
    """

    def __init__(self, model: "PreTrainedModel", outline: ModelSpec) -> None:
        from transformers import AttentionInterface  # noqa: PLC0415 - takes seconds

        self._model = model
        self._config = model.config
        self._device = model.device
        self._hidden: Tensor | None = None
        AttentionInterface.register(NAME, _attention)
        self.rotary: list[Rotary | None] = [None] * outline.num_layers
        try:
            with torch.inference_mode():
                self.spec = self._probe(outline)
        except ModelError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.100}"
            raise _refuse(self._config, f"a probe of it failed ({reason})", "what fails there fails later") from error

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states `[tokens, hidden]`, of several sequences in one row."""
        token = _STEP.set(_Step(attend))
        try:
            out = self._inner(input_ids=token_ids.long()[None], position_ids=positions.long()[None], use_cache=False)
        finally:
            _STEP.reset(token)
        self._output = type(out)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """`[rows, vocab]`: the model's own head, and whatever comes with it, of these hidden states."""
        self._hidden = hidden
        try:
            rows = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
            logits: Tensor = self._model(input_ids=rows, use_cache=False).logits[0]
        finally:
            self._hidden = None
        return logits

    def _inner_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The decoder under the head, which is given hidden states that are known already."""
        if self._hidden is not None:
            return self._output(last_hidden_state=self._hidden[None])
        return self._forward(*args, **kwargs)

    def _probe(self, spec: ModelSpec) -> ModelSpec:
        model, config = self._model, self._config
        generator = torch.Generator().manual_seed(1)
        texts = [torch.randint(spec.vocab_size, (n,), generator=generator).to(self._device) for n in _PROBE]
        model.set_attn_implementation("eager")
        with _first_called(model) as called:
            wanted = [model(input_ids=text[None], use_cache=False).logits[0] for text in texts]
        self._inner = called[0]
        self._forward = self._inner.forward
        self._inner.forward = self._inner_forward
        self._set_attention()
        calls: list[_Call] = []
        token = _CALLS.set(calls)
        try:
            hidden = self.forward(*_interleave(texts), _PlainAttention(calls))
        except TypeError as error:
            if "position_ids" in str(error):
                raise _refuse(
                    config, "it takes no positions", "several texts in one row each have their own"
                ) from error
            raise
        finally:
            _CALLS.reset(token)
        spec = self._check_calls(spec, calls)
        logits, right = self.logits(hidden), torch.cat(wanted)
        off = float((logits[torch.cat(_ROWS)] - right).double().norm() / right.double().norm())
        if not off <= _TOLERANCES.get(logits.dtype, _HALF_TOLERANCE):
            raise _refuse(
                config,
                f"two texts in one row come out otherwise than one by one (by {off:.1g} of their size)",
                "it does something beside attention that the paged cache does not know",
            )
        return spec

    def _set_attention(self) -> None:
        try:
            self._model.set_attn_implementation(NAME)
        except (ValueError, ImportError) as error:
            raise _refuse(
                self._config, "it does not take an attention function", "ours must stand in for its own"
            ) from error

    def _check_calls(self, spec: ModelSpec, calls: list[_Call]) -> ModelSpec:
        """The spec with what the calls tell.

        Raises:
            ModelError: They ask for what cannot be given.
        """
        config, layers = self._config, spec.num_layers
        if not calls:
            what = "none of its layers attends through transformers' interface"
            raise _refuse(config, what, "attention of ours would never be called")
        if len(calls) < layers:
            what = f"its {layers} layers call attention {len(calls)} times"
            raise _refuse(config, what, "what the others keep of a text is not keys and values")
        if len(calls) > layers:
            raise _refuse(config, f"its {layers} layers call attention {len(calls)} times", "a layer has one cache")
        unknown = sorted({name for call in calls for name in call.unknown})
        if unknown:
            raise _refuse(config, f"it asks attention for {', '.join(unknown)}", "no kernel here does that")
        if any(call.masked or call.two_way for call in calls):
            raise _refuse(config, "it has a mask of its own", "attention here is causal")
        if len({(*call.heads, call.value_dim) for call in calls}) > 1 or calls[0].value_dim != calls[0].heads[2]:
            dims = ", ".join(sorted({f"{call.heads[1]} x {call.heads[2]}/{call.value_dim}" for call in calls}))
            raise _refuse(
                config, f"its keys and values are not of one size ({dims})", "a block of the cache has one for all"
            )
        num_heads, num_kv_heads, head_dim = calls[0].heads
        windows = tuple(call.window for call in calls)
        types = getattr(_text(config), "layer_types", None) or []
        if any(kind in _SLIDING for kind in types) and not any(windows):
            raise _refuse(config, "some of its layers see a window", "they do not tell attention how wide it is")
        return replace(
            spec,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            windows=windows,
            scales=tuple(call.scale for call in calls),
        )


class _first_called:  # noqa: N801 - used like a function
    """While it is entered, notes the modules below a model as they are called, the outermost first."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> list[torch.nn.Module]:
        called: list[torch.nn.Module] = []
        for module in self._model.modules():
            if module is not self._model:
                self._handles.append(module.register_forward_pre_hook(lambda one, _: called.append(one)))
        return called

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


# The rows of each of the probe's texts: they take turns, so that a row's neighbours are not its text's, and the
# distance of two rows is not that of their positions.
_ROWS = tuple(
    torch.tensor([2 * i + text if i < min(_PROBE) else i + min(_PROBE) for i in range(n)])
    for text, n in enumerate(_PROBE)
)


def _interleave(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and positions of all texts in one row."""
    tokens, positions = (texts[0].new_empty(sum(_PROBE)) for _ in range(2))
    for rows, text in zip(_ROWS, texts, strict=True):
        tokens[rows], positions[rows] = text, torch.arange(len(text), device=text.device)
    return tokens, positions


class _PlainAttention:
    """Causal attention inside each of the probe's texts, without a cache.

    Args:
        calls: What each layer asks for.
    """

    def __init__(self, calls: list[_Call]) -> None:
        self._calls = calls

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        call, out = self._calls[layer], torch.empty_like(query)
        for rows in _ROWS:
            q, k, v = (x[rows] for x in (query, key, value))
            position = torch.arange(len(q), device=q.device)
            visible = position[None] <= position[:, None]
            if call.window:
                visible &= position[None] > position[:, None] - call.window
            q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
            gqa = q.shape[1] != k.shape[1]
            attended = F.scaled_dot_product_attention(q, k, v, visible, scale=call.scale, enable_gqa=gqa)
            out[rows] = attended[0].transpose(0, 1)
        return out


def load_hf(
    config: "PreTrainedConfig",
    folder: Path | None,
    spec: ModelSpec,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> HFModel:
    """A model from a checkpoint's folder, or with random weights.

    Args:
        config: The model's.
        folder: Where its weights are; None makes random ones.
        spec: From `outline`.
        seed: Of random weights.
        dtype: Of weights.
        device: Where it runs.

    Raises:
        ModelError: Transformers cannot make it, or the cache cannot serve it.
    """
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - takes seconds

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if folder is not None:
                model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
            else:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    make: Any = AutoModelForCausalLM.from_config
                    model = make(config, dtype=dtype, attn_implementation="eager")
    except Exception as error:  # whatever transformers says
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"transformers cannot make this {config.model_type} model: {reason:.200}") from error
    ready: Any = model
    return HFModel(ready.to(device).eval(), spec)
