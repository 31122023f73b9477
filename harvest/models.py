"""The source model: found, loaded through TransformerLens, and checked against transformers."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saeflow import console
from saeflow.errors import BadInputError, one_line
from saeflow.harvest import builtin

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

_WEIGHTS = "*.safetensors"
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model")
_HUB_FILES = [_WEIGHTS, "*.json", "*.txt", "*.model"]
_RELATIVE_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far the bridge's logits may lie from transformers', against the largest logit."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which model, and how it is run.

    Attributes:
        name: `builtin`, a Hugging Face folder, or a name on the hub.
        dtype: what the weights and the forward pass are computed in.
        device: where.
        compatibility_mode: TransformerLens's folding and centring of weights.
        trust_remote_code: whether code that comes with the model may run.
    """

    name: str
    dtype: str = "float32"
    device: str = "cpu"
    compatibility_mode: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class SourceModel:
    """A loaded source model and its tokenizer."""

    bridge: "TransformerBridge"
    tokenizer: "PreTrainedTokenizerBase"
    spec: ModelSpec

    @property
    def device(self) -> torch.device:
        """Where the model's forward pass runs."""
        return torch.device(self.spec.device)

    @property
    def vocabulary(self) -> int:
        """How many token ids the model has an embedding for."""
        return int(self.bridge.cfg.d_vocab)

    @property
    def longest_context(self) -> int:
        """The most tokens that the model takes at once."""
        return int(self.bridge.cfg.n_ctx)


def find_model(name: str, *, trust_remote_code: bool = False) -> Path:
    """The folder with a model's files; a hub name is downloaded, or found in the hub's cache.

    Raises:
        BadInputError: there is no such folder or hub model, or it has no weights.
    """
    if name == builtin.NAME:
        return builtin.MODEL_PATH
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise BadInputError(
                f"model folder {name} does not exist: check the path, "
                "or say with --model where it is"
            )
        folder = _download(name, _HUB_FILES + (["*.py"] if trust_remote_code else []))
    if not (folder / "config.json").is_file():
        raise BadInputError(
            f"model folder {name} has no config.json: give a folder written by save_pretrained"
        )
    if not any(folder.glob(_WEIGHTS)):
        raise BadInputError(
            f"model folder {name} has no weights ({_WEIGHTS}): saeflow reads safetensors only"
        )
    # An absolute path: TransformerLens rewrites a relative one that equals an alias of its own.
    return folder.resolve()


def load_model(spec: ModelSpec) -> SourceModel:
    """Load a source model and check its logits on one batch against transformers'.

    Raises:
        BadInputError: it can't be found, read, or run by TransformerLens.
    """
    folder = find_model(spec.name, trust_remote_code=spec.trust_remote_code)
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = getattr(torch, spec.dtype)
    options = {"trust_remote_code": spec.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
        model, loading = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        model.eval().to(spec.device)
        if loading["missing_keys"]:  # transformers would run them with random numbers
            missing = sorted(loading["missing_keys"])
            raise ValueError(f"its weights lack {len(missing)} tensors: {', '.join(missing[:3])}")
        expected = _logits(model, spec.device)
        bridge = TransformerBridge.boot_transformers(
            str(folder), hf_model=model, device=spec.device, dtype=dtype, **options
        )
    except Exception as error:  # transformers, tokenizers and the adapters each raise their own
        raise BadInputError(f"model {spec.name} can't be loaded: {one_line(error)}") from error
    bridge.requires_grad_(False)
    _check_logits(_logits(bridge, spec.device), expected, spec)
    if spec.compatibility_mode:
        bridge.enable_compatibility_mode()
    return SourceModel(bridge, tokenizer, spec)


def describe_model(spec: ModelSpec) -> dict[str, Any]:
    """What identifies a model: where it is from, hashes of its files, and how it is run.

    Raises:
        BadInputError: it can't be found.
    """
    folder = find_model(spec.name, trust_remote_code=spec.trust_remote_code)
    is_folder = spec.name != builtin.NAME and Path(spec.name).expanduser().is_dir()
    return {
        "name": str(folder) if is_folder else spec.name,
        "revision": folder.name if folder.parent.name == "snapshots" else None,
        "weights_sha256": hash_files(folder.glob(_WEIGHTS)),
        "config_sha256": hash_files([folder / "config.json"]),
        "tokenizer_sha256": hash_files(p for g in _TOKENIZER_FILES for p in folder.glob(g)),
        "dtype": spec.dtype,
        "compatibility_mode": spec.compatibility_mode,
        "trust_remote_code": spec.trust_remote_code,
    }


def _logits(model: Any, device: str) -> torch.Tensor:
    vocabulary = model.config.vocab_size if hasattr(model, "config") else model.cfg.d_vocab
    tokens = torch.randint(vocabulary, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = model(tokens.to(device))
    return (output if isinstance(output, torch.Tensor) else output.logits).float()


def _check_logits(found: torch.Tensor, expected: torch.Tensor, spec: ModelSpec) -> None:
    scale = expected.abs().max().item()
    difference = (found - expected).abs().max().item()
    if difference > _RELATIVE_TOLERANCE[getattr(torch, spec.dtype)] * scale:
        console.warn(
            f"TransformerLens's logits for {spec.name} differ from transformers' by "
            f"{difference:.3g} (largest logit {scale:.3g}): its activations may not be this model's"
        )


def hash_files(files: Iterable[Path], *, called: str | None = None) -> str:
    """One sha256 over the names and contents of files.

    Args:
        files: to read.
        called: the name to take for all of them instead of their own.
    """
    total = hashlib.sha256()
    for file in sorted(set(files)):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{called or file.name}\0{content}\n".encode())
    return total.hexdigest()


def _download(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's, the network's and the cache's own errors
        raise BadInputError(
            f"model {name} is neither a folder here nor to be had from the hub: {one_line(error)}"
        ) from error
