"""The site builds without a warning, needs nothing from elsewhere, and its pictures are what the script draws."""

import html
import importlib.util
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

import programs
from doc_blocks import ROOT
from locallearn.cli.main import commands as installed

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    variables = {"PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}
    done = programs.run("-m", "mkdocs", "build", "--strict", "-q", "-d", folder, folder=ROOT, variables=variables)
    assert done.returncode == 0, done.stderr
    return folder


def test_nothing_is_loaded_from_elsewhere(site):
    loads = re.compile(r"""<(?:link|script|img|iframe)[^>]*(?:href|src)=["']?(?:https?:)?//""")
    for page in site.rglob("*.html"):
        assert not loads.search(page.read_text()), page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text()), sheet.name


def test_search_works_where_the_site_is_opened_from_a_file(site):
    index = json.loads((site / "search" / "search_index.js").read_text().removeprefix("var __index = "))
    assert "What do I gain?" in {document["title"] for document in index["docs"]}
    for page in [site / "index.html", *(site / "guides").glob("*.html")]:
        [worker] = re.findall(r'<script src="([^"]*iframe-worker[^"]*)"', page.read_text())
        assert (page.parent / worker).is_file(), page.name


def test_the_reference_has_every_command_and_public_name(site):
    import locallearn as ll

    page = (site / "reference" / "cli.html").read_text()
    assert {"train", "bench", "reproduce"} <= set(installed())
    for command in installed():
        assert f"usage: locallearn {command}" in page
    names = (site / "reference" / "python.html").read_text()
    headings = [shown(found).split()[0] for found in re.findall(r"<h3[^>]*>(.*?)</h3>", names, re.DOTALL)]
    assert sorted(name for name in headings if name.startswith("ll.")) == sorted(f"ll.{name}" for name in ll.__all__)


def test_a_public_name_without_a_place_in_the_reference_stops_the_build():
    hooks = site_hooks()
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    assert "::: locallearn.core.split.split\n" in hooks.on_page_markdown(page)
    with pytest.raises(Exception, match=r"once for each public name; wrong: split$"):
        hooks.on_page_markdown(page.replace("::: ll.split\n", ""))
    with pytest.raises(Exception, match=r"wrong: a name twice$"):
        hooks.on_page_markdown(page + "\n::: ll.split\n")


def site_hooks():
    """The functions of docs/hooks.py, which mkdocs calls."""
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks


def shown(page):
    """What a reader sees of a page."""
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def test_the_examples_are_there_with_their_code(site):
    page = shown((site / "examples.html").read_text())
    assert len(EXAMPLES) == 8
    for script in EXAMPLES:
        assert script.read_text().strip() in page, script.name
    plugin = (ROOT / "examples" / "plugins" / "my_plugin.py").read_text()
    assert plugin.strip() in shown((site / "guides" / "extend.html").read_text())


@pytest.mark.parametrize("mark", ["--8&lt;-- &quot;a.py&quot;", "<i>--</i><i>8</i> <i>&lt;</i> <i>--</i>a.py"])
def test_a_mark_that_includes_nothing_stops_the_build(mark):
    hooks = site_hooks()
    page = SimpleNamespace(file=SimpleNamespace(src_path="examples.md"))
    assert hooks.on_post_page(output="<p>fine, 8 - 7</p>", page=page) == "<p>fine, 8 - 7</p>"
    with pytest.raises(Exception, match=r"examples\.md: a mark"):
        hooks.on_post_page(output=f"<code>{mark}</code>", page=page)


def test_docstrings_name_things_as_a_user_writes_them(site):
    names = shown((site / "reference" / "python.html").read_text())
    assert "from ll.split or ll.build_network" in " ".join(names.split())


def test_nothing_has_marks_that_only_sphinx_reads():
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.py")]:
        assert not re.search(r":(func|class|meth|mod|attr|data|exc|obj):`", path.read_text()), path


def test_pictures_are_drawn_by_the_script(tmp_path):
    pictures = ROOT / "docs" / "pictures"
    script = (pictures / "draw.py").read_text()
    (tmp_path / "draw.py").write_text(script)
    subprocess.run([sys.executable, "draw.py"], cwd=tmp_path, check=True)
    drawn = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    assert drawn == {name: (pictures / name).read_text() for name in drawn}
    assert len(drawn) == 3
