"""``python -m parity.ledger``: try the architectures, print how they ended, write ``docs/architectures.md``."""

import argparse

from parity.ledger import table
from parity.ledger.entries import entries
from parity.ledger.runner import run


def main():
    parser = argparse.ArgumentParser(prog="python -m parity.ledger", description=__doc__)
    parser.add_argument("names", nargs="*", help="model types to try again; all where none is named")
    parser.add_argument("--folder", default="out/parity", help="where each entry's result is kept")
    parser.add_argument("--jobs", type=int, default=2, help="entries tried at a time")
    parser.add_argument("--share", type=int, default=100, help="percent of the entries, chosen by their names")
    parser.add_argument("--keep", action="store_true", help="take results of older code that lie in the folder")
    parser.add_argument("--update", action="store_true", help="write what was tried into the page, beside the others")
    given = parser.parse_args()
    known = entries()
    if unknown := sorted(set(given.names) - set(known)):
        parser.error(f"no model type is called {', '.join(unknown)}")
    chosen = [entry for name, entry in known.items() if name in (given.names or known) and entry.share < given.share]
    rows = run(chosen, given.folder, given.jobs, "" if given.names else "kept" if given.keep else "same")
    print(*table.counts(rows), sep="\n")
    if len(rows) == len(known):
        table.write(rows)
    elif given.update:
        table.merge(rows)
    return any(row["end"] in ("wrong", "crash") for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())
