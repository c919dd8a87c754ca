"""Finished trials in a store that several machines share."""

import pandas as pd
import pytest

from bcdlib.errors import InputError
from bcdlib.trials import comparison
from bcdlib.trials.store import check_store
from tests.trials.slow import PROFILE, prepared, starts


@pytest.mark.parametrize("store", ["memory://trials", "{tmp_path}/store"])
def test_a_store_gives_trials_back(store, slow, tiny, tmp_path):
    store = store.format(tmp_path=tmp_path)
    tables = []
    for name in ("here", "there"):  # two run folders, as on two machines
        run = prepared(tiny, tmp_path, name)
        tables.append(
            comparison.run_comparison(
                run,
                PROFILE,
                method_names=[f"{slow}:seconds=0"],
                split_names=["image"],
                progress=False,
                store=store,
                keep_models=True,
            )
        )
    pd.testing.assert_frame_equal(*tables)
    assert len(starts(slow)) == 2, "the second run trained again"
    assert len(list((tmp_path / "there").glob("trials/*/model.keras"))) == 2


def test_a_store_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    for store in (f"{tmp_path}/file/store", "nonsense://x"):
        with pytest.raises(InputError, match="--store .*cannot be written"):
            check_store(store)


@pytest.mark.parametrize("store", ["s3:/b", "gs:b/c", "memory:/b", "file:b"])
def test_an_address_with_too_few_slashes_is_no_folder(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"--store {store}: an address has two slashes"):
        check_store(store)
    assert list(tmp_path.iterdir()) == []
    check_store("a:b")  # nothing that is known: a folder
    assert (tmp_path / "a:b").is_dir()
