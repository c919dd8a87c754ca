"""What the paper prints: Table II, row by row, with what each number was measured on where that is known.

Abu Al-Haija & Adebanjo, "Breast Cancer Diagnosis in Histopathological Images Using ResNet-50 Convolutional
Neural Network". Table I stands in `data.breakhis`, beside the counts that it is compared with.
"""

import pandas as pd

AS_PRINTED = "as printed"
# what labels say of methods that had no pre-trained weights, and whose base did not learn here either
NOT_COMPARABLE = "frozen random base: not comparable"

TABLE_II = pd.DataFrame(
    [
        (
            "reshist",
            "Gour et al., 2020",
            "Customized ResHist [152- Residual Learning-CNN]",
            84.34,
            "2 classes, without augmentation; 92.52 with",
        ),
        (
            "hybrid_cnn",
            "Gupta et al., 2020",
            "Hybrid CNN [Employed Several Pre-Trained CNNs]",
            93.27,
            AS_PRINTED,
        ),
        ("lenet5", "Dabeer et al., 2019", "Customized LeNet-5 CNN", 93.45, AS_PRINTED),
        ("densenet201", "Sagar et al., 2019", "Pre-Trained DenseNet201CNN", 98.30, AS_PRINTED),
        (
            "ensemble",
            "Kassani et al., 2019",
            "Pre-Trained Combined CNNs [DenseNet201+ VGG19 + MobileNetV2]",
            98.13,
            AS_PRINTED,
        ),
        ("resnet152", "Gandomkar et al., 2018", "Pre-Trained ResNet-152 CNN", 98.77, AS_PRINTED),
        ("dcnn14", "Adeshina et al., 2018", "New Deep CNN/14 Layers (DCNN-14)", 91.5, "probably 8 subtypes"),
        (
            "csdcnn",
            "Han et al., 2017",
            "New Class Structure-Based Deep CNN (CSDCNN)",
            93.20,
            "8 subtypes, not 2 classes",
        ),
        ("googlenet", "Sun et al., 2017", "Pre-Trained GoogLeNet CNN", 95.00, AS_PRINTED),
        ("alexnet", "Spanhol et al., 2016", "Pre-Trained AlexNet CNN", 84.60, AS_PRINTED),
        (
            "resnet50",
            "Proposed Method",
            "Pre-Trained ResNet-50 CNN",
            99.10,
            "2 classes; train 100X+200X+400X, test 40X of the same slides",
        ),
    ],
    columns=["key", "research", "method", "accuracy", "measured on"],
)
