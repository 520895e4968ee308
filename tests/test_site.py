"""The documentation site: what docs/ and docs/_ext say, and the site that `sphinx-build` has made of it.

Tests with the mark `site` read docs/_build/html, or the directory that ECA_JAX_SITE names, and skip without it; those
that drive a browser need Chromium and the extra `browser` too.
"""

import html
import importlib
import importlib.util
import inspect
import os
import pathlib
import re
import shutil
import zlib
from urllib.parse import unquote, urljoin

import pytest

import eca_jax
from tests.documentation import ROOT

DOCS = ROOT / "docs"
SITE = pathlib.Path(os.environ.get("ECA_JAX_SITE", DOCS / "_build" / "html"))


def module(name: str, folder: pathlib.Path = DOCS / "_ext"):
    """A file of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", folder / f"{name}.py")
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


names = module("names")
PUBLIC = [(package, name) for package, of in names.packages().items() for name in of]
SHAPE = re.compile(r"\((?:\.\.\.|\w+)(?:,\s(?:\.\.\.|[\w* /+-]+))+\)|\(\w+,\)|\bscalar")
ARRAYS = re.compile(r"\b(Array|ArrayLike|ndarray)\b")


def test_public_names_are_those_that_are_imported_as_themselves():
    source = "import os\nfrom a import b\nfrom a import c as c, d as e\nfrom v import __version__ as __version__\n"
    assert list(names.public_names(source)) == ["c"]


def test_names_are_documented_in_the_deepest_package():
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    assert names.homes()["eca_jax.nn.ECA"] == "eca_jax.nn.attention.ECA"
    assert names.homes()["eca_jax.create_model"] == "eca_jax.create_model"


def test_every_package_has_a_page():
    pages = {path.stem: path.read_text() for path in (DOCS / "api").glob("eca_jax*.rst")}
    assert pages.keys() == names.packages().keys()
    assert all(f".. public:: {package}\n" in text for package, text in pages.items())


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_docstrings_say_shapes(package, name):
    """Where a function or the call of a module takes or gives arrays, a docstring has a shape, such as (b, h, w, c)."""
    if package == "eca_jax.plots":
        pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    thing = getattr(importlib.import_module(package), name)
    if not callable(thing):
        return
    said = inspect.getdoc(thing)
    assert said, f"{package}.{name} has no docstring"
    function = thing
    if inspect.isclass(thing):
        function = next((vars(base)["__call__"] for base in thing.__mro__ if "__call__" in vars(base)), None)
        said = f"{said}\n{function.__doc__}" if function is vars(thing).get("__call__") else said
    if ARRAYS.search(str(getattr(function, "__annotations__", ""))):
        assert SHAPE.search(said), f"{package}.{name} names no shape: {said}"


def test_markdown_of_docstrings():
    to_rst = module("docstrings").to_rst
    assert to_rst("`ChannelGate`s of `a + b` for x") == ":py:obj:`ChannelGate`\\ s of ``a + b`` for x"
    assert to_rst("|log2(c)|_odd * 2, conv_k and w_ end") == "\\|log2(c)\\|_odd \\* 2, conv_k and w\\_ end"
    assert to_rst("``code`` stays") == "``code`` stays"
    lines = ["`x` is", "text", "", "  >>> 2 * `3`", "  6 * 1", "", "a * b"]
    assert module("docstrings").converted(lines) == [":py:obj:`x` is", *lines[1:-1], "a \\* b"]


def test_links_to_files_of_the_repository():
    links = module("links")
    here = "[a](../configs/digits.py) [all](../configs)"
    text = f"{here} [b](../CONTRIBUTING.md#add-a-task) [n](../notebooks/x.ipynb) [d](data.md)"
    assert links.rewritten(text, "") == (
        "[a](../configs/digits.py) all [b](contributing.md#add-a-task) [n](notebooks/x.ipynb) [d](data.md)"
    )
    assert links.rewritten("[p](../docs/data.md#splits)", "") == "[p](../data.md#splits)"
    assert links.rewritten(text, "https://host/o/r").startswith(
        "[a](https://host/o/r/blob/main/configs/digits.py) [all](https://host/o/r/tree/main/configs) [b]("
    )


def test_inventories_of_other_sites(tmp_path, capsys):
    """Those that can be reached are fetched, the others are named."""
    (tmp_path / "objects.inv").write_bytes(b"an inventory")
    here, away = f"{tmp_path.as_uri()}/", f"{tmp_path.as_uri()}/away/"
    found = module("inventories").fetch({"here": here, "away": away}, tmp_path / "build")
    assert found == {"here": (here, str(tmp_path / "build" / "here.inv"))}
    assert pathlib.Path(found["here"][1]).read_bytes() == b"an inventory"
    assert f"no links to away: {away}objects.inv" in capsys.readouterr().out


def test_table_of_models():
    table = module("model_table", DOCS)
    rows = [line for line in table.PAGE.read_text().splitlines() if line.startswith("| `")]
    cells = {row[0].strip("`"): row for row in ([cell.strip() for cell in line.strip("|").split("|")] for line in rows)}
    brought = ("tiny", "resnet10")  # which other tests of the process may have registered
    assert list(cells) == [name for name in eca_jax.list_models() if not name.endswith(brought)]
    assert tuple(cells["eca_resnet18"]) == table.line("eca_resnet18")
    assert cells["eca_resnet50"][3:5] == ["3 5 5 7", "77.48 / 93.68"]
    listed = {model for model, _, _ in table.published_weights()}
    assert listed <= cells.keys()


@pytest.mark.slow
def test_whole_table_of_models():
    table = module("model_table", DOCS)
    assert table.page() == table.PAGE.read_text()


def test_troubleshooting_quotes_messages():
    """What the first columns of the tables of messages quote is in the source."""
    source = "".join(path.read_text() for path in sorted((ROOT / "eca_jax").rglob("*.py")))
    source = re.sub(r'"\s*f?"', "", source)  # texts that go on in the next line
    tables = re.findall(r"\| what is printed \|.*\n.*\n((?:\|.*\n)+)", (DOCS / "troubleshooting.md").read_text())
    first = [row.split("|")[1] for table in tables for row in table.splitlines()]
    quoted = [text for cell in first for text in re.findall(r"`([^`]+)`", cell) if not text.startswith("eca-jax ")]
    assert len(quoted) > 20
    assert [text for text in quoted if text not in source] == []


# The built site.


@pytest.fixture(scope="module")
def site() -> pathlib.Path:
    if not (SITE / "index.html").is_file():
        pytest.skip(f"the site is not built: sphinx-build -W docs {SITE}")
    return SITE


@pytest.mark.site
def test_every_public_name_is_on_the_site(site):
    lines = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    objects = {line.split(" ")[0] for line in zlib.decompress(lines).decode().splitlines()}
    assert [path for path in names.homes().values() if path not in objects] == []


def pages_of(site: pathlib.Path) -> dict[str, str]:
    """Path below the site -> the page's HTML."""
    paths = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    return {str(path.relative_to(site)): path.read_text() for path in paths}


@pytest.mark.site
def test_links_inside_of_the_site(site):
    """Every link leads to a file of the site and, where it names one, to an element of it."""
    pages = pages_of(site)
    anchors = {page: set(map(html.unescape, re.findall(r'\bid="([^"]+)"', text))) for page, text in pages.items()}
    dead = []
    for page, text in pages.items():
        for link in re.findall(r'<(?:a|img|link|script)\b[^>]*?\b(?:href|src)="([^"]+)"', text):
            target, _, anchor = html.unescape(link).partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            path = urljoin(page, unquote(target.partition("?")[0])) if target else page
            if not (site / path).is_file() or (anchor and path in pages and unquote(anchor) not in anchors[path]):
                dead.append((page, link))
    assert dead == []


@pytest.mark.site
def test_no_markup_is_left_in_the_reference(site):
    for page, text in pages_of(site).items():
        if page.startswith("api/"):
            prose = re.sub(r"<[^>]+>", "", re.sub(r"(?s)<(script|pre)\b.*?</\1>", "", text))
            assert not re.search(r":py:|``|`\w", prose), page


@pytest.mark.site
def test_attributes_are_described_whole(site):
    """A docstring that has a colon is not torn into a type and a description."""
    for page, text in pages_of(site).items():
        assert 'Type<span class="colon">' not in text, page


@pytest.mark.site
def test_formulas_are_seen_as_such(site):
    """A formula of a notebook is an element for MathJax; one that is not is a paragraph with dollars."""
    pages = {page: text for page, text in pages_of(site).items() if page.startswith("notebooks/")}
    assert any('class="math notranslate' in text for text in pages.values())
    for page, text in pages.items():
        paragraphs = re.findall(r"(?s)<p>(.*?)</p>", re.sub(r"(?s)<(script|pre|code)\b.*?</\1>", "", text))
        assert [paragraph for paragraph in paragraphs if "$" in paragraph] == [], page


@pytest.fixture(scope="module")
def browser(site):
    sync_api = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
    if not (program := shutil.which("chromium")):
        pytest.skip("there is no program `chromium`: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture
def page(browser, request):
    """A page of the width and in the colours that the test's parameters name, `desktop` in `light` otherwise."""
    asked = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    width, scheme = WIDTHS[asked.get("width", "desktop")], asked.get("scheme", "light")
    context = browser.new_context(
        viewport={"width": width, "height": 844},
        color_scheme=scheme,
        reduced_motion="reduce",  # a script sets the theme, and for 150 ms buttons fade to its colours from others
    )
    context.route(re.compile("^https?:"), lambda route: route.abort())  # what the site needs, it has
    yield context.new_page()
    context.close()


@pytest.mark.site
def test_search(site, page):
    for words, wanted in (
        ("channel_gates", "api/eca_jax.analysis.html#eca_jax.analysis.channel_gates"),
        ("kernel+sizes", "porting.html"),
    ):
        page.goto(f"{site.as_uri()}/search.html?q={words}")
        page.wait_for_selector(f"#search-results a[href*='{wanted}']")


@pytest.mark.site
@pytest.mark.parametrize(
    ("card", "guide", "then"),
    [("Train", "train", "finetune"), ("Explore", "explore", "attention"), ("Port", "port", "porting")],
)
def test_cards_lead_to_guides(site, page, card, guide, then):
    page.goto(f"{site.as_uri()}/index.html")
    page.locator(".sd-card", has=page.locator(f".sd-card-title:text-is('{card}')")).click()
    assert page.url.endswith(f"/{guide}.html")
    page.locator(f"article table a[href^='{then}.html']").first.click()
    assert page.url.endswith(f"/{then}.html")
    assert page.locator("article h1").inner_text().strip("#\n ")


@pytest.mark.site
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "name", ["index", "start", "model-table", "porting", "api/eca_jax.analysis", "notebooks/01_channel_attention"]
)
def test_pages_fit(site, page, name, width, scheme):
    """No page is wider than the window, in no colours; with ECA_JAX_SCREENSHOTS=DIRECTORY pictures are kept."""
    page.goto(f"{site.as_uri()}/{name}.html")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    if kept := os.environ.get("ECA_JAX_SCREENSHOTS"):
        page.screenshot(
            path=pathlib.Path(kept) / f"{name.replace('/', '-')}-{width}-{scheme}.png", full_page=name == "index"
        )


@pytest.mark.site
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "start", "train"])
def test_accessibility(site, page, name, scheme):
    """axe finds nothing."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra `browser` is not installed")
    page.goto(f"{site.as_uri()}/{name}.html")
    violations = axe.Axe().run(page).response["violations"]
    assert [(it["id"], it["impact"], [node["html"] for node in it["nodes"]][:3]) for it in violations] == []
