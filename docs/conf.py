"""The documentation site, built by `sphinx-build -W docs docs/_build` (the extra `docs`); CONTRIBUTING.md says how."""

import os
import pathlib
import shutil
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import inventories  # noqa: E402

from eca_jax.version import __version__  # noqa: E402

project, author, copyright = "eca_jax", "The eca_jax authors", "The eca_jax authors"
release = version = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_external_toc",
    "docstrings",
    "links",
    "public",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

# Where the code is hosted, as GitHub's workflows say it. Other builds offer files as downloads in place of links.
REPOSITORY = os.environ.get("GITHUB_REPOSITORY", "")
repository_url = f"https://github.com/{REPOSITORY}" if REPOSITORY else ""

# Pages are the Markdown files that a code host shows too: headings have its anchors.
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
shutil.rmtree(HERE / "notebooks", ignore_errors=True)  # Sphinx reads only what is below this directory
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns(".*", "*.py", "weights"))
nb_execution_mode = "off"  # notebooks are shown with the outputs that are committed
nb_merge_streams = True

autodoc_default_options = {"members": True, "special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False

html_theme = "sphinx_book_theme"
html_title = "eca_jax"
html_static_path = ["_static"]
html_css_files, html_js_files = ["site.css"], ["site.js"]
html_theme_options = {
    "show_toc_level": 2,
    "navbar_persistent": [],  # the search is in the sidebar
    "navigation_with_keys": False,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "secondary_sidebar_items": {"*": ["page-toc"], "api/*": ["page-toc"]},  # notebooks need its room (site.css)
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    **({"repository_url": repository_url, "use_repository_button": True} if REPOSITORY else {}),
}
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True

intersphinx_mapping = inventories.fetch(
    {
        "python": "https://docs.python.org/3/",
        "numpy": "https://numpy.org/doc/stable/",
        "jax": "https://docs.jax.dev/en/latest/",
        "flax": "https://flax.readthedocs.io/en/latest/",
        "optax": "https://optax.readthedocs.io/en/latest/",
        "matplotlib": "https://matplotlib.org/stable/",
    },
    HERE / "_build" / "inventories",
)
