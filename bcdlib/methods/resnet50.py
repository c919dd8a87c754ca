"""ResNet-50 transfer learning: the paper's own method (its last row of Table II)."""

from keras import layers

from bcdlib.methods._keras import KerasMethod, chain


class ResNet50(KerasMethod):
    """ResNet-50 with ImageNet weights, pooled, Dense 1024, ReLU, dropout 40 %, Dense 1, sigmoid.

    Publication: Abu Al-Haija & Adebanjo, "Breast Cancer Diagnosis in Histopathological Images Using ResNet-50
    Convolutional Neural Network". Printed: 99.10 % (Table II), trained on 100X, 200X and 400X, tested on 40X
    of the same 82 slides. Stated there: size 144x96, loss MSE, RMSprop, batch 32, 200 epochs of 200 steps
    (section III). Silent there, chosen here: global average pooling; RMSprop's rate 0.001 (Keras' default);
    the augmentation (flips, which together make half turns, and zooms of up to 10 %); normalisation as the
    ImageNet weights expect. Figure 4 draws a frozen base with a retrained classifier, the text says
    fine-tuning: ``trainable`` offers both.
    """

    key = "resnet50"
    title = "ResNet-50"
    architectures = ("resnet50",)
    loss = "mean_squared_error"

    def build_head(self, x):
        """Append a dense layer, ReLU and dropout."""
        return chain(
            x,
            layers.Dense(1024, name="dense"),
            layers.ReLU(name="relu"),
            layers.Dropout(0.4, name="dropout"),
        )
