"""The built-in default: a small language model and the English that every Python carries.

The text is what `pydoc` shows: the language reference's topics and the docstrings
of the standard library, one document a topic or module. Nothing is imported to
read it, and nothing is downloaded.
"""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

NAME = "builtin"
"""The value of `model` and of `dataset` that means the built-in one."""

MODEL_PATH = Path(__file__).resolve().parent / "builtin-model"
"""The built-in model: an ordinary Hugging Face folder, shipped with the package."""

_NOT_TEXT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
_SHORTEST_DOCSTRING = 40


def builtin_documents() -> Iterator[str]:
    """Yield the built-in text, document by document, in an order fixed by names.

    The text follows the Python version, so two versions share most documents,
    not all of them.
    """
    for name in sorted(topics):
        yield f"{name}\n\n{topics[name].strip()}"
    for path in _standard_library():
        document = _docstrings(path)
        if document:
            yield document


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not _NOT_TEXT & set(path.relative_to(root).parts)
        and path.relative_to(root).parts[0].removesuffix(".py") in sys.stdlib_module_names
    ]


def _docstrings(path: Path) -> str:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and fixtures that are not Python
        return ""
    parts: list[str] = []
    _collect(tree, path.stem, parts)
    return "\n\n".join(parts)


def _collect(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
    name: str,
    parts: list[str],
) -> None:
    docstring = ast.get_docstring(node)
    if docstring and len(docstring) >= _SHORTEST_DOCSTRING:
        parts.append(f"{name}\n{docstring.strip()}")
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _collect(child, f"{name}.{child.name}", parts)
