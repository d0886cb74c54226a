"""The report of whatever is there, as of a run that has stopped half-way.

To make it::

    python -m ctdb.report config/quick.yaml
"""

import sys
from pathlib import Path

from ctdb import config
from ctdb.errors import CtdbError
from ctdb.report import write


def main(arguments: list[str]) -> str:
    """Write the report of a configuration; say where it is."""
    path = Path(arguments[0]) if arguments else Path("config/config.yaml")
    plan = config.load(path)
    write(plan, path.read_text(), path.name, Path(plan["results"]) / "reproduction.csv")
    return f"{plan['results']}/report.html"


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except CtdbError as error:
        sys.exit(f"error: {error}")
