"""What the torch engine has beyond the port: memory, reuse, replaceable modules, and bad models."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra torch: pip install 'autopoiesis[torch]'")

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from execution.engines.models import write_model
from execution.engines.torch import TorchEngine
from loop.contracts.engine import (
    EngineError,
    EngineFinish,
    EngineLimits,
    EngineRequest,
    EngineRequestError,
    EngineSpec,
    SamplingParams,
)
from tests.execution.engines.torch.helpers import (
    GREEDY,
    SMALL,
    answer,
    engine_of,
    prompts_of,
    serve,
    tokens_of,
)

PROMPTS = prompts_of(seed=3, count=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_model(SMALL, directory)
    return directory


@pytest.fixture(scope="module")
def alone(model: Path) -> list[list[int]]:
    """Answers to PROMPTS, one after the other."""
    return serve(engine_of(model, EngineLimits(1, 512, 100), prefix_cache=False), PROMPTS)[0]


@pytest.mark.slow
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(
    limits=st.builds(EngineLimits, st.integers(1, 8), st.integers(1, 80), st.just(100)),
    options=st.fixed_dictionaries(
        {
            "block_tokens": st.sampled_from([1, 4, 16]),
            "kv_capacity_tokens": st.integers(10, 40).map(lambda blocks: 16 * blocks),
            "prefix_cache": st.booleans(),
        }
    ),
    order=st.permutations(range(6)),
)
def test_answers_do_not_depend_on_the_batch(
    limits: EngineLimits,
    options: dict[str, int | bool],
    order: Sequence[int],
    model: Path,
    alone: list[list[int]],
) -> None:
    answers, stats = serve(
        engine_of(model, limits, max_model_len=128, **options), [PROMPTS[i] for i in order]
    )
    assert answers == [alone[i] for i in order]
    assert (stats.running, stats.waiting, stats.waiting_tokens, stats.kv_tokens) == (0, 0, 0, 0)


def test_preempted_requests_end_as_if_nothing_had_been(model: Path, alone: list[list[int]]) -> None:
    for reuse in (True, False):
        engine = engine_of(model, kv_capacity_tokens=152, block_tokens=8, prefix_cache=reuse)
        answers, stats = serve(engine, PROMPTS)
        assert answers == alone
        assert stats.preemptions > 0


def test_a_prompt_seen_before_is_not_computed_again(model: Path) -> None:
    async def run() -> tuple[int, int, list[int], list[int]]:
        engine = engine_of(model)
        await engine.start()
        prompt = tuple(range(100))
        first = await answer(engine, EngineRequest("a", prompt, GREEDY))
        second = await answer(engine, EngineRequest("b", prompt, GREEDY))
        await engine.stop()
        tokens = [[t for o in outputs for t in o.token_ids] for outputs in (first, second)]
        return first[-1].cached_tokens, second[-1].cached_tokens, *tokens

    before, after, first, second = asyncio.run(run())
    assert (before, after) == (0, 96)  # six blocks of 16; the last token is always computed
    assert first == second


def test_old_prefixes_make_room(model: Path) -> None:
    """A store of four blocks serves many prompts, and keeps the latest."""

    async def run() -> list[int]:
        engine = engine_of(model, prefix_cache_tokens=64)
        await engine.start()
        found = []
        for number in (0, 1, 2, 2, 0):
            prompt = tuple((number * 50 + i) % 256 for i in range(50))
            outputs = await answer(engine, EngineRequest("x", prompt, replace(GREEDY, max_tokens=1)))
            found.append(outputs[-1].cached_tokens)
        await engine.stop()
        return found

    assert asyncio.run(run()) == [0, 0, 0, 48, 0]


def test_sampling_goes_on_elsewhere_as_if_nothing_had_been(model: Path) -> None:
    sampling = SamplingParams(max_tokens=20, temperature=0.9, top_p=0.9, top_k=50, seed=7, ignore_eos=True)

    async def run() -> tuple[list[int], list[int]]:
        engine = engine_of(model)
        await engine.start()
        whole = await tokens_of(engine, "a", PROMPTS[1], sampling)
        cut = EngineRequest("b", (*PROMPTS[1], *whole[:8]), sampling, generated=8)
        others = [tokens_of(engine, f"o{i}", p, sampling) for i, p in enumerate(PROMPTS)]
        outputs, *_ = await asyncio.gather(answer(engine, cut), *others)
        await engine.stop()
        return whole, [token for output in outputs for token in output.token_ids]

    whole, rest = asyncio.run(run())
    assert rest == whole[8:]
    assert len(whole) == 20


def test_an_answer_that_was_complete_ends_at_once(model: Path) -> None:
    async def run() -> EngineFinish | None:
        engine = engine_of(model)
        await engine.start()
        outputs = await answer(
            engine, EngineRequest("a", (1, 2, 3), replace(GREEDY, max_tokens=2), generated=2)
        )
        await engine.stop()
        assert [o.token_ids for o in outputs] == [()]
        return outputs[-1].finish

    assert asyncio.run(run()) is EngineFinish.LENGTH


class Broken(nn.Module):
    """Gives no numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.nan


class Counted(nn.Module):
    """Another module, and how often it was asked."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.inner(x)


def test_a_module_is_replaced_between_two_steps(model: Path, alone: list[list[int]]) -> None:
    async def run() -> tuple[list[int], list[int], int]:
        engine = engine_of(model)
        await engine.start()
        old = (await engine.modules())["layers.1.mlp"]
        running = asyncio.create_task(tokens_of(engine, "a", PROMPTS[0], GREEDY))
        counted = Counted(old)
        assert await engine.replace_module("layers.1.mlp", counted) is old
        during = await running
        assert await engine.replace_module("layers.1.mlp", old) is counted
        calls = counted.calls
        after = await tokens_of(engine, "b", PROMPTS[0], GREEDY)
        assert counted.calls == calls
        with pytest.raises(KeyError, match=r"layers\.9\.mlp"):
            await engine.replace_module("layers.9.mlp", old)
        await engine.stop()
        return during, after, calls

    during, after, calls = asyncio.run(run())
    assert during == after == alone[0]
    assert calls > 0


def test_a_bad_module_spoils_its_requests_and_nothing_after_them(model: Path, alone: list[list[int]]) -> None:
    async def run() -> list[int]:
        engine = engine_of(model)
        await engine.start()
        old = await engine.replace_module("layers.0.mlp", Broken(), same_function=False)
        with pytest.raises(EngineRequestError, match="not a number"):
            await tokens_of(engine, "a", PROMPTS[0], GREEDY)
        await engine.replace_module("layers.0.mlp", old, same_function=False)
        found = await tokens_of(engine, "b", PROMPTS[0], GREEDY)
        await engine.stop()
        return found

    assert asyncio.run(run()) == alone[0]


def test_bfloat16_answers(model: Path) -> None:
    answers, _ = serve(engine_of(model, dtype="bfloat16"), PROMPTS)
    assert [len(tokens) for tokens in answers] == [16] * 6


def test_weights_from_a_seed_alone(tmp_path: Path, model: Path, alone: list[list[int]]) -> None:
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    assert serve(engine_of(tmp_path), PROMPTS)[0] == alone


def start_error(engine: TorchEngine) -> str:
    async def run() -> str:
        with pytest.raises(EngineError) as caught:
            await engine.start()
        await engine.stop()
        return str(caught.value)

    return asyncio.run(run())


def test_bad_weights_name_file_and_tensor(tmp_path: Path) -> None:
    write_model(SMALL, tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"

    save_file({**tensors, name: torch.zeros(3, 3)}, path)
    assert all(word in start_error(engine_of(tmp_path)) for word in (name, str(path), "(3, 3)"))
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    assert name in start_error(engine_of(tmp_path))
    path.write_bytes(whole[:-1000])
    assert str(path) in start_error(engine_of(tmp_path))
    path.write_bytes(b"not weights")
    assert str(path) in start_error(engine_of(tmp_path))
    path.rename(tmp_path / "model.bin")
    assert "not read" in start_error(engine_of(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: "../outside.safetensors"}}))
    assert "outside" in start_error(engine_of(tmp_path))


@pytest.mark.parametrize(
    ("option", "value"),
    [("threads", "many"), ("dtype", "int4"), ("device", "abacus"), ("block_tokens", 0), ("colour", "red"),
     ("max_model_len", 100_000), ("kv_capacity_tokens", 1), ("prefix_cache", "perhaps")],
)  # fmt: skip
def test_bad_options_are_named(option: str, value: str | int, model: Path) -> None:
    try:
        message = start_error(engine_of(model, **{option: value}))
    except EngineError as error:
        message = str(error)
    assert option in message


def test_bad_limits_are_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="max_num_seqs"):
        TorchEngine(EngineSpec("torch", str(model), limits=EngineLimits(max_num_seqs=0)))
