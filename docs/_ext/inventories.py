"""What other projects' sites document, for links to them (sphinx.ext.intersphinx)."""

import pathlib
import urllib.request


def fetch(others: dict[str, str], into: pathlib.Path) -> dict[str, tuple[str, str]]:
    """Fetches their inventories into a directory; a site that cannot be reached is left out, and named.

    Sphinx itself would warn of it, and a build without a network could not hold warnings to be errors.

    Args:
      others: name -> the address of the site, which ends in a slash.

    Returns:
      `intersphinx_mapping`: name -> (address, the file).
    """
    found = {}
    into.mkdir(parents=True, exist_ok=True)
    for name, url in others.items():
        path = into / f"{name}.inv"
        try:
            with urllib.request.urlopen(f"{url}objects.inv", timeout=10) as answer:
                path.write_bytes(answer.read())
        except OSError as error:
            print(f"no links to {name}: {url}objects.inv: {error}")
        else:
            found[name] = (url, str(path))
    return found
