"""The chart of a run of `train_speed.py`: speeds as bars, and loss curves."""

from html import escape
from typing import Any

WIDTH, BAR, GAP, TOP = 960, 22, 12, 56
COLORS = {"ours": "#d1495b", "trl": "#30638e", "peft": "#edae49", "litgpt": "#3a7d44"}
DASHES = ["", "6 3", "2 3", "8 3 2 3", "1 2"]


def picture(summary: dict[str, Any]) -> str:
    """A self-contained SVG with a white background."""
    settings = sorted(summary["settings"], key=lambda setting: -setting["tokens_per_second"])
    height = max(300, TOP + len(settings) * (BAR + GAP) + 60)
    return _svg([*_bars(settings, height), *_curves(settings, summary, height)], height)


def method_picture(rows: list[dict[str, Any]], labels: dict[str, str], named: dict[str, str]) -> str:
    """Bars of tokens per second, grouped by method: `rows` with method, setting, tokens_per_second, peak_rss_bytes."""
    left, right, y = 230, 760, 50
    marks = [_text(20, 28, "Non-padding tokens per second", font_size="15", font_weight="600")]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method and "failed" not in row]
        most = max(row["tokens_per_second"] for row in own)
        marks.append(_text(20, y + 14, labels[method], font_weight="600"))
        y += 22
        for row in own:
            length = (right - left) * row["tokens_per_second"] / most
            label = f"{row['tokens_per_second']:,.0f}  ({row['peak_rss_bytes'] / 1e9:.1f} GB)"
            color = COLORS["ours" if row["setting"] == "ours" else "peft"]
            marks += [
                _text(left - 8, y + 13, named[row["setting"]], "end"),
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="18" fill="{color}"/>',
                _text(left + length + 6, y + 13, label),
            ]
            y += 22
        y += 10
    marks.append(_text(left, y + 12, "each method has its own scale; in brackets: peak memory", fill="#666"))
    return _svg(marks, y + 30)


def _svg(marks: list[str], height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="#222">\n'
        + "\n".join([f'<rect width="{WIDTH}" height="{height}" fill="white"/>', *marks])
        + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, anchor: str = "start", **style: str) -> str:
    more = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in style.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def _color(name: str) -> str:
    return COLORS[name.split("-")[0]]


def _bars(settings: list[dict[str, Any]], height: int) -> list[str]:
    """Tokens per second, the fastest on top."""
    left, right = 190, 440
    most = settings[0]["tokens_per_second"]
    marks = [_text(20, 28, "Non-padding tokens per second", font_size="15", font_weight="600")]
    for index, setting in enumerate(settings):
        y = TOP + index * (BAR + GAP)
        length = (right - left) * setting["tokens_per_second"] / most
        memory = f"{setting['tokens_per_second']:,.0f}  ({setting['peak_rss_bytes'] / 1e9:.1f} GB)"
        marks += [
            _text(left - 8, y + BAR - 6, setting["label"], "end"),
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{_color(setting["name"])}"/>',
            _text(left + length + 6, y + BAR - 6, memory),
        ]
    return [*marks, _text(left, height - 16, "in brackets: peak memory", fill="#666")]


def _curves(settings: list[dict[str, Any]], summary: dict[str, Any], height: int) -> list[str]:
    """Loss by loss tokens, one line per setting; each step's loss is at the middle of its tokens."""
    left, right, top, bottom = 610, WIDTH - 24, TOP, height - 90
    lines = {setting["name"]: _points(setting["curve"]) for setting in settings}
    furthest = max(x for points in lines.values() for x, _ in points)
    losses = [loss for points in lines.values() for _, loss in points]
    low, high = min(losses), max(losses)
    margin = 0.05 * (high - low) or 0.1
    low, high = low - margin, high + margin

    def at(x: float, loss: float) -> str:
        across = left + (right - left) * x / furthest
        return f"{across:.1f},{bottom - (bottom - top) * (loss - low) / (high - low):.1f}"

    marks = [_text(left - 40, 28, "Loss, nats per loss token", font_size="15", font_weight="600")]
    for tick in range(5):
        loss = low + (high - low) * tick / 4
        y = bottom - (bottom - top) * tick / 4
        marks += [
            f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
            _text(left - 6, y + 4, f"{loss:.2f}", "end"),
        ]
    marks.append(_text(right, bottom + 18, f"{furthest:,.0f} loss tokens", "end"))
    marks.append(_text(left, bottom + 18, "0"))
    for name, points in lines.items():
        index = [each for each in lines if _color(each) == _color(name)].index(name)
        path = " ".join(at(x, loss) for x, loss in points)
        width = 2.6 if name == "ours" else 1.3
        marks.append(
            f'<polyline points="{path}" fill="none" stroke="{_color(name)}" stroke-width="{width}" '
            f'stroke-dasharray="{DASHES[index % len(DASHES)]}"/>'
        )
    return marks + _legend(settings, left - 40, bottom + 36)


def _points(curve: list[list[float]]) -> list[tuple[float, float]]:
    points, at = [], 0.0
    for loss_tokens, loss in curve:
        points.append((at + loss_tokens / 2, loss))
        at += loss_tokens
    return points


def _legend(settings: list[dict[str, Any]], left: float, top: float) -> list[str]:
    """One entry per peer, in the bars' colors."""
    words = {"ours": "Tunesmith", "trl": "TRL", "peft": "PEFT loop", "litgpt": "LitGPT"}
    present = [peer for peer in words if any(setting["name"].split("-")[0] == peer for setting in settings)]
    marks = []
    for index, peer in enumerate(present):
        x = left + index * 95
        marks.append(f'<line x1="{x}" x2="{x + 22}" y1="{top}" y2="{top}" stroke="{COLORS[peer]}" stroke-width="3"/>')
        marks.append(_text(x + 28, top + 4, words[peer]))
    return marks
