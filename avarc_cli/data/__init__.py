"""Images from disk: reading, preprocessing, datasets, label spaces."""

from avarc_cli.data.datasets import ImageSet, open_images
from avarc_cli.data.known import Dataset, datasets
from avarc_cli.data.labels import LabelSpace, human_name, imagenet1k, match, resolve_classes, subset
from avarc_cli.data.preprocess import Preprocess, load_rgb

__all__ = [
    "Dataset",
    "ImageSet",
    "LabelSpace",
    "Preprocess",
    "datasets",
    "human_name",
    "imagenet1k",
    "load_rgb",
    "match",
    "open_images",
    "resolve_classes",
    "subset",
]
