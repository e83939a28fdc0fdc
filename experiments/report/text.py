"""The words of a report: introduction, sections, and how it was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from experiments.report import comparison, page, published, setups, spectra, tables
from experiments.report.comparison import Comparison
from experiments.report.page import Picture
from experiments.report.runs import Found
from experiments.report.setups import NO_NOTE, NOTE, Section

TITLE = "Pruning before training"
FIRST = ("-accuracy", "-seeds")
"""Names of the pictures that come before the tables end so."""
LONG = 16
"""Rows above which a table is folded."""


def introduction(found: Found, sections: Sequence[Section]) -> Iterator[str]:
    """Says what was read, what was left out, and what sections there are."""
    yield page.paragraph(
        f"{_count(len(found.runs), 'complete run')} in {_count(len(sections), 'set-up')}. Accuracy "
        "is that on the test images after the last epoch. Means are over seeds, deviations are "
        "sample standard deviations (n − 1), numbers of seeds are in parentheses."
    )
    if found.damaged:
        yield page.paragraph("Damaged run folders, which are not in this report:", kind="warn")
        yield page.bullets([f"{folder}: {why}" for folder, why in found.damaged])
    if found.incomplete:
        yield page.paragraph(
            f"{_count(len(found.incomplete), 'run')} not complete, and not in this report:",
            kind="warn",
        )
        yield page.bullets([str(folder) for folder in found.incomplete])
    if len(sections) > 1:
        yield page.paragraph(
            "The set-ups differ in " + ", ".join(setups.differing(sections)) + ": compare within a "
            "section, not across."
        )
        yield page.contents([(_anchor(each), _title(each)) for each in sections])


def section(
    section: Section,
    sections: Sequence[Section],
    comparisons: Sequence[Comparison],
    pictures: Sequence[Picture],
) -> Iterator[str]:
    """Writes a section: set-up, accuracy, what the masks keep, spectra.

    Args:
        section: the section.
        sections: all of them, for what tells this one apart.
        comparisons: what is published on the same data set.
        pictures: from `gallery.draw`; accuracy first.
    """
    yield page.heading(_title(section), anchor=_anchor(section))
    for note in _notes(section, sections):
        yield page.paragraph(note)
    ours_first = [each for each in pictures if each.name.endswith(FIRST)]
    for picture in ours_first:
        yield page.figure(picture)
    for note in _published_notes(comparisons):
        yield page.paragraph(note, kind="soft")
    ours = comparison.search_differences(section)
    if ours and comparisons:
        yield page.paragraph("Our search differs from the paper's: " + "; ".join(ours), kind="soft")
    yield page.table(tables.accuracies(section, comparisons))
    yield page.paragraph(
        "Test accuracy in percent, mean ± standard deviation (seeds). Bold: ahead of the next best "
        "by more than their pooled standard deviation.",
        kind="soft",
    )
    if verdicts := tables.verdicts(section):
        yield page.bullets(verdicts)
    yield page.heading("What the masks keep", level=3)
    kept = tables.kept(section)
    table = page.table(kept)
    yield page.folded(f"{len(kept.rows)} rows", table) if len(kept.rows) > LONG else table
    yield page.paragraph(
        "Effective density counts only weights on a path from input to output; dead layers have "
        "none, and a shortcut may bypass them. Times include compilation.",
        kind="soft",
    )
    for picture in pictures:
        if picture not in ours_first:
            yield page.figure(picture)
    for density in section.densities:
        compared = spectra.table(spectra.measured(section, density))
        if compared is not None:
            yield page.paragraph(
                f"NTK spectra before training at density {tables.density_text(density)}, against "
                "the dense one; the last column is the mean of |log10(eigenvalue / dense "
                "eigenvalue)|:"
            )
            yield page.table(compared)


def _notes(section: Section, sections: Sequence[Section]) -> Iterator[str]:
    if len(sections) > 1:
        names = setups.differing(sections)
        told = "; ".join(f"{name}: {section.facts[name]}" for name in names)
        yield f"What tells this set-up from the others: {told}."
    if section.facts[NOTE] != NO_NOTE:
        yield (
            f"About these images: {section.facts[NOTE]}. Accuracies are not comparable with those "
            "on the original data set."
        )
    yield "Set-up: " + "; ".join(f"{name}: {value}" for name, value in section.facts.items()) + "."
    if sorted({len(cell.runs) for line in section.lines for cell in line.cells})[0] == 1:
        yield "Some cells are a single seed: they have no deviation, and chance decides in them."


def _published_notes(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Says where curves are from, and in what their set-up differs; alike ones together."""
    by_differences: dict[tuple[str, ...], list[Comparison]] = {}
    for each in comparisons:
        by_differences.setdefault(each.differences, []).append(each)
    for differences, alike in by_differences.items():
        sources = "; ".join(
            f"{', '.join(each.curves)} by {each.publication.paper}, {each.publication.place}"
            for each in alike
        )
        points = [point for each in alike for curve in each.curves.values() for point in curve]
        if any(point.digitised for point in points):
            sources += (
                ". Points without a bar were read off the figure, to about "
                f"{published.DIGITISING_ERROR} points"
            )
        if differences:
            yield (
                f"Published, other set-up: {sources}. Not comparable with ours: "
                f"{'; '.join(differences)}."
            )
        else:
            yield f"Published, same set-up: {sources}."


def markdown(
    section: Section, sections: Sequence[Section], comparisons: Sequence[Comparison]
) -> str:
    """Returns the tables of a section, with the notes that belong to them, as Markdown."""
    lines = [f"## {_title(section)}", ""]
    for note in _notes(section, sections):
        lines += [note, ""]
    lines += [
        "Test accuracy in percent after the last epoch, mean ± standard deviation (seeds):",
        "",
        tables.markdown(tables.accuracies(section, comparisons)),
    ]
    lines += [f" - {text}" for text in tables.verdicts(section)]
    lines += [
        "",
        "What the masks keep, means over seeds:",
        "",
        tables.markdown(tables.kept(section)),
    ]
    return "\n".join(lines)


def how_it_was_made(found: Found, command: str) -> Iterator[str]:
    """Lists commands, versions and folders."""
    sessions = [session for run in found.runs for session in run.sessions]
    commands = Counter(str(session.get("command", "")) for session in sessions)
    versions = Counter(_versions(session) for session in sessions)
    yield page.heading("How it was made")
    yield page.paragraph("This report:")
    yield page.bullets([command], code=True)
    yield page.paragraph("The runs were made with:")
    yield page.bullets([f"{text} ({_count(n, 'run')})" for text, n in versions.items()])
    yield page.folded(
        f"The arguments of the {_count(len(commands), 'command')}, as each run recorded them",
        page.bullets(list(commands), code=True),
    )
    yield page.folded(
        "The run folders", page.bullets([str(run.folder) for run in found.runs], code=True)
    )


def _versions(session: dict) -> str:
    packages = session.get("packages", {})
    names = [f"{name} {version}" for name, version in packages.items()]
    devices = ", ".join(session.get("devices", ()))
    return f"Python {session.get('python', '?')}, {', '.join(names)}; {devices}"


def _title(section: Section) -> str:
    return f"{section.number}. {section.title}"


def _anchor(section: Section) -> str:
    return f"setup-{section.number}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
