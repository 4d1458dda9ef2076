"""Models by name or directory: what a Llama-family configuration says, and small built-in models; no torch here.

    load_config("tiny-llama")                      # EngineModelConfig of a built-in model
    load_config("/models/llama-3.1-8b")            # of a directory with config.json
    model_directory("tiny-llama", seed=0)          # config.json, safetensors, tokenizer.json: written on demand

Built-in models are drawn from a seed, the same bytes on every machine, and laid out as transformers and vLLM want
them, so that all engines serve the very same weights. They are not trained: their answers are characters at random.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from execution.engines.vocabulary import BOS_ID, BYTE_VOCAB_SIZE, EOS_ID, PAD_ID, ROLE_IDS, SPECIAL_TOKENS
from loop.contracts.engine import EngineError

Weights = dict[str, npt.NDArray[np.float32]]

ARCHITECTURES: Final = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
ROPE_TYPES: Final = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class EngineModelConfig:
    """Shape and constants of a decoder of the Llama family; names as in transformers' config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    """`rope_type` (one of ROPE_TYPES) and its constants; empty: default."""
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    """Of the attention's output projection."""
    mlp_bias: bool = False
    eos_token_ids: frozenset[int] = frozenset()
    dtype: str = "float32"
    """Of the stored weights."""
    architecture: str = "LlamaForCausalLM"

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(int(np.prod(shape)) for shape in self.weight_shapes().values())

    @property
    def kv_values_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint, by its name in transformers' layout."""
        hidden, inner, head = self.hidden_size, self.intermediate_size, self.head_dim
        queries, keys = self.num_attention_heads * head, self.num_key_value_heads * head
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        matrices = {
            "self_attn.q_proj": (queries, hidden, self.qkv_bias),
            "self_attn.k_proj": (keys, hidden, self.qkv_bias),
            "self_attn.v_proj": (keys, hidden, self.qkv_bias),
            "self_attn.o_proj": (hidden, queries, self.output_bias),
            "mlp.gate_proj": (inner, hidden, self.mlp_bias),
            "mlp.up_proj": (inner, hidden, self.mlp_bias),
            "mlp.down_proj": (hidden, inner, self.mlp_bias),
        }
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            for name, (rows, columns, bias) in matrices.items():
                shapes[f"{prefix}{name}.weight"] = (rows, columns)
                if bias:
                    shapes[f"{prefix}{name}.bias"] = (rows,)
            shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
            shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes


_TINY = EngineModelConfig(
    vocab_size=BYTE_VOCAB_SIZE,
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=2048,
    eos_token_ids=frozenset((EOS_ID,)),
)

BUILTIN_MODELS: Final[Mapping[str, EngineModelConfig]] = {
    # 4.1 M parameters: what benchmarks and `loop serve` use by default.
    "tiny-llama": _TINY,
    # 0.8 M parameters, tied, many query heads on one key head, llama3's rope: quick tests of the other paths.
    "micro-llama": replace(
        _TINY,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        rope_theta=500_000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    ),
    # 26 M parameters: where arithmetic outweighs everything else on a CPU.
    "small-llama": replace(
        _TINY, hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=4096,
    ),
}  # fmt: skip


def load_config(model: str | Path) -> EngineModelConfig:
    """Configuration of a built-in model or of a directory. Raises EngineError, naming the file and the field."""
    if str(model) in BUILTIN_MODELS:
        return BUILTIN_MODELS[str(model)]
    directory = Path(model)
    if not directory.is_dir():
        raise EngineError(
            f"no model {str(model)!r}: neither a directory nor one of the built-in {', '.join(BUILTIN_MODELS)}"
        )
    path = directory / "config.json"
    fields = _read_object(path)
    generation = directory / "generation_config.json"
    eos = _ids(fields.get("eos_token_id"))
    if generation.is_file():
        eos |= _ids(_read_object(generation).get("eos_token_id"))
    return parse_config(fields, str(path), eos)


def parse_config(
    fields: Mapping[str, Any], where: str, eos: frozenset[int] = frozenset()
) -> EngineModelConfig:
    """A config.json of transformers, version 4 or 5. Raises EngineError, naming `where` and the field."""
    architecture = (fields.get("architectures") or ["LlamaForCausalLM"])[0]
    if architecture not in ARCHITECTURES:
        raise EngineError(
            f"{where}: architecture {architecture} is not served here: only {', '.join(ARCHITECTURES)}"
        )
    if fields.get("sliding_window") and fields.get("use_sliding_window", architecture.startswith("Mistral")):
        raise EngineError(f"{where}: sliding_window is not served here")
    if fields.get("hidden_act", "silu") != "silu":
        raise EngineError(f"{where}: hidden_act {fields['hidden_act']!r} is not served here: only silu")
    if fields.get("quantization_config"):
        raise EngineError(f"{where}: quantised weights (quantization_config) are not served here")
    sizes = {name: _size(fields, name, where) for name in _SIZES}
    heads = sizes["num_attention_heads"]
    kv_heads = _size({"num_key_value_heads": heads, **_given(fields)}, "num_key_value_heads", where)
    head_dim = _size({"head_dim": sizes["hidden_size"] // heads, **_given(fields)}, "head_dim", where)
    if heads % kv_heads or head_dim % 2:
        raise EngineError(
            f"{where}: {heads} attention heads of {head_dim} values cannot share {kv_heads} key-value heads"
        )
    theta, scaling = _rope(fields, where)
    bias = bool(fields.get("attention_bias", False))
    return EngineModelConfig(
        **sizes,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
        qkv_bias=bias or architecture.startswith("Qwen2"),
        output_bias=bias,
        mlp_bias=bool(fields.get("mlp_bias", False)),
        eos_token_ids=eos or _ids(fields.get("eos_token_id")),
        dtype=str(fields.get("dtype") or fields.get("torch_dtype") or "float32").removeprefix("torch."),
        architecture=architecture,
    )


def model_directory(model: str | Path, seed: int = 0, cache: Path | None = None) -> Path:
    """The directory of a model: as given, or that of a built-in one, written first where it is not there yet.

    `cache`: where built-in models are kept; None: `$AUTOPOIESIS_CACHE`, else the user's cache directory. Any number
    of processes may ask at once. Raises EngineError.
    """
    if str(model) not in BUILTIN_MODELS:
        load_config(model)
        return Path(model)
    config = BUILTIN_MODELS[str(model)]
    # The name tells what made it: another recipe or shape never meets old files.
    recipe = json.dumps([_RECIPE, hf_config(config), seed], sort_keys=True)
    target = (
        (cache or cache_directory())
        / "models"
        / (f"{model}-seed{seed}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}")
    )
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            write_model(config, partial, seed)
            partial.chmod(0o755)
            partial.rename(target)
        except OSError:
            if not (target / "config.json").is_file():  # else another process was faster
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise EngineError(
            f"{target}: the built-in model {model} cannot be written: {error}; point AUTOPOIESIS_CACHE elsewhere"
        ) from error
    return target


def cache_directory() -> Path:
    """Where built-in models are kept: `$AUTOPOIESIS_CACHE`, `$XDG_CACHE_HOME/autopoiesis`, `~/.cache/autopoiesis`."""
    given = os.environ.get("AUTOPOIESIS_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autopoiesis"


def write_model(config: EngineModelConfig, directory: Path, seed: int = 0) -> None:
    """Write weights, configuration and the byte tokenizer, for any engine to load. Raises EngineError."""
    try:
        from safetensors.numpy import save_file  # noqa: PLC0415 reading a configuration does not need it
    except ImportError as error:
        raise EngineError(
            "writing a model needs the package safetensors: pip install 'autopoiesis[torch]'"
        ) from error
    directory.mkdir(parents=True, exist_ok=True)
    save_file(random_weights(config, seed), directory / "model.safetensors", metadata={"format": "pt"})
    if config.vocab_size >= BYTE_VOCAB_SIZE - 2:
        _write_json(directory / "tokenizer.json", _byte_tokenizer_json())
        _write_json(directory / "tokenizer_config.json", _TOKENIZER_CONFIG)
    _write_json(directory / "config.json", hf_config(config))


def hf_config(config: EngineModelConfig) -> dict[str, Any]:
    """The config.json that transformers and vLLM read."""
    fields: dict[str, Any] = {name: getattr(config, name) for name in _SIZES}
    return {
        "architectures": [config.architecture],
        "model_type": {"L": "llama", "M": "mistral", "Q": "qwen2"}[config.architecture[0]],
        **fields,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": dict(config.rope_scaling) or None,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.output_bias,
        "mlp_bias": config.mlp_bias,
        "bos_token_id": BOS_ID if config.vocab_size > BOS_ID else None,
        "eos_token_id": sorted(config.eos_token_ids) or None,
        "pad_token_id": PAD_ID if config.vocab_size > PAD_ID else None,
        "torch_dtype": config.dtype,
    }


def random_weights(config: EngineModelConfig, seed: int) -> Weights:
    """Weights of a model that nobody trained, each tensor from (seed, its name) alone.

    Scaled so that activations stay near 1 and logits spread wide (their maximum is rarely a near tie). In a model
    with a byte vocabulary the tokens of printable ASCII and the end of the answer stand out, so that answers read
    as text and end now and then.
    """
    weights: Weights = {}
    for name, shape in config.weight_shapes().items():
        digest = hashlib.sha256(f"{_RECIPE}/{seed}/{name}".encode()).digest()
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
        values = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("norm.weight"):
            values = 1.0 + 0.1 * values
        elif name.endswith(".bias"):
            values *= 0.2
        elif name == "model.embed_tokens.weight":
            values *= 1.0 if not config.tie_word_embeddings else _TIED_SCALE * config.hidden_size**-0.5
        elif name == "lm_head.weight":
            values *= _HEAD_SCALE * config.hidden_size**-0.5
        else:
            values *= shape[1] ** -0.5
        if name in {"lm_head.weight", "model.embed_tokens.weight"} and config.vocab_size == BYTE_VOCAB_SIZE:
            scale = np.full(config.vocab_size, 0.3, dtype=np.float32)
            scale[[10, EOS_ID, *range(32, 127)]] = 1.0
            if name == "lm_head.weight" or config.tie_word_embeddings:
                values *= scale[:, None]
        weights[name] = values.astype(np.float32)
    return weights


_RECIPE: Final = "1"  # of random_weights and the files around it: any change of theirs changes this
_HEAD_SCALE: Final = 3.0
_TIED_SCALE: Final = 3.0
_SIZES: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['" + "', '".join(ROLE_IDS) + "'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_TOKENIZER_CONFIG: Final[Mapping[str, Any]] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|bos|>",
    "eos_token": "<|eos|>",
    "pad_token": "<|pad|>",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 1_000_000,
    "chat_template": _TEMPLATE,
}


def _byte_tokenizer_json() -> dict[str, Any]:
    """ByteTokenizer in the format of the package tokenizers: byte-level BPE without merges."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for text, i in SPECIAL_TOKENS.items()
        ],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {letter: i for i, letter in enumerate(_byte_letters())} | dict(SPECIAL_TOKENS), "merges": [],
        },
    }  # fmt: skip


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE (Radford et al., 2019): itself where it is printable
    Latin-1, else the next free one from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(i) if i in printable else chr(next(spare)) for i in range(256)]


def _rope(fields: Mapping[str, Any], where: str) -> tuple[float, dict[str, Any]]:
    """(theta, scaling) of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters)."""
    found = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(found, Mapping):
        raise EngineError(f"{where}: rope_scaling: an object is expected, not {type(found).__name__}")
    scaling = dict(found)
    theta = float(scaling.pop("rope_theta", None) or fields.get("rope_theta") or 10_000.0)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    if kind not in ROPE_TYPES:
        raise EngineError(f"{where}: rope_type {kind!r} is not served here: only {', '.join(ROPE_TYPES)}")
    return theta, {} if kind == "default" else {"rope_type": kind, **scaling}


def _size(fields: Mapping[str, Any], name: str, where: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise EngineError(f"{where}: {name}: a positive integer is expected, not {value!r}")
    return value


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _ids(value: object) -> frozenset[int]:
    """`eos_token_id`: absent, one, or several."""
    if isinstance(value, int):
        return frozenset((value,))
    return frozenset(i for i in value if isinstance(i, int)) if isinstance(value, list) else frozenset()


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EngineError(f"{path}: no such file: a model directory needs it") from error
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise EngineError(f"{path}: an object is expected, not {type(found).__name__}")
    return found


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
