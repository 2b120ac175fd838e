import json
import os

import pytest
import torch

from locallearn.config import CheckpointConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.errors import CheckpointError, ConfigError, UsageError
from locallearn.training.checkpoint import BEST, Checkpoint, CheckpointFolder, load, load_network, save, step_of


def some(step=1):
    tensors = {"network/a": torch.arange(6.0).view(2, 3), "sums/n": torch.tensor(step), "h": torch.ones(2).bfloat16()}
    return Checkpoint(tensors, {"step": step, "best": None, "seconds": 0.1})


def test_what_is_saved_is_loaded(tmp_path):
    original = some()
    original.tensors["view"] = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    save(tmp_path / "c.safetensors", original)
    found = load(tmp_path / "c.safetensors")
    assert found.progress == original.progress
    assert set(found.tensors) == set(original.tensors)
    assert all(torch.equal(found.tensors[k], v) for k, v in original.tensors.items())


@pytest.mark.parametrize("where", ["start", "metadata", "middle", "end", "cut", "empty"])
def test_damage_anywhere_is_detected_and_named(tmp_path, where):
    path = tmp_path / "c.safetensors"
    save(path, some())
    content = bytearray(path.read_bytes())
    if where == "metadata":
        at = content.index(b"seconds") + 11
        content[at] = ord("7")
    elif where == "cut":
        content = content[:-5]
    elif where == "empty":
        content = bytearray()
    else:
        at = {"start": 3, "middle": len(content) - 20, "end": len(content) - 1}[where]
        content[at] ^= 0x41
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"c\.safetensors"):
        load(path)


def test_the_newest_are_kept_and_a_damaged_one_is_skipped_with_a_line(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints", keep_last=2)
    for step in (1, 2, 3, 10):
        folder.write(some(step), step)
    assert [path.name for path in folder.paths()] == ["step-000000003.safetensors", "step-000000010.safetensors"]
    folder.paths()[-1].write_bytes(b"rubbish")
    path, found, problems = folder.newest()
    assert found is not None
    assert found.progress["step"] == 3
    assert path == folder.paths()[0]
    assert len(problems) == 1
    assert "step-000000010.safetensors" in problems[0]
    folder.paths()[0].write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint in .* is usable"):
        folder.newest()


def test_every_nth_step_is_kept_for_good_and_found_by_its_number(tmp_path):
    folder = CheckpointFolder(tmp_path, keep_last=1, keep_steps=4)
    for step in (2, 4, 6, 8, 10):
        folder.write(some(step), step)
    assert [step_of(path) for path in folder.paths()] == [4, 8, 10]
    assert load(folder.at("8")).progress["step"] == 8
    with pytest.raises(UsageError, match=r"--checkpoint: '6' is not kept; expected last, best or a step: 4, 8, 10"):
        folder.at("6")
    plain = CheckpointFolder(tmp_path, keep_last=1)
    plain.write(some(12), 12)
    assert [step_of(path) for path in plain.paths()] == [12]


@pytest.fixture
def parts(tmp_path):
    """A checkpoint of two processes, and its manifest."""
    folder = CheckpointFolder(tmp_path / "run", keep_last=1)
    folder.write_part(some(4), 4, 0)
    folder.write_part(Checkpoint({"network/b": torch.ones(2)}, {"step": 4}), 4, 1)
    path = folder.complete(4, 2)
    assert set(load(path).tensors) == {"network/a", "network/b", "sums/n", "h"}
    return path, json.loads((path / "manifest.json").read_text())


def outside(path):
    """The checksum of a good file that lies elsewhere."""
    save(path, some(9))
    folder = CheckpointFolder(path.parent, keep_last=1)
    folder.write_part(some(9), 9, 0)
    return json.loads((folder.complete(9, 1) / "manifest.json").read_text())["parts"]["part-0000.safetensors"]


@pytest.mark.parametrize(
    "name", ["../../outside.safetensors", "/{}/outside.safetensors", "./part-0000.safetensors", ".."]
)
def test_a_manifest_cannot_name_files_outside_the_run(parts, tmp_path, name):
    path, manifest = parts
    checksum = outside(tmp_path / "outside.safetensors")
    manifest["parts"] = {name.format(tmp_path): checksum}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="is no part of it"):
        load(path)


def test_a_part_that_is_a_link_is_refused(parts, tmp_path):
    path, manifest = parts
    manifest["parts"] = {"part-0000.safetensors": outside(tmp_path / "outside.safetensors")}
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "part-0000.safetensors").unlink()
    (path / "part-0000.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match=r"'part-0000\.safetensors' is no part of it"):
        load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"parts": {}}', '{"parts": ["a"]}', "[" * 100_000, "\\ud800"])
def test_a_manifest_of_another_shape_is_damaged(parts, text):
    path, _ = parts
    (path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"checkpoint {path}"):
        load(path)


def test_parts_that_do_not_go_together_are_damaged(parts):
    path, _ = parts
    folder = CheckpointFolder(path.parent, keep_last=1)
    folder.write_part(Checkpoint({"network/a": torch.ones(2, 2)}, {"step": 4}), 4, 1)
    with pytest.raises(CheckpointError, match="is damaged: Sizes of tensors must match"):
        load(folder.complete(4, 2))


@pytest.mark.parametrize("name", ["step-000000004.safetensors", "manifest.json", "part-0000.safetensors"])
def test_a_pipe_is_not_opened(parts, name):
    """Whoever opened it would wait for ever."""
    path, _ = parts
    path = path.with_suffix(".safetensors") if name.startswith("step") else path
    place = path if name.startswith("step") else path / name
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    with pytest.raises(CheckpointError, match="is not a file|has no manifest"):
        load(path)


def test_a_device_is_not_opened(tmp_path):
    (tmp_path / "c.safetensors").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"c\.safetensors is not a file"):
        load(tmp_path / "c.safetensors")


def test_tidying_removes_a_link_and_not_what_it_names(tmp_path):
    CheckpointFolder(tmp_path / "other", keep_last=1).write_part(some(1), 1, 0)
    kept = CheckpointFolder(tmp_path / "other", keep_last=1).complete(1, 1)
    folder = CheckpointFolder(tmp_path / "run", keep_last=1)
    folder.write(some(2), 2)
    (tmp_path / "run" / "step-000000001").symlink_to(kept)
    (tmp_path / "run" / "step-odd.safetensors").write_text("no step")
    folder.write(some(3), 3)
    assert [step_of(path) for path in folder.paths()] == [3]
    assert load(kept).progress["step"] == 1


def test_no_checkpoint_is_no_error(tmp_path):
    assert CheckpointFolder(tmp_path / "none", 1).newest() == (None, None, [])


def test_a_kill_while_writing_leaves_the_old_ones(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path, keep_last=1)
    folder.write(some(1), 1)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.write(some(2), 2)
    monkeypatch.undo()
    _, found, problems = folder.newest()
    assert found is not None
    assert found.progress["step"] == 1
    assert problems == []
    folder.write(some(3), 3)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000003.safetensors"]  # the left-over is gone too


def test_the_best_is_a_copy_of_its_own(tmp_path):
    folder = CheckpointFolder(tmp_path, keep_last=1)
    folder.mark_best(folder.write(some(1), 1))
    folder.write(some(2), 2)
    assert load(tmp_path / BEST).progress["step"] == 1


def test_weights_of_another_network_are_refused(tmp_path):
    config = RunConfig(method="dgl", model="resnet8", depth=2)
    network = build_network(config, ImageShape(3, 8, 5))
    good = {f"network/{k}": v for k, v in network.state_dict().items()}
    load_network(network, good, tmp_path)
    with pytest.raises(CheckpointError, match="weight does not fit"):
        load_network(network, {**good, "network/stages.0.blocks.stem.conv.weight": torch.zeros(3, 5)}, tmp_path)
    with pytest.raises(CheckpointError, match="extra does not fit"):
        load_network(network, {**good, "network/extra": torch.zeros(3)}, tmp_path)


def test_modules_at_their_own_pace_have_no_common_epochs_to_keep():
    with pytest.raises(ConfigError, match=r"checkpoint\.keep_epochs.*5.*0 with runtime asynchronous"):
        RunConfig(runtime="asynchronous", checkpoint=CheckpointConfig(keep_epochs=5))
