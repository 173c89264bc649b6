"""What tools/experiments/compare_text.py chooses, and its tables and figure: methods at the entropy of real text."""

import statistics
from pathlib import Path

import numpy as np
from compare_tables import calls_table, shown, spread
from compare_text_methods import NEAR, REFERENCE, TEXT_METHODS, TEXT_TITLES, TEXT_TRAINED, text_candidates
from experiments import Results, Row

from ggm_image.io.files import write_text

DIFFUSIONS = [method for method in TEXT_METHODS if method != "ar"]


def structure_of(settings: Row) -> Row:
    """Settings without the temperature."""
    return {name: value for name, value in settings.items() if name != "temperature"}


def at_entropy(rows: list[Row], name: str, target: float) -> tuple[float, float]:
    """A figure of samples at a given entropy, and the entropy that it is for.

    Interpolated linearly between the rows of the nearest entropies; of the logarithm for a perplexity. Outside of what
    was measured it is that of the nearest row.

    Args:
        rows: of one sampler at several temperatures.
        name: of the figure; "temperature" is the setting.
        target: entropy, in bits per byte.
    """
    points = sorted((row["byte_entropy"], _figure(row, name)) for row in rows)
    entropies, values = np.array(points).T
    reached = min(max(target, entropies[0]), entropies[-1])
    logarithmic = name != "known_words"
    found = float(np.interp(reached, entropies, np.log(values) if logarithmic else values))
    return (float(np.exp(found)) if logarithmic else found), float(reached)


def _figure(row: Row, name: str) -> float:
    return float(row["task"]["settings"][name] if name == "temperature" else row[name])


class TextTuning:
    """Which settings are tried, and which are chosen.

    Args:
        results: with the rows so far.
        count: settings tried for each method and number of calls.
        n: samples of each.
    """

    def __init__(self, results: Results, count: int, n: int) -> None:
        self.results, self.count, self.n = results, count, n

    @property
    def text(self) -> Row:
        """The figures of held-out text."""
        (row,) = self.results.of(stage="text")
        return row

    def candidates(self, method: str, calls: int) -> list[Row]:
        return text_candidates(method, calls, self.results.protocol["length"], self.count)

    def chosen(self, method: str, calls: int) -> list[Row]:
        """The sampler of least perplexity at the text's entropy, at the temperature for it, and below and above.

        A sampler that does not reach that entropy comes after all that do. Empty where nothing was tuned.
        """
        tuned = self.results.of(method=method, calls=calls, stage="tune", n=self.n)
        target, found = self.text["byte_entropy"], []
        for structure in (structure_of(entry) for entry in self.candidates(method, calls)):
            rows = [row for row in tuned if structure_of(row["task"]["settings"]) == structure]
            if rows and structure not in (entry for _, _, entry, _ in found):
                perplexity, reached = at_entropy(rows, "perplexity", target)
                found.append((abs(reached - target), perplexity, structure, rows))
        if not found:
            return []
        _, _, structure, rows = min(found, key=lambda entry: entry[:2])
        temperature, _ = at_entropy(rows, "temperature", target)
        return [{**structure, "temperature": round(temperature * factor, 4)} for factor in (1 / NEAR, 1, NEAR)]

    def finals(self, method: str, calls: int, n: int) -> dict[int, list[Row]]:
        """What the chosen settings gave with ``n`` samples, by seed."""
        found: dict[int, list[Row]] = {}
        for settings in self.chosen(method, calls):
            for row in self.results.of(stage="final", method=method, calls=calls, n=n, settings=settings):
                found.setdefault(row["task"]["seed"], []).append(row)
        return found


class Finals:
    """The chosen settings' figures at the text's entropy, by method and calls."""

    def __init__(self, tuning: TextTuning, calls: list[int], n: int) -> None:
        self.target = tuning.text["byte_entropy"]
        every = sorted({*calls, tuning.results.protocol["length"]})
        rows = {(m, c): tuning.finals(m, c, n) for m in TEXT_METHODS for c in every}
        self.rows = {key: found for key, found in rows.items() if found}
        self.calls = [c for c in every if any(c == c_of for _, c_of in self.rows)]
        self.methods = [m for m in TEXT_METHODS if any(m == m_of for m_of, _ in self.rows)]

    def mean(self, method: str, calls: int, name: str) -> tuple[float, float]:
        """Mean and deviation over the seeds."""
        return spread([at_entropy(rows, name, self.target)[0] for rows in self.rows[method, calls].values()])

    def missed(self, method: str, calls: int) -> float:
        """The mean entropy that was reached, less the text's; 0 where it was reached on all seeds."""
        reached = [at_entropy(rows, "perplexity", self.target)[1] for rows in self.rows[method, calls].values()]
        return statistics.fmean(reached) - self.target

    def shown(self, method: str, calls: int, name: str, digits: int = 2) -> str:
        if (method, calls) not in self.rows:
            return ""
        mean, deviation = self.mean(method, calls, name)
        scale = 100 if name == "known_words" else 1
        text = f"{scale * mean:.{digits}f}" + (
            f" ± {scale * deviation:.{digits}f}" if len(self.rows[method, calls]) > 1 else ""
        )
        missed = self.missed(method, calls)
        return f"{text} ({missed:+.2f})" if abs(missed) >= 0.005 else text


def report(tuning: TextTuning, calls: list[int], n: int, out: Path) -> str:
    """Write the tables and the figure; the tables."""
    finals, text = Finals(tuning, calls, n), tuning.text
    shared = {"calls": finals.calls, "methods": finals.methods, "titles": TEXT_TITLES}
    lines = [
        f"Held-out text, {text['n']} rows: perplexity {text['perplexity']:.2f} per byte under the reference, entropy "
        f"{text['byte_entropy']:.3f} bits per byte, known words {100 * text['known_words']:.1f}%.",
        "",
        f"{tuning.count} settings tried for every method and number of calls with {tuning.n} samples each, on seed 0. "
        f"Figures: {n} samples a seed at each of three temperatures, interpolated at the entropy of held-out text. "
        "In brackets: how far from it the nearest entropy is, where it is not reached.",
        "",
        *calls_table("perplexity at network calls", cell=lambda m, c: finals.shown(m, c, "perplexity"), **shared),
        *calls_table("known words, %", cell=lambda m, c: finals.shown(m, c, "known_words", 1), **shared),
        *calls_table("at the sampler", cell=lambda m, c: _sampler(finals, m, c), **shared),
        *calls_table("time per text", cell=lambda m, c: _time(finals, m, c), **shared),
        *_verdicts(finals),
        "",
        *_networks(tuning.results),
    ]
    found = "\n".join(lines) + "\n"
    write_text(out / "compare.md", found)
    plot(tuning, finals, n, out / "compare.png")
    return found


def _sampler(finals: Finals, method: str, calls: int) -> str:
    """The sampler's settings at the middle temperature."""
    if (method, calls) not in finals.rows:
        return ""
    rows = next(iter(finals.rows[method, calls].values()))
    return shown(rows[len(rows) // 2]["task"]["settings"])


def _time(finals: Finals, method: str, calls: int) -> str:
    """In units of MDLM's at the fewest calls; empty where it was not measured."""
    unit = finals.rows.get(("mdlm", finals.calls[0]))
    if (method, calls) not in finals.rows or unit is None:
        return ""
    mine, one = (
        statistics.fmean(row["seconds_per_text"] for rows in found.values() for row in rows)
        for found in (finals.rows[method, calls], unit)
    )
    return f"{mine / one:.2f}"


def _verdicts(finals: Finals) -> list[str]:
    """How GGM's perplexity compares with that of the best other diffusion, and by how much over the seeds."""
    lines = []
    for c in finals.calls:
        means = {m: finals.mean(m, c, "perplexity") for m in DIFFUSIONS if (m, c) in finals.rows}
        rivals = [m for m in means if m not in ("ggm", "literal")]
        if "ggm" not in means or not rivals:
            continue
        near = min(rivals, key=lambda m: means[m][0])
        gap, deviation = means[near][0] - means["ggm"][0], max(means[near][1], means["ggm"][1])
        word = "below" if gap > 0 else "above"
        within = "" if abs(gap) > deviation else f", within the deviation over seeds of {deviation:.2f}"
        within = within if len(finals.rows["ggm", c]) > 1 else ", on one seed"
        lines.append(f"- {c} calls: GGM's perplexity is {abs(gap):.2f} {word} that of {TEXT_TITLES[near]}{within}.")
    return lines


def _networks(results: Results) -> list[str]:
    """What was trained, and the held-out bits per byte."""
    lines = ["| network | rows seen | minutes | held-out bits per byte |", "| --- | --- | --- | --- |"]
    for network in TEXT_TRAINED:
        rows = results.of(stage="train", network=network)
        if rows:
            mean, deviation = spread([row["bits_per_byte"] for row in rows])
            seen, minutes = (statistics.fmean(row[name] for row in rows) for name in ("images", "minutes"))
            exact = "" if network in ("ar", REFERENCE) else "at most "
            over = f" ± {deviation:.3f}" if len(rows) > 1 else ""
            lines.append(f"| {network} | {seen:,.0f} | {minutes:.1f} | {exact}{mean:.3f}{over} |")
    return lines


def plot(tuning: TextTuning, finals: Finals, n: int, path: Path) -> None:
    """A panel for each number of calls: perplexity against entropy, what was tried as dots, the chosen as lines."""
    from quality_vs_cost import pyplot

    plt, panels = pyplot(), [c for c in finals.calls if any((m, c) in finals.rows for m in DIFFUSIONS)] or finals.calls
    shape = {"figsize": (4.2 * len(panels) + 1.6, 4.4), "layout": "constrained", "squeeze": False, "sharey": True}
    figure, (row_of_axes,) = plt.subplots(1, len(panels), **shape)
    text = tuning.text
    for axes, c in zip(row_of_axes, panels, strict=True):
        for k, method in enumerate(TEXT_METHODS):
            key = ("ar", tuning.results.protocol["length"]) if method == "ar" else (method, c)
            if key not in finals.rows:
                continue
            dots = tuning.results.of(stage="tune", method=method, calls=key[1], n=tuning.n)
            points = [[row[name] for row in dots] for name in ("byte_entropy", "perplexity")]
            axes.scatter(*points, s=8, color=f"C{k}", alpha=0.35, linewidths=0)
            for seed, rows in finals.rows[key].items():
                line = np.array(sorted((row["byte_entropy"], row["perplexity"]) for row in rows)).T
                label = TEXT_TITLES[method] + (f", {key[1]} calls" if method == "ar" else "") if seed == 0 else None
                axes.plot(*line, color=f"C{k}", linewidth=2.2 if method == "ggm" else 1.2, label=label)
        axes.axvline(text["byte_entropy"], color="grey", linewidth=0.8)
        axes.plot([text["byte_entropy"]], [text["perplexity"]], "k*", label="held-out text")
        axes.set(yscale="log", xlabel="entropy of samples, bits per byte", title=f"{c} calls")
        axes.grid(alpha=0.3)
    row_of_axes[0].set_ylabel("perplexity per byte under the reference")
    handles = {label: h for axes in row_of_axes for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
