"""Which backends of octavo stand for a container's image."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import Invalid


@dataclass(frozen=True, slots=True)
class Family:
    """Images that are run alike.

    Attributes:
        title: for messages.
        images: last parts of the images' names, without tag.
        backends: that may answer for them; empty means any.
        usual: the backend of a model whose files and configuration name none; empty where there is no such.
    """

    title: str
    images: tuple[str, ...]
    backends: tuple[str, ...] = ()
    usual: str = ""


FAMILIES = (
    Family("Triton", ("sagemaker-tritonserver", "tritonserver")),
    Family("LMI/DJL", ("djl-inference", "djl-serving")),
    Family("ONNX Runtime", ("onnxruntime", "onnxruntime-inference", "sagemaker-onnx"), ("onnxruntime",), "onnxruntime"),
    Family(
        "PyTorch",
        ("pytorch-inference", "pytorch-inference-graviton", "pytorch-inference-eia"),
        ("pytorch", "onnxruntime", "python"),
        "pytorch",
    ),
    Family(
        "Hugging Face",
        ("huggingface-pytorch-inference", "huggingface-pytorch-tgi-inference", "tei", "tei-cpu"),
        ("onnxruntime", "pytorch", "python"),
    ),
    Family("octavo", ("octavo",)),
)


def family_of(image: str) -> Family:
    """The family of an image such as `123456789012.dkr.ecr.us-east-1.amazonaws.com/sagemaker-tritonserver:23.08-py3`.

    Raises:
        Invalid: no image that is understood; lists those that are.
    """
    name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    for family in FAMILIES:
        if name in family.images:
            return family
    known = "; ".join(f"{family.title} ({', '.join(family.images)})" for family in FAMILIES)
    raise Invalid(f"the image {image[:200]!r} is not understood", "Image", f"These are: {known}.")
