from __future__ import annotations

from xml.etree import ElementTree

from execution.graph.draw import bytes_text, flops_text, svg_of
from execution.graph.form import Graph
from execution.graph.layout import Item, lay_out
from tests.execution.graph.builders import call, output, source
from tests.execution.passes import cases

SVG = "{http://www.w3.org/2000/svg}"


def titles(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}title")]  # noqa: S314 our own


def test_every_operation_has_a_tooltip_with_its_figures() -> None:
    graph = cases.elementwise()
    told = titles(svg_of(graph))
    for node in graph.calls:
        assert any(text.startswith(f"%{node.name} = {node.op}") and "live" in text for text in told)
    assert any("before" in text and "memory" in text for text in titles(svg_of(cases.functionalise())))
    assert any("weight w float32[8, 8]" in text for text in told)


def test_the_strip_has_a_bar_for_each_step_and_buffer() -> None:
    graph = cases.elementwise()
    told = titles(svg_of(graph))
    assert sum(text.endswith(" live") and "(aten." in text for text in told) == len(graph.calls)
    assert sum(": " in text and ", from " in text for text in told) == len(graph.calls)


def test_pictures_are_the_same_every_time_and_escape_names() -> None:
    graph = cases.patterns()
    assert svg_of(graph) == svg_of(graph)
    odd = Graph("a<b>&c", [source("x", 2), call("y", "aten.exp.default", "x", shape=(2,)), output("y")])
    ElementTree.fromstring(svg_of(odd))  # noqa: S314 our own
    ElementTree.fromstring(svg_of(Graph("empty", [source("x", 2), output("x")])))  # noqa: S314 our own


def items() -> list[Item]:
    """Two modules side by side, one of them called twice around the other."""
    return [
        Item("x", "", 40, 20, ()),
        Item("a1", "a", 40, 20, ("x",)),
        Item("a2", "a", 40, 20, ("a1",)),
        Item("b1", "b", 40, 20, ("a2",)),
        Item("b2", "b", 40, 20, ("b1",)),
        Item("a3", "a", 40, 20, ("b2",)),
        Item("a4", "a", 40, 20, ("a3",)),
        *(Item(f"w{i}", f"wide.{i % 3}", 60, 20, ("x",)) for i in range(60)),
        Item("end", "", 40, 20, ("a4", *(f"w{i}" for i in range(60)))),
    ]


def test_nodes_stand_below_what_they_take_and_apart() -> None:
    told = items()
    layout = lay_out(told)
    assert set(layout.nodes) == {item.name for item in told}
    for item in told:
        box = layout.nodes[item.name]
        assert all(box.y >= layout.nodes[name].y + layout.nodes[name].height for name in item.before)
        assert 0 <= box.x <= box.x + box.width <= layout.width
        assert box.y + box.height <= layout.height
    boxes = list(layout.nodes.values())
    for i, first in enumerate(boxes):
        for second in boxes[i + 1 :]:
            beside = first.x + first.width <= second.x or second.x + second.width <= first.x
            assert beside or first.y + first.height <= second.y or second.y + second.height <= first.y


def test_modules_frame_their_nodes_and_split_when_they_must() -> None:
    layout = lay_out(items())
    frames = [box for box in layout.modules if box.name == "a"]
    assert len(frames) == 2  # called twice, around b
    for name, (first, last) in {"a": ("a1", "a2"), "b": ("b1", "b2")}.items():
        frame = next(box for box in layout.modules if box.name == name)
        for node in (first, last):
            box = layout.nodes[node]
            assert frame.x <= box.x
            assert box.y + box.height <= frame.y + frame.height


def test_figures_are_told_in_units() -> None:
    assert [bytes_text(n) for n in (7, 1500, 2.5e6, 3e9)] == ["7 B", "1.5 kB", "2.5 MB", "3.0 GB"]
    assert [flops_text(n) for n in (7, 1500, 2.5e12)] == ["7 FLOP", "1.5 kFLOP", "2.5 TFLOP"]
