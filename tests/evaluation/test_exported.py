"""A run's files: what each is made of, and that every row of the tables is measured on its own."""

import pytest

from paperlib.data.dataset import calibration, open_data
from paperlib.errors import UserError
from paperlib.evaluation.exported import export_run
from paperlib.evaluation.scoring import mean_psnr
from paperlib.evaluation.torch_upscalers import QuantisedUpscaler, TorchUpscaler
from paperlib.export.convert import export_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.quantisation.qat import prepare_qat, save_qat
from paperlib.run import open_run
from paperlib.student.models import fuse_model, save_student
from paperlib.student.network import Student


def test_exporting_before_training_names_the_notebooks_that_are_missing(tmp_path):
    run = open_run("smoke", tmp_path)
    with pytest.raises(UserError, match="02_stage1, 04_stage2, 05_fuse_qat") as caught:
        export_run(run, None)
    assert "--profile smoke" in str(caught.value)
    assert not list((tmp_path / "checkpoints").glob("export/*"))


def test_every_row_is_measured_on_its_own_file(tmp_path):
    run = open_run("smoke", tmp_path, {
        "student.blocks": 1, "student.channels": 4, "student.init": "bilinear",
        "export.height": 17, "export.width": 40, "export.overlap": 2})
    data, folder = open_data(run.settings.data), run.stage_folder("stage3")
    fused, trained = (fuse_model(Student(run.settings.student)) for _ in range(2))
    save_student(fused, folder / "fused.safetensors")
    qat = prepare_qat(trained, run.settings.quant, [data.valid[1].lr])
    save_qat(qat, folder / "qat.safetensors")
    files = export_run(run, data)
    path = tmp_path / "again.tflite"
    for kind, size in (("ptq", ()), ("ptq_fixed", (17, 40))):
        export_tflite(files.qgraph.graph, path, *size, images=calibration(data, run.settings))
        assert files.paths[kind].read_bytes() == path.read_bytes()
    rows = [row for row in files.measure(data) if (row["metric"], row["dataset"]) == ("psnr", "validation")]
    found = {(row["table"], row["row"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    dynamic, ptq = (TFLiteUpscaler(files.paths[kind]) for kind in ("dynamic", "ptq"))
    wanted = {
        ("B", "student_deploy"): dynamic, ("abstract", "student_dynamic_tflite_learnt"): dynamic,
        ("export", "tflite_dynamic"): dynamic, ("export", "tflite_post_training"): ptq,
        ("abstract", "student_dynamic_tflite"): ptq,
        ("abstract", "student_fixed_tflite_learnt"): TFLiteUpscaler(
            files.paths["fixed"], overlap=2),
        ("abstract", "student_fixed_tflite"): TFLiteUpscaler(
            files.paths["ptq_fixed"], borders="reflected"),
        ("export", "float_before_qat"): TorchUpscaler(fused, ""),
        ("export", "float_in_8_bits"): TorchUpscaler(fused, "", rounded=True),
        ("export", "float_after_qat"): TFLiteUpscaler(files.paths["float"]),
        ("export", "fakequant"): QuantisedUpscaler(files.qgraph)}
    assert found == {key: pytest.approx(mean_psnr(data.valid, upscaler), abs=1e-5) for key, upscaler in wanted.items()}
    assert len(set(found.values())) >= 7  # the same network thrice, and what was trained
    assert {row["steps"] for row in rows if row["table"] in ("B", "abstract")} == {6 + 4 + 5}
