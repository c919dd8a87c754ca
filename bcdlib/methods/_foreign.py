"""Keras networks of strangers: no code of theirs runs, no file that they name is opened, nothing swells.

Only what is known is let through: members of the archive, classes by module and name, kinds of HDF5 objects.
Keras gets the very configuration that was checked, and reads weights from a file that was checked.
"""

import contextlib
import json
import math
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import h5py
import keras

from bcdlib.data import sources
from bcdlib.errors import one_line
from bcdlib.methods._training import MEMBER

WEIGHTS = "model.weights.h5"
# members of a .keras file, and how many bytes of them are read; ResNet-152's config.json has under 1 MiB
MEMBERS = {"config.json": 2**23, "metadata.json": 2**16, MEMBER: 2**16, WEIGHTS: 2**33}
SMALL = 2**26  # bytes of weights that may be packed tightly; trained ones hardly shrink
LAYERS_AT_MOST = 20_000  # calls of layers, counting those of networks within networks
NUMBERS_AT_MOST = 2**25  # that a layer gives for one image; VGG-16 gives 2**24.3 for 700x460 pixels

# All that Keras 3.15 has but those that carry code or pickles (Lambda, JaxLayer, TFSMLayer, ...), read files
# (StringLookup, TextVectorization, ...) or are for no images.
_LAYERS = """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveMaxPooling1D
    AdaptiveMaxPooling2D Add AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average
    AveragePooling1D AveragePooling2D AveragePooling3D BatchNormalization Bidirectional CategoryEncoding
    CenterCrop Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D
    Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D Cropping1D Cropping2D Cropping3D CutMix Dense
    DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Equalization Flatten GRU GRUCell
    GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization GroupQueryAttention
    GroupedQueryAttention Identity InputLayer LSTM LSTMCell LayerNormalization LeakyReLU Masking
    MaxPooling1D MaxPooling2D MaxPooling3D
    Maximum Minimum MixUp MultiHeadAttention Multiply Normalization PReLU Permute Pipeline RMSNormalization
    RNN RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop
    RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert
    RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear
    RandomTranslation RandomZoom ReLU RepeatVector Rescaling Reshape Resizing SeparableConv1D SeparableConv2D
    SimpleRNN SimpleRNNCell Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D
    SpectralNormalization StackedRNNCells Subtract TimeDistributed UnitNormalization UpSampling1D UpSampling2D
    UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""
_MODELS = {
    ("keras.src.models.functional", "Functional"),
    ("keras", "Functional"),
    ("keras", "Model"),
    ("keras", "Sequential"),
    ("keras.models", "Model"),
    ("keras.models", "Sequential"),
}
_CLASSES = _MODELS | {
    (module, name)
    for module, names in {
        "keras": "DTypePolicy",
        "keras.layers": _LAYERS,
        "keras.initializers": "Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal "
        "LecunUniform Ones Orthogonal RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros",
        "keras.regularizers": "L1 L1L2 L2 OrthogonalRegularizer",
        "keras.constraints": "MaxNorm MinMaxNorm NonNeg UnitNorm",
        "keras.src.applications.convnext": "LayerScale StochasticDepth",
        "keras.src.ops.core": "Cast StopGradient",
    }.items()
    for name in names.split()
}
# what arithmetic on tensors leaves: x / 255, preprocess_input(x), activations.softmax(x); nothing but numbers
_ARITHMETIC = [f"keras.src.ops.{name}" for name in ("image", "linalg", "math", "nn", "numpy")]
_VALUES = {"__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__"}
_DTYPES = {"bool", "float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64"}
_ACTIVATIONS = {
    *"celu elu exponential gelu hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear".split(),
    *"log_sigmoid log_softmax mish relu relu6 selu sigmoid silu softmax softplus softsign swish tanh".split(),
}
_ATTENTION = (
    keras.layers.AdditiveAttention,
    keras.layers.Attention,
    keras.layers.GroupQueryAttention,
    keras.layers.MultiHeadAttention,
)


def read_network(path) -> tuple[keras.Model, dict]:
    """Read a network, not compiled, and what the file's member ``bcdlib.json`` says (empty without one).

    Raises
    ------
    ValueError
        Saying why the file is refused, or what is wrong with it; Keras raises other kinds too.
    """
    _check_kind(path)
    sources.check_directory(Path(path))
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        members = _members(archive)
        config = checked_config(_json(archive, "config.json"))
        facts = _json(archive, MEMBER) if MEMBER in members else {}
        written_by = str(_json(archive, "metadata.json").get("keras_version", ""))
        if not written_by.startswith("3."):
            raise ValueError(
                f"Keras {written_by or '2'} wrote it, and only Keras 3 is understood; load it there, build "
                "the same network in Keras 3, copy the weights and save it as .keras"
            )
        weights = archive.extract(WEIGHTS, folder)
        held = check_weights(weights)
        try:
            with _bounded(held):
                network = keras.saving.deserialize_keras_object(config, safe_mode=True)
            network.load_weights(weights)
        except (TypeError, ValueError, RecursionError) as error:
            if written_by == keras.__version__ or "refused: " in str(error):
                raise
            raise ValueError(
                f"Keras {written_by} wrote it, and Keras {keras.__version__}, which is here, cannot load it: "
                f"{shortly(error)}"
            ) from None
    return network, facts


def shortly(error: BaseException) -> str:
    """Return what is wrong as one line, without the configurations that Keras puts around it."""
    text = one_line(error).rpartition("Exception encountered: ")[2]
    bold = re.findall(r"\x1b\[1m(.*?)\x1b\[0m", text)  # where Keras puts what a layer raised
    return (bold[-1] if bold else text)[:400]


def _check_kind(path) -> None:
    """Say what a file is that is no .keras file: it is known by its first bytes, whatever its name."""
    if h5py.is_hdf5(path):
        raise ValueError(
            "it is an HDF5 file, as Keras 2 wrote them, which may hold code; load it where you trust it and "
            "save it as .keras with Keras 3"
        )
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            raise ValueError("a .keras file is wanted, as model.save of Keras 3 writes it")


def _members(archive: zipfile.ZipFile) -> set[str]:
    """Check names, sizes and packing of all members before one is read."""
    found: set[str] = set()
    for info in archive.infolist():
        name = info.filename
        if name.startswith("assets/") and info.is_dir():
            continue
        if name.endswith("data.pkl"):
            raise ValueError(
                "it is a PyTorch file; a .keras file is wanted, as model.save of Keras 3 writes it"
            )
        if name not in MEMBERS or name in found:
            raise ValueError(
                f"refused: it holds {name}{' twice' * (name in found)}, as no plain network does"
            )
        if info.file_size > MEMBERS[name] or info.file_size > max(SMALL, 2 * info.compress_size):
            raise ValueError(f"refused: its {name} has the monstrous size of {info.file_size:,} bytes")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"refused: its {name} is packed in a way that Keras does not use")
        found.add(name)
    if missing := MEMBERS.keys() - found - {MEMBER}:
        raise ValueError(f"a .keras file is wanted, and this archive has no {min(missing)}")
    return found


def _json(archive: zipfile.ZipFile, name: str) -> dict:
    with archive.open(name) as member:
        content = json.loads(member.read(MEMBERS[name]))  # archive.read would first unpack all of a bomb
    if not isinstance(content, dict):
        raise ValueError(f"its {name} is no JSON object")
    return content


# --- the configuration --------------------------------------------------------------------------------------


def checked_config(config: dict) -> dict:
    """Return a network's configuration without what belongs to training, if all that it names is known.

    Parameters
    ----------
    config : dict
        What ``config.json`` holds.

    Raises
    ------
    ValueError
        With the class that is not among those that are let through.
    """
    config = _checked(config)
    if (config.get("module"), config.get("class_name")) not in _MODELS:
        raise ValueError("its config.json describes no network")
    if (calls := _calls(config)) > LAYERS_AT_MOST:
        raise ValueError(f"refused: it calls {calls:,} layers; at most {LAYERS_AT_MOST:,} are loaded")
    return config


def _checked(part):
    if isinstance(part, list):
        return [_checked(one) for one in part]
    if not isinstance(part, dict):
        return part
    if "class_name" in part:
        _check_class(part)
    return {key: _checked(value) for key, value in part.items() if key != "compile_config"}


def _check_class(part: dict) -> None:
    name, module, config = part["class_name"], part.get("module"), part.get("config")
    registered, known = part.get("registered_name"), False
    if isinstance(name, str) and isinstance(module, str | None):
        if name in _VALUES:
            dtype = config.get("dtype", "float32") if isinstance(config, dict) else None
            known = module is None and isinstance(dtype, str) and dtype in _DTYPES
        elif name == "function":
            name = config if isinstance(config, str) else name
            known = module in ("keras.activations", "builtins") and name in _ACTIVATIONS
        else:
            known = isinstance(config, dict) and ((module, name) in _CLASSES or _is_arithmetic(module, name))
    if known and registered in (None, name):
        return
    if isinstance(module, str) and ".engine." in module:
        raise ValueError(
            "Keras 2 wrote it, and only Keras 3 is understood; build the same network in Keras 3, copy the "
            "weights and save it as .keras"
        )
    named = " as ".join(str(one)[:100] for one in (f"{module}.{name}", registered) if one)
    raise ValueError(
        f"refused: it names {named}, which is none of Keras' plain layers; others can run code of whoever "
        "made the file, or read files here. Ask for a network without it"
    )


def _is_arithmetic(module: str | None, name: str) -> bool:
    if module not in _ARITHMETIC:
        return False
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and issubclass(found, keras.Operation) and found.__module__ == module


def _calls(part) -> int:
    """Count calls of layers in an image's way through the network; those of a shared part count each time."""
    if isinstance(part, list):
        return sum(map(_calls, part))
    if not isinstance(part, dict):
        return 0
    within = sum(_calls(value) for key, value in part.items() if key != "inbound_nodes")
    mine = str(part.get("module")).startswith(("keras.layers", "keras.src.ops"))
    nodes = part.get("inbound_nodes")
    return (within + mine) * max(1, len(nodes) if isinstance(nodes, list) else 1)


# --- weights ------------------------------------------------------------------------------------------------


def check_weights(path) -> int:
    """Check that an HDF5 file holds plain arrays with all their bytes inside it; return how many bytes.

    Raises
    ------
    ValueError
        For links (external, soft, or a second hard one), external or virtual storage, packed or missing
        bytes, and other types than numbers.
    """
    with h5py.File(path, "r") as file:
        total, seen, groups = 0, {_address(file)}, [file]
        _check_attributes(file)
        while groups:
            group = groups.pop()
            for name in group:
                place = f"refused: {group.name.rstrip('/')}/{name} in its {WEIGHTS}"
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{place} is a link, which could lead to another file")
                part = group[name]
                if not isinstance(part, h5py.Group | h5py.Dataset) or _address(part) in seen:
                    raise ValueError(f"{place} is no plain array or group")
                seen.add(_address(part))
                _check_attributes(part)
                if isinstance(part, h5py.Group):
                    groups.append(part)
                elif not _plain(part):
                    raise ValueError(f"{place} is stored in a way that Keras does not use (linked, packed)")
                else:
                    total += part.nbytes
        if total > Path(path).stat().st_size:
            raise ValueError(f"refused: its {WEIGHTS} declares more than it holds")
    return total


def _address(part) -> int:
    return h5py.h5o.get_info(part.id).addr


def _plain(array: h5py.Dataset) -> bool:
    made = array.id.get_create_plist()
    return (
        made.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
        and made.get_external_count() == 0
        and array.id.get_storage_size() == array.nbytes
        and array.dtype.names is None
        and array.dtype.kind in "biufV"  # V: bfloat16
        and array.dtype.itemsize <= 8
    )


def _check_attributes(part) -> None:
    for name in part.attrs:
        kind = part.attrs.get_id(name)
        if kind.shape not in ((), (1,)) or kind.get_storage_size() > 2**16:
            raise ValueError(f"refused: the attribute {name} in its {WEIGHTS} is of a monstrous size")


# --- building -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _bounded(held: int) -> Iterator[None]:
    """Stop Keras before a network gets more weights than its file holds, or layers of monstrous output."""
    add_weight = keras.Layer.add_weight
    left = held + 2**20  # counters and the like are not all stored

    def counted(layer, shape=None, initializer=None, dtype=None, **settings):
        nonlocal left
        dtype = keras.backend.standardize_dtype(dtype or layer.variable_dtype)
        left -= math.prod(shape or ()) * (
            1 if dtype == "bool" else int("".join(filter(str.isdigit, dtype))) // 8
        )
        if left < 0:
            raise ValueError(f"refused: it declares more weights than its {WEIGHTS} holds")
        return add_weight(layer, shape, initializer, dtype, **settings)

    def watching(symbolic_call):
        def watched(operation, *inputs, **settings):
            if isinstance(operation, keras.layers.TimeDistributed) and isinstance(
                operation.layer, keras.Model
            ):
                raise ValueError(f"refused: its layer {operation.name} repeats a network along an axis")
            found = symbolic_call(operation, *inputs, **settings)
            if (most := largest_output(operation, found, inputs)) > NUMBERS_AT_MOST:
                raise ValueError(
                    f"refused: its layer {operation.name} makes {most:,} numbers of one image; at most "
                    f"{NUMBERS_AT_MOST:,} are understood"
                )
            return found

        return watched

    with (
        mock.patch.object(keras.Layer, "add_weight", counted),
        mock.patch.object(keras.Layer, "symbolic_call", watching(keras.Layer.symbolic_call)),
        mock.patch.object(keras.Operation, "symbolic_call", watching(keras.Operation.symbolic_call)),
    ):
        yield


def largest_output(operation, outputs, inputs=()) -> int:
    """Return how many numbers a layer makes of one image; of attention, how many scores if they are more."""
    most = [math.prod(one or 1 for one in tensor.shape) for tensor in keras.tree.flatten(outputs)]
    if isinstance(operation, _ATTENTION):
        given = keras.tree.flatten(inputs)
        tokens = max(math.prod(one or 1 for one in tensor.shape[1:-1]) for tensor in given)
        heads = getattr(operation, "num_query_heads", 0) or getattr(operation, "num_heads", 1)
        width = given[0].shape[-1] if isinstance(operation, keras.layers.AdditiveAttention) else 1
        most.append(tokens**2 * heads * width)
    return max(most, default=0)
