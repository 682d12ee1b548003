import os
import subprocess
import sys

import numpy as np
import pytest

import sinkscope as sk
from sinkscope.errors import OutputError
from sinkscope.files import replacing


def test_file_takes_the_name_only_when_whole(tmp_path):
    target = tmp_path / "a.txt"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert os.stat(target).st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def killed():
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


FULL = """
import resource, signal, sys
import numpy as np
import sinkscope as sk
from sinkscope import cli, files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
reading = sk.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for attempt in (
    lambda: sk.save(reading, sys.argv[2], overwrite=True),
    lambda: files.write(sys.argv[2], "x" * 5000),
    lambda: cli.main(["show", sys.argv[1], "--table", "key_mass", "--output", sys.argv[2], "--overwrite"]),
    lambda: cli.main(["report", sys.argv[1], "--output", sys.argv[2], "--overwrite"]),
    lambda: cli.main(["plot", "sink-map", sys.argv[1], "--output", sys.argv[3], "--overwrite"]),
):
    try:
        print("code", attempt())
    except sk.errors.OutputError as error:
        print(str(error))
"""


def test_a_full_disk_is_an_error_that_keeps_what_was_there(tmp_path):
    """A limit on the size of files stands for the disk: whoever writes meets the same failed write."""
    model, _ = sk.testing.planted_sink(0)
    texts = np.random.default_rng(0).integers(5, 40, (4, 40)).tolist()
    prompts = sk.Prompts.from_ids(texts, model)
    sk.save(sk.run(model, prompts, [sk.KeyMass(), sk.Entropy()]), tmp_path / "source.nc")
    for name in ("old.csv", "old.png"):
        (tmp_path / name).write_text("old")
    paths = [str(tmp_path / name) for name in ("source.nc", "old.csv", "old.png")]
    done = subprocess.run([sys.executable, "-c", FULL, *paths], capture_output=True, text=True, check=True)
    told = done.stdout + done.stderr
    assert (
        told.count("cannot be written (File too large). Make room, or choose another place; nothing was changed.") == 5
    )
    assert done.stdout.count("code 1") == 3
    assert (tmp_path / "old.csv").read_text() == (tmp_path / "old.png").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.csv", "old.png", "source.nc"]


def test_links_devices_and_pipes_are_never_replaced(tmp_path):
    (tmp_path / "real.nc").write_text("old")
    (tmp_path / "link.nc").symlink_to("real.nc")
    os.mkfifo(tmp_path / "pipe.nc")
    with pytest.raises(OutputError, match=r"link\.nc: this is a link to real\.nc, which is never replaced"):
        sk.schema.check_output(tmp_path / "link.nc", overwrite=True)
    for special in (tmp_path / "pipe.nc", "/dev/null"):
        with pytest.raises(OutputError, match="a device or a pipe, not a file, which is never replaced"):
            sk.schema.check_output(special, overwrite=True)
