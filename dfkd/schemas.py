"""The JSON schemas of the files that people write and share, published as `docs/schemas/<name>.json`.

`python -m dfkd.schemas` writes them anew from the code, which is what checks the files.
"""

from __future__ import annotations

import json
from pkgutil import resolve_name

from dfkd import paths
from dfkd.files import replace_file

# Name → where the schema stands. As text, so that asking for one imports no other.
SCHEMAS: dict[str, str] = {
    "record": "dfkd.records:SCHEMA",
    "table": "dfkd.tables.definition:SCHEMA",
    "recipe": "dfkd.tables.recipes:SCHEMA",
    "priors": "dfkd.priors.recipes:RECIPES",
    "published": "dfkd.report.published:ROW",
    "claims": "dfkd.report.claims:SCHEMA",
    "manifest": "dfkd.tasks.store:SCHEMA",
    "teacher-card": "dfkd.artifacts.cards:TEACHER_SCHEMA",
    "prior-card": "dfkd.artifacts.cards:PRIOR_SCHEMA",
}


def published(name: str) -> str:
    """The text of `docs/schemas/<name>.json`."""
    return json.dumps(resolve_name(SCHEMAS[name]), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    for name in SCHEMAS:
        replace_file(paths.SCHEMAS / f"{name}.json", published(name))


if __name__ == "__main__":
    main()
