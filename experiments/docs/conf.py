"""Settings of the documentation site: `make docs` builds it, without the network."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import sys
from pathlib import Path
from typing import Any

from docutils import nodes  # type: ignore[import-untyped]
from sphinx import addnodes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from experiments.docs import api_pages, docstrings, public_api  # noqa: E402

project = "ntksap_jax"
version = release = importlib.metadata.version("ntksap_jax")
project_copyright = "the ntksap_jax authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["README.md"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
napoleon_custom_sections = [("Attributes", "params_style")]  # with types in the signature
napoleon_use_rtype = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

add_module_names = False
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_type_aliases = {
    name: name for module in public_api.modules() for name in public_api.constants(module)
}
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
nitpicky = True
highlight_language = "text"  # for blocks that do not name theirs

html_theme = "furo"
html_title = f"ntksap_jax {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "native"


def setup(app: Any) -> None:
    """Connects what makes the API reference."""
    app.connect("builder-inited", lambda app: api_pages.write(HERE / "api"))
    app.connect("autodoc-process-docstring", _process_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _process_signature)
    app.connect("doctree-read", _link_code)
    app.connect("missing-reference", _missing_reference)


def _process_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    module = name if what == "module" else name.rpartition(".")[0]
    lines[:] = docstrings.to_rst("\n".join(lines), lambda name: api_pages.resolve(module, name))


def _process_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    if what != "class":
        return None
    # Fields as they are written: without those that Flax adds, and with the names of defaults.
    [definition] = ast.parse(inspect.getsource(obj)).body
    fields = [node for node in definition.body if isinstance(node, ast.AnnAssign)]  # type: ignore
    return f"({', '.join(map(ast.unparse, fields))})", returns


def _link_code(app: Any, doctree: Any) -> None:
    """Makes links of the names on the guide's pages, as `docstrings` does in docstrings."""
    if app.env.docname.startswith("api/"):
        return
    for node in list(doctree.findall(nodes.literal)):
        target = api_pages.resolve(public_api.ROOT, node.astext().partition("(")[0])
        if target is None or isinstance(node.parent, nodes.reference | nodes.title):
            continue
        link = addnodes.pending_xref(
            "", node.deepcopy(), refdomain="py", reftype="obj", reftarget=target, refexplicit=True
        )
        link["refdoc"] = app.env.docname
        node.replace_self(link)


def _missing_reference(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Types in signatures: ours are linked, others' are shown as they are (no look-up needs a net).

    What is called by its full name, as on the pages, must exist: Sphinx warns otherwise.
    """
    target = node["reftarget"]
    is_ours = target.startswith("ntksap_jax.") and "._" not in target
    if is_ours or node.get("refdomain") != "py":
        return None
    if found := api_pages.resolve(node.get("py:module") or "ntksap_jax", target.rpartition(".")[2]):
        domain = env.get_domain("py")
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found, node, content)
    return content
