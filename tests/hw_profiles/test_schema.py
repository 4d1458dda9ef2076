import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from hw_profiles import ProfileError, list_devices, list_models, load_device, load_model
from hw_profiles.loader import packaged, problems_in

from .conftest import CLUSTER, DEVICE, NODE

Write = Callable[..., Path]

# Parameter counts that Hugging Face shows for the published weights.
PUBLISHED = {
    "llama-1-30b": 32_528_943_616,
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "bloom-176b": 176_247_271_424,
}


@pytest.mark.parametrize("path", packaged().files(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_packaged_profile_has_no_problem(path: Path) -> None:
    assert problems_in(path) == []


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_parameters_are_within_one_percent_of_published(name: str, published: int) -> None:
    assert load_model(name).parameters == pytest.approx(published, rel=0.01)


def test_moe_is_small_per_token() -> None:
    moe = load_model("qwen3-30b-a3b")
    assert moe.active_parameters == pytest.approx(3.3e9, rel=0.03)
    assert load_model("qwen3-32b").active_parameters == load_model("qwen3-32b").parameters


def test_kv_bytes_per_token() -> None:
    # 2 (K, V) x 80 layers x 8 heads x 128 x 2 bytes
    assert load_model("llama-3.1-70b").kv_bytes_per_token == 327_680
    assert load_model("llama-2-7b").kv_bytes_per_token == 524_288


def test_quantised_weights_shrink_all_but_the_embeddings() -> None:
    wide, narrow = load_model("llama-3.1-8b"), load_model("llama-3.1-8b@fp8")
    assert narrow.name == "llama-3.1-8b@fp8"
    assert wide.weight_bytes == 2 * wide.parameters
    assert narrow.weight_bytes == wide.parameters + wide.embedding_parameters
    assert load_model("llama-3.1-8b@bf16") == wide
    with pytest.raises(ProfileError, match="unknown weight type 'fp7'"):
        load_model("llama-3.1-8b@fp7")


def test_tiny_llama_is_about_four_million_with_shared_kv_heads() -> None:
    tiny = load_model("tiny-llama-4m")
    assert tiny.parameters == pytest.approx(4e6, rel=0.05)
    assert tiny.kv_heads < tiny.heads


def test_every_device_figure_has_a_source() -> None:
    for name in list_devices():
        device = load_device(name)
        for field in ("memory_bytes", "memory_bytes_per_s", "tdp_watts", "idle_watts", "usd_per_hour"):
            assert len(device.source_of(field)) > 5, (name, field)


def test_missing_dtype_runs_in_the_next_wider_one() -> None:
    assert load_device("t4").flops_for("bf16") == 65e12
    assert load_device("a100").flops_for("fp8") == load_device("a100").flops["bf16"]
    assert load_device("h100").flops_for("fp8") == load_device("h100").flops["fp8"] > 1.9e15
    with pytest.raises(ValueError, match="no FLOP/s figure"):
        load_device("ecp5-25k").flops_for("bf16")


def test_profiles_are_frozen_hashable_and_pickle() -> None:
    for profile in (*map(load_model, list_models()), *map(load_device, list_devices())):
        assert pickle.loads(pickle.dumps(profile)) == profile  # noqa: S301 - our own bytes
        assert hash(profile) == hash(profile.model_copy())
    with pytest.raises(ValueError, match="frozen"):
        load_device("h100").tdp_watts = 1.0


@pytest.mark.parametrize(
    ("text", "change", "line", "message"),
    [
        (
            DEVICE,
            ("memory_bytes: 8", "memry_bytes: 8"),
            8,
            "unknown key 'memry_bytes' (did you mean 'memory_bytes'?)",
        ),
        (DEVICE, ("tdp_watts: 100", "tdp_watts: lots"), 12, "tdp_watts: input should be a valid number"),
        (
            DEVICE,
            ("tdp_watts: 100", "tdp_watts: -3"),
            12,
            "tdp_watts: input should be greater than 0, not -3",
        ),
        (DEVICE, ("tdp_watts: 100", "tdp_watts: .inf"), 12, "write 'tdp_watts' as a plain decimal number"),
        (DEVICE, ("  bf16: 1e13", "  bf17: 1e13"), 11, "input should be"),
        (
            DEVICE,
            ("idle_watts: 10", "tdp_watts: 10"),
            13,
            "key 'tdp_watts' is given twice (first on line 12)",
        ),
        (DEVICE, ("idle_watts: 10\n", "idle_watts: 500\n"), 13, "idle_watts 500.0 is more than tdp_watts"),
        (DEVICE, ("version: 1", "version: 2"), 1, "version: input should be 1, not 2"),
        (DEVICE, ("vendor: nobody\n", ""), 1, "key 'vendor' is missing"),
        (DEVICE, ("  all: a guess\n", ""), 10, "no citation for 'flops', 'host_load_bytes_per_s'"),
        (DEVICE, ("  all: a guess\n", "  al: a guess\n"), 18, "'al' is no figure of this profile"),
        (DEVICE, ("  all: a guess\n", "  all: ''\n"), 18, "the citation for 'all' is empty"),
        (DEVICE, ("class: gpu", "class: [gpu"), 6, "is no valid YAML"),
        (DEVICE, ("class: gpu", "class: !!python/name:os.system x"), 5, "is not allowed here"),
        (NODE, ("count: 2}", "cuont: 2}"), 5, "unknown key 'cuont' (did you mean 'count'?)"),
        (
            NODE,
            ("eth: {link: ethernet-10g,", "eth: {lnk: ethernet-10g,"),
            9,
            "unknown key 'lnk' (did you mean 'link'?)",
        ),
        (NODE, ("count: 2}", "count: 99999999}"), 5, "should be less than or equal to 10000"),
        (NODE, ("device: toy", "device: l40"), 5, "unknown device 'l40' (did you mean 'l40s'?)"),
        (NODE, ("pcie4-x16", "pcie9"), 7, "unknown link 'pcie9'"),
        (CLUSTER, ("attach: {eth: net}", "attach: {eth: nt}"), 5, "no network called 'nt'"),
        (CLUSTER, ("attach: {eth: net}", "attach: {ib: net}"), 5, "has no NIC called 'ib' (it has: eth)"),
        (CLUSTER, ("node: toy-x2", "node: toy-x3"), 5, "unknown node 'toy-x3' (did you mean 'toy-x2'?)"),
    ],
)
def test_mistake_is_refused_with_file_and_line(
    write: Write, text: str, change: tuple[str, str], line: int, message: str
) -> None:
    names = {DEVICE: "devices/toy.yaml", NODE: "nodes/toy-x2.yaml", CLUSTER: "clusters/toys.yaml"}
    paths = {base: write(name, base) for base, name in names.items()}
    wrong = write(names[text], text, change)
    problems = problems_in(wrong)
    assert any(p.line == line and message in p.message for p in problems), [str(p) for p in problems]
    assert str(problems[0]).startswith(f"{paths[text]}:")
    assert "\n" not in str(problems[0])


def test_all_problems_are_reported_and_the_error_is_one_line(write: Write) -> None:
    path = write(
        "toy.yaml", DEVICE, ("vendor: nobody", "vndor: nobody"), ("tdp_watts: 100", "tdp_watts: ten")
    )
    assert [p.line for p in problems_in(path)] == [1, 6, 12]
    with pytest.raises(ProfileError) as caught:
        load_device(str(path))
    assert "\n" not in str(caught.value)
    assert "(and 2 more problems" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems  # noqa: S301


def test_config_that_misses_its_published_count_is_refused(write: Write) -> None:
    source = next(path for path in packaged().models.files() if path.stem == "llama-3.1-8b")
    text = source.read_text(encoding="utf-8")
    path = write("models/llama-3.1-8b.yaml", text, ("layers: 32", "layers: 23"))
    problem = problems_in(path)[0]
    assert "more than 1 % off the published 8,030,261,248" in problem.message


def test_exponents_without_sign_are_numbers(write: Write) -> None:
    device = load_device(str(write("toy.yaml", DEVICE)))
    assert device.memory_bytes_per_s == 1e11
    assert device.memory_bytes == 8_000_000_000
