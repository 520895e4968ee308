"""Sphinx extension: links of pages to files of the repository that are no pages of the site."""

import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files outside docs/ -> the page of the site that has their text."""
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\(\.\./(?P<path>[^)\s#]+)(?P<heading>#[^)\s]*)?\)")


def rewritten(text: str, repository: str) -> str:
    """Links to `../` lead to the page of the site or, where the repository's address is known, to the code host.

    Without an address a file's stays, of which MyST makes a download, and a directory's becomes its text.
    """

    def link(found: re.Match) -> str:
        path, heading = found["path"], found["heading"] or ""
        if path in PAGES or path.startswith("notebooks/"):  # which conf.py copies below docs/
            return f"[{found['text']}]({PAGES.get(path, path)}{heading})"
        if path.startswith("docs/"):  # from a notebook, which the site has below docs/
            return f"[{found['text']}](../{path.removeprefix('docs/')}{heading})"
        is_directory = (ROOT / path).is_dir()
        if repository:
            return f"[{found['text']}]({repository}/{'tree' if is_directory else 'blob'}/main/{path}{heading})"
        return found["text"] if is_directory else found[0]

    return LINK.sub(link, text)


def _read(app: Any, page: str, source: list[str]) -> None:
    source[0] = rewritten(source[0], app.config.repository_url)


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_config_value("repository_url", "", "env")
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
