"""What defines a method that is trained with Keras; `_training` trains it."""

import math
import numbers

import keras

from bcdlib.data.stain import KINDS
from bcdlib.errors import InputError
from bcdlib.methods._base import TASKS
from bcdlib.methods._recipe import PAPER, RECIPES, Recipe
from bcdlib.methods._training import AUGMENTATION, STANDARDISE, KerasTraining
from bcdlib.methods.parts import backbones, features, hardware, networks
from bcdlib.methods.parts.architectures import chain as chain  # for method files


class KerasMethod(KerasTraining):
    """A method trained with Keras: augmentation, normalised bases, pooling, head, loss and optimizer.

    A method is a set of bases (``architectures``; none for a network trained from scratch, which then has
    `build_features`), a ``pooling``, `build_head`, and a ``loss``.

    Parameters
    ----------
    trainable : "all" or "head"
        "all" fine-tunes the whole network; "head" trains the head only, on features of the frozen bases that
        are computed once and standardised by the training images.
    recipe : "authors" or "paper"
        Train as the method's authors did (`Recipe`), as far as known, or as the paper that compares.
    task : str
        "binary" (benign or malignant), "subtype" (the eight tumour types); some know "magnification" too.
    stain : None, "macenko" or "reinhard"
        Stain normalisation in front of the network, its target fitted on the training images.
    weights : str, optional
        What the bases start from: "imagenet", "none" (random), or a folder of weights files.
    pretrained_required : bool
        Whether it is an error if ImageNet's weights cannot be had; otherwise random ones take their place.
    size : str
        "WIDTHxHEIGHT" to which the images of a pixel cache are resized, read from its source again; "cache"
        takes them as they are; "" means the recipe's size.
    epochs, steps_per_epoch : int
        Number of epochs (default: the recipe's, else 200), and of batches in each; None: as many batches as
        show every training image once.
    batch_size : int
        Images in a batch; default: the recipe's, else 32.
    learning_rate : float
        The optimizer's step size; default: the recipe's, else 0.001.
    batch_norm : float, "frozen" or None
        Momentum of the bases' batch norm layers (None: Keras' own); "frozen" keeps ImageNet's statistics.
    augment : bool
        Whether training batches are augmented; only where the whole network is trained.
    augmented_copies : int
        With frozen bases: how many augmented copies of each training image the head is trained on as well.
    precision : str
        Number format of a whole network's computations; "auto": the fastest suitable one on this machine.
    xla : str
        Whether the network is compiled by XLA; "auto": where it is faster.
    steps_per_execution : int
        Batches trained in one call of the backend; 0: chosen for this machine (for a head, a whole epoch).
    seed : int
        Seed of initial weights, order of images, augmentation and dropout. A layer of one's own that draws
        random numbers needs a ``keras.random.SeedGenerator``, as Keras' own have.
    verbose : int or "auto"
        As in ``keras.Model.fit``.

    Attributes
    ----------
    classes_ : int64 array
        0 and 1, or 0..7: the columns of `predict_proba`.
    model_ : keras.Model
        uint8 (N, height, width, 3) -> what the loss looks at: for most methods the probability of malignant
        (N, 1), or of the subtypes (N, 8). With ``trainable="head"`` built when it is first needed.
    weights_ : backbones.Weights
        Of the first base; its label covers all.
    stain_ : stain.StainTarget or None
    devices_ : int
        How many devices a whole network was trained on; see `hardware.sharing_devices`.
    history_ : DataFrame
        One row an epoch: epoch (from 0), loss, accuracy, val_loss, val_accuracy.
    """

    architectures: tuple[str, ...] = ()
    always = None
    chooses = False
    pooling = "average"
    loss = "binary_crossentropy"
    tasks = ("binary", "subtype")
    positive: tuple[str, ...] = ()  # parameters that must be above 0; the other numbers are 0 or more
    choices = {  # what a parameter can be
        "trainable": ("all", "head"),
        "recipe": RECIPES,
        "stain": (None, *KINDS),
        "precision": ("auto", "float32", "mixed_bfloat16", "mixed_float16"),
        "xla": tuple(hardware.XLA),
    }

    def __init__(
        self,
        *,
        trainable="all",
        recipe="authors",
        task="binary",
        stain=None,
        weights=None,
        pretrained_required=True,
        size="",
        epochs=None,
        steps_per_epoch=None,
        batch_size=None,
        learning_rate=None,
        batch_norm=None,
        augment=True,
        augmented_copies=0,
        precision="auto",
        xla="auto",
        steps_per_execution=0,
        seed=0,
        verbose="auto",
    ):
        self.trainable = trainable
        self.recipe = recipe
        self.task = task
        self.stain = stain
        self.weights = weights
        self.pretrained_required = pretrained_required
        self.size = size
        self.epochs = epochs or self.plan.epochs or 200
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size or self.plan.batch_size or 32
        self.learning_rate = learning_rate or self.plan.learning_rate or 0.001
        self.batch_norm = batch_norm
        self.augment = augment
        self.augmented_copies = augmented_copies
        self.precision = precision
        self.xla = xla
        self.steps_per_execution = steps_per_execution
        self.seed = seed
        self.verbose = verbose

    # --- what makes a method: override these ------------------------------------------------------------

    def build_augmentation(self) -> keras.layers.Layer:
        """Make the layer that augments training batches, the recipe's; saved networks leave it out."""
        return self.plan.augmentation(self.seed)

    def base_options(self, name: str) -> dict:
        """Say how features of a base are made: ``pooling`` and ``pixels``, as `backbones.append_features`."""
        return {"pooling": self.pooling, "pixels": self.plan.pixels}

    def build_features(self, x):
        """Connect RGB 0..255 (a Keras tensor) to features (batch, channels): pooled bases, side by side."""
        several = len(self.bases_) > 1
        pooled = [
            backbones.append_features(
                x,
                name,
                self.bases_[name],
                seed=self.seed,
                trainable=not self.frozen,
                batch_norm=self.batch_norm,
                name=f"pool_{name}" if several else "pool",
                **self.base_options(name),
            )
            for name in self.bases_
        ]
        return keras.layers.Concatenate(name="pool")(pooled) if several else pooled[0]

    def build_head(self, x):
        """Connect features (a Keras tensor) to what the output layer gets."""
        return x

    def build_outputs(self, x):
        """Connect features to what the loss looks at."""
        return self.output()(self.build_head(x))

    def build_prediction(self, model: keras.Model):
        """Connect the trained network to its prediction, (batch, 1) or (batch, 8)."""
        return model.get_layer("probability").output

    def build_loss(self):
        """Give what is minimised: the method's own loss, or for subtypes the cross-entropy."""
        return self.loss if self.task == "binary" else "sparse_categorical_crossentropy"

    def build_metric(self):
        """Give what the curve ``accuracy`` shows."""
        return "accuracy"

    def build_optimizer(self) -> keras.optimizers.Optimizer:
        """Make the optimizer: the recipe's; the paper's is RMSprop."""
        return self.plan.optimizer(learning_rate=self.learning_rate)

    def build_callbacks(self) -> list[keras.callbacks.Callback]:
        """Make what watches the training of the network beside our own callbacks."""
        return []

    def image_shape(self, cache) -> tuple[int, int, int]:
        """Give (height, width, 3) of the images that it looks at, for those of a pixel cache.

        Raises
        ------
        InputError
            If ``size`` is none.
        """
        if self.size == "cache" or not (self.size or self.plan.size):
            return cache.pixels.shape[1:]
        if not self.size:
            return (*self.plan.size[::-1], 3)
        try:
            width, height = map(int, self.size.split("x"))
        except ValueError:
            raise InputError(
                f"{self.key}: size={self.size!r}; give WIDTHxHEIGHT, for example 350x230, or 'cache'"
            ) from None
        return height, width, 3

    def starts_from(self) -> dict[str, str] | str:
        """Identify what the bases start from: weights in files by their content."""
        builtin = set(self.architectures) <= set(backbones.ARCHITECTURES)
        if self.weights in ("none", "imagenet") and builtin:
            return self.weights
        found = backbones.find_all(self.architectures, self.weights, required=False)
        return {name: features.weights_identity(base, 0) for name, base in found.items()}

    # --- what they can use ------------------------------------------------------------------------------

    @property
    def plan(self) -> Recipe:
        """The recipe that it follows."""
        return PAPER if self.recipe == "paper" else self.authors

    @property
    def units(self) -> int:
        """Numbers that the network gives an image: one probability, or one a class of several."""
        return 1 if self.task == "binary" else len(TASKS[self.task])

    def output(self, name: str = "probability") -> keras.layers.Layer:
        """Make an output layer for the task: one sigmoid, or a number a class by softmax."""
        return keras.layers.Dense(
            self.units, activation="sigmoid" if self.units == 1 else "softmax", name=name, dtype="float32"
        )

    @property
    def momentum(self) -> float:
        """Momentum of batch norm from scratch; the profile's "frozen" is for ImageNet's statistics."""
        return self.batch_norm if isinstance(self.batch_norm, float) else 0.9

    @classmethod
    def trains(cls, trainable: str) -> str:
        """Say what it trains, as `Method.trains`; a network without a base always trains whole."""
        return super().trains(trainable if cls.architectures else "all")

    @property
    def frozen(self) -> bool:
        """Whether the bases stay as they are and only the head is trained."""
        return self.trains(self.trainable) == "head"

    # --- the network ------------------------------------------------------------------------------------

    def build(self, input_shape) -> keras.Model:
        """Build and compile the network for images (height, width, 3); sets ``model_`` and ``weights_``.

        Raises
        ------
        InputError
            If a parameter has a value that is unknown, or the weights cannot be had.
        """
        self._prepare()
        networks.set_seed(self.seed)
        self.input_shape_ = tuple(input_shape)
        images = keras.Input(input_shape, dtype="uint8", name="image")
        x = keras.layers.Rescaling(1.0, name="as_float", dtype="float32")(images)
        if self.augment and not self.frozen:
            augment = self.build_augmentation()
            augment.name = AUGMENTATION
            x = augment(x)
        self.model_ = self._connect(images, self.build_features(x))
        return self.model_

    def _prepare(self) -> None:
        """Check the parameters and find the weights."""
        for name, value in self.get_params().items():
            number = isinstance(value, numbers.Real)
            if number and not 0 <= value < math.inf or name in self.positive and not (number and value > 0):
                least = "a number above 0" if name in self.positive else "0 or more"
                raise InputError(f"{self.key}: {name}={value!r}; give {least}")
        for name, known in {"task": self.tasks, **self.choices}.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"{self.key}: {name}={getattr(self, name)!r}; it knows {', '.join(map(repr, known))}"
                )
        self.bases_ = backbones.find_all(self.architectures, self.weights, self.pretrained_required)
        first = next(iter(self.bases_.values()), backbones.Weights(None, ""))
        self.weights_ = backbones.Weights(
            first.path, backbones.weights_label(self.bases_, frozen=self.frozen)
        )

    def _connect(self, inputs, x) -> keras.Model:
        if self.frozen:  # a frozen base's channels differ in scale by orders of magnitude
            x = keras.layers.Normalization(name=STANDARDISE)(x)
        return self._compile(keras.Model(inputs, self.build_outputs(x), name=self.key))

    def _compile(self, model: keras.Model) -> keras.Model:
        model.compile(
            optimizer=self.build_optimizer(),
            loss=self.build_loss(),
            metrics=[self.build_metric()],
            jit_compile=hardware.XLA[self.xla],
        )
        return model
