"""Tables of calibrated presets in Markdown, and a preset as a line of YAML."""

from collections.abc import Sequence
from dataclasses import asdict

from preset_search import Goal, Row
from quality_vs_cost import short

from ggm_image.sampler.settings import Settings


def preset_line(name: str, settings: Settings) -> str:
    """The preset as a line of YAML below ``presets:``; what has its default value is left out."""
    default, entries = asdict(Settings()), asdict(settings)
    shown = {k: v for k, v in entries.items() if v != default[k] or k in ("order", "sweeps", "block")}
    first = {k: shown.pop(k) for k in ("order", "first_order", "site_order") if k in shown}
    return f"  {name}: {{{', '.join(f'{k}: {v}' for k, v in (first | shown).items())}}}"


def cells(found: Sequence[Row]) -> list[str]:
    """The figures of a row, network by network."""
    texts = []
    for one in found:
        texts.append(f"{one['distance']:.3f}")
        texts.append(f"{one['precision']:.2f}, {one['recall']:.2f}")
        texts.append(f"{one['density']:.2f}, {one['coverage']:.2f}")
        texts.append("" if one["class_accuracy"] is None else f"{100 * one['class_accuracy']:.1f}%")
    return texts


def line(entries: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, entries))} |"


def heading(titles: Sequence[str], first: Sequence[str]) -> str:
    names = [*first]
    for title in titles:
        names += [title, "precision, recall", "density, coverage", "class accuracy"]
    return f"{line(names)}\n{line(['---'] * len(names))}"


def setting_line(row: Row, *, best: bool = False) -> str:
    settings = Settings.of(row["task"]["settings"])
    texts = cells(row["figures"])
    if best:
        texts[0] = f"**{texts[0]}**"
    cost = [row["passes"], settings.order, f"{settings.sweeps} x {settings.block}", short(settings), row["task"]["n"]]
    return line([*cost, *texts, f"{1000 * row['seconds_per_image']:.3g}"])


def table(titles: Sequence[str], rows: Sequence[Row], goal: Goal) -> str:
    """Markdown, the best first and in bold."""
    first = ["passes", "order", "sweeps x block", "other settings", "images"]
    head, rule = heading(titles, first).splitlines()
    ordered = sorted(rows, key=goal.key)
    lines = [setting_line(row, best=k == 0) for k, row in enumerate(ordered)]
    return "\n".join([f"{head} ms per image |", f"{rule} --- |", *lines]) + "\n"


def bounds_table(titles: Sequence[str], bounds: Sequence[Row]) -> str:
    """Markdown of the bounds; and by how much the distances of reconstructions exceed those of as many real images."""
    if not bounds:
        return ""
    names = {"train": "training images", "held-out": "held-out images", "reference": "the reference images"}
    lines = [heading(titles, ["bound", "images"])]
    for row in bounds:
        task = row["task"]
        kind = "real" if task["bound"] == "real" else "reconstructions of"
        lines.append(line([f"{kind} {names[task['of']]}", task["n"], *cells(row["figures"])]))
    real, decoded = ([row for row in bounds if row["task"]["bound"] == kind] for kind in ("real", "reconstructions"))
    if real and decoded and real[0]["task"]["n"] == decoded[0]["task"]["n"]:
        pairs = zip(titles, decoded[0]["figures"], real[0]["figures"], strict=True)
        excess = ", ".join(f"{title} {d['distance'] - r['distance']:+.3f}" for title, d, r in pairs)
        lines += ["", f"Reconstructions exceed as many real images by: {excess}."]
    return "\n".join(lines) + "\n\n"
