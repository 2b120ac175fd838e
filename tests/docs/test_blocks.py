"""Every code block and command of README and docs runs."""

import re
import shutil

import pytest

from doc_blocks import ROOT, Block, Page, blocks, check_output, commands
from locallearn.cli.main import commands as installed

PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
TESTED_ELSEWHERE = {
    "python3 dev.py demo     # train e2e, DGL and GN-DGL on embedded images, compare them, write a report": "golden",
    "python3 dev.py test     # lint, types, layers and all tests": "this suite",
}


def blocks_of(page):
    found = blocks(page, (ROOT / page).read_text())
    if page == "README.md":  # its first block is the two commands that everything else hangs on
        assert found[0].text.splitlines() == list(TESTED_ELSEWHERE)
        found = found[1:]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_a_page(page, tmp_path, monkeypatch):
    found = blocks_of(page)
    if not found:
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    runner = Page()
    for block in found:
        runner.run(block)


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_named_in_the_text_exist(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`locallearn ([a-z]+)", text)) | set(re.findall(r"^\$ locallearn ([a-z]+)", text, re.M))
    assert named <= set(installed())


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_exist(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith(("http://", "https://")):
            assert ((ROOT / page).parent / target).exists(), target


def one(language, text, comment=""):
    return Block("page.md", 1, language, text, comment)


@pytest.mark.parametrize(
    "block",
    [
        one("", "locallearn train\n"),
        *blocks("page.md", "Text.\n\n    $ locallearn recipes\n"),
        one("python", "assert 1 == 2\n"),
        one("console", "$ locallearn recipes\nno such recipe\n"),
        one("console", "$ locallearn cost --model resnet33\n"),
        one("sh", "ls no-such-file\n"),
        one("sh", "for x in 1 2; do\n  ls\n"),
        one("sh", "for x in . no-such-file; do\n  ls $x\ndone\n"),
        one("sh", "LOCALLEARN_KERNELS=none locallearn train dgl --model tiny-resnet --run run\n"),
        one("text", "$ locallearn recipes\n"),
        one("text", "2\n", "<!-- output -->"),
    ],
)
def test_a_wrong_block_fails(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError):
        Page().run(block)


def test_right_blocks_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Page()
    page.run(one("python", "x = 3\n"))
    page.run(one("python", "print(x)\n"))
    page.run(one("text", "3\n", "<!-- output -->"))
    page.run(one("console", "$ locallearn recipes\n...gn-dgl...\n"))
    page.run(one("console", "$ locallearn nonsense\nlocallearn: 'nonsense' is not a command; ...\n"))
    page.run(one("python", "raise SystemExit\n", "<!-- not run: a test -->"))
    page.run(one("sh", "for x in 1 2; do\n  mkdir a$x \\\n    b$x\ndone\nls a1 a2 b1 b2\n"))
    page.run(one("sh", "locallearn recipes | grep gn-dgl\nCOLUMNS=70 locallearn recipes    # narrow\n"))


def test_a_shown_output_of_another_run_is_not_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hidden = "<!-- run first: echo hidden > file -->\n\n"
    text = f"{hidden}<!-- output of another run: x -->\n```console\n$ ls file\nnot\n```\n"
    page = Page()
    for block in blocks("p", text):
        page.run(block)


def test_blocks_are_found_with_their_comments():
    text = "# x\n\n<!-- not run: no -->\n```sh\na \\\n  b\n```\n\n  ```console\n  $ c \\\n    d\n  e\n  ```\n"
    first, second = blocks("p", text)
    assert (first.language, first.not_run, first.line, first.text) == ("sh", "no", 4, "a \\\n  b\n")
    assert (second.language, second.not_run) == ("console", None)
    assert commands(second.text) == [("c    d", "e\n")]
    check_output("a ... c\n", "a b c  \n", "here")
