"""Tables, and where they stand in docs/performance.md."""
import os
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REPORT = os.path.join(ROOT, "docs/performance.md")


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def figure(value):
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def rounds(options, wanted=None):
    """Numbers of rounds: as many as wanted, and after the first no more once the section's minutes are over. Only whole rounds
    count, so the last one may end later."""
    for number in range(options.rounds if wanted is None else wanted):
        if number and options.deadline and time.monotonic() > options.deadline:
            return
        yield number


def write_report(name, text):
    """Replaces what stands between the two marks of `name` in the report."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    with open(REPORT, encoding="utf-8") as file:
        report = file.read()
    before, rest = report.split(begin)
    _, after = rest.split(end)
    with open(REPORT, "w", encoding="utf-8") as file:
        file.write(f"{before}{begin}\n{text}\n{end}{after}")
