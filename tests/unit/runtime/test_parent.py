"""A process in a session of its own stays as far behind others as the one that started it."""

import subprocess
import sys
from pathlib import Path

import pytest

STARTS = """
import subprocess, sys
from pathlib import Path
from locallearn.runtime.parent import keep_nice
child = subprocess.Popen(["sleep", "20"], start_new_session=True)
if sys.argv[1] == "kept":
    keep_nice(child.pid)
print(Path(f"/proc/{child.pid}/autogroup").read_text().split()[-1])
child.kill()
"""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="no autogroups here")
@pytest.mark.parametrize(("start", "nice"), [("kept", "7"), ("left alone", "0")])
def test_niceness_reaches_a_session_of_its_own(start, nice):
    command = ["nice", "-n", "7", sys.executable, "-c", STARTS, start]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == nice
