"""Draw a genotype as SVG text, with the standard library alone."""

from collections.abc import Sequence
from hashlib import sha256
from html import escape
from typing import NamedTuple

from tenas.spaces import Genotype, Space
from tenas.spaces.base import Choice

SPACING, RADIUS, MARGIN, LEVEL = 176, 20, 44, 34
CHARACTER = 7.4  # approximate width of a letter of an operator's name
# After Paul Tol's bright and muted schemes: told apart by the colour-blind, and dark enough for text on white.
PALETTE = ("#225599", "#bb4411", "#117733", "#aa3377", "#117799", "#7a6a00", "#4a2a8a", "#555555")
CONCATENATION = 22  # room for the line that collects the nodes of a concatenated output
ROW = 6  # layers of a chain per row
STYLE = (
    "path{fill:none;stroke-width:1.8}circle,rect.node{fill:#fff;stroke:#222;stroke-width:1.5}text{font-size:13px}"
    ".label,.op,.note{text-anchor:middle}.title{font-weight:bold}.concat{stroke:#999}.ground{fill:#fff}"
    ".layer{fill:#fff;stroke-width:1.8}.note{font-size:11px;fill:#555}.flow{stroke:#444}"
)


def colours(space: Space) -> dict[str, str]:
    """Colours of a space's operators: chosen by the hash of the name, or the next free one.

    With more operators than colours, some share one; arrows are labelled with names anyway.
    """
    found: dict[str, str] = {}
    for operator in space.operators:
        first = int(sha256(operator.encode()).hexdigest(), 16)
        places = [PALETTE[(first + step) % len(PALETTE)] for step in range(len(PALETTE))]
        found[operator] = next((colour for colour in places if colour not in found.values()), places[0])
    return found


def _spacing(space: Space) -> float:
    """Distance between nodes: enough for the longest name of an operator."""
    return max(SPACING, round(max(map(len, space.operators)) * CHARACTER) + 60)


def levels(arcs: Sequence[Choice]) -> dict[Choice, int]:
    """Assign each arc over a line the lowest level, from 1, above every shorter arc that it spans or crosses."""
    found: dict[Choice, int] = {}
    for arc in sorted(arcs, key=lambda arc: (arc.target - arc.source, arc.source)):
        under = [found[other] for other in found if other.source < arc.target and arc.source < other.target]
        found[arc] = max(under, default=0) + 1
    return found


def _ports(far: Sequence[Choice], space: Space) -> dict[tuple[Choice, int], float]:
    """Horizontal offsets from a node's centre where arcs of one side leave (key: arc, source) or arrive (key: arc, target).

    Arcs leave right of the centre and arrive left of it, in an order without crossings.
    """
    ports = {}
    for node in range(space.nodes):
        leaving = sorted((arc for arc in far if arc.source == node), key=lambda arc: -arc.target)
        arriving = sorted((arc for arc in far if arc.target == node), key=lambda arc: -arc.source)
        for arcs, first in ((leaving, 0), (arriving, -RADIUS)):
            for place, arc in enumerate(arcs, start=1):
                ports[arc, node] = first + RADIUS * place / (len(arcs) + 1)
    return ports


def _arc(start: tuple[float, float], end: tuple[float, float], top: float) -> str:
    """A path between two points that rises (or falls) to the height ``top`` and is level there."""
    (left, foot), (right, tip) = start, end
    steep, round, level = 13, 32, 64
    return (
        f"M{left:.1f} {foot:.1f} C{left + steep:.1f} {top:.1f} {left + round:.1f} {top:.1f} {left + level:.1f} {top:.1f} "
        f"H{right - level:.1f} C{right - round:.1f} {top:.1f} {right - steep:.1f} {top:.1f} {right:.1f} {tip:.1f}"
    )


class _Frame(NamedTuple):
    """Where the parts of a cell lie: its nodes on a horizontal line, edges between neighbours straight, longer ones around.

    Edges from even nodes go above the line, those from odd nodes below. ``x``: of the nodes' centres; ``middle``: height of the
    line. ``levels``: of the long edges, counted from the line; ``ports``: see ``_ports``. ``fall``: height of the long
    edges below the line.
    """

    space: Space
    x: list[float]
    middle: float
    levels: dict[Choice, int]
    ports: dict[tuple[Choice, int], float]
    fall: float

    def is_round(self, node: int) -> bool:
        """Whether a node is within the cell; its inputs and its output are square."""
        return self.space.inputs <= node < self.space.nodes - (not self.space.output)


def _frame(space: Space, choices: Sequence[Choice], top: float) -> _Frame:
    """Lay a cell out whose first long edge may reach up to ``top``."""
    far = [choice for choice in choices if choice.target - choice.source > 1]
    above, below = ([choice for choice in far if choice.source % 2 == odd] for odd in (0, 1))
    upper, lower = levels(above), levels(below)
    rise, fall = (RADIUS + LEVEL * max(side.values(), default=0) for side in (upper, lower))
    x = [MARGIN + _spacing(space) * node for node in range(space.nodes + bool(space.output))]
    return _Frame(space, x, top + rise + 12, upper | lower, _ports(above, space) | _ports(below, space), fall)


def _concatenation(frame: _Frame) -> list[str]:
    """The line below a cell that collects the concatenated nodes and ends at the output."""
    x, middle, (first, *others) = frame.x, frame.middle, frame.space.output
    bus = middle + frame.fall + CONCATENATION
    return [
        f'<path d="M{x[first]} {middle + RADIUS:.0f} V{bus - 8:.0f} q0 8 8 8 H{x[-1] - 8} q8 0 8 -8 '
        f'V{middle + RADIUS + 7:.0f}" class="concat" marker-end="url(#arrow)"/>',
        *(f'<path d="M{x[node]} {middle + RADIUS:.0f} V{bus:.0f}" class="concat"/>' for node in others),
    ]


def _edge(frame: _Frame, choice: Choice, colour: str) -> tuple[str, list[str]]:
    """The arrow of an edge, and the label with its operator, which is drawn over all arrows."""
    middle, start, end = frame.middle, frame.x[choice.source], frame.x[choice.target]
    span = choice.target - choice.source
    centre, label = (start + end) / 2, middle
    if span == 1:
        path = f"M{start + RADIUS} {middle:.0f} H{end - RADIUS - 7}"
    else:
        up = -1 if choice.source % 2 else 1
        label = middle - up * (RADIUS + LEVEL * frame.levels[choice])
        leave, arrive = frame.ports[choice, choice.source], frame.ports[choice, choice.target]
        foot, tip = (
            (RADIUS**2 - port**2) ** 0.5 if frame.is_round(node) else RADIUS
            for node, port in ((choice.source, leave), (choice.target, arrive))
        )
        path = _arc((start + leave, middle - up * foot), (end + arrive, middle - up * (tip + 7)), label)
        # Clear of the vertical lines at a node.
        centre -= 0 if span % 2 else 0.4 * _spacing(frame.space)
    dash = ' stroke-dasharray="5 4"' if choice.operator == "none" else ""
    width = CHARACTER * len(choice.operator) + 8
    return f'<path d="{path}" stroke="{colour}"{dash} marker-end="url(#arrow)"/>', [
        f'<rect x="{centre - width / 2:.1f}" y="{label - 8:.1f}" width="{width:.1f}" height="16" class="ground"/>',
        f'<text x="{centre:.1f}" y="{label + 4.5:.1f}" fill="{colour}" class="op">{escape(choice.operator)}</text>',
    ]


def _node(frame: _Frame, node: int) -> list[str]:
    """A node and its name."""
    at, middle, inputs = frame.x[node], frame.middle, frame.space.inputs
    if frame.is_round(node):
        shape, text = f'<circle cx="{at}" cy="{middle:.0f}" r="{RADIUS}"/>', str(node)
    else:
        left, upper, side = at - RADIUS, middle - RADIUS, 2 * RADIUS
        shape = f'<rect class="node" x="{left}" y="{upper:.0f}" width="{side}" height="{side}" rx="5"/>'
        text = f"in {node}" if node < inputs and inputs > 1 else "out" if node else "in"
    return [shape, f'<text x="{at}" y="{middle + 4.5:.1f}" class="label">{text}</text>']


def _cell(space: Space, name: str, choices: tuple[Choice, ...], top: float) -> tuple[list[str], float]:
    """The SVG elements of one cell whose drawing starts at ``top``, and its height."""
    parts: list[str] = []
    title = 30 if len(space.cell_types) > 1 else 0
    if title:
        parts.append(f'<text x="{MARGIN - RADIUS}" y="{top + 16:.0f}" class="title">{escape(name)} cell</text>')
    frame, colour_of = _frame(space, choices, top + title), colours(space)
    if space.output:
        parts += _concatenation(frame)
    edges = [_edge(frame, choice, colour_of[choice.operator]) for choice in choices]
    parts += [arrow for arrow, _ in edges]
    parts += [element for node in range(len(frame.x)) for element in _node(frame, node)]
    parts += [element for _, label in edges for element in label]
    bottom = frame.middle + (frame.fall + (CONCATENATION if space.output else 0))
    return parts, bottom + 24 - top


def _is_chain(space: Space) -> bool:
    """Whether the only input of every node is the one before it."""
    return space.inputs == 1 and all(edge.source == edge.target - 1 for edge in space.edges)


def _chain(space: Space, choices: tuple[Choice, ...], top: float) -> tuple[list[str], float, float]:
    """The SVG elements of a chain that starts at ``top``, its width and height: layers in rows, from input to output."""
    colour_of, gap, tall, down = colours(space), 34, 40, 92
    wide = max(len(choice.operator) for choice in choices) * CHARACTER + 26
    step, layers = wide + gap, getattr(space, "layers", [None] * len(choices))
    left = MARGIN + RADIUS + gap
    parts: list[str] = []
    boxes = [(left + step * (place % ROW), top + 16 + down * (place // ROW)) for place in range(len(choices))]

    def end(x: float, y: float, text: str) -> list[str]:
        return [
            f'<rect class="node" x="{x - RADIUS:.1f}" y="{y:.1f}" width="{2 * RADIUS}" height="{tall}" rx="5"/>',
            f'<text x="{x:.1f}" y="{y + tall / 2 + 4.5:.1f}" class="label">{text}</text>',
        ]

    parts += end(MARGIN, boxes[0][1], "in")
    for place, ((x, y), choice, layer) in enumerate(zip(boxes, choices, layers, strict=True)):
        middle = y + tall / 2
        if place and place % ROW == 0:
            before = boxes[place - 1]
            turn = before[1] + tall + 30
            parts.append(
                f'<path d="M{before[0] + wide:.1f} {before[1] + tall / 2:.1f} h12 V{turn:.1f} H{x - 16:.1f} V{middle:.1f} h9" '
                'class="flow" marker-end="url(#arrow)"/>'
            )
        else:
            start = boxes[place - 1][0] + wide if place else MARGIN + RADIUS
            parts.append(f'<path d="M{start:.1f} {middle:.1f} H{x - 7:.1f}" class="flow" marker-end="url(#arrow)"/>')
        colour = colour_of[choice.operator]
        parts += [
            f'<rect class="layer" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall}" rx="5" stroke="{colour}"/>',
            f'<text x="{x + wide / 2:.1f}" y="{middle + 4.5:.1f}" fill="{colour}" class="op">{escape(choice.operator)}</text>',
        ]
        if layer is not None:
            notes = [f"{layer.width:g} C", *(["stride 2"] if layer.stride == 2 else [])]
            parts.append(f'<text x="{x + wide / 2:.1f}" y="{y + tall + 15:.1f}" class="note">{", ".join(notes)}</text>')
    x, y = boxes[-1]
    parts.append(f'<path d="M{x + wide:.1f} {y + tall / 2:.1f} h{gap - 7}" class="flow" marker-end="url(#arrow)"/>')
    parts += end(x + wide + gap + RADIUS, y, "out")
    width = max(left + step * min(ROW, len(choices)), x + wide + gap + 2 * RADIUS) + MARGIN - RADIUS
    return parts, width, boxes[-1][1] + tall + 30 - top


def draw(genotype: Genotype) -> str:
    """Draw the cells of a genotype, one below the other: nodes from input to output, edges as arrows labelled with operators.

    An output that concatenates several nodes is a grey line that collects them. A chain is drawn as rows of layers, with their
    channels (C: the network's) and strides below.
    """
    space = genotype.space
    parts: list[str] = []
    height = 4.0
    width: float = 2 * MARGIN + _spacing(space) * (space.nodes - 1 + bool(space.output))
    if _is_chain(space):
        parts, width, chain_height = _chain(space, genotype.cells[0], height)
        height += chain_height
    else:
        for name, choices in zip(space.cell_types, genotype.cells, strict=True):
            elements, cell_height = _cell(space, name, choices, height)
            parts += elements
            height += cell_height
    size = f'width="{width:.0f}" height="{height:.0f}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" {size} '
            'font-family="Helvetica, Arial, sans-serif" role="img">',
            f"<title>{escape(genotype.arch)}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="arrow" viewBox="0 0 10 10" refX="2" refY="5" markerWidth="5" markerHeight="5" orient="auto">'
            '<path d="M0 0 L10 5 L0 10 z" style="fill:#444;stroke:none"/></marker></defs>',
            f'<rect {size} fill="#fff"/>',
            *parts,
            "</svg>",
            "",
        ]
    )
