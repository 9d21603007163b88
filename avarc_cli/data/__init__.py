"""Images from disk: reading, preprocessing, data sets, label spaces."""

from avarc_cli.data.datasets import ImageSet, open_images
from avarc_cli.data.labels import LabelSpace, imagenet1k, match, resolve_classes, subset
from avarc_cli.data.preprocess import Preprocess, load_rgb

__all__ = [
    "ImageSet",
    "LabelSpace",
    "Preprocess",
    "imagenet1k",
    "load_rgb",
    "match",
    "open_images",
    "resolve_classes",
    "subset",
]
