"""Reading Prometheus' text format (version 0.0.4) strictly enough that a malformed page fails a test."""

import re
from dataclasses import dataclass

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+(-?\d+))?$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|$)')


@dataclass(frozen=True)
class Sample:
    name: str
    labels: dict
    value: float


def parse(text):
    """All samples of a page; raises ValueError with the line number for anything malformed or repeated."""
    samples, seen = [], set()
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        match = _SAMPLE.match(line)
        if not match:
            raise ValueError(f"line {number} is no sample: {line!r}")
        labels, at, inside = {}, 0, match.group(2) or ""
        while at < len(inside):
            label = _LABEL.match(inside, at)
            if not label or label.group(1) in labels:
                raise ValueError(f"line {number}, labels at column {at}: {line!r}")
            labels[label.group(1)] = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], label.group(2))
            at = label.end()
        identity = (match.group(1), tuple(sorted(labels.items())))
        if identity in seen:
            raise ValueError(f"line {number} repeats a series: {line!r}")
        seen.add(identity)
        samples.append(Sample(match.group(1), labels, float(match.group(3))))
    return samples


class Page:
    """One scrape. Selectors are label=value; a value may be a function that tests it."""

    def __init__(self, text):
        self.text = text
        self.samples = parse(text)

    def select(self, metric, **labels):
        def fits(have, want):
            return want(have) if callable(want) else have == want

        return [s for s in self.samples
                if s.name == metric and all(fits(s.labels.get(k, ""), v) for k, v in labels.items())]

    def sum(self, metric, **labels):
        return sum(s.value for s in self.select(metric, **labels))
