"""Executed notebooks as HTML pages that load nothing: formulas as MathML, which browsers draw by themselves."""

from pathlib import Path
from typing import Any

import nbformat
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from paperlib.environment import to_portable
from paperlib.files import reading, write_text
from paperlib.run import Run


class _Renderer(IPythonRenderer):
    """nbconvert's Markdown, with formulas typeset here and now instead of by a script from the network."""

    def block_math(self, body: str) -> str:
        return _typeset(body, "block") or super().block_math(body)

    def inline_math(self, body: str) -> str:
        return _typeset(body, "inline") or super().inline_math(body)


def _typeset(body: str, display: str) -> str:
    """A formula as MathML; "" where it is none, as of two dollars in a reader's own words, and stays as it was."""
    try:
        return convert(body.strip(), display=display)
    except Exception:  # latex2mathml raises many kinds for what it cannot read
        return ""


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        renderer = _Renderer(escape=False, attachments=context.get("cell", {}).get("attachments", {}))
        return MarkdownWithMath(renderer=renderer).render(source)


def export_notebooks(run: Run) -> list[Path]:
    """The executed notebooks as HTML beside them, readable offline (widgets as plain text).

    Raises:
        UserError: the folder cannot be written.
    """
    nowhere = {name: "" for name in ("require_js_url", "mathjax_url", "mermaid_js_url", "mermaid_layout_elk_js_url",
                                     "jquery_url", "jupyter_widgets_base_url")}
    exporter = _Exporter(template_name="lab", **nowhere)
    pages = []
    for path in sorted((run.out / "notebooks").glob("[0-9]*.ipynb")):
        with reading(path, "a notebook"):
            notebook = nbformat.read(path, as_version=4)
        text, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem}})
        pages.append(write_text(path.with_suffix(".html"), to_portable(text, run.out)))
    return pages
