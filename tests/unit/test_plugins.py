"""Files of the user's own: what they register is found from the command line, in a resume and in processes."""

import dataclasses
import importlib.util
import json
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import locallearn as ll
import programs
from locallearn import plugins, trust
from locallearn.cli.main import main
from locallearn.errors import UsageError

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "my_plugin.py"


def _run(*arguments, cwd):
    """``locallearn ...`` in a process of its own, which starts without plugins."""
    return programs.run("-m", "locallearn", *arguments, folder=cwd)


@pytest.fixture
def call(monkeypatch, capsys):
    """``locallearn ...`` in this process."""
    monkeypatch.setenv(plugins.VARIABLE, "")

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


TRAIN = ("train", "my-method", "--model", "my-net", "--data.name", "stripes", "--depth", "2", "--width", "2", "--run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with every kind of extension."""
    folder = tmp_path_factory.mktemp("plugin")
    quick = ("--train.epochs", "3", "--train.threads", "1", "--json")
    return folder, _run(*TRAIN, "run", "--plugin", EXAMPLE, *quick, cwd=folder)


def test_everything_that_a_file_registers_trains_together(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["accuracy"]["last_layer"] > 0.8
    assert {node["module"] for node in summary["nodes"]} == {1, 2, "classifier"}
    assert f'"{EXAMPLE}"' in (folder / "run" / "config.toml").read_text()


def test_a_resume_loads_the_file_again(trained):
    folder, _ = trained
    shutil.copytree(folder / "run", folder / "half")
    (folder / "half" / "summary.json").unlink()
    before = json.loads((folder / "run" / "summary.json").read_text())
    done = _run("train", "--resume", "half", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] == before["accuracy"]


def test_a_file_that_has_moved_is_named_anew(trained, tmp_path, call):
    run = tmp_path / "run"
    shutil.copytree(trained[0] / "run", run)
    text = (run / "config.toml").read_text().replace(str(EXAMPLE), "/gone/my_plugin.py")
    (run / "config.toml").write_text(text)
    code, _, said = call("evaluate", run)
    assert code == 2
    assert said == f"locallearn: plugin /gone/my_plugin.py of {run} is not there; name its place with --plugin\n"
    assert call("evaluate", run, f"--plugin={EXAMPLE}", "--json")[0] == 0


@pytest.fixture
def strange(tmp_path, trained, monkeypatch):
    """Makes a run from elsewhere whose config.toml names a file, and tells where that file leaves a mark."""
    home = tmp_path / "received"
    shutil.copytree(trained[0] / "run", home / "run")
    mark = tmp_path / "ran"
    (home / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    (home / "run" / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.chdir(home / "run")

    def make(named):
        (home / "link.py").unlink(missing_ok=True)
        (home / "link.py").symlink_to(home / "evil.py")
        config = (trained[0] / "run" / "config.toml").read_text()
        (home / "run" / "config.toml").write_text(config.replace(str(EXAMPLE), named.format(home)))
        return home / "run", mark

    return make


@pytest.mark.parametrize(
    "named",
    [
        "evil.py",
        "./evil.py",
        "../evil.py",
        "{}/evil.py",
        "{}/run/evil.py",
        "{}/run/../evil.py",
        "{}/link.py",
        "../link.py",
    ],
)
def test_what_a_run_from_elsewhere_names_is_not_imported(named, strange, call):
    run, mark = strange(named)
    for command in (("evaluate", run), ("train", "--resume", run), ("report", run)):
        code, _, said = call(*command)
        assert command[0] == "report" or (code, "name it with --plugin" in said) == (2, True)
        assert not mark.exists()
    # and once the user has named exactly this file it is
    call("recipes", "--plugin", strange(named)[0].parent / "evil.py")
    assert mark.exists()


@pytest.mark.parametrize("named", ["{}/gone.py", "a\\u0000b.py", "~nobody-there/a.py", "/dev/stdin", "{}"])
def test_names_of_no_file_are_one_line(named, strange, call):
    code, _, said = call("evaluate", strange(named)[0])
    assert code == 2
    assert said.count("\n") == 1


def test_a_file_that_the_user_named_is_trusted_until_it_changes(tmp_path, call):
    plugin, mark = tmp_path / "mine.py", tmp_path / "ran"
    plugin.write_text(f"open({str(mark)!r}, 'a').write('x')")
    with pytest.raises(UsageError, match="is code that you have not named here"):
        plugins.load_of([str(plugin)], "run")
    call("recipes", "--plugin", plugin)
    assert mark.read_text() == "x"
    forget()
    plugins.load_of([str(plugin)], "run")
    assert mark.read_text() == "xx"
    forget()
    plugin.write_text(f"open({str(mark)!r}, 'a').write('y')")
    with pytest.raises(UsageError, match="or that has changed since"):
        plugins.load_of([str(plugin)], "run")
    copy = tmp_path / "elsewhere" / "mine.py"
    copy.parent.mkdir()
    copy.write_text(f"open({str(mark)!r}, 'a').write('x')")  # the content that was trusted, at another place
    with pytest.raises(UsageError, match="is code that you have not named here"):
        plugins.load_of([str(copy)], "run")
    assert mark.read_text() == "xx"


def forget():
    """As a process that has just begun."""
    plugins._loaded.clear()
    os.environ[plugins.VARIABLE] = ""


def test_compiled_code_beside_a_plugin_is_not_run(tmp_path, call):
    """A file whose content is trusted, and next to it a cache of other code with the right time and size."""
    plugin, mark = tmp_path / "mine.py", tmp_path / "ran"
    good, evil = "x = 1".ljust(200), f"open({str(mark)!r}, 'w')".ljust(200)
    plugin.write_text(evil)
    times = (plugin.stat().st_atime_ns, plugin.stat().st_mtime_ns)
    py_compile.compile(str(plugin))
    plugin.write_text(good)
    os.utime(plugin, ns=times)
    assert call("recipes", "--plugin", plugin)[0] == 0
    assert not mark.exists()
    # The sibling: the import system itself takes it.
    importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("mine", plugin))
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert mark.exists()


def test_notes_that_others_can_write_do_not_count(tmp_path, call, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    plugin = tmp_path / "mine.py"
    plugin.write_text("x = 1")
    call("recipes", "--plugin", plugin)
    (notes,) = (tmp_path / "config").rglob("*.jsonl")
    assert notes.stat().st_mode & 0o777 == 0o600
    forget()
    for mode, right in ((0o666, False), (0o620, False), (0o600, True)):
        notes.chmod(mode)
        assert trust.is_remembered(plugin, b"x = 1") == right
    notes.rename(tmp_path / "theirs")
    notes.symlink_to(tmp_path / "theirs")
    assert not trust.is_remembered(plugin, b"x = 1")
    notes.unlink()
    os.mkfifo(notes)
    assert not trust.is_remembered(plugin, b"x = 1")
    plugins.load([plugin])  # and where nothing can be noted, what the user names is imported all the same


@pytest.mark.parametrize(
    ("variable", "value", "folder"),
    [("XDG_CONFIG_HOME", ".", ""), ("XDG_CONFIG_HOME", "a", "a"), ("HOME", ".", ".config")],
)
def test_notes_in_the_present_folder_do_not_count(variable, value, folder, tmp_path, call, monkeypatch):
    """A folder from elsewhere may bring notes along; names that depend on where a command is called reach them."""
    plugin = tmp_path / "mine.py"
    plugin.write_text("x = 1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / folder))
    call("recipes", "--plugin", plugin)
    forget()
    assert trust.is_remembered(plugin, b"x = 1")
    assert list((tmp_path / folder / "locallearn").iterdir())
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    assert not trust.is_remembered(plugin, b"x = 1")


@pytest.mark.parametrize("safe", [True, False])
def test_processes_that_a_command_starts_look_for_modules_where_it_does(safe, tmp_path):
    """The installed command does not look into the present folder; ``python -m locallearn`` does."""
    (tmp_path / "beside.py").write_text("print('ran')")
    code = (
        "import subprocess, sys; from locallearn.cli.main import program; sys.argv = ['locallearn', '--version']\n"
        "try: program()\n"
        "except SystemExit: subprocess.run([sys.executable, '-c', 'import beside'], stderr=subprocess.DEVNULL)"
    )
    command = [sys.executable, *(["-P"] if safe else []), "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ("ran" in done.stdout) is not safe


def test_a_configuration_in_python_is_no_word_of_the_users(tmp_path, call):
    plugin = tmp_path / "mine.py"
    plugin.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = dataclasses.replace(ll.recipe("dgl"), plugins=(str(plugin),))
    with pytest.raises(UsageError, match="is code that you have not named here"):
        ll.train(ll.from_toml(ll.to_toml(config)), tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def test_the_environment_names_plugins_too(call, monkeypatch):
    arguments = ("cost", "--model", "my-net", "--method", "dgl", "--depth", "2", "--json")
    code, _, said = call(*arguments)
    assert code == 2
    assert "model: 'my-net' is not valid" in said
    monkeypatch.setenv(plugins.VARIABLE, str(EXAMPLE))
    code, out, _ = call(*arguments)
    assert code == 0
    assert len(json.loads(out)["nodes"]) == 2


def test_processes_that_a_command_starts_inherit_plugins(call):
    call("recipes", "--plugin", EXAMPLE)
    code = "import locallearn as ll; print(ll.methods.get('my-method').__name__)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout == "my_method\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import locallearn as ll\n\n@ll.objectives.register('cross-entropy')\ndef mine(given):\n    pass\n",
            "objective.loss 'cross-entropy' is registered already by {package}/losses/objectives.py:{line}; "
            "{plugin}:3 must choose another name",
        ),
        (
            "import locallearn as ll\n\n@ll.heads.register('mine')\ndef mine(shape, outputs):\n    pass\n",
            "objective.head 'mine' ({plugin}:3): expected a function of (given: HeadInput) that returns Module, "
            "this is a function of (shape, outputs)",
        ),
        (
            "import locallearn as ll\n\nll.methods.add('mine', 3)\n",
            "method 'mine' ({plugin}:3): expected a function of",
        ),
        ("x = 1\n\ny = x / 0\n", "--plugin: {plugin} fails in line 3: ZeroDivisionError: division by zero"),
        ("def (\n", "--plugin: {plugin} fails: SyntaxError: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(code, message, tmp_path, call):
    from locallearn.losses import objectives

    source = Path(objectives.__file__).read_text().splitlines()
    plugin = tmp_path / "wrong.py"
    plugin.write_text(code)
    result, _, said = call("recipes", "--plugin", plugin)
    line = source.index('@objectives.register("cross-entropy")') + 1
    expected = message.format(package=Path(ll.__file__).parent, plugin=plugin, line=line)
    assert result == 2
    assert said.startswith(f"locallearn: {expected}")
    assert said.count("\n") == 1
    assert plugins.loaded() == ()


def test_a_builder_that_gives_something_else_is_named(tmp_path, call):
    plugin, run = tmp_path / "odd.py", tmp_path / "run"
    plugin.write_text("import locallearn as ll\n\nll.objectives.add('odd', lambda given: 'text')\n")
    code, _, said = call("train", "dgl", "--plugin", plugin, "--objective.loss", "odd", "--run", run)
    assert code == 2
    assert f"objective.loss 'odd' ({plugin}:3) returned str; expected Objective" in said
    assert not run.exists()


def test_a_missing_file_is_said(call):
    code, _, said = call("recipes", "--plugin", "gone.py")
    assert code == 2
    assert "gone.py is not a file" in said
    assert "the name of a Python file is missing" in call("recipes", "--plugin")[2]


def test_layers_that_draw_their_own_weights_depend_on_the_seed_alone(call):
    """A head or a block of a user's own needs no rule for initial weights to be repeatable."""
    import torch
    from torch import nn

    class Scale(nn.Module):
        def __init__(self, given):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(given.outputs, given.shape[0]))

        def forward(self, features):
            return (features.mean((2, 3)) @ self.weight.T)[None]

    ll.heads.add("scale", Scale)
    config = ll.recipe("dgl")
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, head="scale"))
    state = torch.get_rng_state()
    first, again = (ll.build_network(config, ll.ImageShape(1, 8, 10)).state_dict() for _ in range(2))
    other = ll.build_network(dataclasses.replace(config, seed=1), ll.ImageShape(1, 8, 10)).state_dict()
    key = "stages.0.objective.head.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])
    assert not torch.equal(first[key], first["stages.1.objective.head.weight"][:, : first[key].shape[1]])
    assert torch.equal(state, torch.get_rng_state())
