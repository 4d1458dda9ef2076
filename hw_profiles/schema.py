"""The shape of the profile files: devices, links, nodes, clusters and models, version 1.

Every profile is a frozen value with a `sources` mapping that says where its figures come from: the key is
a field, several fields (`tdp_watts, idle_watts`) or `all` (every figure not named otherwise), the value a
citation. A figure without a source is refused. Decimal units throughout, except where a comment says GiB.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hw_profiles.profile import Count, Few, Name, NonNegative, Positive, Profile, Strict

DType = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4", "int4"]
WeightType = Literal["fp32", "bf16", "fp16", "fp8", "int8", "fp4", "int4"]
DeviceClass = Literal["gpu", "cpu", "fpga"]

BYTES_PER_WEIGHT: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp4": 0.5625,  # NVFP4: an 8-bit scale for each block of 16 weights
    "int4": 0.515625,  # GPTQ/AWQ: a 16-bit scale for each group of 128 weights
}
"""Stored bytes of one quantised weight, its share of the scales included."""


class FabricSpec(Strict):
    """What a reconfigurable chip is made of."""

    luts: Count
    """Four-input look-up tables."""
    block_ram_bits: Count
    dsp_blocks: Count
    """18 x 18 bit multipliers."""


class DeviceProfile(Profile):
    """One kind of device. Peak figures as the vendor states them, dense (no sparsity)."""

    kind: ClassVar[str] = "device"
    class_: DeviceClass = Field(alias="class")
    vendor: str
    architecture: str
    memory_bytes: Count
    """What software can address: the driver's total, not the number on the box."""
    memory_bytes_per_s: Positive
    flops: dict[DType, Positive] = Field(default_factory=dict)
    """Peak operations per second by data type (a multiply-add counts as two). Empty on an FPGA."""
    tdp_watts: Positive
    idle_watts: NonNegative
    usd_per_hour: NonNegative
    """On demand, one device's share of the instance."""
    host_load_bytes_per_s: Positive
    """Model weights from the host (page cache or local disk) into device memory, one process."""
    fabric: FabricSpec | None = None

    def flops_for(self, dtype: str) -> float:
        """Peak FLOP/s for arithmetic on this type; a type that the device lacks runs in the next wider one.

        Raises:
            ValueError: the device computes no such type (an FPGA has no FLOP/s).
        """
        wider = {
            "fp4": ("fp4", "fp8", "bf16", "fp16", "fp32"),
            "int4": ("int4", "bf16", "fp16", "fp32"),  # weight-only: arithmetic stays 16 bit
            "fp8": ("fp8", "bf16", "fp16", "fp32"),
            "int8": ("int8", "bf16", "fp16", "fp32"),
            "bf16": ("bf16", "fp16", "fp32"),
            "fp16": ("fp16", "bf16", "fp32"),
            "tf32": ("tf32", "fp32"),
            "fp32": ("fp32",),
            "fp64": ("fp64",),
        }
        for candidate in wider.get(dtype, ()):
            for have, value in self.flops.items():
                if have == candidate:
                    return value
        known = ", ".join(self.flops) or "none: it is no floating-point device"
        raise ValueError(f"device '{self.name}' has no FLOP/s figure for {dtype!r} (it has {known})")

    @model_validator(mode="after")
    def _class_fits_figures(self) -> Self:
        if (self.class_ == "fpga") != (self.fabric is not None):
            raise ValueError("'fabric' (LUTs, block RAM, DSP blocks) belongs to class fpga, and to it only")
        if (self.class_ == "fpga") == bool(self.flops):
            raise ValueError("'flops' belongs to classes gpu and cpu, not to fpga")
        if self.idle_watts > self.tdp_watts:
            raise ValueError(f"idle_watts {self.idle_watts} is more than tdp_watts {self.tdp_watts}")
        return self


class LinkProfile(Profile):
    """One kind of link, one direction, as one device or port sees it."""

    kind: ClassVar[str] = "link"
    bytes_per_s: Positive
    """Per direction."""
    latency_s: NonNegative
    """Between two ends that it joins, directly or through one switch; the usual transport included."""
    family: Literal["nvlink", "pcie", "xgmi", "infiniband", "ethernet", "socket", "board"]


class NodeDevices(Strict):
    """`count` devices of one kind."""

    device: Name
    count: Few


class NodeFabric(Strict):
    """A direct link between devices of a node, beside the path through the host."""

    link: Name
    layout: Literal["switch", "mesh", "pairs"] = "switch"
    """`switch`: any two at full speed; `mesh`: one link between each two; `pairs`: bridges, 0-1, 2-3..."""
    device: Name | None = None
    """Which of the node's devices it joins; None: all GPUs."""


class NodeHost(Strict):
    """The host's side: devices hang on NUMA domains, as evenly as they divide."""

    device_link: Name
    numa_domains: Few = 1
    numa_link: Name | None = None
    """Between two domains; needed when there are several."""


class NodeNic(Strict):
    """Network ports, spread over the NUMA domains like the devices."""

    link: Name
    count: Few = 1


class NodeProfile(Profile):
    """A shape of machine."""

    kind: ClassVar[str] = "node"
    devices: list[NodeDevices] = Field(min_length=1)
    fabric: NodeFabric | None = None
    host: NodeHost
    nics: dict[Name, NodeNic] = Field(default_factory=dict)
    """By a name that clusters attach them by, e.g. `ib`, `eth`."""

    @model_validator(mode="after")
    def _numa_domains_are_linked(self) -> Self:
        if self.host.numa_domains > 1 and self.host.numa_link is None:
            raise ValueError(f"host: {self.host.numa_domains} numa_domains need a 'numa_link'")
        return self


class ClusterGroup(Strict):
    """`count` nodes of one shape, named `<name>-0`, `<name>-1`..."""

    name: Name
    node: Name
    count: Few = 1
    attach: dict[Name, Name] = Field(default_factory=dict)
    """NIC of the node shape -> network of this cluster."""
    spot: bool = False
    """May be reclaimed by the provider."""
    price_factor: Positive = 1.0
    """What is paid of the on-demand price."""


class Network(Strict):
    """A switch (or a non-blocking switch group): every attached port at the port's own speed."""

    title: str


class Uplink(Strict):
    """`count` links between two networks, used together."""

    between: list[Name] = Field(min_length=2, max_length=2)
    link: Name
    count: Few = 1


class ClusterProfile(Profile):
    """Nodes, and the networks that join them."""

    kind: ClassVar[str] = "cluster"
    nodes: list[ClusterGroup] = Field(min_length=1)
    networks: dict[Name, Network] = Field(default_factory=dict)
    uplinks: list[Uplink] = Field(default_factory=list)

    @model_validator(mode="after")
    def _references_inside(self) -> Self:
        names = [group.name for group in self.nodes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two groups of nodes are called '{name}'")
        used = [network for group in self.nodes for network in group.attach.values()]
        for network in [*used, *(end for uplink in self.uplinks for end in uplink.between)]:
            if network not in self.networks:
                known = ", ".join(self.networks) or "none"
                raise ValueError(f"no network called '{network}' in this cluster (there is: {known})")
        return self


class MoeSpec(Strict):
    """Mixture of experts in every layer."""

    experts: Count
    top_k: Count
    """Routed experts per token."""
    expert_intermediate_size: Count
    shared_intermediate_size: Annotated[int, Field(ge=0)] = 0
    """Width of the expert that every token passes, 0: none."""


class ModelSpec(Profile):
    """A decoder-only transformer, as its published configuration says."""

    kind: ClassVar[str] = "model"
    unsourced: ClassVar[frozenset[str]] = frozenset({"version", "bytes_per_weight"})

    hidden_size: Count
    intermediate_size: Count
    """Width of the dense MLP; not used by a layer of experts."""
    layers: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocab_size: Count
    max_context_tokens: Count
    tie_embeddings: bool
    attention_bias: bool = False
    """On the query, key and value projections."""
    qk_norm: bool = False
    """Per-head RMSNorm of queries and keys."""
    mlp_matrices: Literal[2, 3] = 3
    """3: gated (SwiGLU); 2: plain."""
    weight_dtype: WeightType = "bf16"
    """How the weights are stored, and what the matrix products compute in."""
    bytes_per_weight: Positive = 2.0
    kv_bytes_per_element: Positive = 2.0
    moe: MoeSpec | None = None
    published_parameters: Count | None = None
    """The count that the publisher states; a spec that misses it by more than 1 % is refused."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        if self.moe is not None and self.moe.top_k > self.moe.experts:
            raise ValueError(f"moe: top_k {self.moe.top_k} of {self.moe.experts} experts")
        stated = self.published_parameters
        if stated is not None and abs(self.parameters - stated) > 0.01 * stated:
            raise ValueError(
                f"the spec has {self.parameters:,} parameters, more than 1 % off the published {stated:,}"
            )
        return self

    @property
    def attention_parameters(self) -> int:
        """Of one layer: projections, their biases, query/key norms."""
        query = self.heads * self.head_dim
        key = self.kv_heads * self.head_dim
        weights = self.hidden_size * (2 * query + 2 * key)
        bias = query + 2 * key if self.attention_bias else 0
        return weights + bias + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def embedding_parameters(self) -> int:
        """Input embedding, and the output head where it is a matrix of its own."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)

    def _mlp_parameters(self, experts: int) -> int:
        """Of one layer, with this many experts counted."""
        if self.moe is None:
            return self.mlp_matrices * self.hidden_size * self.intermediate_size
        width = experts * self.moe.expert_intermediate_size + self.moe.shared_intermediate_size
        return self.hidden_size * (self.mlp_matrices * width + self.moe.experts)

    def _total(self, experts: int) -> int:
        norms = 2 * self.hidden_size
        layer = self.attention_parameters + self._mlp_parameters(experts) + norms
        return self.layers * layer + self.embedding_parameters + self.hidden_size

    @property
    def parameters(self) -> int:
        """All weights."""
        return self._total(self.moe.experts if self.moe else 0)

    @property
    def active_parameters(self) -> int:
        """Weights that one token passes through (the embedding counted as in `parameters`)."""
        return self._total(self.moe.top_k if self.moe else 0)

    @property
    def weight_bytes(self) -> int:
        """All weights as stored. Quantised models keep embeddings and output head in 16 bit."""
        wide = min(self.embedding_parameters, self.parameters)
        narrow = self.parameters - wide
        return round(narrow * self.bytes_per_weight + wide * max(self.bytes_per_weight, 2.0))

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token over all layers."""
        return round(2 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes_per_element)

    def with_weights(self, dtype: WeightType) -> ModelSpec:
        """The same model with its weights stored in another type; named `<name>@<dtype>`.

        Raises:
            ValueError: an unknown type.
        """
        if dtype not in BYTES_PER_WEIGHT:
            raise ValueError(f"unknown weight type {dtype!r}; known: {', '.join(BYTES_PER_WEIGHT)}")
        if dtype == self.weight_dtype:
            return self
        base = self.name.partition("@")[0]
        update = {
            "name": f"{base}@{dtype}",
            "aliases": [],
            "weight_dtype": dtype,
            "bytes_per_weight": BYTES_PER_WEIGHT[dtype],
        }
        return self.model_copy(update=update)
