"""The site: `make site`. The pages are those that the repository shows; docstrings give the API.

The source folder is the repository itself, so that a link between pages is the same in both.
"""

import re
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from diffreg import __version__  # noqa: E402

project = "diffreg"
author = "The diffreg developers"
copyright = f"{datetime.now(timezone.utc).year}, {author}"
version = release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/**.md",
    "docs/notebooks/*.ipynb",
    "paper/results/README.md",
    "bench/results/*.md",
    "tests/long.md",
    "diffreg/demo/heads/NOTICE.md",
    "diffreg/training/pretrained/*.md",
]
exclude_patterns = ["docs/site/contents.md", ".venv*", "build", "dist", "site", "demo", "shared"]
default_role = "code"

myst_heading_anchors = 6
nb_execution_mode = "off"  # docs/notebooks.py runs them

html_theme = "furo"
html_title = f"diffreg {version}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_extra_path = ["index.html"]
pygments_dark_style = "github-dark"
html_copy_source = False
html_show_sphinx = False

autodoc_member_order = "groupwise"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True

CONTENTS = ROOT / "docs" / "site" / "contents.md"
CODE = re.compile(r"(``.*?``|`[^`]*`)")


def add_contents(app, docname: str, source: list[str]) -> None:
    """The order of the pages, which the repository's first page does not need."""
    if docname == root_doc:
        source[0] += "\n" + CONTENTS.read_text(encoding="utf-8")


def as_plain_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are read as text: *S is a shape, and |u| a length."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = CODE.split(line)
            parts[::2] = [re.sub(r"([*|]|_\b)", r"\\\1", part) for part in parts[::2]]
            lines[number] = "".join(parts)


def as_one_sentence(app, what, name, obj, options, lines: list[str]) -> None:
    """What napoleon takes for a property's type is its sentence up to the first colon."""
    said = next((line for line in lines if line.startswith(":type: ")), None)
    if what == "property" and said:
        lines.remove(said)
        lines[0] = f"{said.removeprefix(':type: ')}: {lines[0]}"


def is_bare_field(app, what, name, obj, skip: bool, options) -> bool | None:
    """A named tuple's fields stand in its signature; Python says of each its number alone."""
    return True if (obj.__doc__ or "").startswith("Alias for field number") else None


def setup(app) -> dict[str, bool]:
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", as_plain_text, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", as_one_sentence, priority=600)  # after it
    app.connect("autodoc-skip-member", is_bare_field)
    return {"parallel_read_safe": True}
