"""From measured cells to ratios, a Markdown table and a verdict. Pure functions of lists of dicts.

A ratio is taken within a round, where both sides met the same machine; the median over rounds is reported, with the
smallest and largest.
"""

import statistics


def values_of(row, cells):
    """Values by round and name: {round: {name: value}}, with what the row derives from them."""
    rounds = {}
    for cell in cells:
        if cell["row"] == row.name:
            rounds.setdefault(cell["round"], {})[cell["cell"]] = cell["value"]
    if row.plus:
        added = [cell for cell in cells if cell["row"] == row.plus]
        for number, found in rounds.items():
            for name in found:
                mine = {cell["round"]: cell["value"] for cell in added if cell["cell"] == name}
                if mine:
                    found[name] += mine.get(number, statistics.median(mine.values()))
    if row.derive:
        for found in rounds.values():
            if set(row.cells) <= set(found):
                found.update(row.derive(found))
    return rounds


def series(rounds, name):
    return [found[name] for found in rounds.values() if name in found]


def ratios(rounds, one, other):
    return [found[one] / found[other] for found in rounds.values() if found.get(one) is not None and found.get(other)]


def spread(values, digits=2):
    """Median, and the range where there is more than one."""
    if not values:
        return "–"
    middle = number(statistics.median(values), digits)
    if len(values) == 1:
        return middle
    return f"{middle} [{number(min(values), digits)}..{number(max(values), digits)}]"


def number(value, digits=2):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.{digits}f}"


def judged_series(row, cells):
    rounds = values_of(row, cells)
    return ratios(rounds, *row.judged) if len(row.judged) == 2 else series(rounds, row.judged[0])


def mark(measured, target):
    if target is None:
        return ""
    return f"≤ {target:g} " + ("✔" if measured <= target else "✘")


def table(rows, cells):
    """The table of targets."""
    lines = ["| row | work, both nodes together | ours | against | ratio, median [range] | must | aim |",
             "|---|---|---|---|---|---|---|"]
    for row in rows:
        found = judged_series(row, cells)
        if not found:
            continue
        rounds = values_of(row, cells)
        middle = statistics.median(found)
        ours = f"{spread(series(rounds, row.judged[0]))} {row.unit}"
        against = ratio = "–"
        if len(row.judged) == 2:
            against = f"{row.judged[1]}: {spread(series(rounds, row.judged[1]))}"
            ratio = f"**{spread(found)}**"
        lines.append(f"| `{row.name}` | {row.what} | {ours} | {against} | {ratio} | {mark(middle, row.must)} "
                     f"| {mark(middle, row.aim)} |")
    return "\n".join(lines)


def peers_table(rows, cells):
    """Where the peers stand in the same rounds."""
    lines = ["| row | ratio | median [range] |", "|---|---|---|"]
    for row in rows:
        for one, other in row.also:
            if found := ratios(values_of(row, cells), one, other):
                lines.append(f"| `{row.name}` | {one} / {other} | {spread(found)} |")
    return "\n".join(lines)


def cells_table(rows, cells):
    """Every measured cell: medians of what it cost, and how far the figures can be trusted."""
    heads = ("row", "chain", "value", "rate per s or Gbit/s", "p50, p99 µs", "proxies busy", "core disagrees by",
             "others' CPU")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        for name in row.cells:
            mine = [cell for cell in cells if cell["row"] == row.name and cell["cell"] == name]
            if not mine:
                continue
            rate = _middle(cell.get("gbit") or (cell["done"] / cell["seconds"] if "done" in cell else None)
                           for cell in mine)
            latency = [_middle(cell.get(key) for cell in mine) for key in ("p50", "p99")]
            lines.append(" | ".join([
                f"| `{row.name}`", name, f"{spread([cell['value'] for cell in mine])} {row.unit}",
                number(rate) if rate else "–", ", ".join(number(value) for value in latency) if latency[0] else "–",
                *(_percent(_middle(cell.get(key) for cell in mine)) for key in ("busy", "disagreement", "other")),
            ]) + " |")
    return "\n".join(lines)


def trust(cells):
    """One sentence on how far the proxies' core agrees with the processes' run time."""
    judged = [cell for cell in cells if cell.get("disagreement") is not None]
    beyond = [f"{cell['row']}, {cell['cell']}, round {cell['round']}: {cell['disagreement']:+.0%}" for cell in judged
              if abs(cell["disagreement"]) > 0.1]
    agree = len(judged) - len(beyond)
    return (f"In {agree} of {len(judged)} cells with at least 0.2 s of CPU the two agree within 10 %"
            + (f"; beyond: {'; '.join(beyond)}." if beyond else "."))


def _middle(values):
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _percent(value):
    return "–" if value is None else f"{value * 100:.0f} %"


def details(cells):
    """What the rows of memory and of kernel programs say beyond one value."""
    lines = []
    for cell in cells:
        if "kib_per_connection" in cell:
            each = zip(("client's node", "server's node"), cell["fresh_mb"], cell["idle_mb"],
                       cell["kib_per_connection"])
            lines.append(f"- {cell['cell']}: " + "; ".join(
                f"{side} {fresh:.1f} MB fresh, {idle:.1f} MB idle, {kib:.2f} KiB per connection"
                for side, fresh, idle, kib in each))
    programs = [cell["programs"] for cell in cells if "programs" in cell and cell["cell"] == "ours"]
    if programs:
        lines += ["", "| BPF program, two nodes | runs per connection | µs per connection |", "|---|---|---|"]
        for title in programs[0]:
            mine = [found[title] for found in programs if title in found]
            time_us, runs = (statistics.median(one[i] for one in mine) for i in (0, 1))
            if runs >= 0.01:
                lines.append(f"| {title} | {runs:.2f} | {time_us:.2f} |")
    return "\n".join(lines)


def missed(rows, cells):
    """Names of rows whose median is over what must be reached."""
    found = []
    for row in rows:
        mine = judged_series(row, cells)
        if mine and row.must is not None and statistics.median(mine) > row.must:
            found.append(row.name)
    return found


def document(rows, cells, about):
    """docs/performance.md."""
    facts = "\n".join(f"- {key}: {value}" for key, value in about.items())
    return f"""# Performance

Written by `scripts/bench`, which starts our agents and their peers on one machine, measures them in turn (A B C,
C B A, …) and compares within each round. Absolute figures move with the machine; the ratios are what counts.

{facts}

Two nodes are network namespaces on one machine, joined by a veth pair; pods are namespaces behind them. All proxying
processes of both nodes are on CPU 1 (ours: supervisors, wardens, openers, proxies), load generator and servers on
CPU 0. CPU is the run time of all those processes' threads (schedstat), softirq work in their context included.

- Ours: pods captured, STRICT mutual TLS, an AuthorizationPolicy and metrics on, one worker, access log off, each
  connection opaque TCP.
- HAProxy: one thread, no log. *mTLS* is opaque TCP in TLS 1.3 between two proxies, one TLS connection per client
  connection, sessions resumed (*full*: not resumed); *plain* is the same two hops without TLS.
- Envoy: a pair with CONNECT tunnels over mutual TLS (HTTP/2, 200 streams, windows 4 and 16 MiB), one worker, no log.
- All: TLS 1.3, ECDSA P-256, AES-128-GCM, X25519, both sides verify. Nothing of the peers is captured: their clients
  connect to them on loopback.

## Targets

{table(rows, cells)}

`bpf` is what the kernel counted for our programs per connection, while nothing else was measured. It has been added to
the figures of ours in `connections` and `same-node-connections`, although programs that run in a proxy's context are in
those already.
`handshake` is a connection that needs a new tunnel less one that does not; for HAProxy: with a full handshake less two
plain hops; one connection at a time.

## Peers in the same rounds

{peers_table(rows, cells)}

## Every cell

`core disagrees by`: the proxies' core was busy so much longer than the processes' run time says, other programs' time
taken out. {trust(cells)}
`others' CPU`: what programs that have nothing to do with the measurement used meanwhile, of one CPU.

{cells_table(rows, cells)}

{details(cells)}
"""
