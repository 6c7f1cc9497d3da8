"""Start-up and memory with as many images as ImageNet-22K has; names and shards are made up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.soak]

SCRIPT = Path(__file__).parents[1] / "start_up.py"


@pytest.mark.fault(11, "start-up with 14.2 million images", "no Python object a name")
def test_start_with_fourteen_million_images(tmp_path, record_property):
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    for name in ("shards", "folder"):
        record_property(
            "measured",
            "{0}: {seconds:.1f} s, {megabytes:.0f} MB, {worker:.0f} MB more in each worker".format(
                name, **figures[name]
            ),
        )
    order = "order: {seconds:.1f} s, {megabytes:.0f} MB".format(**figures["order"])
    record_property("measured", order)
    # 16 bytes an image, and 28 a name; Python strings would take 1,700 MB.
    assert figures["shards"]["megabytes"] < 300
    assert figures["folder"]["megabytes"] < 600
    assert figures["order"]["megabytes"] < 300
    # A worker that counted references in what it reads would soon own a copy of the pages.
    assert figures["shards"]["worker"] < 30
    assert figures["folder"]["worker"] < 30
