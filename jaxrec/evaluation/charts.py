"""Small charts as inline SVG: text in, text out, coloured by the page's style sheet.

Series number i has the class `s{i}`; the page says what colour that is in light and dark mode.
"""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

NUM_COLOURS = 6
_WIDTH, _HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 34


def line_chart(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    *,
    points: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> str:
    """Draws lines over a common axis; points that are not finite are left out.

    Args:
      title: what is drawn, also for screen readers.
      series: name to x and y values, ascending in x.
      x_label: name of the horizontal axis.
      points: name of a series to single points on it, by their own names, which are shown when
        pointed at. A series without a line has points alone.

    Returns:
      A `<figure>` element, or an empty string when there is no finite point.
    """
    lines = {name: _finite(x, y) for name, (x, y) in series.items()}
    lines = {name: line for name, line in lines.items() if len(line)}
    marks = {
        name: {own: point for own, point in of_series.items() if np.isfinite(point).all()}
        for name, of_series in (points or {}).items()
    }
    single = [point for of_series in marks.values() for point in of_series.values()]
    if not lines and not single:
        return ""
    every = np.concatenate([*lines.values(), np.reshape(np.asarray(single, np.float64), (-1, 2))])
    x_low, x_high = _range(every[:, 0])
    y_ticks = _ticks(*_range(every[:, 1]))
    parts = [_horizontal_grid(y_ticks)]
    for tick in _ticks(x_low, x_high):
        if x_low <= tick <= x_high:
            at = _LEFT + (tick - x_low) / (x_high - x_low) * _inner_width()
            parts.append(_text(at, _HEIGHT - _BOTTOM + 14, _number(tick)))

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (x - x_low) / (x_high - x_low) * _inner_width(), _height_of(y, y_ticks)

    def dot(name: str, x: float, y: float) -> str:
        at, height = place(x, y)
        label = html.escape(f"{name}: {_number(y)} at {_number(x)}")
        return (
            f'<circle class="fill" cx="{at:.1f}" cy="{height:.1f}" r="3">'
            f"<title>{label}</title></circle>"
        )

    names = list(dict.fromkeys([*lines, *marks]))
    for i, name in enumerate(names):
        drawn = ""
        if name in lines:
            places = (place(x, y) for x, y in lines[name])
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            drawn = f'<polyline class="line" points="{path}"/>'
        ends = {name: tuple(lines[name][-1])} if name in lines else {}
        drawn += "".join(dot(own, x, y) for own, (x, y) in (marks.get(name) or ends).items())
        parts.append(f'<g class="s{i % NUM_COLOURS}">{drawn}</g>')
    return _figure(title, parts, names, x_label)


def bar_chart(
    title: str, groups: Sequence[str], series: Mapping[str, Sequence[float]], x_label: str
) -> str:
    """Draws bars from 0, side by side in each group.

    Args:
      title: what is drawn.
      groups: names below the bars.
      series: name to one value from 0 for each group.
      x_label: name of the horizontal axis.

    Returns:
      A `<figure>` element, or an empty string without groups or series.
    """
    if not groups or not series:
        return ""
    highest = max(max(values) for values in series.values())
    y_ticks = _ticks(0.0, highest if highest > 0 else 1.0)
    parts = [_horizontal_grid(y_ticks)]
    slot = _inner_width() / len(groups)
    bar = slot * 0.8 / len(series)
    for g, group in enumerate(groups):
        left = _LEFT + g * slot + slot * 0.1
        parts.append(_text(left + slot * 0.4, _HEIGHT - _BOTTOM + 14, group))
        for i, (name, values) in enumerate(series.items()):
            top = _height_of(values[g], y_ticks)
            label = html.escape(f"{name}, {group}: {values[g]:.4f}")
            parts.append(
                f'<rect class="fill s{i % NUM_COLOURS}" x="{left + i * bar:.1f}" y="{top:.1f}" '
                f'width="{bar * 0.92:.1f}" height="{_HEIGHT - _BOTTOM - top:.1f}">'
                f"<title>{label}</title></rect>"
            )
    return _figure(title, parts, list(series), x_label)


def _figure(title: str, parts: list[str], names: list[str], x_label: str) -> str:
    label = _text(_LEFT + _inner_width() / 2, _HEIGHT - 4, x_label)
    legend = "".join(
        f'<span class="key s{i % NUM_COLOURS}">{html.escape(name)}</span>'
        for i, name in enumerate(names)
    )
    escaped = html.escape(title)
    return (
        f"<figure><figcaption>{escaped}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escaped}">'
        f'{"".join(parts)}{label}</svg><div class="legend">{legend}</div></figure>'
    )


def _horizontal_grid(ticks: list[float]) -> str:
    parts = []
    for tick in ticks:
        y = _height_of(tick, ticks)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 6, y + 4, _number(tick), "end"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _height_of(value: float, ticks: list[float]) -> float:
    share = (value - ticks[0]) / (ticks[-1] - ticks[0])
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)


def _inner_width() -> int:
    return _WIDTH - _LEFT - _RIGHT


def _finite(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    points = np.column_stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    return points[np.isfinite(points).all(axis=1)]


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.0 if high > low else max(abs(low), 1.0) / 2
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, about five, that enclose the range."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [i * step for i in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
