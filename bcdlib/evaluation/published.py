"""What the paper prints: Table II, row by row, with what each number was measured on, as far as known.

``measured on`` says in one line what was seen, or (in so many words) is inferred or remembered; the methods'
docstrings say where. ``split`` names the protocol in `data.splits` that comes closest, if any does.

Abu Al-Haija & Adebanjo, "Breast Cancer Diagnosis in Histopathological Images Using ResNet-50 Convolutional
Neural Network". Table I stands in `data.breakhis`, beside the counts that it is compared with.
"""

import pandas as pd

# what labels say of methods that had no pre-trained weights, and whose base did not learn here either
NOT_COMPARABLE = "frozen random base: not comparable"

TABLE_II = pd.DataFrame(
    [
        (
            "reshist",
            "Gour et al., 2020",
            "Customized ResHist [152- Residual Learning-CNN]",
            84.34,
            "2 classes, by image, without augmentation; 92.52 with; split not known",
            "",
        ),
        (
            "hybrid_cnn",
            "Gupta et al., 2020",
            "Hybrid CNN [Employed Several Pre-Trained CNNs]",
            93.27,
            "very likely which of 4 magnifications, by image; benign or malignant at most 86.7",
            "gupta",
        ),
        (
            "lenet5",
            "Dabeer et al., 2019",
            "Customized LeNet-5 CNN",
            93.45,
            "2 classes, 1582 images of all magnifications, drawn by image (inferred)",
            "image-80-20",
        ),
        (
            "densenet201",
            "Sagar et al., 2019",
            "Pre-Trained DenseNet201CNN",
            98.30,
            "2 classes, best of 20 epochs on 179 validation images, 400X (inferred); separate folder 69.7",
            "image-400-balanced",
        ),
        (
            "ensemble",
            "Kassani et al., 2019",
            "Pre-Trained Combined CNNs [DenseNet201+ VGG19 + MobileNetV2]",
            98.13,
            "2 classes, 684 of 697 images of all magnifications, drawn by image (inferred)",
            "image-80-20",
        ),
        (
            "resnet152",
            "Gandomkar et al., 2018",
            "Pre-Trained ResNet-152 CNN",
            98.77,
            "2 classes, probably 80 of 81 slides, not images; split not known",
            "",
        ),
        (
            "dcnn14",
            "Adeshina et al., 2018",
            "New Deep CNN/14 Layers (DCNN-14)",
            91.5,
            "probably 8 subtypes; nothing further known",
            "",
        ),
        (
            "csdcnn",
            "Han et al., 2017",
            "New Class Structure-Based Deep CNN (CSDCNN)",
            93.20,
            "8 subtypes, not 2 classes; drawn by image, as far as known",
            "image-50-25-25",
        ),
        (
            "googlenet",
            "Sun et al., 2017",
            "Pre-Trained GoogLeNet CNN",
            95.00,
            "not known; the publication compared three networks",
            "",
        ),
        (
            "alexnet",
            "Spanhol et al., 2016",
            "Pre-Trained AlexNet CNN",
            84.60,
            "2 classes, one magnification; as far as known the share of a slide's images, 200X",
            "official-200",
        ),
        (
            "resnet50",
            "Proposed Method",
            "Pre-Trained ResNet-50 CNN",
            99.10,
            "2 classes; train 100X+200X+400X, test 40X of the same slides",
            "magnification",
        ),
    ],
    columns=["key", "research", "method", "accuracy", "measured on", "split"],
)
# the printed numbers that are, probably or as far as known, the mean over slides of the share of their images
# that is right, or the share of slides
OF_SLIDES = ("alexnet", "resnet152")
