"""Tables and the figure of tools/experiments/compare_objectives.py; compare_text.py shares some."""

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from compare_methods import METHODS, TITLES, TRAINED, Row
from experiments import Results

Figures = dict[tuple[str, int], list[Row]]
"""Results of the chosen settings by method and calls, one a seed; only what has been measured."""
SHARES = ("precision", "recall", "density", "coverage", "class_accuracy")


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation; 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def shown(settings: Row) -> str:
    """Settings on one line."""
    parts = [f"T {settings['temperature']:.3g}"]
    if "guidance" in settings:
        parts.append(f"w {settings['guidance']:.3g} m^{settings['guidance_power']:g}")
    if "sweeps" in settings:
        parts.insert(0, f"{settings['order']} {settings['sweeps']} x {settings['block']}")
    if "revise_calls" in settings:
        revised = f", {settings['revise_calls']} calls revise {settings['block']}" if settings["revise_calls"] else ""
        parts.insert(0, settings.get("first_order", settings["order"]) + revised)
    parts += [f"noise {settings['confidence_noise']:g}"] if "confidence_noise" in settings else []
    parts += [settings["strategy"]] if "strategy" in settings else []
    parts += [f"eta {settings['eta']:g}"] if "eta" in settings else []
    parts += ["greedy tail"] if settings.get("greedy") else []
    if settings.get("corrections"):
        parts.append(f"{settings['corrections']} calls correct {settings['corrected']}")
    if "curve" in settings:
        level = f" from {settings['first_level']:g}" if "first_level" in settings else ""
        parts.append(settings["curve"] + level)
    return ", ".join(parts)


def calls_table(
    head: str, calls: list[int], methods: list[str], cell: Callable[[str, int], str], titles: Mapping[str, str] = TITLES
) -> list[str]:
    """Lines of a table: a row for each method, a column for each number of network calls, and an empty line."""
    lines = [f"| {head} | " + " | ".join(map(str, calls)) + " |", "| --- " * (len(calls) + 1) + "|"]
    return [*lines, *(f"| {titles[m]} | " + " | ".join(cell(m, c) for c in calls) + " |" for m in methods), ""]


def figure_tables(finals: Figures, calls: list[int]) -> str:
    """Markdown: for each feature network the distances and the shares, then the settings, and who is ahead."""
    methods = [m for m in METHODS if any(key[0] == m for key in finals)]
    if not methods:
        return "nothing is measured\n"
    lines: list[str] = []
    features = [found["features"] for found in next(iter(finals.values()))[0]["figures"]]
    for k, title in enumerate(features):
        means = {key: spread([row["figures"][k]["distance"] for row in rows]) for key, rows in finals.items()}
        least = {c: min(mean for (_, c_of), (mean, _) in means.items() if c_of == c) for _, c in means}

        def distance(m: str, c: int, means: dict = means, least: dict = least) -> str:
            if (m, c) not in means:
                return ""
            mean, deviation = means[m, c]
            text = f"{mean:.2f} ± {deviation:.2f}" if len(finals[m, c]) > 1 else f"{mean:.2f}"
            return f"**{text}**" if mean == least[c] else text

        def shares(m: str, c: int, k: int = k) -> str:
            if (m, c) not in finals:
                return ""
            columns = [[row["figures"][k][name] for row in finals[m, c]] for name in SHARES]
            return ", ".join("-" if None in column else f"{statistics.fmean(column):.2f}" for column in columns)

        lines += calls_table(f"FD, {title}, at network calls", calls, methods, distance)
        lines += calls_table("precision, recall, density, coverage, accuracy", calls, methods, shares)
        lines += [*_verdicts(means, calls, methods), ""]

    def settings(m: str, c: int) -> str:
        return shown(finals[m, c][0]["task"]["settings"]) if (m, c) in finals else ""

    return "\n".join([*lines, *calls_table("settings", calls, methods, settings)])


def _verdicts(means: dict[tuple[str, int], tuple[float, float]], calls: list[int], methods: list[str]) -> list[str]:
    """Whether GGM is ahead by more than the deviation over the seeds, its own and the rival's."""
    lines = []
    for c in calls:
        rivals = {m: means[m, c] for m in methods if (m, c) in means and not m.startswith(("ggm", "literal"))}
        if ("ggm", c) not in means or not rivals:
            continue
        near = min(rivals, key=lambda m: rivals[m][0])
        gap, deviation = rivals[near][0] - means["ggm", c][0], max(rivals[near][1], means["ggm", c][1])
        word = "ahead of" if gap > 0 else "behind"
        within = "" if abs(gap) > deviation else f", within the deviation over seeds of {deviation:.2f}"
        lines.append(f"- {c} calls: GGM is {abs(gap):.2f} {word} the best rival, {TITLES[near]}{within}.")
    return lines


def network_table(results: Results) -> str:
    """Markdown: what was trained, and the bounds."""
    lines = ["| network | images seen | minutes | bound on -log p, nats per token |", "| --- | --- | --- | --- |"]
    for network in TRAINED:
        rows = results.of(stage="train", network=network)
        if rows:
            mean, deviation = spread([row["bound"] for row in rows])
            images, minutes = (statistics.fmean(row[name] for row in rows) for name in ("images", "minutes"))
            lines.append(f"| {network} | {images:,.0f} | {minutes:.1f} | {mean:.3f} ± {deviation:.3f} |")
    return "\n".join(lines) + "\n"


def plot(finals: dict[str, Figures], calls: list[int], path: Path) -> None:
    """Distance by the first features against calls, with bands over the seeds; a panel for each kind of guidance."""
    from quality_vs_cost import pyplot

    plt = pyplot()
    shape = {"figsize": (6.0 * len(finals) + 2.0, 4.6), "layout": "constrained", "squeeze": False}
    figure, grid = plt.subplots(1, len(finals), **shape)
    for axes, (title, panel) in zip(grid[0], finals.items(), strict=True):
        for k, method in enumerate(METHODS):
            points = [(c, spread([row["distance"] for row in panel[method, c]])) for c in calls if (method, c) in panel]
            if not points:
                continue
            x = [c for c, _ in points]
            low, mean, high = ([m + sign * d for _, (m, d) in points] for sign in (-1, 0, 1))
            own = method.startswith(("ggm", "literal"))
            style = {"color": f"C{k % 10}", "label": TITLES[method]}
            axes.plot(x, mean, marker="o", linewidth=2.4 if own else 1.2, linestyle="-" if k < 10 else "--", **style)
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(calls, [str(c) for c in calls])
        axes.set_xlabel("network calls" + (", two passes each" if title == "guided" else ""))
        axes.set_ylabel("FD")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    handles = {label: h for axes in grid[0] for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside right upper")
    figure.savefig(path, dpi=150)
    plt.close(figure)
