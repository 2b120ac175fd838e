"""A run folder that the processes of a mesh do not share is refused before anything is trained."""

from distributed.processes import finish, free_port, of_rank
from programs import Program

TRAIN = ["train", "dgl", "--model", "tiny-resnet", "--depth", "2", "--epochs", "1", "--data.train-limit", "64"]
TRAIN += ["--runtime", "distributed", "--mesh.depth", "2", "--device", "cpu", "--run", "runs/two"]


def test_every_process_must_see_the_run_folder(tmp_path):
    port, started = free_port(), []
    for rank in range(2):
        place = tmp_path / f"host{rank}"
        place.mkdir()
        started.append(Program(["-m", "locallearn", *TRAIN], of_rank(rank, 2, port), place))
    found = finish(started)
    assert [code for code, _, _ in found] == [2, 2]
    said = {line for _, _, errors in found for line in errors.splitlines() if line.startswith("locallearn:")}
    (line,) = said  # torch may add that it has lost the first process
    assert line.startswith("locallearn: run: runs/two of the first process is not seen by rank 1 on ")
    assert [file.name for file in (tmp_path / "host0/runs/two").iterdir()] == [".lock"]
    assert list((tmp_path / "host1").iterdir()) == []
