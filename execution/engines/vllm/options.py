"""`EngineSpec.options` of the vLLM engine."""

from __future__ import annotations

from dataclasses import dataclass, fields

from loop.contracts import EngineError, EngineSpec

MODES = ("in-process", "server")
SAMPLER = "execution.engines.vllm.sampler:SeededSampler"
"""Logits processor; on GPUs vLLM's own sampler draws by seed and position already."""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """One engine. Empty and 0 mean: not given, vLLM decides, unless said otherwise."""

    mode: str = "in-process"
    """`in-process`: vLLM in this interpreter, or in a worker of the interpreter that has it; `server`: over HTTP."""
    python: str = ""
    """Interpreter that can import vLLM; empty: `environment.interpreter`."""
    url: str = ""
    """Server mode: one that runs already (http://host:port), instead of one of our own."""
    api_key: str = ""
    """Server mode: of that server; for one of our own: empty draws one."""
    port: int = 0
    """Server mode: loopback port of our own server; 0: a free one."""
    dtype: str = "auto"
    max_model_len: int = 0
    block_tokens: int = 32
    """Of the KV cache; on CPU a multiple of 32."""
    kv_cache_mib: int = 64
    """0: vLLM's share of the device memory."""
    threads: int = 1
    """OpenMP threads on CPU."""
    eager: bool = True
    """False: torch.compile and CUDA graphs."""
    prefix_caching: bool = True
    tp: int = 1
    pp: int = 1
    max_num_seqs_ceiling: int = 256
    """What limits may be raised to at run time."""
    max_num_batched_tokens_ceiling: int = 8192
    max_logprobs: int = 20
    max_adapters: int = 0
    """LoRA adapters loaded at a time; 0: none ever."""
    max_lora_rank: int = 16
    policy: str = ""
    """Policy file that orders the queue from the start; empty: by the requests' priorities."""
    policy_ask_s: float = 0.02
    """For one crossing to the policy's process (settings.PluginSettings.ask_s)."""
    policy_step_budget_s: float = 0.002
    """For asking it in one step of the engine."""
    device_kind: str = "cpu"
    start_s: float = 300.0
    """For a server of our own to become ready."""

    @classmethod
    def of(cls, spec: EngineSpec) -> VllmOptions:
        """From a spec. Raises EngineError, naming the option."""
        defaults = cls()
        known = {f.name: type(getattr(defaults, f.name)) for f in fields(cls)}
        values: dict[str, str | int | float | bool] = {}
        for name, value in spec.options.items():
            if name not in known:
                raise EngineError(f"vllm: no option {name!r}; there are {', '.join(known)}")
            kind = known[name]
            fits = type(value) is kind or (kind is float and type(value) is int)
            if not fits:
                raise EngineError(f"vllm: option {name}: {kind.__name__} is expected, not {value!r}")
            values[name] = value
        options = cls(**values)  # type: ignore[arg-type] # checked above
        if options.mode not in MODES:
            raise EngineError(f"vllm: option mode: {' or '.join(MODES)}, not {options.mode!r}")
        for name in (
            "block_tokens",
            "threads",
            "tp",
            "pp",
            "max_logprobs",
            "start_s",
            "policy_ask_s",
            "policy_step_budget_s",
        ):
            if getattr(options, name) <= 0:
                raise EngineError(f"vllm: option {name} must be above 0, not {getattr(options, name)}")
        if options.device_kind == "cpu" and options.block_tokens % 32:
            raise EngineError(
                f"vllm: option block_tokens: a multiple of 32 on CPU, not {options.block_tokens}"
            )
        return options

    @property
    def kv_cache_bytes(self) -> int | None:
        """None: vLLM decides."""
        return self.kv_cache_mib * _MIB or None

    @property
    def plugin(self) -> dict[str, dict[str, str | float]]:
        """VLLM's `additional_config`: the section of the scheduler plug-in (settings.PluginSettings)."""
        return {
            "autopoiesis": {
                "policy": self.policy,
                "ask_s": self.policy_ask_s,
                "step_budget_s": self.policy_step_budget_s,
                "device_kind": self.device_kind,
            }
        }

    def ceilings(self, spec: EngineSpec) -> tuple[int, int]:
        """(max_num_seqs, max_num_batched_tokens) that vLLM is started with."""
        return (
            max(self.max_num_seqs_ceiling, spec.limits.max_num_seqs),
            max(self.max_num_batched_tokens_ceiling, spec.limits.max_num_batched_tokens),
        )
