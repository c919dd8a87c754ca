"""The saved models of a run."""

from bcdlib.explain import models
from bcdlib.runs.files import write_json
from bcdlib.runs.folder import open_run_folder


def test_models_of_a_run(tmp_path):
    run = open_run_folder(tmp_path)
    for split, fold, finished in (("image", 0, True), ("case", 1, True), ("slide", 0, False)):
        folder = run.folder / "trials" / split
        folder.mkdir(parents=True)
        (folder / "model.keras").touch()
        if finished:
            write_json(folder / "trial.json", {"method": "net", "split": split, "fold": fold, "seed": 3})
    compared = run.folder / "trials" / "compared" / "trial.json"
    write_json(compared, {"method": "m", "split": "case", "fold": 0, "seed": 0})
    assert list(models.saved_models(run)) == [
        "net, split case, fold 1, seed 3",
        "net, split image, fold 0, seed 3",
    ]
