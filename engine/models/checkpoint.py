"""Checkpoints in Hugging Face's layout: a folder, or a hub id, with config.json and safetensors."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What a checkpoint may hold besides a model's weights: buffers that older versions saved.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
# What a model class calls the decoder under its head.
_PREFIXES = ("transformer.", "model.")
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def find_checkpoint(model: str) -> Path:
    """The folder of a checkpoint, fetched from the hub (or found in its cache) where `model` is an id.

    Raises:
        ModelError: It is neither a folder nor an id that can be had.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{model} is a file; a checkpoint is the folder with its config.json")
    if model.startswith(("/", "./", "../", "~")):
        raise ModelError(f"there is no folder {model}")
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - not needed for folders
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    hint = "give the folder of a checkpoint, the id of one on the hub, or a preset with load_format='dummy'"
    try:
        return Path(snapshot_download(model, allow_patterns=_FILES))
    except HFValidationError as error:
        raise ModelError(f"{model!r} is neither a folder nor a hub id; {hint}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the checkpoint {model!r} could not be had from the hub ({reason}); {hint}") from error


def read_config(folder: Path) -> "PreTrainedConfig":
    """The model's config, through transformers.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    from transformers import AutoConfig  # noqa: PLC0415 - takes seconds

    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; a checkpoint in Hugging Face's layout has one")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    except Exception as error:  # what a config's class raises for wrong values is its own affair
        raise ModelError(f"{folder / 'config.json'} cannot be read: {str(error).splitlines()[0]}") from error
    return config


def read_eos(folder: Path) -> tuple[int, ...] | None:
    """The tokens that end a text by generation_config.json, which may know more of them than config.json."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    try:
        ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    return None if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)


class Checkpoint:
    """The tensors of a folder's safetensors files, one or sharded; a source for `build_weights`.

    Raises:
        ModelError: There are no safetensors files, or one cannot be read.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.folder = folder
        self.dtype = dtype
        self.device = device
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._asked: set[str] = set()
        for path in self._paths():
            for name in self._reader(path).keys():  # noqa: SIM118 - not a dict
                self._files[_bare(name)] = path
        self._names = {_bare(name): name for reader in self._open.values() for name in reader.keys()}  # noqa: SIM118

    def _paths(self) -> list[Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{index} is not an index of shards: {error}") from error
            missing = [name for name in names if not (self.folder / name).is_file()]
            if missing:
                raise ModelError(f"{index} names {missing[0]}, which is not there; the checkpoint is incomplete")
            return [self.folder / name for name in names]
        single = self.folder / "model.safetensors"
        if single.is_file():
            return [single]
        hint = "save the model with save_pretrained, which writes safetensors"
        raise ModelError(f"{self.folder} has no model.safetensors and no index of shards; {hint}")

    def _reader(self, path: Path) -> Any:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - only where there is a checkpoint

        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path} is not a readable safetensors file: {error}") from error
        return self._open[path]

    def get(self, name: str, *shape: int) -> Tensor:
        """A tensor, by the name that it has under the model's prefix.

        Raises:
            ModelError: It is missing, or has another shape than the config asks for.
        """
        if name not in self._files:
            raise ModelError(f"{self.folder} has no tensor {name!r}; the checkpoint is incomplete or of another model")
        self._asked.add(name)
        path = self._files[name]
        tensor: Tensor = self._reader(path).get_tensor(self._names[name])
        if tuple(tensor.shape) != shape:
            have, want = list(tensor.shape), list(shape)
            raise ModelError(f"{path}: {name} has shape {have}, but config.json asks for {want}")
        return tensor.to(self.device, self.dtype)

    def check_all_used(self, *, tied: bool) -> None:
        """Nothing that a model could need has been left aside.

        Raises:
            ModelError: A tensor was not asked for: the config describes another model, whose output would be wrong.
        """
        unused = sorted(name for name in self._files.keys() - self._asked if not name.endswith(_BUFFERS))
        if tied:
            unused = [name for name in unused if name != "lm_head.weight"]
        if unused:
            more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
            raise ModelError(f"{self.folder} has a tensor {unused[0]!r}{more} that config.json has no place for")


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name
