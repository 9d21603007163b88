"""The digits that the included model was trained and is tested on, as an image folder.

scikit-learn's copy of the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI
Machine Learning Repository, 1998, doi:10.24432/C50P49, CC BY 4.0): 1797 scans of 8 x 8 pixels, 17 gray levels, white
ink on black. Here they are enlarged to 32 x 32. 360 images, 36 a class on average, are held out for testing.

Run `python -m avarc_cli.train.digits FOLDER` to write FOLDER/train/<digit>/*.png, FOLDER/test/<digit>/*.png and
FOLDER/captions.json, the captions that the included model of captions was trained on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from avarc_cli.errors import UsageError

HELD_OUT = 360
SPLIT_SEED = 0  # chosen once, before any model was trained
SIDE = 32  # pixels
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "{}",
    "number {}",
    "the digit {}",
    "a handwritten {}",
    "a {} written by hand",
    "this is a {}",
    "a picture of the number {}",
    "a small image of a {}",
    "a scan of the digit {}",
    "it shows the numeral {}",
    "somebody wrote a {}",
    "the number {} in white ink on black",
)


def write_digits(folder: Path) -> None:
    """Write both parts; the split is stratified by class and always the same. Raises: UsageError without sklearn."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise UsageError(
            "the digits come with scikit-learn", "it is not installed", "pip install 'avarc[digits]'"
        ) from None

    pixels_N64, label_N = load_digits(return_X_y=True)
    rows = np.arange(len(label_N))
    train, test = train_test_split(rows, test_size=HELD_OUT, stratify=label_N, random_state=SPLIT_SEED)
    for part, chosen in (("train", train), ("test", test)):
        for row in sorted(chosen):
            path = folder / part / str(label_N[row]) / f"{row:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            gray = np.round(pixels_N64[row].reshape(8, 8) * (255 / 16)).astype(np.uint8)
            Image.fromarray(gray).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, optimize=True)


def write_captions(path: Path) -> None:
    """Write the captions of each digit, spelled and as a numeral."""
    captions = {
        str(digit): [template.format(name) for template in TEMPLATES for name in (word, str(digit))]
        for digit, word in enumerate(WORDS)
    }
    path.write_text(json.dumps(captions, indent=1))


if __name__ == "__main__":
    write_digits(Path(sys.argv[1]))
    write_captions(Path(sys.argv[1]) / "captions.json")
