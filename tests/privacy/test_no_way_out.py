"""Nothing is shared: the service speaks to nobody but Redis and who calls it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# without root, a user namespace brings the right to a network of one's own
_UNSHARE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]


def _can() -> bool:
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    return subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _can(), reason="needs `unshare --net` and `ip`, of Linux")
@pytest.mark.parametrize("model", ["exemplar", "owlv2"])
def test_a_whole_service_annotates_an_image_and_begins_no_connection(
    tmp_path: Path, model: str
) -> None:
    """In a network where every address refuses, from its start to its end. Attempts would count,
    as two that are made on purpose do, the question for a name included."""
    command = [*_UNSHARE, sys.executable, "-m", "tests.privacy.alone", str(tmp_path), model]
    run = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["control"] == {"tcp": 1, "udp": 1}
    assert report["outcome"] == "annotated"
    assert report["begun"] == {"tcp": report["own"], "udp": 0}
