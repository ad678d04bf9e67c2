"""`dipro-fed settings`: every setting of a run with its default and meaning, as docs/settings.md shows them."""

import ast
import inspect
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel

from federation.settings import RunSettings

_HEAD = """# Settings of a run

This page is what `dipro-fed settings` prints. A YAML file (`--config`, examples in configs/) holds the sections below;
`--set section.name=value` changes one setting and wins over the file. The word `published` stands for the value that
DiPro was published with for the run's task. An unknown name or a wrong type is an error that names the setting.
"""


def settings() -> None:
    """Print every setting of a run with its default and meaning."""
    typer.echo(settings_page(), nl=False)


def settings_page() -> str:
    """The page in Markdown, a table for each section."""
    sections = {"": RunSettings} | {
        name: field.annotation
        for name, field in RunSettings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    parts = [_HEAD]
    for name, model in sections.items():
        rows = "\n".join(_rows(model))
        parts.append(f"## {name or 'Without a section'}\n{_first_line(model)}| name | values | default | meaning |\n")
        parts[-1] += f"|---|---|---|---|\n{rows}\n"
    return "\n".join(parts)


def _first_line(model: type[BaseModel]) -> str:
    return "" if model is RunSettings else f"{model.__doc__}\n\n"


def _rows(model: type[BaseModel]) -> Iterator[str]:
    meanings = _meanings(model)
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            continue
        default = "empty" if field.default == "" else f"`{json.dumps(field.default).strip(chr(34))}`"
        yield f"| `{name}` | {_values(field.annotation)} | {default} | {meanings[name]} |"


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The sentences below the fields in the code, each on one line: a row of a table ends where its line does."""
    tree = ast.parse(inspect.getsource(model)).body[0]
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _values(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, str) and annotation is not str:
        return ", ".join(f"`{value}`" for value in annotation)  # pyright: ignore[reportGeneralTypeIssues]
    members = get_args(annotation)
    if members and not isinstance(annotation, type):
        # An annotated number carries its bounds behind its type.
        return _values(members[0]) if hasattr(annotation, "__metadata__") else " or ".join(map(_values, members))
    return {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}[annotation]
