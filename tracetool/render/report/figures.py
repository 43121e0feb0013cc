"""Figures as plotly has them, without colours of a theme: the page gives them those of the reader's."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import msgspec

from tracetool.metrics import METRICS, Unit
from tracetool.render import words
from tracetool.stats import mean_of_medians
from tracetool.timeline import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.timeline import Piece, StepTimeline
    from tracetool.unprofiled import Times

Figure = dict[str, Any]

BASELINE = "#7d8797"
VARIANTS = (
    "#2f7fd0",
    "#d08700",
    "#17936d",
    "#b9548f",
    "#7a6be0",
    "#3aa0b8",
    "#a8722a",
    "#5d8a1f",
    "#cf5a4a",
    "#8a5fb0",
)
"""Told apart by colour-blind readers in their first four, and always by the labels beside them."""

KIND_COLOURS = {
    Kind.RANGE: "#b7c1cf",
    Kind.LAUNCH: "#3b8fd4",
    Kind.GRAPH_LAUNCH: "#7a5cc7",
    Kind.SYNC: "#d55e00",
    Kind.OP: "#6f9fd8",
    Kind.CALL: "#8d97a5",
    Kind.KERNEL: "#009e73",
    Kind.GRAPH_KERNEL: "#5fbf9f",
    Kind.H2D_PAGEABLE: "#e69f00",
    Kind.H2D_PINNED: "#f0dc50",
    Kind.H2D: "#edb940",
    Kind.D2H_PAGEABLE: "#b0457f",
    Kind.D2H_PINNED: "#e0a3c4",
    Kind.D2H: "#cc79a7",
    Kind.D2D: "#56b4e9",
    Kind.COPY: "#c9b458",
    Kind.MEMSET: "#8c6d4f",
}
"""From the palette of Okabe and Ito (2008), which colour-blind readers tell apart; copies have patterns besides."""
_PATTERNS = {Kind.H2D_PAGEABLE: "/", Kind.D2H_PAGEABLE: "/", Kind.SYNC: "x"}
_MOST_POINTS = 400
_LANE_PX = 22


def colour_of(side: int) -> str:
    """Of a side; the baseline is 0."""
    return VARIANTS[(side - 1) % len(VARIANTS)] if side else BASELINE


def bars(metric: str, labels: Sequence[str], values: Sequence[float]) -> Figure:
    """One metric, a bar for each side."""
    from plotly import graph_objects as go

    unit = METRICS[metric].unit
    names = [_text(label, 18) for label in labels]
    figure = go.Figure(
        go.Bar(
            orientation="h",
            y=list(range(len(values))),
            x=list(values),
            text=[words.number(value, unit) for value in values],
            textposition="auto",
            hovertext=[
                f"{html.escape(words.clean(label))}: {words.number(value, unit)}"
                for label, value in zip(labels, values, strict=True)
            ],
            hoverinfo="text",
            marker={"color": [colour_of(side) for side in range(len(values))]},
        ),
        {
            "height": 34 + 26 * len(values),
            "margin": {"l": 8, "r": 8, "t": 4, "b": 4},
            "xaxis": {"visible": False, "rangemode": "tozero", "fixedrange": True},
            "yaxis": {
                "autorange": "reversed",
                "tickvals": list(range(len(values))),
                "ticktext": names,
                "automargin": True,
                "fixedrange": True,
                "showgrid": False,
            },
            "bargap": 0.28,
            "showlegend": False,
        },
    )
    return _plain(figure)


def distributions(labels: Sequence[str], samples: Sequence[Sequence[Sequence[float]]]) -> Figure:
    """Times in ns of each side (by process, where there are several), each a point, and the median of all."""
    from plotly import graph_objects as go

    figure = go.Figure()
    unit, size = _scale(max((max(map(max, side)) for side in samples if side), default=0))
    for number, side in enumerate(samples):
        if not side:
            continue
        ordered = [_thinned(process) for process in side]
        points = [(value, process) for process, values in enumerate(ordered) for value in values]
        spread = 0.5 / max(1, len(ordered))
        heights = [
            number - 0.25 + spread * (process + 0.5) + spread * 0.35 * ((at * 7919 % 13) / 6 - 1)
            for at, (_, process) in enumerate(points)
        ]
        middle = mean_of_medians(side) or 0.0
        figure.add_scatter(
            x=[round(value / size, 5) for value, _ in points],
            y=[round(height, 3) for height in heights],
            mode="markers",
            marker={"color": colour_of(number), "size": 6, "opacity": 0.55},
            hovertext=[f"{words.number(value, Unit.NS)}, process {process + 1}" for value, process in points],
            hoverinfo="text",
        )
        figure.add_scatter(
            x=[middle / size],
            y=[number],
            mode="markers",
            marker={
                "color": colour_of(number),
                "symbol": "line-ns",
                "size": 30,
                "line": {"width": 3, "color": colour_of(number)},
            },
            hovertext=[f"median {words.number(middle, Unit.NS)}"],
            hoverinfo="text",
        )
    figure.update_layout(
        height=70 + 52 * len(samples),
        margin={"l": 8, "r": 16, "t": 8, "b": 44},
        showlegend=False,
        hovermode="closest",
        xaxis={"title": {"text": f"{unit} a step"}, "zeroline": False, "range": _roomy(samples, size)},
        yaxis=_named_axis(labels),
    )
    return _plain(figure)


def ratios(times: Sequence[Times]) -> Figure | None:
    """Each variant's time beside the baseline's, with its interval; nothing where none has one."""
    from plotly import graph_objects as go

    told = [(number, one, one.ratio) for number, one in enumerate(times) if one.ratio is not None]
    if not told:
        return None
    figure = go.Figure(
        go.Scatter(
            x=[ratio.value for _, _, ratio in told],
            y=list(range(len(told))),
            mode="markers",
            marker={"color": [colour_of(number) for number, _, _ in told], "size": 11},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [ratio.high - ratio.value for _, _, ratio in told],
                "arrayminus": [ratio.value - ratio.low for _, _, ratio in told],
                "thickness": 2,
                "width": 6,
            },
            hovertext=[
                f"{html.escape(words.clean(one.label))}: x{ratio.value:.3f}, {ratio.low:.3f} to {ratio.high:.3f}"
                for _, one, ratio in told
            ],
            hoverinfo="text",
        )
    )
    figure.add_vline(x=1, line={"width": 1, "dash": "dot"})
    figure.update_layout(
        height=80 + 34 * len(told),
        margin={"l": 8, "r": 16, "t": 8, "b": 44},
        showlegend=False,
        xaxis={"title": {"text": "time of a step, the baseline's = 1 (95 % interval)"}, "zeroline": False},
        yaxis=_named_axis([one.label for _, one, _ in told]),
    )
    return _plain(figure)


def _named_axis(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "tickvals": list(range(len(labels))),
        "ticktext": [_text(label, 18) for label in labels],
        "range": [len(labels) - 0.5, -0.5],
        "automargin": True,
        "fixedrange": True,
        "zeroline": False,
        "showgrid": False,
    }


def timelines(labels: Sequence[str], steps: Sequence[StepTimeline]) -> Figure:
    """One step of each side on one time axis, its lanes below each other."""
    from plotly import graph_objects as go

    unit, size = _scale(max((step.duration_ns for step in steps), default=0))
    pieces: dict[Kind, list[tuple[int, Piece, str]]] = {}
    ticks: dict[int, str] = {}
    titles, row = [], 0
    for label, step in zip(labels, steps, strict=True):
        titles.append(
            (row, f"<b>{_text(label, 40)}</b>  {_text(step.what, 40)}, {words.number(step.wall_ns, Unit.NS)}")
        )
        row += 1
        for lane in step.lanes:
            ticks[row] = _text(lane.label, 16)
            for piece in lane.pieces:
                pieces.setdefault(piece.kind, []).append((row, piece, lane.where))
            row += 1
    figure = go.Figure()
    for kind in sorted(pieces, key=list(Kind).index):
        here = pieces[kind]
        figure.add_bar(
            name=str(kind),
            orientation="h",
            y=[at for at, _, _ in here],
            base=[round(piece.start_ns / size, 6) for _, piece, _ in here],
            x=[round(max(piece.duration_ns, 1) / size, 6) for _, piece, _ in here],
            width=0.82,
            text=[_text(piece.name, 60) for _, piece, _ in here] if kind is Kind.RANGE else None,
            textposition="inside" if kind is Kind.RANGE else "none",
            insidetextanchor="start",
            textangle=0,
            insidetextfont={"color": "#14181f", "size": 11},
            constraintext="inside",
            hovertext=[_hover(kind, piece, where) for _, piece, where in here],
            hoverinfo="text",
            marker={
                "color": KIND_COLOURS[kind],
                "line": {"color": KIND_COLOURS[kind], "width": 0 if kind is Kind.RANGE else 0.7},
                "pattern": {
                    "shape": _PATTERNS.get(kind, ""),
                    "size": 5,
                    "solidity": 0.35,
                    "fgcolor": "#14181f",
                    "fillmode": "overlay",
                },
            },
        )
    figure.update_layout(
        height=110 + _LANE_PX * row,
        margin={"l": 8, "r": 12, "t": 8, "b": 44},
        barmode="overlay",
        hovermode="closest",
        dragmode="pan",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        xaxis={
            "title": {"text": f"{unit} from the beginning of the step"},
            "range": [0, max((step.duration_ns for step in steps), default=1) / size * 1.01],
            "zeroline": False,
        },
        yaxis={
            "tickvals": list(ticks),
            "ticktext": list(ticks.values()),
            "range": [row - 0.4, -0.6],
            "automargin": True,
            "fixedrange": True,
            "zeroline": False,
            "showgrid": False,
        },
        uniformtext={"minsize": 9, "mode": "hide"},
        annotations=[
            {
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "y": at,
                "yref": "y",
                "text": text,
                "showarrow": False,
                "align": "left",
            }
            for at, text in titles
        ],
    )
    return _plain(figure)


def _hover(kind: Kind, piece: Piece, where: str) -> str:
    what = _text(piece.name, 110) if piece.count == 1 else f"{piece.count:,} pieces, among them {_text(piece.name, 90)}"
    parts = [str(kind), f"{words.number(piece.duration_ns, Unit.NS)} from {words.number(piece.start_ns, Unit.NS)}"]
    parts += [words.number(piece.bytes, Unit.BYTES)] if piece.bytes else []
    return f"<b>{what}</b><br>{', '.join(parts)}<br>{_text(where, 80)}"


def _text(name: str, width: int) -> str:
    """Plotly reads some tags in texts, so that a name must be none."""
    return html.escape(words.shorten(name, width), quote=False)


def _thinned(values: Sequence[float]) -> list[float]:
    if len(values) <= _MOST_POINTS:
        return list(values)
    ordered = sorted(values)
    return [ordered[at * (len(ordered) - 1) // (_MOST_POINTS - 1)] for at in range(_MOST_POINTS)]


def _roomy(samples: Sequence[Sequence[Sequence[float]]], size: int) -> list[float]:
    """A range around all samples that does not blow up differences of less than a percent."""
    flat = [value for side in samples for process in side for value in process]
    low, high = min(flat, default=0), max(flat, default=1)
    pad = max(0.04 * (high - low), 0.005 * high)
    return [(low - pad) / size, (high + pad) / size]


def _scale(longest: float) -> tuple[str, int]:
    if longest >= 10**10:
        return "seconds", 10**9
    return ("milliseconds", 10**6) if longest >= 10**6 else ("microseconds", 10**3)


def _plain(figure: Any) -> Figure:
    """What plotly's own template adds is left out: the page has its own."""
    found: Figure = msgspec.json.decode(figure.to_json())
    found["layout"].pop("template", None)
    return found
