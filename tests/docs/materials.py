"""Text to work with, as the how-to pages describe it: half a megabyte that every Python brings."""

from __future__ import annotations

import csv
import json
from pathlib import Path


def make(directory: Path) -> None:
    """Write it into that directory, in all formats."""
    # These two have no types.
    from pydoc_data.topics import topics

    import pyarrow
    import pyarrow.parquet

    bodies = list(topics.values())
    (directory / "input.txt").write_text("\n\n".join(bodies), encoding="utf-8")
    folder = directory / "texts" / "deeper"
    folder.mkdir(parents=True)
    for name, body in zip(topics, bodies, strict=True):
        (folder / f"{name.replace('/', '_')}.txt").write_text(body, encoding="utf-8")
    rows = [{"id": number, "body": body} for number, body in enumerate(bodies)]
    lines = (json.dumps(row) for row in rows)
    (directory / "reviews.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with (directory / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "body"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.table({"body": bodies}), directory / "reviews.parquet")
