"""The shipped files: what is asked before anything is exported."""

import pytest

from paperlib.errors import UserError
from paperlib.evaluation.exported import export_run
from paperlib.run import open_run


def test_exporting_before_training_names_the_notebooks_that_are_missing(tmp_path):
    run = open_run("smoke", tmp_path)
    with pytest.raises(UserError, match="02_stage1, 04_stage2, 05_fuse_qat") as caught:
        export_run(run, None)
    assert "--profile smoke" in str(caught.value)
    assert not list((tmp_path / "checkpoints").glob("export/*"))
