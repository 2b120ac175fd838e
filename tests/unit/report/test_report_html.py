"""The page shows the records' figures, whatever they are, and needs nothing but itself."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from locallearn.config import to_toml
from locallearn.errors import UsageError
from locallearn.report.compare import COLUMNS, comparison_rows, percent
from locallearn.report.html import write_report
from locallearn.report.records import read_run, read_runs


class Page(HTMLParser):
    """Tags, tables (as rows of texts) by class, and the text of every element that has some."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "table":
            self.tables.append((dict(attrs)["class"] or "", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        self.inside = tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())
            if self.inside in ("td", "th", "a") and self.tables:
                self.tables[-1][1][-1][-1] += data.strip()

    def table(self, kind: str, place: int = 0) -> list[list[str]]:
        return [rows for name, rows in self.tables if name == kind][place]


def page_of(paths: list[Path], tmp_path: Path) -> tuple[Page, str]:
    html = write_report(paths, tmp_path / "report.html").read_text(encoding="utf-8")
    return Page(html), html


def test_the_comparison_equals_the_records(three_runs, tmp_path):
    page, html = page_of(three_runs, tmp_path)
    rows = comparison_rows(read_runs(three_runs))
    shown = page.table("comparison")
    assert [title.replace("\n", " ") for title in shown[0]] == [column.title for column in COLUMNS]
    assert shown[1:] == [[column.show(row) for column in COLUMNS] for row in rows]
    assert [row[0] for row in shown[1:]] == ["e2e", "dgl-k4", "gn-dgl-k4-g2"]
    summary = json.loads((three_runs[1] / "summary.json").read_text())
    assert shown[2][9] == f"{100 * summary['accuracy']['last_layer']:.2f}"
    assert shown[3][1] == "not finished"
    assert shown[3][8] == "7 of 10"
    assert "tested on different data" not in html


def test_a_changed_record_changes_the_page(make_run, tmp_path):
    run = make_run()
    before, _ = page_of([run], tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    summary["accuracy"]["last_layer"] = 0.12344
    (run / "summary.json").write_text(json.dumps(summary))
    after, _ = page_of([run], tmp_path)
    assert [page.texts.count("12.34 %") for page in (before, after)] == [0, 1]


def test_the_table_of_nodes_equals_the_records(three_runs, tmp_path):
    page, _ = page_of(three_runs, tmp_path)
    record = read_run(three_runs[2])
    rows = page.table("nodes", 2)
    head = ["node", "test accuracy [%]", "training accuracy [%]", "training loss", "cross entropy", "diversity"]
    assert rows[0] == head
    assert len(rows) == 1 + 9
    for row, test, train in zip(rows[1:], record.evaluations[-1]["nodes"], record.train[-1]["nodes"], strict=True):
        name = test["module"] if test["module"] == "classifier" else f"module {test['module']}, group {test['group']}"
        terms = [f"{train['terms'][term]:.4f}" for term in ("cross_entropy", "diversity")]
        assert row == [name, percent(test["accuracy"]), percent(train["accuracy"]), f"{train['loss']:.4f}", *terms]


def test_every_run_tells_its_configuration_hardware_and_versions(three_runs, tmp_path):
    page, _ = page_of(three_runs, tmp_path)
    for path in three_runs:
        assert to_toml(read_run(path).config).strip() in page.texts
    assert page.texts.count("cpu: AMD EPYC 7B13, 2 cores, 2 threads, 8.0 GiB memory") == 2
    assert page.texts.count("locallearn 0.1.0, torch 2.13.0, python 3.11.15") == 2
    assert page.texts.count("3c116144d7ae") == 2


def test_one_run_has_no_comparison(three_runs, tmp_path):
    page, _ = page_of(three_runs[:1], tmp_path)
    assert [name for name, _ in page.tables] == ["nodes"]
    assert {"e2e", "finished"} <= set(page.texts)


def test_pictures_are_well_formed_and_ids_are_unique(three_runs, tmp_path):
    page, html = page_of(three_runs, tmp_path)
    pictures = [part.split("</svg>")[0] + "</svg>" for part in html.split("<figcaption>")[1:]]
    svgs = [picture[picture.index("<svg") :] for picture in pictures]
    assert len(svgs) == 2 + 5 + 6 + 6
    for svg in svgs:
        ET.fromstring(svg)
    own = [value for name, value in page.attributes if name == "id"]
    assert len(own) == len(set(own))


def test_nothing_is_loaded_from_outside(three_runs, tmp_path):
    page, html = page_of(three_runs, tmp_path)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert (value or "").startswith("#")
    assert "@import" not in html
    assert "url(http" not in html


def test_hostile_names_are_text(make_run, tmp_path):
    hostile = "<script>alert('x')</script>&amp;\"'"
    runs = [make_run("<b onclick=x>", model=hostile, depth=2), make_run("_$\\frac{", model="{{ 7 * 7 }}")]
    summary = json.loads((runs[0] / "summary.json").read_text())
    summary["hardware"]["cpu"] = summary["commit"] = summary["versions"]["torch"] = "</dd><script>1</script>"
    (runs[0] / "summary.json").write_text(json.dumps(summary))
    page, html = page_of(runs, tmp_path)
    assert not {"script", "b"} & set(page.tags)
    assert "onclick" not in [name for name, _ in page.attributes]
    assert [row[3] for row in page.table("comparison")[1:]] == [hostile, "{{ 7 * 7 }}"]
    assert [row[0] for row in page.table("comparison")[1:]] == ["<b onclick=x>", "_$\\frac{"]
    assert "49" not in page.texts
    assert html.count("&lt;script&gt;") >= 5


def test_runs_that_have_just_begun_or_diverged_are_reported(make_run, tmp_path):
    empty = make_run("empty", method="gn-dgl", depth=2, groups=2, done=0, status=None)
    page, _ = page_of([empty], tmp_path)
    assert {"not finished", "No epoch has been recorded yet."} <= set(page.texts)
    diverged = make_run("diverged", done=1, status="diverged")
    (diverged / "summary.json").write_text('{"status": "diverged"}')
    page, _ = page_of([empty, diverged], tmp_path)
    assert [row[1] for row in page.table("comparison")[1:]] == ["not finished", "diverged"]


def test_runs_on_different_data_are_marked(make_run, tmp_path):
    page, html = page_of([make_run("a"), make_run("b", data="cifar10")], tmp_path)
    assert "tested on different data" in html
    assert [row[4] for row in page.table("comparison")[1:]] == ["digits", "cifar10"]


def test_a_report_replaces_the_old_one_and_leaves_nothing_else(make_run, tmp_path):
    output = tmp_path / "deep" / "report.html"
    run = make_run()
    assert write_report([run], output) == output
    output.write_text("old")
    write_report([run], output)
    assert output.read_text().startswith("<!doctype html>")
    assert list(output.parent.iterdir()) == [output]


def test_an_output_that_cannot_be_written_is_told_in_one_line(make_run, tmp_path):
    run = make_run()
    for output in (tmp_path, Path(), run / "config.toml" / "report.html"):
        with pytest.raises(UsageError, match="cannot be written") as caught:
            write_report([run], output)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.parent.glob(".*.tmp"))


def test_a_damaged_run_leaves_the_old_report(make_run, tmp_path):
    run, output = make_run(), tmp_path / "report.html"
    output.write_text("old")
    (run / "metrics.jsonl").write_text("nonsense\n")
    with pytest.raises(UsageError, match="line 1"):
        write_report([run], output)
    assert output.read_text() == "old"


@pytest.mark.parametrize(("more", "there"), [("", False), (", torch", True)])
def test_reports_do_not_import_torch(more, there, tmp_path):
    (tmp_path / "torch.py").touch()  # stands for torch, so that the case that must find it is quick
    imports = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import locallearn.report.html{more}"
    code = f"{imports}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(there)
