import itertools
import math
import pickle
from collections.abc import Callable
from pathlib import Path as FilePath
from random import Random

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_profiles import ProfileError, Topology, list_clusters, load_cluster
from hw_profiles.assembly import assemble
from hw_profiles.loader import packaged
from hw_profiles.schema import ClusterProfile
from tests.examples import up_to

from .conftest import CLUSTER, DEVICE, NODE

SHAPES = ("hgx-h100", "l40s-x4", "mi300x-x8", "desktop-4090", "cpu-ecp5", "a10g-x4", "hgx-a100-40")


def test_shapes_of_the_packaged_clusters() -> None:
    counts = {name: len(load_cluster(name).devices) for name in list_clusters()}
    assert counts["homogeneous-h100-32"] == counts["elastic-a100"] == 32
    assert counts["mixed-64"] == 64
    assert counts["laptop-2"] == 2
    mixed = load_cluster("mixed-64")
    assert len({device.kind for device in mixed.devices.values()}) == 5
    assert [i for ids in mixed.nodes.values() for i in ids] == list(mixed.devices)
    assert mixed.nodes["h100-0"][3] == "h100-0/gpu3"
    assert {d.profile.class_ for d in load_cluster("laptop-2").devices.values()} == {"gpu", "cpu"}


def test_spot_devices_are_marked_and_cheaper() -> None:
    elastic = load_cluster("elastic-a100")
    spot = [d for d in elastic.devices.values() if d.spot]
    kept = [d for d in elastic.devices.values() if not d.spot]
    assert (len(spot), len(kept)) == (24, 8)
    assert {d.kind for d in spot} == {d.kind for d in kept}
    assert spot[0].usd_per_hour == pytest.approx(0.4 * kept[0].usd_per_hour)


def test_links_inside_nodes_and_between_them() -> None:
    mixed = load_cluster("mixed-64")
    expected = {
        ("h100-0/gpu0", "h100-0/gpu7"): 450e9,  # NVLink
        ("h100-0/gpu0", "h100-1/gpu0"): 50e9,  # one NDR port
        ("a100-0/gpu0", "a100-1/gpu5"): 25e9,  # one HDR port
        ("h100-0/gpu0", "a100-0/gpu0"): 12.5e9,  # the two InfiniBands do not meet: Ethernet
        ("l40s-0/gpu0", "l40s-0/gpu1"): 31.5e9,  # PCIe
        ("l40s-0/gpu0", "l4-1/gpu2"): 5e9,  # the L4 node's port
        ("l4-0/gpu0", "l4-0/gpu1"): 15.75e9,
    }
    for (a, b), width in expected.items():
        assert mixed.bandwidth_bytes_per_s(a, b) == width, (a, b)
    # NVLink through the switch counts once, not once for each side.
    assert mixed.latency_s("h100-0/gpu0", "h100-0/gpu1") == pytest.approx(7e-6)
    # To the port and from it: two PCIe links on each side, and the Ethernet once.
    assert mixed.latency_s("l40s-0/gpu0", "l40s-1/gpu0") == pytest.approx(4 * 5e-6 + 30e-6)
    # Crossing to the other socket adds its link.
    near, far = (mixed.latency_s("l40s-0/gpu0", f"l40s-0/gpu{i}") for i in (1, 2))
    assert far == pytest.approx(near + 0.5e-6)


def test_transfer_is_latency_plus_bytes_over_bandwidth() -> None:
    mixed = load_cluster("mixed-64")
    a, b = "l40s-0/gpu0", "l40s-3/gpu3"
    assert mixed.transfer_s(0, a, b) == mixed.latency_s(a, b)
    assert mixed.transfer_s(12.5e9, a, b) == pytest.approx(1.0, abs=1e-3)
    assert mixed.transfer_s(1e12, a, a) == 0.0
    assert mixed.bandwidth_bytes_per_s(a, a) == math.inf


def test_group_is_bound_by_its_worst_pair() -> None:
    mixed = load_cluster("mixed-64")
    group = ["h100-0/gpu0", "h100-0/gpu1", "h100-1/gpu0"]
    assert mixed.group_bandwidth_bytes_per_s(group) == 50e9
    assert mixed.group_latency_s(group) == mixed.latency_s(group[0], group[2])
    assert mixed.group_bandwidth_bytes_per_s(group[:1]) == math.inf
    assert mixed.group_latency_s(group[:1]) == 0.0


@pytest.mark.parametrize("ask", ["bandwidth_bytes_per_s", "latency_s", "path"])
def test_unknown_device_is_named(ask: str) -> None:
    mixed = load_cluster("mixed-64")
    for pair in (("h100-0/gpu9", "h100-0/gpu0"), ("h100-0/gpu0", "h100-0/gpu9"), ("h100-0/gpu9",) * 2):
        with pytest.raises(ProfileError, match="cluster 'mixed-64' has no device 'h100-0/gpu9'"):
            getattr(mixed, ask)(*pair)


def test_nodes_that_nothing_joins(write: Callable[..., FilePath]) -> None:
    write("devices/toy.yaml", DEVICE)
    write("nodes/toy-x2.yaml", NODE)
    apart = load_cluster(str(write("toys.yaml", CLUSTER, (", attach: {eth: net}", ""))))
    assert apart.bandwidth_bytes_per_s("a-0/gpu0", "a-1/gpu0") == 0.0
    assert apart.latency_s("a-0/gpu0", "a-1/gpu0") == math.inf
    assert apart.transfer_s(1, "a-0/gpu0", "a-1/gpu0") == math.inf
    with pytest.raises(ProfileError, match="nothing joins 'a-0/gpu0' and 'a-1/gpu0'"):
        apart.path("a-0/gpu0", "a-1/gpu0")


def test_topology_is_read_only() -> None:
    topology = load_cluster("laptop-2")
    with pytest.raises(TypeError):
        topology.devices["x"] = topology.devices["desk-0/gpu0"]  # type: ignore[index]
    with pytest.raises(TypeError):
        topology.nodes["x"] = ()  # type: ignore[index]
    with pytest.raises(nx.NetworkXError):
        topology.graph.add_node("x")


def test_topology_survives_pickling() -> None:
    mixed = load_cluster("mixed-64")
    copy = pickle.loads(pickle.dumps(mixed))  # noqa: S301 - our own bytes
    assert dict(copy.devices) == dict(mixed.devices)
    assert copy.path("h100-0/gpu0", "l4-1/gpu3") == mixed.path("h100-0/gpu0", "l4-1/gpu3")


@st.composite
def clusters(draw: st.DrawFn) -> Topology:
    """Small clusters of packaged nodes on up to three networks, some of them linked."""
    networks = {f"n{i}": {"title": "a switch"} for i in range(draw(st.integers(1, 3)))}
    nodes = []
    for index in range(draw(st.integers(1, 3))):
        shape = draw(st.sampled_from(SHAPES))
        nics = sorted(packaged().nodes.get(shape).nics)
        attach = {nic: draw(st.sampled_from(sorted(networks))) for nic in nics if draw(st.booleans())}
        nodes.append({"name": f"g{index}", "node": shape, "count": 1, "attach": attach})
    pairs = (
        draw(st.lists(st.sampled_from(list(itertools.combinations(sorted(networks), 2))), max_size=2))
        if len(networks) > 1
        else []
    )
    uplinks = [
        {
            "between": list(pair),
            "link": draw(st.sampled_from(["ethernet-10g", "ethernet-100g", "ib-hdr"])),
            "count": 1,
        }
        for pair in dict.fromkeys(pairs)
    ]
    profile = ClusterProfile.model_validate(
        {
            "version": 1,
            "name": "drawn",
            "title": "drawn",
            "nodes": nodes,
            "networks": networks,
            "uplinks": uplinks,
            "sources": {"all": "drawn by the test"},
        }
    )
    anywhere = packaged().clusters.find("laptop-2")[1]
    return assemble(profile, packaged(), anywhere)


@settings(max_examples=up_to(40), deadline=None)
@given(clusters(), st.randoms(use_true_random=False))
def test_paths_equal_those_of_an_exhaustive_search(topology: Topology, random: Random) -> None:
    """Width: remove links narrow to wide until the pair falls apart. Latency: networkx's shortest path over
    what is at least that wide. Other devices are taken out of the way first."""
    ids = list(topology.devices)
    for a, b in [random.sample(ids, 2) for _ in range(6)] if len(ids) > 1 else []:
        free = nx.Graph(topology.graph)
        free.remove_nodes_from(set(ids) - {a, b})
        widths = sorted({link["bytes_per_s"] for _, _, link in free.edges(data=True)}, reverse=True)
        for width in widths:
            wide = nx.Graph((u, v, d) for u, v, d in free.edges(data=True) if d["bytes_per_s"] >= width)
            if wide.has_node(a) and wide.has_node(b) and nx.has_path(wide, a, b):
                latency = nx.shortest_path_length(wide, a, b, weight="latency_s")
                assert topology.bandwidth_bytes_per_s(a, b) == width
                assert topology.latency_s(a, b) == pytest.approx(latency)
                assert topology.path(b, a).bytes_per_s == width
                break
        else:
            assert topology.bandwidth_bytes_per_s(a, b) == 0.0
