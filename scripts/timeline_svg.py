"""The picture of one token's timeline, as the text of an SVG file that is 1000 pixels wide."""

from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT = 1000, 64, 16
TITLE_HEIGHT, CURVE_HEIGHT, STRIP_HEIGHT, GAP, AXIS_HEIGHT = 62, 110, 14, 16, 40
# The rows of all layers together, within what a row may take.
ROWS_HEIGHT, ROW_LEAST, ROW_MOST = 720, 9, 26
LABEL_HEIGHT = 12
COLOURS = {"read": "#5b8fc7", "wait": "#d43a2f", "compute": "#58a55c"}
NAMES = {"read": "reading", "wait": "waiting for the drive", "compute": "computing"}
IDLE_COLOUR, INK, LINE = "#fbe3c0", "#333333", "#dddddd"

Spans = list[tuple[float, float]]


@dataclass(frozen=True)
class Picture:
    """What is drawn; times in seconds from the token's beginning."""

    token: int
    seconds: float
    read_bytes: int
    # From when on how many reads were in flight.
    depth: list[tuple[float, int]]
    layers: list[int | str]
    # By kind and layer.
    spans: dict[str, dict[int | str, Spans]]

    @property
    def idle(self) -> Spans:
        """When no read was in flight."""
        steps = [*self.depth, (self.seconds, 0)]
        return [(begin, end) for (begin, depth), (end, _) in pairwise(steps) if depth == 0 and end > begin]

    @property
    def idle_share(self) -> float:
        return sum(end - begin for begin, end in self.idle) / self.seconds

    @property
    def wait_seconds(self) -> float:
        return sum(end - begin for spans in self.spans["wait"].values() for begin, end in spans)


class Canvas:
    """SVG elements as text, and the place of a moment on the page."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.elements: list[str] = []

    def x(self, moment: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * moment / self.seconds

    def bars(self, spans: Spans, y: float, height: float, colour: str) -> None:
        """One path for all of them, each at least a third of a pixel wide."""
        if spans:
            parts = (f"M{self.x(b):.2f} {y:.1f}h{max(self.x(e) - self.x(b), 0.3):.2f}v{height:.1f}H{self.x(b):.2f}z" for b, e in spans)
            self.elements.append(f'<path fill="{colour}" d="{"".join(parts)}"/>')

    def text(self, x: float, y: float, words: str, anchor: str = "start", size: int = 12, weight: str = "normal") -> None:
        style = f'text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
        self.elements.append(f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        self.elements.append(f'<path stroke="{LINE}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>')


def draw(picture: Picture) -> str:
    """The SVG file's text."""
    canvas = Canvas(picture.seconds)
    draw_title(canvas, picture)
    strip_y = TITLE_HEIGHT + CURVE_HEIGHT + GAP
    rows_y = strip_y + STRIP_HEIGHT + GAP
    row_height = min(max(ROWS_HEIGHT / max(len(picture.layers), 1), ROW_LEAST), ROW_MOST)
    bottom = rows_y + row_height * len(picture.layers)
    draw_time_axis(canvas, picture.seconds, TITLE_HEIGHT, bottom)
    draw_depth(canvas, picture, TITLE_HEIGHT)
    draw_strip(canvas, picture, strip_y)
    draw_layers(canvas, picture, rows_y, row_height)
    height = bottom + AXIS_HEIGHT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" '
    head += f'font-family="sans-serif" fill="{INK}">\n<rect width="100%" height="100%" fill="#fdfdfd"/>\n'
    return head + "\n".join(canvas.elements) + "\n</svg>\n"


def draw_title(canvas: Canvas, picture: Picture) -> None:
    speed = picture.read_bytes / picture.seconds
    facts = f"Token {picture.token}: {picture.seconds * 1e3:.0f} ms, {picture.read_bytes / 1e9:.2f} GB read ({speed / 1e9:.2f} GB/s), "
    facts += f"waited {picture.wait_seconds * 1e3:.0f} ms, drive idle {picture.idle_share:.1%}"
    canvas.text(LEFT, 22, facts, size=15, weight="bold")
    x = LEFT
    for colour, name in [*((COLOURS[kind], NAMES[kind]) for kind in COLOURS), (IDLE_COLOUR, "no read in flight")]:
        canvas.elements.append(f'<rect x="{x}" y="34" width="12" height="12" fill="{colour}"/>')
        canvas.text(x + 17, 44.5, name)
        x += 35 + 7 * len(name)


def draw_depth(canvas: Canvas, picture: Picture, top: float) -> None:
    """The reads in flight as a filled step curve."""
    most = max((depth for _, depth in picture.depth), default=0) or 1
    bottom = top + CURVE_HEIGHT
    canvas.bars(picture.idle, top, CURVE_HEIGHT, IDLE_COLOUR)
    path = f"M{canvas.x(0):.2f} {bottom}"
    for moment, depth in picture.depth:
        path += f"H{canvas.x(moment):.2f}V{bottom - CURVE_HEIGHT * depth / most:.1f}"
    path += f"H{canvas.x(picture.seconds):.2f}V{bottom}z"
    canvas.elements.append(f'<path fill="{COLOURS["read"]}" fill-opacity="0.35" stroke="{COLOURS["read"]}" d="{path}"/>')
    canvas.text(LEFT - 6, top + 10, str(most), "end")
    canvas.text(LEFT - 6, bottom, "0", "end")
    canvas.text(LEFT - 6, top + CURVE_HEIGHT / 2, "reads", "end")
    canvas.text(LEFT - 6, top + CURVE_HEIGHT / 2 + 14, "in flight", "end")


def draw_strip(canvas: Canvas, picture: Picture, top: float) -> None:
    """Computing and waiting of all layers in one line."""
    for kind in ("compute", "wait"):
        canvas.bars([span for spans in picture.spans[kind].values() for span in spans], top, STRIP_HEIGHT, COLOURS[kind])
    canvas.text(LEFT - 6, top + 11, "all", "end")


def draw_layers(canvas: Canvas, picture: Picture, top: float, height: float) -> None:
    """A row for each layer: its reads above; its waits and multiplications below."""
    label_every = -(-LABEL_HEIGHT // int(height))
    for row, layer in enumerate(picture.layers):
        y = top + row * height
        if row % 2:
            canvas.elements.append(f'<rect x="{LEFT}" y="{y:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{height:.1f}" fill="#f3f3f3"/>')
        half = (height - 1) / 2
        canvas.bars(picture.spans["read"][layer], y, half, COLOURS["read"])
        canvas.bars(picture.spans["compute"][layer], y + half, half, COLOURS["compute"])
        canvas.bars(picture.spans["wait"][layer], y + half, half, COLOURS["wait"])
        if row % label_every == 0:
            canvas.text(LEFT - 6, y + height / 2 + 4, str(layer) if isinstance(layer, str) else f"layer {layer}", "end", size=11)


def draw_time_axis(canvas: Canvas, seconds: float, top: float, bottom: float) -> None:
    step = tick_seconds(seconds)
    for tick in range(int(seconds / step + 1e-9) + 1):
        x = canvas.x(tick * step)
        canvas.line(x, top, x, bottom + 4)
        canvas.text(x, bottom + 18, f"{tick * step * 1e3:g}", "middle")
    canvas.text(WIDTH - RIGHT, bottom + 34, "milliseconds", "end")


def tick_seconds(seconds: float) -> float:
    """A round distance that gives 5 to 12 ticks."""
    step = 1e-6
    while True:
        for factor in (1, 2, 5):
            if seconds / (step * factor) <= 12:
                return step * factor
        step *= 10
