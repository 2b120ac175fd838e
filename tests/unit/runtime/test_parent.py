"""A process in a session of its own stays as far behind others as the one that started it."""

import os
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
@pytest.mark.parametrize("start", ["kept", "left alone"])
def test_niceness_reaches_a_session_of_its_own(start):
    nice = min(os.getpriority(os.PRIO_PROCESS, 0) + 7, 19) if start == "kept" else 0
    command = ["nice", "-n", "7", sys.executable, "-c", STARTS, start]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == str(nice)
