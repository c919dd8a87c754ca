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
