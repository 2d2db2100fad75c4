"""Write the pages that repeat what the code says: ``cli.md``, ``errors.md`` and ``modules.md`` (`make docs`).

Usage: ``python docs/generate.py [FOLDER]``, by default into the folder of this file.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTE = "Written by `make docs`; do not edit by hand."
WIDTH = "100"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and, below it, the parsers of its commands, in the order in which they are listed."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def cli_page() -> str:
    """The help of every command."""
    from deepcac2.cli.main import build_parser

    sections = [
        f"## `{parser.prog}`\n\n```text\n{parser.format_help().rstrip()}\n```\n"
        for parser in parsers(build_parser())
    ]
    return "\n".join([f"# The command line\n\n{NOTE}\n", *sections])


def errors_page() -> str:
    """The tree of errors with codes and exit codes, as the docstring of ``errors.py`` draws it."""
    from deepcac2 import errors

    title, _, rest = inspect.cleandoc(errors.__doc__ or "").partition("\n\n::\n\n")
    drawn, _, text = rest.partition("\n\n")
    lines = "\n".join(line.removeprefix("    ") for line in drawn.splitlines())
    text = text.replace("``", "`")
    return f"# Errors and exit codes\n\n{NOTE}\n\n{title}\n\n```text\n{lines}\n```\n\n{text.rstrip()}\n"


def table(rows: list[dict[str, Any]]) -> str:
    """A list of `deepcac2 inspect`; what its first column names is code."""
    from deepcac2.cli.registry import cell

    lines = [list(rows[0]), ["---"] * len(rows[0])]
    for row in rows:
        first, *rest = (cell(value).replace("|", "\\|") for value in row.values())
        lines.append([f"`{first}`", *rest])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def modules_page() -> str:
    """Workflows, modules with their options, columns of the table and scoring rules, as registered."""
    from deepcac2.cli.registry import columns, modules, rules, workflows

    parts = [
        f"# What is registered\n\n{NOTE} `deepcac2 inspect --modules`, `--columns`, `--rules` and "
        "`--workflows` list the same, with what other packages bring "
        "([architecture](architecture.md#a-step-says-all-of-itself)); "
        "`--gates` lists the [gates](gates.md).\n",
        f"## Workflows\n\n{table(workflows())}",
        "## Modules\n",
    ]
    for row in modules():
        parts.append(f"### `{row['module']}`\n\n{row['what it does']}\n")
        said = [
            f"{what}: {', '.join(row[name])}"
            for what, name in (("Reads", "reads"), ("Finds", "finds"))
            if row[name]
        ]
        said += [f"Role of its weights: {row['weights']}"] if row["weights"] else []
        said += (
            [f"In a report: {', '.join(value['name'] for value in row['report'])}"] if row["report"] else []
        )
        parts.append("".join(f"{sentence}.\n" for sentence in said))
        parts.append(table(row["options"]) if row["options"] else "No options.\n")
    parts += [f"## Columns of the table\n\n{table(columns())}", f"## Scoring rules\n\n{table(rules())}"]
    return "\n".join(part for part in parts if part)


def main() -> int:
    os.environ.update(COLUMNS=WIDTH, NO_COLOR="1")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    (folder / "cli.md").write_text(cli_page(), encoding="utf-8")
    (folder / "errors.md").write_text(errors_page(), encoding="utf-8")
    (folder / "modules.md").write_text(modules_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
