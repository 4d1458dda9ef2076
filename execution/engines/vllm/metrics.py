"""vLLM's Prometheus metrics, read by their own names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USAGE = "vllm:kv_cache_usage_perc"
PREEMPTIONS = "vllm:num_preemptions_total"
PROMPT_TOKENS = "vllm:prompt_tokens_total"
GENERATED_TOKENS = "vllm:generation_tokens_total"
CACHED_TOKENS = "vllm:prefix_cache_hits_total"
FINISHED = "vllm:request_success_total"
NAMES = (
    RUNNING, WAITING, KV_USAGE, PREEMPTIONS, PROMPT_TOKENS, GENERATED_TOKENS, CACHED_TOKENS, FINISHED,
)  # fmt: skip
_ABORTED = 'finished_reason="abort"'


def parse(text: str) -> dict[str, float]:
    """Value of each metric of NAMES in Prometheus' text format, summed over its labels (aborted requests do not
    count as finished). Lines that are none of these are passed over."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("vllm:"):
            continue
        name, _, rest = line.partition("{")
        labels = ""
        if rest:
            labels, _, rest = rest.rpartition("}")
        else:
            name, _, rest = line.partition(" ")
        if name not in NAMES or (name == FINISHED and _ABORTED in labels):
            continue
        words = rest.split()
        try:
            value = float(words[0])
        except (IndexError, ValueError):
            continue
        if math.isfinite(value):
            found[name] = found.get(name, 0.0) + value
    return found


def summed(samples: Iterable[tuple[str, Mapping[str, str], float]]) -> dict[str, float]:
    """The same from (name, labels, value) of a registry in this process."""
    found: dict[str, float] = {}
    for name, labels, value in samples:
        if name in NAMES and not (name == FINISHED and labels.get("finished_reason") == "abort"):
            found[name] = found.get(name, 0.0) + value
    return found
