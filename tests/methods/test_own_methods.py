"""A method in a file of one's own: what it may leave out, and what is said of its mistakes."""

import pickle
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from bcdlib import evaluate, methods, train
from bcdlib.data import splits
from bcdlib.errors import InputError
from bcdlib.methods.parts import fitting
from bcdlib.runs.profiles import get_profile
from bcdlib.trials.trial import Trial, run_trial

TINY = get_profile("demo", size=(48, 32), epochs=1, batch_size=8)
HEAD = "import numpy as np\nfrom bcdlib.methods import Method\n"


@pytest.fixture
def write(tmp_path):
    def write(body, name="mine.py", head=HEAD):
        file = tmp_path / name
        file.write_text(head + textwrap.dedent(body))
        return file

    return write


@pytest.fixture
def tried(cache, tmp_path):
    def tried(file, **options):
        split = splits.make_split(cache.images, "case", folds=3)
        return run_trial(
            Trial(str(file), "case", split), cache, TINY, root=tmp_path / "trials", verbose=0, **options
        )

    return tried


SMALLEST = """
class Mine(Method):
    def fit(self, X, y):
        self.share_ = float(np.mean(y))
    def predict_proba(self, X):
        return np.tile([1 - self.share_, self.share_], (len(X), 1))
"""


def test_the_smallest_method(write, tried):
    """No key, no save, nothing but X and y: it is called as its file, and not kept."""
    file = write(SMALLEST, "share_of_malignant.py")
    result = tried(file)
    assert set(result.predictions["method"]) == {"share_of_malignant"}
    assert methods.get_method(str(file)).title == "share_of_malignant"
    assert not list(result.folder.glob("model*")) and result.history is None
    made = (result.folder / "trial.json").stat().st_mtime_ns
    assert (tried(file).folder / "trial.json").stat().st_mtime_ns == made, "it was trained again"


@pytest.mark.parametrize("always", ["all", "head"])
def test_fit_may_return_nothing_and_predict_proba_be_any_callable(always, write, tried):
    """A head is fitted on parts of the training images too."""
    body = f"""
    import functools
    class Mine(Method):
        always = {always!r}
        def fit(self, X, y):
            self.predict_proba = functools.partial(self.predict, share=float(np.mean(y)))
        def predict(self, X, share):
            return np.tile([1 - share, share], (len(X), 1))
        def predict_proba(self, X):
            raise NotImplementedError
    """
    result = tried(write(body))
    assert result.predictions["probability"].between(0.2, 0.8).all()
    assert len(result.validation) > 0


def test_a_method_gets_what_it_asks_for(write, tried):
    body = """
    import json
    class Mine(Method):
        key, title, suffix = "mine", "My own", ".json"
        def fit(self, X, y, *, images, **others):
            self.facts_ = sorted(others) + [len(X) == len(y) == len(images)]
        def predict_proba(self, X, **others):
            assert list(others) == ["images"] and len(others["images"]) == len(X)
            return np.full((len(X), 2), 0.5)
        def save(self, path):
            path.write_text(json.dumps(self.facts_))
    """
    result = tried(write(body))
    assert (result.folder / "model.json").read_text() == '["folder", "validation_data", true]'
    assert "My own" not in set(result.predictions["method"]) == {"mine"}
    assert not (result.folder / "model.keras").exists() and (result.folder / "model-card.md").is_file()


def test_dataclass_and_pickle(write, tried):
    body = """
    from __future__ import annotations
    import dataclasses
    import numpy as np
    from bcdlib.methods import Method
    @dataclasses.dataclass(eq=False)
    class Mine(Method):
        level: float = 0.25
        def fit(self, X, y, validation_data=None, folder=None):
            return self
        def predict_proba(self, X):
            return np.tile([1 - self.level, self.level], (len(X), 1))
    """
    file = write(body, head="")
    kind = methods.get_method(str(file))
    assert methods.get_method(str(file)) is kind, "loaded twice"
    assert pickle.loads(pickle.dumps(kind(0.5))).level == 0.5
    result = tried(f"{file}:level=0.75")
    assert set(result.predictions["probability"]) == {0.75}
    file.write_text(file.read_text().replace("0.25", "0.125"))
    assert methods.get_method(str(file))().level == 0.125, "an edited file is another method"


def test_derived_from_a_method_of_the_registry(write):
    body = "from bcdlib.methods.lenet5 import LeNet5 as Base\nclass Mine(Base):\n    pass\n"
    kind = methods.get_method(str(write(body, "wider.py")))
    assert kind.key == kind.title == "wider", "its results would stand as LeNet-5's"
    assert methods.get_method("lenet5").key == "lenet5"


@pytest.mark.parametrize(
    "body, line, said",
    [
        ("class Mine(Method)\n    pass\n", 3, "SyntaxError"),
        ("import no_such_package\n", 3, "ModuleNotFoundError: No module named 'no_such_package'"),
        ("x = 1\ny = x / 0\n", 4, "ZeroDivisionError"),
        ("x = 1\n", None, "defines one subclass of Method, this one 0"),
        (
            "class A(Method):\n    pass\nclass B(Method):\n    pass\n",
            None,
            "one subclass of Method, this one 2",
        ),
        ("class Mine(Method):\n    def fit(self, X, y):\n        pass\n", None, "predict_proba"),
        (SMALLEST + "    def __init__(self, size):\n        self.size = size\n", None, "'size'"),
        (SMALLEST.replace("np.mean(y)", "np.mean(y)) + int('a'"), 6, "ValueError: invalid literal"),
        (SMALLEST.replace("self.share_ = ", "share = "), 8, "AttributeError: 'Mine' object has no attribute"),
        (
            SMALLEST.replace("return ", "return 0 *"),
            7,
            "rows of 16 that are no probabilities, the first (row 0)",
        ),
        (SMALLEST.replace("return ", "return np.nan *"), 7, "[nan, nan]; wanted are numbers from 0 to 1"),
        (SMALLEST.replace("(len(X), 1))", "(len(X), 1))[:, 1]"), 7, "shape (16,); wanted is (16, 2)"),
        (SMALLEST.replace("(len(X), 1))", "(1, 1))"), 7, "shape (1, 2); wanted is (16, 2)"),
        (SMALLEST.replace("return ", "return 'a' #"), 7, "gives no array of numbers"),
    ],
)
def test_mistakes_are_one_line_with_file_and_line(body, line, said, write, tried):
    file = write(body)
    with pytest.raises(InputError) as error:
        tried(file)
    place = f"{file}, line {line}: " if line else str(file)
    assert str(error.value).startswith(place) and said in str(error.value), error.value
    assert "\n" not in str(error.value)


def test_a_mistake_in_a_network_is_named_where_it_is_looked_at(write, prepare, tiny, tmp_path):
    body = """
    from bcdlib.methods import KerasMethod
    class Mine(KerasMethod):
        def build_features(self, x):
            return x.pooled()
    """
    run, _ = prepare(tmp_path / "run", tiny, TINY, tmp_path / "cache")
    file = write(body, head="")
    with pytest.raises(InputError, match="mine.py, line 5: AttributeError: .*pooled"):
        train.build_network(run, TINY, method=str(file))


def test_of_two_at_once_the_second_waits_and_finds_it_done(write, tried, tmp_path, capsys):
    body = SMALLEST.replace(
        "self.share_ =", "open(%r, 'a').write('x'); import time; time.sleep(1); self.share_ ="
    )
    file = write(body % str(tmp_path / "count"))
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: tried(file), range(2)))
    assert (tmp_path / "count").read_text() == "x"
    assert capsys.readouterr().out == f"{results[0].folder}: {fitting.BUSY}\n"
    pd.testing.assert_frame_equal(results[0].predictions, results[1].predictions)


def test_a_mistake_that_was_mended_is_gone(write, tried):
    file = write("class Mine(Method)\n")
    with pytest.raises(InputError, match="SyntaxError"):
        tried(file)
    write(SMALLEST)
    assert len(tried(file).predictions)


def test_evaluate_shows_no_map_of_a_method_without_a_network(write, prepare, tiny, prior, tmp_path):
    """Not stored, stored under another suffix, and stored as .keras but no network."""
    run, _ = prepare(tmp_path / "run", tiny, get_profile("demo", size=(36, 24), folds=2), tmp_path / "cache")
    other = write(SMALLEST + "    suffix = '.txt'\n    def save(self, path):\n        path.write_text('1')\n")
    for file in (write(SMALLEST, "none.py"), other, prior):
        planned = train.plan_trials(run, TINY, split_names=["case"], method=str(file))
        train.train_trials(run, TINY, planned, verbose=0)
    table = pd.read_csv(run.folder / "predictions.csv", dtype={"slide": str, "case": str})
    assert table["method"].nunique() == 3
    for name, part in table.groupby("method"):
        answer = evaluate.explain_own_image(run, part)
        assert "no saved model" in answer.warning and answer.label == "", name
        wrong = part[(part["probability"] >= 0.5) != part["label"]]
        figure = evaluate.error_figure(run, wrong)
        assert "No saved model" in "".join(text.get_text() for text in figure.axes[0].texts), name
    assert np.isfinite(table["probability"]).all()
