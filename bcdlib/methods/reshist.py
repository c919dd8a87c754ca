"""A residual network of 152 layers for histology, trained from scratch (Gour 2020)."""

from keras import layers

from bcdlib.methods._keras import KerasMethod, chain


class ResHist(KerasMethod):
    """152 layers in residual bottleneck blocks (3, 8, 36, 3), narrow, trained from random weights.

    Publication: Gour, Jain & Kumar, "Residual learning based CNN for breast cancer histopathological image
    classification", Int J Imaging Syst Technol 30, 2020. Printed: 84.34 % (Table II), the publication's
    figure without augmentation; with its augmentation (stain normalisation, patches, affine transformations)
    it gives 92.52 %. The publication was not at hand, and nothing further is known. Known of it: 152 layers,
    residual learning, built and trained for histology. Chosen here: the stages of ResNet-152 (He et al. 2016)
    at a quarter of its width, for images and data sets this small; blocks with batch norm in front (He et al.
    2016, "Identity mappings"), which so deep a network needs to start; augmentation as for the others;
    cross-entropy, RMSprop at 0.001 (no weights to protect). Always trained whole.
    """

    key = "reshist"
    title = "ResHist (152 layers)"
    changes = {"all": {"learning_rate": 0.001}}
    # maps within a block (four times as many between), blocks
    stages = ((16, 3), (32, 8), (64, 36), (128, 3))

    def build_features(self, x):
        """Build the stages of residual blocks."""
        x = chain(
            x,
            layers.Rescaling(1 / 127.5, offset=-1.0, name="normalisation"),
            layers.Conv2D(16, 7, strides=2, padding="same", use_bias=False, name="conv1"),
            layers.MaxPooling2D(3, 2, padding="same", name="pool1"),
        )
        for stage, (maps, count) in enumerate(self.stages, 2):
            for number in range(1, count + 1):
                x = self._block(
                    x, maps, 2 if number == 1 and stage > 2 else 1, number == 1, f"block_{stage}_{number}"
                )
        return chain(x, *self._norm("last"), layers.GlobalAveragePooling2D(name="pool"))

    def _block(self, x, maps: int, strides: int, project: bool, name: str):
        """Add 1x1, 3x3 and 1x1 convolutions, each behind batch norm and ReLU, to what came in."""
        y = chain(x, *self._norm(f"{name}_1"))
        if project:
            x = layers.Conv2D(4 * maps, 1, strides=strides, use_bias=False, name=f"{name}_shortcut")(y)
        y = chain(
            y,
            layers.Conv2D(maps, 1, use_bias=False, name=f"{name}_conv_1"),
            *self._norm(f"{name}_2"),
            layers.Conv2D(maps, 3, strides=strides, padding="same", use_bias=False, name=f"{name}_conv_2"),
            *self._norm(f"{name}_3"),
            layers.Conv2D(4 * maps, 1, use_bias=False, name=f"{name}_conv_3"),
        )
        return layers.Add(name=name)([x, y])

    def _norm(self, name: str) -> list[layers.Layer]:
        return [
            layers.BatchNormalization(momentum=self.momentum, name=f"{name}_norm"),
            layers.ReLU(name=f"{name}_relu"),
        ]
