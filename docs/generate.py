"""Makes ``docs/generated/`` from the code, so that these pages cannot say something else than the code does.

::

    python docs/generate.py            write the files
    python docs/generate.py --check    change nothing; exit 1 and name the files that are out of date

The files are committed: a reader of the repository sees them, and a review shows when a decision has changed.
``tests/unit/project/test_docs_generated.py`` runs the check.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from decision_table import decision_table
from package_map import package_list, package_picture
from phase_graph import phase_graph
from policy_table import policy_table

from qmp_migrate import errors

MADE: Final = "Made by docs/generate.py; do not edit."
HERE: Final = Path(__file__).resolve().parent / "generated"


# -- errors and exit codes ------------------------------------------------------------------------------------------


def error_table() -> str:
    """Return every error class with its code and exit code as Markdown."""
    lines = [f"<!-- {MADE} -->", "", "| `code` | class | exit code | what it means |", "|---|---|---|---|"]
    for kind in _classes(errors.QmpMigrateError):
        code = "4 or 1" if kind is errors.MigrationFailed else str(kind.exit_code)
        first = " ".join((kind.__doc__ or "").strip().partition("\n\n")[0].split())
        lines.append(f"| `{kind.code}` | `{kind.__name__}` | {code} | {first.replace('``', '`').replace('|', '/')} |")
    return "\n".join([*lines, ""])


def _classes(kind: type[errors.QmpMigrateError]) -> Iterator[type[errors.QmpMigrateError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from _classes(below)


# -- the command line -----------------------------------------------------------------------------------------------


def command_table() -> str:
    """Return every command of both programs with its arguments and options as Markdown."""
    import typer

    from hostagent.app.cli import app as agent
    from qmp_migrate.cli.main import app as controller

    lines = [f"<!-- {MADE} -->", ""]
    for name, app in (("qmp-migrate", controller), ("qmp-hostagent", agent)):
        for words, command in _commands(name, typer.main.get_command(app)):
            lines += _describe(words, command)
    return "\n".join(lines)


def _commands(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", {})
    if not below or words == "qmp-migrate":
        yield words, command
    for name, each in below.items():
        yield from _commands(f"{words} {name}", each)


def _describe(words: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not _is_common(p)]
    usage = [words, *(p.metavar.strip("[]") if p.required else f"[{p.metavar.strip('[]')}]" for p in arguments)]
    usage += [_long(p) for p in options if p.required]
    usage += ["[OPTIONS]"] if any(not p.required for p in options) else []
    usage += ["COMMAND …"] if getattr(command, "commands", {}) else []
    yield from [f"## `{words}`", "", *_paragraphs(command.help), "```", " ".join(usage), "```", ""]
    if arguments or options:
        yield from ["| | default | meaning |", "|---|---|---|"]
        for parameter in (*arguments, *options):
            variable = f" Environment: `{parameter.envvar}`." if getattr(parameter, "envvar", None) else ""
            yield f"| {_spelling(parameter)} | {_default(parameter)} | {_cell(parameter.help or '')}{variable} |"
        yield ""


def _is_common(parameter: Any) -> bool:
    return {"--help", "--install-completion", "--show-completion"} & set(parameter.opts) != set()


def _paragraphs(text: str) -> Sequence[str]:
    return [line for part in (text or "").split("\n\n") for line in (" ".join(part.split()), "")]


def _long(option: Any) -> str:
    """Return an option's long spelling with the name of its value: ``--to HOST``."""
    word: str = max(option.opts, key=len)
    if option.is_flag or option.count:
        return word
    return f"{word} {option.metavar or word.lstrip('-').rpartition('-')[2].upper()}"


def _spelling(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar.strip('[]')}`"
    shorter = [word for word in parameter.opts if word != max(parameter.opts, key=len)]
    return ", ".join(f"`{word}`" for word in (_long(parameter), *shorter, *parameter.secondary_opts))


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    if parameter.param_type_name == "argument" or default is None or default is False or default == 0:
        return ""
    return "on" if default is True else f"`{default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("[default:", "(default:").replace("]", ")")


# -- all of it ------------------------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """Return the content of every generated file, by name."""
    return {
        "phases.svg": phase_graph(MADE),
        "packages.svg": package_picture(MADE),
        "packages.md": package_list(MADE),
        "decisions.md": decision_table(MADE),
        "errors.md": error_table(),
        "commands.md": command_table(),
        "policies.md": policy_table(MADE),
        **contract(),
    }


def contract() -> dict[str, str]:
    """Return the bus's JSON Schemas and its AsyncAPI document. Schemas of older versions stay: they are frozen."""
    from qmp_migrate.bus.messages.schemas import asyncapi, file_name, json_schema
    from qmp_migrate.bus.messages.topics import Kind

    documents = {f"schemas/{file_name(kind)}": json_schema(kind) for kind in Kind}
    documents["asyncapi.json"] = asyncapi("1")
    return {name: json.dumps(document, indent=1) + "\n" for name, document in documents.items()}


def outdated(directory: Path = HERE) -> list[str]:
    """Return the names of generated files that are absent or say something else than the code."""
    return [
        name
        for name, text in pages().items()
        if not (directory / name).is_file() or (directory / name).read_text("utf-8") != text
    ]


def main() -> int:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description="Make docs/generated/ from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where something is out of date")
    if parser.parse_args().check:
        old = outdated()
        for name in old:
            sys.stderr.write(f"docs/generated/{name} is out of date; run: python docs/generate.py\n")
        return 1 if old else 0
    (HERE / "schemas").mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (HERE / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
